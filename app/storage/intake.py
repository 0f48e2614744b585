"""From the engine's outbox to SQL.

A script that changes a room's stock appends to `{room}:outbox` in the same atomic step: `XADD <key> * t <type> d <json>`.
Intake reads a batch and runs each domain's handlers, in stream order, in one SQL transaction that also moves the room's progress mark;
then it deletes the entries. Killed anywhere, it reads again, and the mark skips what SQL already has: each entry has exactly one
effect. Two workers on one room wait for each other at the mark's row lock.
An entry that keeps failing is set aside as a dead letter and does not block the rest.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import msgspec
import structlog
from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import AppError
from app.core.metrics import DEAD_LETTERS, INTAKE_ENTRIES, INTAKE_LAG_SECONDS, INTAKE_WAITING_ENTRIES
from app.core.runtime import at_text
from app.protocol.channels import staff_channel
from app.protocol.codes import SERVICE_UNAVAILABLE
from app.protocol.events import AlertRaised, encode_event
from app.storage.claims import claimed
from app.storage.gathering import raise_first
from app.storage.redis import engine_now_ms
from app.storage.tables import DeadLetter, IntakeProgress
from app.storage.work import Engines, Work, is_away

ROOMS_KEY = "jishi:rooms"  # rooms that have stock, draws or envelopes: where intake and expiry look
ALARM_PARTS = 5  # the team is warned when a fifth of `outbox_entries_max` waits: there are minutes left to act
CATCH_UP_MS_MAX = 2_000  # clients give a call up after five seconds, and what follows takes its time too
CLAIM_MS_MIN = 3_600_000  # how long who registers a room has to write its first key

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    id: str  # stream id, increasing within the room
    room_id: str
    type: str
    at_ms: int  # the engine's clock
    data: dict[str, Any]


def outbox_key(room_id: str) -> str:
    return f"{{{room_id}}}:outbox"


async def register_room(engines: Engines, room_id: str, *, for_ms: int = 0) -> None:
    """Makes the worker look at a room. Call before a hot key is written. `for_ms`: its life, if it is none of the sales keys."""
    async with engines.sales.pipeline(transaction=False) as pipe:
        pipe.set(_claim_key(room_id), 1, px=CLAIM_MS_MIN, nx=True)
        pipe.pexpire(_claim_key(room_id), max(for_ms, CLAIM_MS_MIN), gt=True)
        await pipe.execute()
    await engines.sales.sadd(ROOMS_KEY, room_id)  # after the claim: see forget_room


async def register_rooms(engines: Engines, room_ids: Sequence[str]) -> None:
    """Rooms that have stock, whatever the engine remembers of them."""
    if room_ids:
        await engines.sales.sadd(ROOMS_KEY, *room_ids)


async def forget_room(engines: Engines, room_id: str) -> None:
    """Takes a room that has no hot keys off the list, unless somebody has a claim on it, also one that comes this very moment."""
    if await engines.sales.exists(_claim_key(room_id)):
        return
    await engines.sales.srem(ROOMS_KEY, room_id)
    if await engines.sales.exists(_claim_key(room_id)):
        await engines.sales.sadd(ROOMS_KEY, room_id)


def _claim_key(room_id: str) -> str:
    return f"{{{room_id}}}:claim"


async def list_rooms(engines: Engines) -> list[str]:
    """While the shard of a cluster that holds the list is away: as it was read last, so that the rooms of the others go on."""
    try:
        members: list[bytes] = await engines.sales.line.call(("SMEMBERS", ROOMS_KEY))
    except RedisError:
        if not engines.local.get("rooms"):
            raise
        return engines.local["rooms"]
    rooms = engines.local["rooms"] = sorted(member.decode() for member in members)
    return rooms


async def find_waiting(engines: Engines, rooms: Sequence[str]) -> list[str]:
    """Those of the rooms whose outbox holds entries, the oldest entry first. Notes in the metrics how far SQL lags, and warns in time.

    A room that cannot be asked just now is left out, and its engine's failure raised only when all are in that case.
    """
    ask = engines.sales.line.call_each  # twenty times a second, for nothing most times: over the cheap line
    lengths = _reached(rooms, await ask([("XLEN", outbox_key(room_id)) for room_id in rooms]) if rooms else [])
    waiting = {room_id: length for room_id, length in lengths.items() if length}
    asked = list(waiting)
    heads = _reached(asked, await ask([("XRANGE", outbox_key(room_id), "-", "+", "COUNT", 1) for room_id in asked]) if asked else [])
    since = {room_id: _order(head[0][0].decode())[0] for room_id, head in heads.items() if head}
    oldest = min(since, key=since.__getitem__, default="")
    lag_ms = await engine_now_ms(engines.sales, outbox_key(oldest)) - since[oldest] if oldest else 0
    INTAKE_LAG_SECONDS.set(max(0, lag_ms) / 1000)
    INTAKE_WAITING_ENTRIES.set(sum(waiting.values()))
    for room_id, length in waiting.items():
        if length * ALARM_PARTS >= engines.settings.outbox_entries_max:
            await _raise_alarm(engines, room_id, length)
    return sorted(since, key=since.__getitem__)


def _reached(rooms: Sequence[str], answers: Sequence[Any]) -> dict[str, Any]:
    """Room -> answer, of those that gave one. Raises the failure when none did."""
    reached = {room_id: answer for room_id, answer in zip(rooms, answers, strict=True) if not isinstance(answer, Exception)}
    if rooms and not reached:
        raise_first(answers)
    if len(reached) < len(rooms):
        log.warning("rooms out of reach", rooms=len(rooms) - len(reached))
    return reached


async def _raise_alarm(engines: Engines, room_id: str, length: int) -> None:
    """To the team beside SQL, which is probably what is away; at most once an hour."""
    limit = engines.settings.outbox_entries_max
    log.error("outbox is filling", room=room_id, entries=length, entries_max=limit)
    text = (
        f"{length} sales wait to be written to the books; at {limit} new holds and orders are refused: see to the database and the workers"
    )
    alert = AlertRaised(at=at_text(engines.runtime.now_ms()), word="outbox_filling", text=text)
    try:
        await engines.streams.publish(staff_channel(room_id), encode_event(alert), once=f"outbox_filling:{room_id}")
    except (RedisError, OSError, AppError) as failure:
        log.warning("alarm not published", room=room_id, error=type(failure).__name__)


async def take_in_room(engines: Engines, room_id: str) -> int:
    """Takes in one batch of a room. The number of entries read; fewer than `intake_batch_max` means the outbox is empty now."""
    rows = cast("list[Any]", await engines.sales.xrange(outbox_key(room_id), count=engines.settings.intake_batch_max))
    if not rows:
        return 0
    entries = [_entry(room_id, entry_id, fields) for entry_id, fields in rows]
    with claimed(None):  # also when a call asks for it: this is not yet what the call is about
        try:
            await _take_in(engines, room_id, entries)
        except Exception as failure:  # whatever a handler found wrong: the entry at fault must not hold up the rest
            if is_away(failure):
                raise
            await _take_in_one_by_one(engines, room_id, entries)
    await engines.sales.xdel(outbox_key(room_id), *[entry.id for entry in entries])
    return len(entries)


def being_written() -> AppError:
    """For a caller whose command is done in the engine, behind more than `catch_up` could read."""
    text = "it is done; what came before it is still being written: try again with the same key in a moment"
    return AppError(SERVICE_UNAVAILABLE, text, retry_after_ms=1000)


async def catch_up(engines: Engines, room_id: str) -> bool:
    """Takes in what a caller has to see in SQL, for as long as a caller waits. False: there is more, and the worker goes on with it."""
    clock = engines.runtime.monotonic_ms
    until_ms = clock() + CATCH_UP_MS_MAX
    while await take_in_room(engines, room_id) == engines.settings.intake_batch_max:
        if clock() > until_ms:
            return False
    return True


async def _take_in(engines: Engines, room_id: str, entries: Sequence[OutboxEntry]) -> None:
    """One transaction: the mark, the handlers, the events they emit."""
    async with engines.work() as work:
        fresh = await _advance(work, room_id, entries)
        await hand_out(work, fresh)
    for entry_type, count in Counter(entry.type for entry in fresh).items():
        INTAKE_ENTRIES.labels(entry_type).inc(count)


async def hand_out(work: Work, entries: Sequence[OutboxEntry]) -> None:
    """Each domain gets its entries in order, those in a row that have one handler in one call. Domains do not see each other's."""
    registry = work.engines.registry
    unknown = {entry.type for entry in entries} - registry.intake.keys()
    if unknown:
        raise ValueError(f"no intake handler for {', '.join(sorted(unknown))}")
    for domain in registry.domains.values():
        handlers = domain.intake
        concerned = [entry for entry in entries if entry.type in handlers]
        for handler, run in groupby(concerned, key=lambda entry: handlers[entry.type]):
            await handler(work, list(run))


