"""A new life of the engine: it restarted, another took over, or its disk is gone. Each room is closed until its records were compared.

What is known of a room is in three places: the records that survived, the outbox that intake has not read yet, and SQL. Renewing a room
reads the outbox to its end, merges what the others say (rules.rebuild), writes the difference and opens the room; where nothing was lost
there is no difference, and it costs a reading. A room that the engine never had is opened the same way, so there is one way to be open.
Other domains that keep hot records of a room, draws and envelopes, do theirs in the same step (`renew_room` of the registry).

Invariants
- Never an oversell: a room sells only after its counters were worked out from all orders that SQL has and all holds that survived.
- Acknowledged orders that SQL has, stand. Open holds that are gone are void, and their viewers told, as far as SQL has a note of them.
- Waiting lines go on in their order: SQL has a note of each place until it ends.
- The row of the room's intake mark is locked meanwhile: no intake beside it, one renewal at a time. Cut off anywhere, it begins again.
- Ids of the outbox never go back, also when the engine's clock did: the mark would skip them.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog
from msgspec import Struct
from redis.exceptions import RedisError

from app.core.errors import AppError
from app.core.runtime import at_text
from app.domains.catalogue import service as catalogue
from app.domains.catalogue.tables import Offer
from app.domains.inventory import store
from app.domains.inventory.rules import Known, Rebuilt, Record, SessionState, Survivors, further, rebuild
from app.protocol.channels import room_channel, staff_channel
from app.protocol.events import AlertRaised, SalesFrozen, SalesReopened, encode_event
from app.storage.gathering import gather_each, raise_first
from app.storage.intake import OutboxEntry, is_before, lock_mark, register_rooms, take_in_room
from app.storage.work import Engines, Work

PART_MEMBERS = 500  # of one script call: a room with a hundred thousand orders must not stop the engine for all others
DRAIN_BATCHES_MAX = 10_000

log = structlog.get_logger()


class Renewal(Struct, frozen=True, kw_only=True):
    """What renewing a room came to."""

    room: str
    epoch: int
    is_lost: bool
    offers: int = 0  # records that were written
    holds: int = 0
    void: int = 0


def offer_member(offer: Offer) -> store.Member:
    return {
        "act": "offer",
        "id": offer.id,
        "session": offer.session_id,
        "version": offer.version,
        "total": offer.total,
        "price": offer.price_minor,
        "steps": [{"at": step["at_ms"], "price": step["price_minor"]} for step in offer.price_steps],
        "currency": offer.currency,
        "limit": offer.limit_per_viewer,
        "order_limit": offer.limit_per_order,
        "selling": offer.selling_policy,
        "state": offer.state,
        "policy": offer.return_policy,
        "name": offer.name,
        "opens": _ms(offer.opens_at),
        "closes": _ms(offer.closes_at),
    }


def _ms(at: datetime | None) -> int:
    return int(at.timestamp() * 1000) if at else 0


async def sync(work: Work, room_id: str, members: Sequence[store.Member]) -> None:
    """Brings a room in line with SQL; opens it first when this engine never had it, or had it in an earlier life and nothing waits.

    Where entries wait for intake the worker must read them first. It then finds in SQL whatever was to be said here.
    """
    try:
        await store.sync_room(work.engines, room_id, members)
    except store.Closed:
        if await open_room(work, room_id):
            await store.sync_room(work.engines, room_id, members)


async def open_room(work: Work, room_id: str) -> bool:
    """Opens a closed room for which nothing waits in the outbox. False: something waits, or the room is open."""
    is_open = (await store.look(work.engines, room_id)).is_open
    return not is_open and not await store.outbox_length(work.engines, room_id) and await _renew(work, room_id) is not None


async def renew_room(engines: Engines, room_id: str) -> Renewal | None:
    """Opens a closed room. None: it is open, or the engine restarted once more, and it has to be done again."""
    seen = await store.look(engines, room_id)
    if seen.is_open:
        return None
    for _ in range(DRAIN_BATCHES_MAX):
        if not await take_in_room(engines, room_id):
            break
    async with engines.work() as work:
        done = await _renew(work, room_id)
    if done is None:
        return None
    async with engines.work() as work:  # what changed in SQL while the room was closed, and found it so
        members = await _members_of_sql(work, room_id)
        if members:
            await store.sync_room(engines, room_id, members)
    return done


async def rebuild_room(engines: Engines, room_id: str) -> Renewal | None:
    """The same by command, for a room that is open: it is closed first."""
    with suppress(store.Closed):  # so much the better
        await store.sync_room(engines, room_id, [{"act": "close"}])
    return await renew_room(engines, room_id)


async def renew_rooms(engines: Engines) -> None:
    """One pass of the worker: the rooms that its sweep found closed."""
    rooms, engines.local["closed_rooms"] = sorted(engines.local.get("closed_rooms", ())), set[str]()
    raise_first(await gather_each(rooms, partial(renew_room, engines)))  # the sweep finds again what failed


async def recall_rooms(engines: Engines) -> None:
    """One pass of the worker: an engine that lost everything does not know which rooms it had."""
    await register_rooms(engines, await list_rooms_in_play(engines))


async def list_rooms_in_play(engines: Engines) -> list[str]:
    """Rooms with a shelf whose sales are not long over, and those of other domains, as SQL knows them."""
    async with engines.sql.read() as session:
        shows = await engines.registry.open_sessions(session, None, _since(engines))
        rooms = set(await catalogue.list_rooms_of(session, shows))
        for read in engines.registry.rooms_in_play:
            rooms |= set(await read(session))
    return sorted(rooms)


def _since(engines: Engines) -> datetime:
    """Sessions that ended earlier are out of the engine's memory in good order."""
    return engines.runtime.now() - timedelta(seconds=engines.settings.hot_keys_ttl_s)


