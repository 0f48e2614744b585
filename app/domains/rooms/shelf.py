"""The shelf of a session, the pin and the run-of-show: part of the rooms service (service.py says what the whole owns).

Terms are the catalogue's; here a change is put in order (the room's lock), announced to those who may see it, and audited.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import AppError
from app.core.ids import room_of, scoped_id
from app.domains.catalogue import service as catalogue
from app.domains.catalogue.rules import OfferState
from app.domains.catalogue.service import OfferDraft
from app.domains.catalogue.tables import Offer
from app.domains.rooms import store
from app.domains.rooms.rules import CUES_MAX, ON_AIR, OPEN, CueKind, CueState, next_cue, why_not_pinned
from app.domains.rooms.show import clean_title, emit, get_room, lock_room, lock_session, time_text
from app.domains.rooms.tables import Cue, ShowSession
from app.protocol.channels import room_channel, staff_channel
from app.protocol.codes import BAD_REQUEST, CONFLICT, LIMIT_EXCEEDED, NOT_FOUND
from app.protocol.events import CueAdvanced, OfferListed, OfferPinned, OfferUpdated, OfferWithdrawn
from app.storage.gathering import gather_each, raise_first
from app.storage.work import Engines, Work

STEPS_AT_ONCE_MAX = 100  # offers whose price steps one pass of the worker takes

# --- the shelf ----------------------------------------------------------------------------------------------------------------------


async def list_offers(session: AsyncSession, session_id: str) -> list[Offer]:
    """The whole shelf in its order, withdrawn offers too."""
    return await catalogue.list_offers(session, session_id)


async def list_offer(work: Work, session_id: str, draft: OfferDraft, by: str = "system") -> Offer:
    """Puts an offer on the session's shelf."""
    room, show = await lock_session(work, session_id)
    _check_shelf_open(show)
    terms = {name: getattr(draft, name) for name in OfferDraft.__dataclass_fields__}
    offer = await catalogue.create_offer(work, room_id=room.id, session_id=show.id, currency=room.currency, **terms)
    emit(work, show, OfferListed(at=work.at, offer=catalogue.offer_view(offer)))
    await work.audit(room.id, by, "offer.listed", offer.id, name=offer.name, price_minor=offer.price_minor, total=offer.total)
    return offer


async def reprice_offer(work: Work, offer_id: str, price_minor: int, by: str, *, limits_bind: bool = True) -> Offer:
    """Raises AppError `over_limit` when the price is not delegated and `limits_bind`."""
    show, version = await _lock_offer(work, offer_id)
    offer = await catalogue.change_price(work, offer_id, price_minor, limits_bind=limits_bind)
    return await _announce_offer(work, show, offer, version, by, "offer.repriced", price_minor=price_minor)


async def take_price_steps(engines: Engines) -> None:
    """One pass of the worker. The scripts sell at a step's price from its moment on; here it becomes the offer's and viewers are told."""
    now_ms = await engines.sales_now_ms()
    async with engines.sql.read() as session:
        due = await catalogue.list_due_steps(session, now_ms, STEPS_AT_ONCE_MAX)

    async def one(offer_id: str) -> None:
        async with engines.work() as work:
            await _take_steps(work, offer_id, now_ms)

    raise_first(await gather_each(due, one))


async def _take_steps(work: Work, offer_id: str, now_ms: int) -> None:
    """Under the room's lock, so that two workers take a step once."""
    await store.lock_room(work.session, room_of(offer_id))
    offer = await get_offer(work.session, offer_id)
    show, version = await store.reload_session(work.session, offer.session_id), offer.version
    assert show is not None, "an offer stands on a session's shelf"
    offer = await catalogue.take_due_steps(work, offer_id, now_ms, for_sale=show.state in OPEN)
    await _announce_offer(work, show, offer, version, "system", "offer.repriced", price_minor=offer.price_minor)


async def top_up_offer(work: Work, offer_id: str, add: int, by: str, *, limits_bind: bool = True) -> Offer:
    """Raises AppError `over_limit` when the total is not delegated and `limits_bind`."""
    show, version = await _lock_offer(work, offer_id)
    offer = await catalogue.add_stock(work, offer_id, add, limits_bind=limits_bind)
    return await _announce_offer(work, show, offer, version, by, "offer.topped_up", add=add, total=offer.total)


