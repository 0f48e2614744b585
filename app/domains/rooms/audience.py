"""What viewers see and do in a room: the snapshot, likes, counts, the pulse. Part of the rooms service (service.py says what it owns).

The hash `{room}:room` of the fan-out engine tells every node what is on air. It is written by reactions, always from SQL, so it comes right
in whatever order and however often they run; where it is missing, SQL is asked.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from app.core.caller import Caller
from app.core.errors import AppError
from app.core.runtime import at_text
from app.domains.catalogue import service as catalogue
from app.domains.catalogue.rules import OfferState
from app.domains.rooms import store
from app.domains.rooms.rules import LikeBudget, SessionState, spend_likes
from app.domains.rooms.show import get_room, room_view
from app.domains.rooms.tables import ShowSession
from app.protocol.channels import room_channel
from app.protocol.codes import TOO_MANY_REQUESTS, UNKNOWN_CHANNEL
from app.protocol.events import Event, Pulse, SessionArchived, SessionEnded, SessionWentLive, encode_event
from app.protocol.views import OfferView, RoomView, SessionView, UpcomingView
from app.storage import presence
from app.storage.gathering import gather_each, raise_first
from app.storage.work import Engines, Work

AIR_CACHE_MS = 1000  # how long a process may believe that a session is, or is not, on air
CACHED_ROOMS_MAX = 10_000
LIKERS_MAX = 50_000
PULSE_ROOMS_MAX = 1000
READS_AT_ONCE = 16  # well below the connections of one client
PULSE_CLAIM_MS = 900  # less than the second between two pulses, or one worker's jitter would skip every other


# --- what is on air -----------------------------------------------------------------------------------------------------------------


async def live_session(engines: Engines, room_id: str, *, fresh: bool = False) -> str | None:
    """The session on air (live or interrupted), None when there is none. May be a second old unless `fresh`."""
    cache: dict[str, tuple[str | None, float]] = engines.local.setdefault("rooms.on_air", {})
    now_ms = engines.runtime.monotonic_ms()
    known = cache.get(room_id)
    if known is not None and not fresh and now_ms - known[1] < AIR_CACHE_MS:
        return known[0]
    session_id = await _read_live_session(engines, room_id)
    _remember(cache, room_id, (session_id, now_ms), CACHED_ROOMS_MAX)
    return session_id


async def _read_live_session(engines: Engines, room_id: str) -> str | None:
    on_air = await store.read_on_air(engines.fanout, room_id)
    if on_air is store.UNKNOWN:
        async with engines.sql.read() as session:
            show = await store.fetch_on_air(session, room_id)
            known = show is not None or await store.room_exists(session, room_id)
        on_air = (show.state, show.id) if show else None
        if known:  # a name that somebody made up gets no key
            await store.restore_on_air(engines.fanout, room_id, on_air)
    return on_air[1] if on_air else None


def _remember(cache: dict[str, Any], key: str, value: Any, entries_max: int) -> None:
    """Puts an entry at the end; the oldest goes when there are too many."""
    cache.pop(key, None)
    if len(cache) >= entries_max:
        cache.pop(next(iter(cache)))
    cache[key] = value


async def admit(engines: Engines, caller: Caller, room_id: str) -> None:
    """Admission: the room must exist. Rooms are never deleted, so a room that was found once is not looked up again."""
    cache: dict[str, bool] = engines.local.setdefault("rooms.exist", {})
    if room_id in cache:
        return
    async with engines.sql.read() as session:
        if not await store.room_exists(session, room_id):
            raise AppError(UNKNOWN_CHANNEL, "no such room")
    _remember(cache, room_id, True, CACHED_ROOMS_MAX)


# --- reactions ----------------------------------------------------------------------------------------------------------------------


async def on_air_changed(work: Work, room_id: str, events: Sequence[Event]) -> None:
    """Brings the room's hash in line with SQL, whatever the events said: a later one may already be committed."""
    show = await store.fetch_on_air(work.session, room_id)
    await store.write_on_air(work.engines.fanout, room_id, (show.state, show.id) if show else None)
    work.engines.local.get("rooms.on_air", {}).pop(room_id, None)