# --- one room ------------------------------------------------------------------------------------------------------------------------


async def _renew(work: Work, room_id: str) -> Renewal | None:
    engines = work.engines
    mark = await lock_mark(work.session, room_id)
    seen = await store.look(engines, room_id)
    if seen.is_open or await store.outbox_length(engines, room_id):
        return None
    had_sales = mark.last_entry != "0-0"
    is_cut = is_before(seen.outbox_end, mark.last_entry)
    for renew in engines.registry.renew_room:
        if not await renew(work, room_id, seen.life):
            return None
    survivors = await store.read_survivors(engines, room_id)
    known, members = await _find_known(work, room_id, survivors, is_cut=is_cut)
    rebuilt = rebuild(survivors, known, await engines.sales_now_ms(room_id))
    is_lost = rebuilt.is_lost or seen.was_lost or (had_sales and seen.is_doubtful)
    is_told = had_sales and (bool(seen.opened_by) or is_lost)
    if is_told:
        await _tell_frozen(engines, room_id, seen.life)
    epoch = mark.epoch + is_lost
    members = [
        *([{"act": "mark", "last": mark.last_entry}] if had_sales else []),
        *([{"act": "lost"}] if is_lost else []),
        *members,
        *_members(rebuilt, known),
    ]
    parts = [members[start : start + PART_MEMBERS] for start in range(0, len(members), PART_MEMBERS)]
    for part in (*parts, [{"act": "open", "told": is_told, "epoch": epoch, "lost": is_lost}]):
        if not await store.renew_part(engines, room_id, seen.life, part):
            return None
    mark.epoch = epoch
    done = Renewal(room=room_id, epoch=epoch, is_lost=is_lost, offers=len(rebuilt.offers), holds=len(rebuilt.holds), void=len(rebuilt.void))
    if is_lost:
        log.warning("the engine had lost records of a room: rebuilt", room=room_id, epoch=epoch, holds=done.holds, void=done.void)
        await work.audit(room_id, "system", "sales.rebuild", room_id, epoch=epoch, offers=done.offers, holds=done.holds, void=done.void)
    return done


