"""Rooms: what a host's team does with one, and what viewers see of it. The door for other domains; the steps are in three modules.

    show.py      rooms, and the life cycle of their sessions
    shelf.py     offers on the shelf, the pin, the run-of-show
    audience.py  what is on air, the snapshot, likes, viewer counts, the pulse

Invariants
- A room has at most one session on air (live or interrupted).
- Every change of the team takes the room's row lock first. So changes, and the events that announce them, have one order.
- The pin names an offer of the session on air that was listed when it was set; ending the session or withdrawing the offer takes it away.
- Viewers are told of offers only while their session is on air: going live announces the whole shelf. Before that the team's channel
  alone hears of them (domains that keep engine keys of offers react all the same).
- snapshot + the stage events after its offset = a fresh snapshot; stock, likes and viewers are readings and excepted.

Deliberately not here: rights (endpoints.py asks), terms of offers (catalogue), live stock (inventory), chat. Likes and viewer counts
live in the fan-out engine alone until the session ends; losing that engine loses counts, never a state.
"""

from app.domains.catalogue.service import OfferDraft
from app.domains.rooms.audience import admit, count_viewers, like, live_session, pulse_room, pulse_rooms, snapshot
from app.domains.rooms.shelf import (
    CueDraft,
    advance,
    change_offer,
    get_offer,
    list_cues,
    list_offer,
    list_offers,
    pause_offer,
    pin_offer,
    reprice_offer,
    resume_offer,
    set_run_of_show,
    take_price_steps,
    top_up_offer,
    withdraw_offer,
)
from app.domains.rooms.show import (
    archive,
    change_room,
    change_session,
    create_room,
    create_session,
    end_session,
    fetch_on_air,
    fetch_session,
    get_room,
    get_session,
    go_live,
    interrupt,
    list_audit,
    list_rooms,
    list_sessions,
    next_checklist,
    resume,
    schedule,
    session_checklist,
)

__all__ = [
    "CueDraft",
    "OfferDraft",
    "admit",
    "advance",
    "archive",
    "change_offer",
    "change_room",
    "change_session",
    "count_viewers",
    "create_room",
    "create_session",
    "end_session",
    "fetch_on_air",
    "fetch_session",
    "get_offer",
    "get_room",
    "get_session",
    "go_live",
    "interrupt",
    "like",
    "list_audit",
    "list_cues",
    "list_offer",
    "list_offers",
    "list_rooms",
    "list_sessions",
    "live_session",
    "next_checklist",
    "pause_offer",
    "pin_offer",
    "pulse_room",
    "pulse_rooms",
    "reprice_offer",
    "resume",
    "resume_offer",
    "schedule",
    "session_checklist",
    "set_run_of_show",
    "snapshot",
    "take_price_steps",
    "top_up_offer",
    "withdraw_offer",
]
