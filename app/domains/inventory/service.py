"""Use cases of inventory: hold stock, move holds on, keep the engine's shelf in line with SQL, expire.

Other domains move holds only by these functions. Sales go on while a session is interrupted; when it has ended, new holds are refused as
`closed`, while running holds may still be ordered until their deadline and orders paid until theirs.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import structlog
from redis.exceptions import RedisError

from app.core.errors import AppError
from app.core.ids import room_of
from app.core.runtime import at_text
from app.domains.catalogue import service as catalogue
from app.domains.inventory import renewal, store
from app.domains.inventory.rules import (
    CANCEL_WORDS,
    LEAVE_WORDS,
    RELEASE_WORDS,
    RESERVE_WORDS,
    WAIT_WORDS,
    Hold,
    MoveAnswer,
    RoomBooks,
    SessionState,
    Stock,
    hold_id,
    stock_levels,
    wait_id,
)
from app.protocol.channels import room_channel, user_channel
from app.protocol.codes import KEY_REUSED, NOT_FOUND
from app.protocol.commands import Left, Released, Reserved, ReserveOutcome, Waiting, WaitOutcome
from app.protocol.events import (
    Event,
    HoldEnded,
    HoldPlaced,
    OfferListed,
    OfferRestocked,
    OfferSoldOut,
    OfferUpdated,
    OfferWithdrawn,
    SessionArchived,
    SessionEnded,
    SessionInterrupted,
    SessionResumed,
    SessionWentLive,
    WaitEnded,
    encode_event,
)
from app.protocol.order_commands import CancelOutcome
from app.storage.gathering import gather_each, raise_first
from app.storage.intake import OutboxEntry, forget_room, list_rooms, register_room
from app.storage.streams import Publication
from app.storage.work import Engines, Work

SWEEPS_MAX = 20  # batches of one room in one pass of the expiry loop

log = structlog.get_logger()


async def reserve(
    engines: Engines, *, viewer_id: str, offer_id: str, quantity: int, key: str, ttl_ms: int | None = None, escrow: bool = False
) -> Reserved:
    """Sets stock aside until a deadline. `escrow`: for prizes; no limit, window or deadline. The same key again: the same answer."""
    room_id = scope(offer_id, "offer")
    member = {
        "id": hold_id(room_id, viewer_id, key),
        "viewer": viewer_id,
        "offer": offer_id,
        "quantity": quantity,
        "ttl": ttl_ms or engines.settings.hold_ttl_s * 1000,
        "escrow": escrow,
    }
    answer = await engines.group_commit("reserve", store.reserve_batch).submit(room_id, member, viewer=viewer_id)
    _refuse_mistakes(answer.word, offer_id)
    outcome = RESERVE_WORDS[answer.word]
    if outcome is not ReserveOutcome.HELD:
        return Reserved(outcome=outcome, offer=offer_id, quantity=quantity, available=answer.available, waiting=answer.waiting)
    return Reserved(
        outcome=outcome,
        offer=offer_id,
        quantity=quantity,
        hold=str(member["id"]),
        expires_at=at_text(answer.expires) if answer.expires else None,
        price_minor=answer.price,
        set_aside=not answer.first_paid,
        repeated=answer.repeated,
    )


def _refuse_mistakes(word: str, offer_id: str) -> None:
    if word == "unknown":
        raise AppError(NOT_FOUND, f"there is no offer {offer_id} on a shelf")
    if word == "key_reused":
        raise AppError(KEY_REUSED, "this key was used for another offer or quantity; take a new key")


async def release(engines: Engines, *, viewer_id: str, hold_id: str) -> Released:
    """Gives a hold back, also one in escrow. Again: the same answer."""
    answer = await _move(engines, hold_id, act="release", viewer=viewer_id)
    return Released(outcome=RELEASE_WORDS[answer.word], hold=hold_id)


async def wait(engines: Engines, *, viewer_id: str, offer_id: str, quantity: int, key: str) -> Waiting:
    """A place in the offer's line, or a hold at once if it is the viewer's turn. The same key again: how it stands now."""
    room_id = scope(offer_id, "offer")
    member = {
        "id": wait_id(room_id, viewer_id, key),
        "viewer": viewer_id,
        "offer": offer_id,
        "quantity": quantity,
        "ttl": engines.settings.hold_ttl_s * 1000,
        "escrow": False,
        "line_max": engines.settings.waitlist_length_max,
    }
    answer = await engines.group_commit("reserve", store.reserve_batch).submit(room_id, member, viewer=viewer_id)
    _refuse_mistakes(answer.word, offer_id)
    outcome = WAIT_WORDS[answer.word]
    stands = outcome in {WaitOutcome.WAITING, WaitOutcome.HELD}
    return Waiting(
        outcome=outcome,
        offer=offer_id,
        quantity=quantity,
        wait=str(member["id"]) if stands else None,
        ahead=answer.ahead,
        waiting=answer.waiting,
        expires_at=at_text(answer.expires) if answer.expires else None,
        price_minor=answer.price,
        repeated=answer.repeated,
    )


async def leave(engines: Engines, *, viewer_id: str, wait_id: str) -> Left:
    """Gives a place in a line up. Again: the same answer."""
    answer = await _move(engines, wait_id, act="leave", viewer=viewer_id)
    return Left(outcome=LEAVE_WORDS[answer.word], wait=wait_id)


async def list_line(engines: Engines, offer_id: str, *, after_turn: int, limit: int) -> list[tuple[str, Hold]]:
    """Who waits for an offer, in turn."""
    return await store.list_line(engines, scope(offer_id, "offer"), offer_id, after_turn=after_turn, limit=limit)


async def place_hold(
    engines: Engines, *, hold_id: str, viewer_id: str, buyer: str, key: str, digest: str, policy_accepted: bool, address: dict[str, Any]
) -> MoveAnswer:
    """held -> ordered, with the payment deadline. Words: those of PlaceOutcome, and key_reused."""
    return await _move(
        engines,
        hold_id,
        act="place",
        viewer=viewer_id,
        name=buyer,
        key=key,
        digest=digest,
        accepted=policy_accepted,
        ttl=engines.settings.payment_ttl_s * 1000,
        address=address,
    )


async def cancel_hold(engines: Engines, *, hold_id: str, viewer_id: str) -> CancelOutcome:
    """ordered -> cancelled."""
    return CANCEL_WORDS[(await _move(engines, hold_id, act="cancel", viewer=viewer_id)).word]


async def confirm_hold(engines: Engines, *, hold_id: str, payment_id: str, provider: str, amount_minor: int) -> MoveAnswer:
    """ordered -> sold, with the late-pay rule. Words: those of ConfirmWord; one answer a payment, whenever it is asked again."""
    return await _move(engines, hold_id, act="confirm", payment=payment_id, provider=provider, amount=amount_minor)


async def award_hold(engines: Engines, *, hold_id: str, holder_id: str, winner_id: str, prize_name: str) -> MoveAnswer:
    """An escrow hold -> sold, for the winner. Word `awarded`; any other says why not."""
    return await _move(engines, hold_id, act="award", viewer=holder_id, winner=winner_id, prize=prize_name)


async def give_back(engines: Engines, *, hold_id: str, quantity: int, refund_id: str) -> MoveAnswer:
    """Units of a sold hold return to the shelf, once a refund."""
    return await _move(engines, hold_id, act="give_back", quantity=quantity, refund=refund_id)


async def read_hold(engines: Engines, hold_id: str) -> Hold | None:
    """The engine's own record: newer than SQL, whoever owns it."""
    room_id = room_of(hold_id)
    return await store.fetch_hold(engines, room_id, hold_id) if room_id else None