async def change_offer(work: Work, offer_id: str, changes: dict[str, Any], by: str) -> Offer:
    """Window (opens_at, closes_at) and terms (see catalogue.change_terms) in one step and one event."""
    show, version = await _lock_offer(work, offer_id)
    offer = await get_offer(work.session, offer_id)
    if changes.keys() & {"opens_at", "closes_at"}:
        opens_at, closes_at = changes.get("opens_at", offer.opens_at), changes.get("closes_at", offer.closes_at)
        offer = await catalogue.change_window(work, offer_id, opens_at=opens_at, closes_at=closes_at)
    terms = {name: value for name, value in changes.items() if name not in {"opens_at", "closes_at"}}
    if terms:
        offer = await catalogue.change_terms(work, offer_id, terms)
    told = {name: time_text(value) if isinstance(value, datetime) else value for name, value in changes.items()}
    return await _announce_offer(work, show, offer, version, by, "offer.changed", **told)


async def pause_offer(work: Work, offer_id: str, by: str, *, reason: str = "") -> Offer:
    """Not for sale for now. It stays on the shelf, and pinned if it is: the host may be explaining why."""
    show, version = await _lock_offer(work, offer_id)
    offer = await catalogue.set_offer_state(work, offer_id, OfferState.PAUSED)
    return await _announce_offer(work, show, offer, version, by, "offer.paused", reason=reason)


async def resume_offer(work: Work, offer_id: str, by: str) -> Offer:
    show, version = await _lock_offer(work, offer_id)
    offer = await catalogue.set_offer_state(work, offer_id, OfferState.LISTED)
    return await _announce_offer(work, show, offer, version, by, "offer.resumed")


async def withdraw_offer(work: Work, offer_id: str, by: str, *, reason: str = "") -> Offer:
    """Off the shelf for good, and off the pin."""
    show, version = await _lock_offer(work, offer_id)
    offer = await catalogue.set_offer_state(work, offer_id, OfferState.WITHDRAWN)
    if offer.version == version:
        return offer
    room = await get_room(work.session, show.room_id)
    if room.pinned_offer_id == offer.id:
        room.pinned_offer_id = None
        emit(work, show, OfferPinned(at=work.at, offer=None))
    emit(work, show, OfferWithdrawn(at=work.at, offer=offer.id, reason=reason))
    await work.audit(show.room_id, by, "offer.withdrawn", offer.id, reason=reason)
    return offer


async def pin_offer(work: Work, room_id: str, offer_id: str | None, by: str) -> str | None:
    """Sets the offer being explained; None takes the pin away. The same pin again changes nothing."""
    room = await lock_room(work, room_id)
    show = await store.fetch_on_air(work.session, room_id)
    if offer_id is not None:
        offer = await catalogue.fetch_offer(work.session, offer_id)
        if offer is None or offer.room_id != room_id:
            raise AppError(NOT_FOUND, "no such offer in this room")
        problem = why_not_pinned(offer_session=offer.session_id, offer_state=offer.state, session_on_air=show.id if show else None)
        if problem:
            raise AppError(CONFLICT, problem)
    if room.pinned_offer_id != offer_id:
        room.pinned_offer_id = offer_id
        await work.session.flush()
        work.emit(room_id, [room_channel(room_id), staff_channel(room_id)], OfferPinned(at=work.at, offer=offer_id))
        await work.audit(room_id, by, "offer.pinned", offer_id or "")
    return offer_id


async def _lock_offer(work: Work, offer_id: str) -> tuple[ShowSession, int]:
    """Locks the offer's room; its session, and the offer's version before the change."""
    if await store.lock_room(work.session, room_of(offer_id)) is None:
        raise AppError(NOT_FOUND, "no such offer")
    offer = await get_offer(work.session, offer_id)
    show = await store.reload_session(work.session, offer.session_id)
    assert show is not None, "an offer stands on a session's shelf"
    _check_shelf_open(show)
    return show, offer.version


async def get_offer(session: AsyncSession, offer_id: str) -> Offer:
    offer = await catalogue.fetch_offer(session, offer_id)
    if offer is None:
        raise AppError(NOT_FOUND, "no such offer")
    return offer