async def on_went_live(work: Work, room_id: str, events: list[SessionWentLive]) -> None:
    """A new show counts anew."""
    await store.reset_counters(work.engines.fanout, room_id)
    await presence.reset_unique(work.engines, room_id)
    await on_air_changed(work, room_id, events)


async def on_ended(work: Work, room_id: str, events: list[SessionEnded]) -> None:
    """Keeps the session's counts, if it was ever live, before another show resets them."""
    for event in events:
        show = await store.fetch_session(work.session, event.session)
        if show is not None and show.went_live_at is not None:
            counters = await store.read_counters(work.engines.fanout, room_id)
            await store.note_counters(work.session, show.id, counters, await presence.unique_viewers(work.engines, room_id))
    await on_air_changed(work, room_id, events)


async def on_archived(work: Work, room_id: str, events: list[SessionArchived]) -> None:
    """The room's hash goes in time, unless another show has begun."""
    if await store.fetch_on_air(work.session, room_id) is None:
        await store.expire_hash(work.engines.fanout, room_id, work.engines.settings.hot_keys_ttl_s)


# --- likes --------------------------------------------------------------------------------------------------------------------------


async def like(engines: Engines, viewer_id: str, room_id: str, count: int) -> str:
    """ "done", or "closed" when nothing is on air. Raises AppError: not_found, too_many_requests."""
    if await live_session(engines, room_id) is None:
        await _check_room(engines, room_id)
        return "closed"
    _spend(engines, f"{room_id} {viewer_id}", count)
    await engines.group_commit("like", _add_likes).submit(room_id, count, viewer=viewer_id)
    return "done"


def _spend(engines: Engines, liker: str, count: int) -> None:
    """Per process: a viewer holds one connection at a time, or few. What it guards is a counter of no worth."""
    budgets: dict[str, LikeBudget] = engines.local.setdefault("rooms.likes", {})
    budget, wait_ms = spend_likes(budgets.get(liker), count, engines.runtime.monotonic_ms())
    _remember(budgets, liker, budget, LIKERS_MAX)
    if wait_ms:
        raise AppError(TOO_MANY_REQUESTS, "likes come faster than they count; gather them and send less often", retry_after_ms=wait_ms)


async def _add_likes(engines: Engines, room_id: str, counts: Sequence[int]) -> Sequence[int]:
    """All likes of a room that arrived while the last batch was under way are one increment."""
    return [await store.add_likes(engines.fanout, room_id, sum(counts))] * len(counts)


async def _check_room(engines: Engines, room_id: str) -> None:
    async with engines.sql.read() as session:
        await get_room(session, room_id)


# --- snapshot -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stage:
    """The parts of the snapshot that are in SQL, read in one transaction."""

    room: RoomView
    session: SessionView | None
    upcoming: list[UpcomingView]
    offers: list[OfferView]
    pin: str | None


async def snapshot(engines: Engines, room_id: str) -> dict[str, Any]:
    """The room as a viewer finds it: one value a part of the registry. Raises AppError `not_found`.

    Read the position of the room's stream before, not after: events that come in between are then applied twice, which does no harm.
    """
    parts = engines.registry.snapshot
    values = await asyncio.gather(*[read(engines, room_id) for read in parts.values()], return_exceptions=True)
    for value in values:  # after all have ended: none is left reading for nobody
        if isinstance(value, BaseException):
            raise value
    return dict(zip(parts, values, strict=True))


async def read_stage(engines: Engines, room_id: str) -> Stage:
    async with engines.sql.read() as session:
        room = await get_room(session, room_id)
        show = await store.fetch_on_air(session, room_id)
        scheduled = await store.list_scheduled(session, room_id)
        offers = await catalogue.list_offers(session, show.id) if show else []
    return Stage(
        room=room_view(room),
        session=session_view(show) if show else None,
        upcoming=[UpcomingView(session=row.id, title=row.title, starts_at=_at(row.starts_at)) for row in scheduled],
        offers=[catalogue.offer_view(offer) for offer in offers if offer.state != OfferState.WITHDRAWN],
        pin=room.pinned_offer_id,
    )