async def read_stock(engines: Engines, room_id: str) -> dict[str, Stock]:
    """Every offer of the room that the engine knows, also of sessions that ended a while ago."""
    return (await store.list_stock(engines, room_id))[0]


async def stock_reading(engines: Engines, room_id: str) -> dict[str, int]:
    """offer -> what is left: the snapshot's part and the pulse's field."""
    return stock_levels(*await store.list_stock(engines, room_id))


async def freeze_sales(engines: Engines, room_id: str, *, frozen: bool) -> None:
    """Stops new holds and orders of a room, or lets them go on. What was promised stands: payments, cancellations, expiry continue."""
    async with engines.work() as work:
        await renewal.sync(work, room_id, [{"act": "frozen", "on": frozen}])


async def read_books_and_outbox(engines: Engines, room_id: str) -> tuple[RoomBooks, list[dict[str, Any]]]:
    """All that the engine knows of a room's sales, and what SQL has not heard of yet, in one step; for reconciliation."""
    return await store.read_books_and_outbox(engines, room_id)


async def read_holds(engines: Engines, hold_ids: Sequence[str]) -> dict[str, Hold]:
    """Those of the holds, all of one room, that the engine has."""
    return await store.fetch_holds(engines, room_of(hold_ids[0]), hold_ids) if hold_ids else {}