def _check_shelf_open(show: ShowSession) -> None:
    if show.state not in OPEN:
        raise AppError(CONFLICT, f"the session is {show.state}; its shelf is closed")


async def _announce_offer(work: Work, show: ShowSession, offer: Offer, version_before: int, by: str, action: str, **detail: Any) -> Offer:
    """Tells of an offer that did change."""
    if offer.version != version_before:
        view = catalogue.offer_view(offer)
        emit(work, show, OfferUpdated(at=work.at, offer=view, reason=str(detail.get("reason", ""))))
        await work.audit(show.room_id, by, action, offer.id, version=offer.version, **detail)
    return offer


# --- run-of-show --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CueDraft:
    title: str
    kind: CueKind = CueKind.TALK
    offer_id: str | None = None
    minutes: int = 0
    id: str | None = None  # of a cue that is there already: it keeps its state


async def list_cues(session: AsyncSession, session_id: str) -> list[Cue]:
    return await store.list_cues(session, session_id)


async def set_run_of_show(work: Work, session_id: str, drafts: Sequence[CueDraft], by: str) -> list[Cue]:
    """Replaces the list. Cues that are named by id keep their state; the others wait."""
    _, show = await lock_session(work, session_id)
    if show.state not in OPEN:
        raise AppError(CONFLICT, f"the session is {show.state}; its run-of-show is closed")
    if len(drafts) > CUES_MAX:
        raise AppError(LIMIT_EXCEEDED, f"a run-of-show has at most {CUES_MAX} cues")
    before = {cue.id: cue for cue in await store.list_cues(work.session, session_id)}
    shelf = {offer.id for offer in await catalogue.list_offers(work.session, session_id)}
    cues = [_place_cue(work, show, before, shelf, place, draft) for place, draft in enumerate(drafts)]
    await store.delete_cues(work.session, sorted(before.keys() - {cue.id for cue in cues}))
    work.session.add_all(cues)
    await work.session.flush()
    await work.audit(show.room_id, by, "run_of_show.set", session_id, cues=len(cues))
    return cues


def _place_cue(work: Work, show: ShowSession, before: dict[str, Cue], shelf: set[str], place: int, draft: CueDraft) -> Cue:
    if draft.offer_id is not None and draft.offer_id not in shelf:
        raise AppError(BAD_REQUEST, f"cues[{place}].offer: not on this session's shelf")
    cue = before.get(draft.id) if draft.id else Cue(id=scoped_id(show.room_id, work.runtime.new_short_id()), state=CueState.WAITING)
    if cue is None:
        raise AppError(BAD_REQUEST, f"cues[{place}].id: no such cue; leave the id out for a new one")
    cue.session_id = show.id
    cue.position = place
    cue.title = clean_title(draft.title)
    cue.kind = draft.kind
    cue.offer_id = draft.offer_id
    cue.minutes = draft.minutes
    return cue


async def advance(work: Work, session_id: str, by: str) -> Cue | None:
    """Goes to the next cue, and pins its offer if it has one that can be pinned. None: the run-of-show is through."""
    _, show = await lock_session(work, session_id)
    if show.state not in ON_AIR:
        raise AppError(CONFLICT, f"the session is {show.state}; the run-of-show advances while it is on air")
    cues = await store.list_cues(work.session, session_id)
    place = next_cue([cue.state for cue in cues])
    for cue in cues:
        cue.state = CueState.DONE if cue.state == CueState.NOW else cue.state
    current = None if place is None else cues[place]
    if current is not None:
        current.state = CueState.NOW
        current.began_at = work.now
        await _pin_cue(work, show, current, by)
    await work.session.flush()
    event = CueAdvanced(at=work.at, session=show.id, cue=current.id if current else None, title=current.title if current else "")
    work.emit(show.room_id, [staff_channel(show.room_id)], event)
    return current


async def _pin_cue(work: Work, show: ShowSession, cue: Cue, by: str) -> None:
    """An offer that was paused or withdrawn since does not stop the show: the pin stays where it is."""
    offer = await catalogue.fetch_offer(work.session, cue.offer_id) if cue.offer_id else None
    if offer and not why_not_pinned(offer_session=offer.session_id, offer_state=offer.state, session_on_air=show.id):
        await pin_offer(work, show.room_id, offer.id, by)
