"""SQL of rooms, and the room's hash in the fan-out engine.

`{room}:room` (hash, fan-out role): `session` is `<state>:<session id>`, or empty when nothing is on air; `likes`, `peak` and `pulse`
(the last reading that was published) are counters of the session on air. A missing `session` field says nothing: the engine may have been
lost. Then SQL is asked.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, Literal, NamedTuple, cast

from sqlalchemy import Select, delete, exists, func, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.domains.rooms.rules import ON_AIR, SessionState
from app.domains.rooms.tables import Cue, Room, ShowSession
from app.storage.due import Condition
from app.storage.redis import Redis
from app.storage.tables import AuditEntry

# --- rooms --------------------------------------------------------------------------------------------------------------------------


async def fetch_room(session: AsyncSession, room_id: str) -> Room | None:
    return await session.get(Room, room_id)


async def lock_room(session: AsyncSession, room_id: str) -> Room | None:
    """The lock of everything that a host's team changes in a room. Taken first, so that the order of commits is the order of events."""
    return await session.get(Room, room_id, with_for_update={"key_share": True}, populate_existing=True)


async def room_exists(session: AsyncSession, room_id: str) -> bool:
    return await session.scalar(select(Room.id).where(Room.id == room_id)) is not None


async def list_rooms(session: AsyncSession, *, after: tuple[datetime, str] | None, limit: int) -> list[tuple[Room, ShowSession | None]]:
    """Newest first, each with its session on air."""
    query = (
        select(Room, ShowSession)
        .outerjoin(ShowSession, (ShowSession.room_id == Room.id) & ShowSession.state.in_(ON_AIR))
        .order_by(Room.created_at.desc(), Room.id.desc())
        .limit(limit)
    )
    if after is not None:
        query = query.where(tuple_(Room.created_at, Room.id) < after)
    return [(room, show) for room, show in await session.execute(query)]


# --- sessions -----------------------------------------------------------------------------------------------------------------------


async def fetch_session(session: AsyncSession, session_id: str) -> ShowSession | None:
    return await session.get(ShowSession, session_id)


async def reload_session(session: AsyncSession, session_id: str) -> ShowSession | None:
    """As it is now that the room is locked, whatever this unit of work read before."""
    return await session.get(ShowSession, session_id, populate_existing=True)


async def fetch_on_air(session: AsyncSession, room_id: str) -> ShowSession | None:
    return (await session.scalars(_on_air().where(ShowSession.room_id == room_id))).one_or_none()


async def list_on_air(session: AsyncSession, limit: int) -> list[ShowSession]:
    return list(await session.scalars(_on_air().order_by(ShowSession.id).limit(limit)))


async def read_open_sessions(session: AsyncSession, room_id: str | None, ended_after: datetime) -> Mapping[str, str]:
    """id -> state of all sessions that are not archived and did not end before that; of one room, or of all."""
    query = select(ShowSession.id, ShowSession.state).where(
        ShowSession.state != SessionState.ARCHIVED, or_(ShowSession.ended_at.is_(None), ShowSession.ended_at > ended_after)
    )
    if room_id is not None:
        query = query.where(ShowSession.room_id == room_id)
    return {row.id: row.state for row in await session.execute(query)}


def _on_air() -> Select[ShowSession]:
    return select(ShowSession).where(ShowSession.state.in_(ON_AIR)).execution_options(populate_existing=True)


SHOW_IS_ON_AIR: Condition = exists().where(ShowSession.state.in_(ON_AIR))


async def list_scheduled(session: AsyncSession, room_id: str) -> list[ShowSession]:
    """Soonest first; bounded by UPCOMING_MAX where they are scheduled."""
    query = select(ShowSession).where(ShowSession.room_id == room_id, ShowSession.state == SessionState.SCHEDULED)
    return list(await session.scalars(query.order_by(ShowSession.starts_at, ShowSession.id)))


async def list_sessions(session: AsyncSession, room_id: str, *, after: tuple[datetime, str] | None, limit: int) -> list[ShowSession]:
    """Newest first."""
    query = select(ShowSession).where(ShowSession.room_id == room_id)
    if after is not None:
        query = query.where(tuple_(ShowSession.created_at, ShowSession.id) < after)
    return list(await session.scalars(query.order_by(ShowSession.created_at.desc(), ShowSession.id.desc()).limit(limit)))