async def count_holds(engines: Engines, room_id: str) -> int:
    return await store.count_holds(engines, room_id)


async def rebuild_room(engines: Engines, room_id: str) -> None:
    """Works the engine's records of a room out again, from its holds and from what SQL knows. Its sales are frozen meanwhile."""
    await renewal.rebuild_room(engines, room_id)


async def open_room(work: Work, room_id: str) -> None:
    """Opens a room that this engine never had, or had in an earlier life and nothing waits. Else the worker does it in a moment."""
    await renewal.open_room(work, room_id)


async def is_open(engines: Engines, room_id: str) -> bool:
    """Whether the room's records were compared in this life of the engine."""
    return (await store.look(engines, room_id)).is_open


async def outbox_length(engines: Engines, room_id: str) -> int:
    """Entries that SQL does not have yet."""
    return await store.outbox_length(engines, room_id)


def scope(scoped: str, what: str) -> str:
    room_id = room_of(scoped)
    if not room_id:
        raise AppError(NOT_FOUND, f"{scoped!r} is not the id of any {what}")
    return room_id


async def _move(engines: Engines, hold_id: str, **member: Any) -> MoveAnswer:
    room_id = scope(hold_id, "hold")
    group = engines.group_commit("move", store.move_batch)
    return await group.submit(room_id, {"id": hold_id, **member}, viewer=member.get("viewer", ""))


# --- because time passed -------------------------------------------------------------------------------------------------------------


async def expire_sales(engines: Engines) -> None:
    """One pass of the worker: in every room, end what has run out, in bounded batches. Rooms that are closed are left to `renew_rooms`."""
    raise_first(await gather_each(await list_rooms(engines), partial(_expire_in_room, engines)))


async def _expire_in_room(engines: Engines, room_id: str) -> None:
    for _ in range(SWEEPS_MAX):
        done = await store.sweep_room(engines, room_id)
        if done.closed:
            engines.local.setdefault("closed_rooms", set[str]()).add(room_id)
            return
        if max(done.settled, done.forgotten) < engines.settings.expiry_batch_max:
            if done.empty:
                await forget_room(engines, room_id)
            return


async def forget_hold_notes(engines: Engines) -> None:
    """One pass of the worker: notes whose holds have all run out. A minute late, since their deadlines are by the engine's clock."""
    async with engines.sql.begin() as session:
        await store.forget_notes(session, engines.runtime.now() - timedelta(minutes=1))


# --- because SQL changed -------------------------------------------------------------------------------------------------------------


async def on_offer_changed(work: Work, room_id: str, events: list[OfferListed | OfferUpdated | OfferWithdrawn]) -> None:
    """Whatever the events said, the engine gets the offers as they stand in SQL now; versions make that safe to repeat."""
    offer_ids = dict.fromkeys(event.offer if isinstance(event.offer, str) else event.offer.id for event in events)
    members = [renewal.offer_member(offer) for offer_id in offer_ids if (offer := await catalogue.fetch_offer(work.session, offer_id))]
    if members:
        await register_room(work.engines, room_id)
        await renewal.sync(work, room_id, members)


async def on_session_changed(
    work: Work, room_id: str, events: list[SessionWentLive | SessionInterrupted | SessionResumed | SessionEnded]
) -> None:
    await register_room(work.engines, room_id)
    members = [{"act": "session", "id": event.session, "state": _session_state(event)} for event in events]
    await renewal.sync(work, room_id, members)


async def on_session_archived(work: Work, room_id: str, events: list[SessionArchived]) -> None:
    """Nothing can change any more: `hot_keys_ttl_s` later the engine forgets the session."""
    await register_room(work.engines, room_id)
    await renewal.sync(work, room_id, [{"act": "archived", "id": event.session} for event in events])