async def _advance(work: Work, room_id: str, entries: Sequence[OutboxEntry]) -> list[OutboxEntry]:
    """Locks the room's mark, moves it to the batch's end, and returns the entries that SQL does not have yet."""
    mark = await lock_mark(work.session, room_id)
    fresh = [entry for entry in entries if _order(entry.id) > _order(mark.last_entry)]
    if fresh:
        mark.last_entry = fresh[-1].id
    return fresh


async def lock_mark(session: AsyncSession, room_id: str) -> IntakeProgress:
    """Until the end of the transaction nobody else takes in this room."""
    await session.execute(insert(IntakeProgress).values(room_id=room_id, last_entry="0-0").on_conflict_do_nothing())
    query = select(IntakeProgress).where(IntakeProgress.room_id == room_id).with_for_update()
    return (await session.scalars(query)).one()


async def has_mark(engines: Engines, room_id: str) -> bool:
    """Whether the room was ever open for sales."""
    async with engines.sql.read() as session:
        return await session.get(IntakeProgress, room_id) is not None


def is_before(entry_id: str, mark: str) -> bool:
    """Whether an outbox that ends with this entry (empty: there is none) lacks what the mark has seen."""
    return _order(entry_id or "0-0") < _order(mark)


async def _take_in_one_by_one(engines: Engines, room_id: str, entries: Sequence[OutboxEntry]) -> None:
    """After a batch failed: each entry alone, `outbox_attempts_max` times, and the one that still fails is set aside."""
    for entry in entries:
        for attempt in range(1, engines.settings.outbox_attempts_max + 1):
            try:
                await _take_in(engines, room_id, [entry])
                break
            except Exception as failure:  # any fault of one entry: it is set aside at last, the rest goes on
                if is_away(failure):
                    raise
                if attempt == engines.settings.outbox_attempts_max:
                    await _set_aside(engines, room_id, entry, failure)


async def _set_aside(engines: Engines, room_id: str, entry: OutboxEntry, failure: Exception) -> None:
    async with engines.work() as work:
        await _advance(work, room_id, [entry])
        letter = DeadLetter(
            source="intake",
            room_id=room_id,
            type=entry.type,
            payload=msgspec.json.encode(entry.data),
            error=repr(failure)[:2000],
            at=work.now,
            entry=entry.id,
        )
        work.session.add(letter)
        await work.session.flush()
        text = f"An entry of this room ({entry.type}) could not be written to the books: an operator must see to dead letter {letter.id}"
        work.emit(room_id, [staff_channel(room_id)], AlertRaised(at=work.at, word="dead_letter", text=text))
    DEAD_LETTERS.labels("intake").inc()
    log.error("outbox entry set aside", room=room_id, entry=entry.id, type=entry.type, error=repr(failure))


def _entry(room_id: str, entry_id: bytes, fields: dict[bytes, bytes]) -> OutboxEntry:
    text_id = entry_id.decode()
    return OutboxEntry(text_id, room_id, fields[b"t"].decode(), int(text_id.partition("-")[0]), msgspec.json.decode(fields[b"d"]))


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)