async def _find_known(work: Work, room_id: str, survivors: Survivors, *, is_cut: bool) -> tuple[Known, list[store.Member]]:
    """All that SQL knows, and the sessions as the script takes them. Offers of a show that is over come back only if they were lost."""
    engines, session = work.engines, work.session
    sessions = await engines.registry.open_sessions(session, room_id, _since(engines))
    wanted = [name for name, state in sessions.items() if is_cut or state != SessionState.ENDED]
    offers = await catalogue.list_offers_of(session, wanted, survivors.offers)
    terms = {offer.id: {name: value for name, value in offer_member(offer).items() if name not in {"act", "id"}} for offer in offers}
    standing: dict[str, Record] = {}
    for read in engines.registry.standing_holds:
        for hold_id, record in (await read(session, room_id, sorted(terms.keys() | survivors.offers.keys()))).items():
            standing[hold_id] = further(standing[hold_id], record) if hold_id in standing else record
    noted = await store.list_noted(session, room_id, datetime.fromtimestamp(await engines.sales_now_ms(room_id) / 1000, UTC))
    members = [{"act": "session", "id": name, "state": state} for name, state in sessions.items() if state in set(SessionState)]
    waits = await store.list_waits(session, room_id)
    return Known(terms=terms, sessions=dict(sessions), standing=standing, noted=noted, waits=waits, is_cut=is_cut), members


def _members(rebuilt: Rebuilt, known: Known) -> Iterable[store.Member]:
    for offer_id, record in rebuilt.offers.items():
        is_over = known.sessions.get(record["session"]) == SessionState.ENDED
        yield {"act": "offer", "id": offer_id, "record": record, "ended": is_over}
    for hold_id, record in rebuilt.holds.items():
        yield {"act": "hold", "id": hold_id, "record": record}
    for name, stands in rebuilt.line.items():
        yield {"act": "line", "name": name, "stands": stands}
    for name, units in rebuilt.counts.items():
        yield {"act": "count", "field": name, "units": units}
    for hold_id, at_ms in rebuilt.deadlines.items():
        yield {"act": "deadline", "id": hold_id, "at": at_ms}
    for hold_id, note in rebuilt.void.items():
        yield {"act": "void", "hold": hold_id, "viewer": note["viewer"], "offer": note["offer"]}
    for wait_id, wait in rebuilt.void_waits.items():
        yield {"act": "void_wait", "wait": wait_id, "viewer": wait["viewer"], "offer": wait["offer"]}


async def _members_of_sql(work: Work, room_id: str) -> list[store.Member]:
    sessions = await work.engines.registry.open_sessions(work.session, room_id, _since(work.engines))
    open_ones = {name: state for name, state in sessions.items() if state in set(SessionState)}
    offers = await catalogue.list_offers_of(work.session, [name for name, state in sessions.items() if state != SessionState.ENDED], ())
    return [*({"act": "session", "id": name, "state": state} for name, state in open_ones.items()), *map(offer_member, offers)]


# --- who hears of it -----------------------------------------------------------------------------------------------------------------


async def _tell_frozen(engines: Engines, room_id: str, life: str) -> None:
    """At once and beside SQL, whose transaction has only begun; that sales go on is told by the outbox, in the step that opens the room."""
    event = SalesFrozen(at=at_text(engines.runtime.now_ms()), room=room_id)
    try:
        await engines.streams.publish(room_channel(room_id), encode_event(event), once=f"sales.frozen:{room_id}:{life}")
    except (RedisError, OSError, AppError) as failure:
        log.warning("event not published", type="sales.frozen", room=room_id, error=type(failure).__name__)


async def take_in_reopened(work: Work, entries: list[OutboxEntry]) -> None:
    for entry in entries:
        epoch, is_lost = entry.data["epoch"], entry.data["lost"]
        event = SalesReopened(at=at_text(entry.at_ms), room=entry.room_id, epoch=epoch, lost=is_lost)
        work.emit(entry.room_id, [room_channel(entry.room_id), staff_channel(entry.room_id)], event)
        if is_lost:
            text = (
                "The engine of sales had lost records: stock was worked out again from the orders, and open holds that were gone are void"
            )
            work.emit(entry.room_id, [staff_channel(entry.room_id)], AlertRaised(at=work.at, word="sales_rebuilt", text=text))