def _session_state(event: SessionWentLive | SessionInterrupted | SessionResumed | SessionEnded) -> SessionState:
    match event:
        case SessionInterrupted():
            return SessionState.INTERRUPTED
        case SessionEnded():
            return SessionState.ENDED
        case SessionWentLive() | SessionResumed():
            return SessionState.LIVE


# --- because the engine changed ------------------------------------------------------------------------------------------------------


async def take_in_holds(work: Work, entries: list[OutboxEntry]) -> None:
    """Notes the holds and tells the viewer's other devices; a row a batch, since a flash sale places tens of thousands a second."""
    _note_holds(work, entries)
    promoted = [hold["hold"] for entry in entries for hold in entry.data["holds"] if hold.get("promoted")]
    if promoted:
        await store.forget_waits(work.session, promoted)
    await _tell_viewers(work, [(entry, hold["viewer"], _hold_event(entry, hold)) for entry in entries for hold in entry.data["holds"]])


async def take_in_waits(work: Work, entries: list[OutboxEntry]) -> None:
    """Notes who stands in a line from now on, and tells who waited in vain, or no longer wants to."""
    joined = [wait for entry in entries if entry.type == "wait.joined" for wait in entry.data["waits"]]
    if joined:
        await store.note_waits(work.session, entries[0].room_id, joined)
    ended = [entry for entry in entries if entry.type == "wait.ended"]
    if ended:
        await store.forget_waits(work.session, [wait["wait"] for entry in ended for wait in entry.data["waits"]])
    events: list[tuple[OutboxEntry, str, Event]] = []
    for entry in ended:
        for wait in entry.data["waits"]:
            event = WaitEnded(at=at_text(entry.at_ms), wait=wait["wait"], offer=wait["offer"], outcome=wait["outcome"])
            events.append((entry, wait["viewer"], event))
    await _tell_viewers(work, events)


async def _tell_viewers(work: Work, events: list[tuple[OutboxEntry, str, Event]]) -> None:
    """What an entry says is always said whole, so all of it shares one key by which a repetition is known."""
    publications = [
        Publication(user_channel(viewer), encode_event(event), once=f"{entry.room_id}:{entry.id}", is_shared=True)
        for entry, viewer, event in events
    ]
    try:
        await work.engines.streams.publish_all(publications)
    except (RedisError, OSError) as failure:
        # The reply has told the device that asked; orders must not wait for the fan-out engine.
        log.warning("hold events not published", count=len(publications), error=type(failure).__name__)


def _note_holds(work: Work, entries: list[OutboxEntry]) -> None:
    placed = [hold for entry in entries if entry.type == "hold.placed" for hold in entry.data["holds"]]
    ended = [hold["hold"] for entry in entries if entry.type == "hold.ended" for hold in entry.data["holds"]]
    last_ms = entries[-1].at_ms + work.engines.settings.hold_ttl_s * 1000  # a hold that ended now would have lasted no longer
    until = datetime.fromtimestamp(max([last_ms, *(hold["expires"] for hold in placed)]) / 1000, UTC)
    store.add_note(work.session, entries[0].room_id, placed, ended, until)


def _hold_event(entry: OutboxEntry, hold: dict[str, Any]) -> Event:
    at = at_text(entry.at_ms)
    if entry.type == "hold.placed":
        return HoldPlaced(
            at=at,
            hold=hold["hold"],
            offer=hold["offer"],
            quantity=hold["quantity"],
            expires_at=at_text(hold["expires"]),
            set_aside=not hold.get("first_paid", False),
            promoted=hold.get("promoted", False),
            price_minor=hold.get("price"),
        )
    return HoldEnded(at=at, hold=hold["hold"], offer=hold["offer"], outcome=hold["outcome"])


async def take_in_shelf(work: Work, entries: list[OutboxEntry]) -> None:
    """Only the last word about an offer in a batch counts: sold out, restocked and sold out again is one sold out."""
    last = {entry.data["offer"]: entry for entry in entries}
    for offer_id, entry in last.items():
        make = OfferSoldOut if entry.type == "offer.sold_out" else OfferRestocked
        work.emit(entry.room_id, [room_channel(entry.room_id)], make(at=at_text(entry.at_ms), offer=offer_id))