async def note_counters(session: AsyncSession, session_id: str, counters: "Counters", unique_viewers: int) -> None:
    """Keeps what is already noted where it is larger: this may run again when the engine's readings are gone."""
    values = {
        "likes": func.greatest(ShowSession.likes, counters.likes),
        "peak_viewers": func.greatest(ShowSession.peak_viewers, counters.peak_viewers),
        "unique_viewers": func.greatest(ShowSession.unique_viewers, unique_viewers),
    }
    await session.execute(update(ShowSession).where(ShowSession.id == session_id).values(values))


# --- run-of-show --------------------------------------------------------------------------------------------------------------------


async def list_cues(session: AsyncSession, session_id: str) -> list[Cue]:
    return list(await session.scalars(select(Cue).where(Cue.session_id == session_id).order_by(Cue.position)))


async def delete_cues(session: AsyncSession, cue_ids: Sequence[str]) -> None:
    await session.execute(delete(Cue).where(Cue.id.in_(cue_ids)))


# --- audit --------------------------------------------------------------------------------------------------------------------------


async def list_audit(session: AsyncSession, room_id: str, *, after_id: int | None, limit: int) -> list[AuditEntry]:
    """Newest first."""
    query = select(AuditEntry).where(AuditEntry.room_id == room_id).order_by(AuditEntry.id.desc()).limit(limit)
    if after_id is not None:
        query = query.where(AuditEntry.id < after_id)
    return list(await session.scalars(query))


# --- the room's hash in the fan-out engine ------------------------------------------------------------------------------------------


class Unknown(Enum):
    """The engine was not told, or lost what it was told."""

    UNKNOWN = "unknown"


UNKNOWN = Unknown.UNKNOWN


class Counters(NamedTuple):
    likes: int
    peak_viewers: int


def room_key(room_id: str) -> str:
    return f"{{{room_id}}}:room"


def _field(on_air: tuple[str, str] | None) -> str:
    return "" if on_air is None else f"{on_air[0]}:{on_air[1]}"


async def read_on_air(client: Redis, room_id: str) -> tuple[str, str] | Literal[Unknown.UNKNOWN] | None:
    """(state, session id); None when nothing is on air; UNKNOWN when the engine does not know."""
    raw = cast("bytes | None", await client.hget(room_key(room_id), "session"))
    if raw is None:
        return UNKNOWN
    state, _, session_id = raw.decode().partition(":")
    return (state, session_id) if session_id else None


async def write_on_air(client: Redis, room_id: str, on_air: tuple[str, str] | None) -> None:
    async with client.pipeline(transaction=True) as pipe:
        pipe.hset(room_key(room_id), "session", _field(on_air))
        pipe.persist(room_key(room_id))
        await pipe.execute()


async def restore_on_air(client: Redis, room_id: str, on_air: tuple[str, str] | None) -> None:
    """What SQL says, unless the engine has been told meanwhile: a reaction always writes after the commit that SQL was asked about."""
    await client.hsetnx(room_key(room_id), "session", _field(on_air))


async def reset_counters(client: Redis, room_id: str) -> None:
    await client.hdel(room_key(room_id), "likes", "peak", "pulse")


async def add_likes(client: Redis, room_id: str, count: int) -> int:
    return await client.hincrby(room_key(room_id), "likes", count)


async def read_counters(client: Redis, room_id: str) -> Counters:
    likes, peak = cast("list[bytes | None]", await client.hmget(room_key(room_id), ["likes", "peak"]))
    return Counters(int(likes or 0), int(peak or 0))


async def raise_peak(client: Redis, room_id: str, viewers: int) -> int:
    """The peak, at least `viewers`. One pulse a room is under way at a time, so reading and writing need not be one step."""
    peak = (await read_counters(client, room_id)).peak_viewers
    if viewers > peak:
        await client.hset(room_key(room_id), "peak", str(viewers))
    return max(peak, viewers)


async def pulse_is_new(client: Redis, room_id: str, reading: bytes) -> bool:
    """Remembers a reading; whether it differs from the one before."""
    before = cast("bytes | None", await client.hget(room_key(room_id), "pulse"))
    await client.hset(room_key(room_id), "pulse", cast("Any", reading))
    return before != reading


async def claim_pulse(client: Redis, room_id: str, ttl_ms: int) -> bool:
    """True for the first of several workers within `ttl_ms`."""
    return bool(await client.set(f"{{{room_id}}}:pulse", "1", nx=True, px=ttl_ms))


async def expire_hash(client: Redis, room_id: str, ttl_s: int) -> None:
    await client.expire(room_key(room_id), ttl_s)