def session_view(show: ShowSession) -> SessionView:
    return SessionView(id=show.id, title=show.title, state=show.state, went_live_at=_at(show.went_live_at), reason=show.reason)


def _at(at: Any) -> str:
    assert at is not None, "a session on air went live, a scheduled one has a start"
    return at_text(round(at.timestamp() * 1000))


async def _shared(engines: Engines, room_id: str) -> Stage:
    """One reading for all parts of a snapshot, and for all snapshots that begin while another is being read."""
    return await engines.group_commit("stage", _read_stages).submit(room_id, None)


async def _read_stages(engines: Engines, room_id: str, askers: Sequence[None]) -> list[Stage]:
    return [await read_stage(engines, room_id)] * len(askers)


async def room_part(engines: Engines, room_id: str) -> RoomView:
    return (await _shared(engines, room_id)).room


async def session_part(engines: Engines, room_id: str) -> SessionView | None:
    return (await _shared(engines, room_id)).session


async def upcoming_part(engines: Engines, room_id: str) -> list[UpcomingView]:
    return (await _shared(engines, room_id)).upcoming


async def offers_part(engines: Engines, room_id: str) -> list[OfferView]:
    return (await _shared(engines, room_id)).offers


async def pin_part(engines: Engines, room_id: str) -> str | None:
    return (await _shared(engines, room_id)).pin


async def read_clock(engines: Engines, room_id: str) -> str:
    """The sales engine's clock, which decides windows and deadlines: by it, and not by their own, clients count down."""
    return at_text(await engines.sales_now_ms(room_id))


async def read_likes(engines: Engines, room_id: str) -> int:
    return (await store.read_counters(engines.fanout, room_id)).likes


async def read_peak(engines: Engines, room_id: str) -> int:
    """Most viewers at once since the session went live. Reading it is what keeps it: the pulse does, once a second."""
    return await store.raise_peak(engines.fanout, room_id, await presence.viewers(engines, room_id))


async def count_viewers(engines: Engines, room_ids: Sequence[str]) -> list[int]:
    at_once = asyncio.Semaphore(READS_AT_ONCE)

    async def one(room_id: str) -> int:
        async with at_once:
            return await presence.viewers(engines, room_id)

    return await asyncio.gather(*[one(room_id) for room_id in room_ids])


# --- pulse --------------------------------------------------------------------------------------------------------------------------


async def pulse_rooms(engines: Engines) -> None:
    """One pulse for each room on air, by whichever worker comes first. Called once a second."""
    async with engines.sql.read() as session:
        shows = await store.list_on_air(session, PULSE_ROOMS_MAX)

    async def one(show: ShowSession) -> None:
        if await store.claim_pulse(engines.fanout, show.room_id, PULSE_CLAIM_MS):
            await store.restore_on_air(engines.fanout, show.room_id, (SessionState(show.state), show.id))
            await pulse_room(engines, show.room_id)

    raise_first(await gather_each(shows, one, at_once=READS_AT_ONCE))


async def pulse_room(engines: Engines, room_id: str) -> Pulse | None:
    """Publishes the room's readings, beside the stream and without an offset. None when nobody watches and nothing changed."""
    names = engines.registry.pulse
    values = await asyncio.gather(*[read(engines, room_id) for read in names.values()])
    readings: dict[str, Any] = {"viewers": 0, "likes": 0, "stock": {}} | dict(zip(names, values, strict=True))
    changed = await store.pulse_is_new(engines.fanout, room_id, msgspec.json.encode(readings, order="sorted"))
    if not readings["viewers"] and not changed:
        return None
    pulse = Pulse(at=await read_clock(engines, room_id), room=room_id, **readings)
    await engines.streams.publish(room_channel(room_id), encode_event(pulse), transient=True)
    return pulse
