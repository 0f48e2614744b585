"""From SQL to the channels: publishes committed events and runs the reactions of other domains to them.

Whoever committed a change announces its room at once; the worker's loop does the same for what a crash left behind. A room is
announced by one process at a time (an advisory lock), in order. A row is deleted in the transaction that ran its reactions; it is
published before that commit with its id as `once`, so a crash anywhere repeats the step without a second effect that a client
could see. A row that keeps failing is set aside as a dead letter and does not block the rest.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import structlog
from sqlalchemy import exists, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.metrics import DEAD_LETTERS
from app.protocol.events import Event, decode_event
from app.storage.due import Condition
from app.storage.streams import Publication
from app.storage.tables import Announcement, DeadLetter
from app.storage.work import Engines, Work, is_away

BATCH_MAX = 500
LOCK_WAIT_MS = 3000

_FORGET = text("delete from announcements where id = any(cast(:ids as bigint[]))")

ANNOUNCEMENT_WAITS: Condition = exists().select_from(Announcement)

log = structlog.get_logger()


class _Row(NamedTuple):
    id: int
    channels: list[Any]
    type: str
    payload: bytes


async def announce_room(engines: Engines, room_id: str) -> None:
    """Announces all that waits in a room. Raises what an engine raised; nothing is lost then."""
    batch_max = BATCH_MAX
    while True:
        try:
            count = await _announce_batch(engines, room_id, batch_max)
        except Exception as failure:  # whatever a reaction or an engine raised: the row at fault must not hold up the rest for ever
            if is_away(failure):
                raise  # nothing is wrong with the row: an outage must never set events aside
            if batch_max > 1:
                batch_max = 1  # find the row that fails, let those before it out
                continue
            if not await _note_failure(engines, room_id, failure):
                raise
            continue
        if count < batch_max:
            return


async def _announce_batch(engines: Engines, room_id: str, batch_max: int) -> int:
    async with engines.sql.begin() as session:
        await session.execute(text(f"set local lock_timeout = {LOCK_WAIT_MS}"))
        await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"announce:{room_id}", 0))))
        rows = await _read(session, room_id, batch_max)
        if not rows:
            return 0
        work = Work(engines, session)
        await _react(work, room_id, rows)
        await work.flush()  # what reactions emit comes in a later batch
        await engines.streams.publish_all(_publications(rows))
        await session.execute(_FORGET, {"ids": [row.id for row in rows]})
        return len(rows)


async def _read(session: AsyncSession, room_id: str, limit: int) -> list[_Row]:
    query = select(Announcement.id, Announcement.channels, Announcement.type, Announcement.payload)
    found = await session.execute(query.where(Announcement.room_id == room_id).order_by(Announcement.id).limit(limit))
    return [_Row(*row) for row in found]


async def _react(work: Work, room_id: str, rows: Sequence[_Row]) -> None:
    """Each domain gets its events in order, those in a row that have one reaction in one call."""
    events: dict[int, Event] = {}
    for reactions in work.engines.registry.reactions:
        concerned = [row for row in rows if row.type in reactions]
        for row in concerned:
            if row.id not in events:
                events[row.id] = decode_event(row.payload)
        for reaction, run in groupby(concerned, key=lambda row: reactions[row.type]):
            await reaction(work, room_id, [events[row.id] for row in run])


def _publications(rows: Sequence[_Row]) -> list[Publication]:
    return [Publication(channel, row.payload, once=f"a{row.id}:{channel}") for row in rows for channel in row.channels]


async def _note_failure(engines: Engines, room_id: str, failure: Exception) -> bool:
    """Counts the failure of the room's first row. True when the row was set aside and the rest may go on."""
    async with engines.sql.begin() as session:
        query = select(Announcement).where(Announcement.room_id == room_id).order_by(Announcement.id).limit(1).with_for_update()
        row = (await session.scalars(query)).one_or_none()
        if row is None:
            return True
        if row.attempts + 1 < engines.settings.outbox_attempts_max:
            await session.execute(update(Announcement).where(Announcement.id == row.id).values(attempts=row.attempts + 1))
            return False
        session.add(
            DeadLetter(
                source="announcement",
                room_id=room_id,
                type=row.type,
                payload=row.payload,
                error=repr(failure)[:2000],
                at=engines.runtime.now(),
                channels=row.channels,
            )
        )
        await session.delete(row)
    DEAD_LETTERS.labels("announcement").inc()
    log.error("announcement set aside", room=room_id, type=row.type, error=repr(failure))
    return True
