"""Chat's SQL, keys and script.

Keys of the fan-out role, all under the room's hash tag:
    {room}:chat:archive            stream of admitted messages on their way to SQL
    {room}:chat:state              hash, a mirror of SQL: words (digest of the list), slow_mode_s, notice, m:<viewer> until ms, b:<viewer>
    {room}:chat:said               hash, the counter behind the pulse
    {room}:chat:deleted            set of deleted ids that history may still hold
    {room}:chat:key:<viewer>:<key> what a message's key was answered; life RECORD_TTL_S
    {room}:chat:times:<viewer>     the viewer's last send times
    jishi:chat_rooms               set of rooms whose archive stream may hold something
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

from sqlalchemy import Row, delete, func, or_, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.domains.chat.rules import RATE_WINDOW_MS
from app.domains.chat.tables import ChatKey, ChatMessageRow, ChatReview, ChatRoom, ChatSanction, ChatWords
from app.storage.redis import Script, engine_now_ms
from app.storage.streams import ONCE_TTL_S
from app.storage.work import Engines

ROOMS_KEY = "jishi:chat_rooms"
RECORD_TTL_S = ONCE_TTL_S  # the publication's own record is made later and lives as long, so a retry never publishes twice
PLATFORM = ""  # the room id of the platform's word list
LOCK_WAIT_MS = 3000

_admit_script = Script(Path(__file__).with_name("admit.lua"))


# --- the engine ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submission:
    """A message that asks to be admitted. `line` is its ChatLine as JSON, without the time."""

    id: str
    viewer_id: str
    key: str
    digest: str
    text: str
    line: bytes
    skips_slow_mode: bool = False


class Admission(NamedTuple):
    word: str  # a ChatOutcome, "key_reused" or "full"
    at_ms: int
    wait_ms: int


class ArchiveEntry(NamedTuple):
    entry_id: str
    message_id: str
    at_ms: int
    session_id: str
    words: list[str]
    line: bytes


class Mirror(NamedTuple):
    """What the engine knows of a room's chat; SQL is the truth."""

    words_digest: str
    slow_mode_s: int
    notice: str


def _key(room_id: str, name: str) -> str:
    return f"{{{room_id}}}:chat:{name}"


async def admit(
    engines: Engines, room_id: str, session_id: str, *, words_digest: str, batch: Sequence[tuple[Submission, list[str]]]
) -> list[Admission] | None:
    """One admission a message; None when the mirror is missing or knows another word list."""
    keys = [_key(room_id, "archive"), _key(room_id, "state"), _key(room_id, "said")]
    settings = engines.settings
    arguments: list[str | bytes | int] = [
        engines.runtime.script_now_ms(),
        session_id,
        words_digest,
        settings.chat_per_viewer_per_10_s,
        RATE_WINDOW_MS,
        RECORD_TTL_S * 1000,
        settings.outbox_entries_max,
    ]
    for submission, words in batch:
        viewer = submission.viewer_id
        keys += [_key(room_id, f"key:{viewer}:{submission.key}"), _key(room_id, f"times:{viewer}")]
        exempt = int(submission.skips_slow_mode)
        arguments += [submission.id, submission.digest, exempt, viewer, "\n".join(words), submission.line]
    reply = cast("list[bytes]", await _admit_script(engines.fanout, keys, arguments))
    if reply[0] == b"stale":
        return None
    return [Admission(reply[i].decode(), int(reply[i + 2]), int(reply[i + 3])) for i in range(1, len(reply), 4)]


async def read_mirror(engines: Engines, room_id: str) -> Mirror | None:
    """None when the engine does not know the room."""
    words, slow_mode_s, notice = cast(
        "list[bytes | None]", await engines.fanout.hmget(_key(room_id, "state"), ["words", "slow_mode_s", "notice"])
    )
    if words is None:
        return None
    return Mirror(words.decode(), int(slow_mode_s or 0), (notice or b"").decode())


async def write_mirror(engines: Engines, room_id: str, mirror: Mirror, sanctions: Sequence[ChatSanction]) -> None:
    """Replaces the room's mirror in one step. The room is listed before and after, so that no interleaving leaves it unlisted."""
    fields: dict[str, str | int] = {"words": mirror.words_digest, "slow_mode_s": mirror.slow_mode_s, "notice": mirror.notice}
    for sanction in sanctions:
        fields[_sanction_field(sanction.kind, sanction.viewer_id)] = _until_ms(sanction)
    await engines.fanout.sadd(ROOMS_KEY, room_id)
    async with engines.fanout.pipeline(transaction=True) as pipeline:
        pipeline.delete(_key(room_id, "state"))
        pipeline.hset(_key(room_id, "state"), mapping=cast("dict[Any, Any]", fields))
        pipeline.expire(_key(room_id, "state"), engines.settings.hot_keys_ttl_s)
        pipeline.persist(_key(room_id, "archive"))
        await pipeline.execute()
    await engines.fanout.sadd(ROOMS_KEY, room_id)


async def write_sanction(engines: Engines, room_id: str, viewer_id: str, kind: str, sanction: ChatSanction | None) -> None:
    field = _sanction_field(kind, viewer_id)
    if sanction is None:
        await engines.fanout.hdel(_key(room_id, "state"), field)
    else:
        await engines.fanout.hset(_key(room_id, "state"), field, str(_until_ms(sanction)))


async def count_state(engines: Engines, room_id: str) -> int:
    """About how many sanctions a room has."""
    return cast("int", await engines.fanout.line.call(("HLEN", _key(room_id, "state"))))


async def list_banned(engines: Engines, room_id: str) -> frozenset[str] | None:
    """All of the room. None when the engine does not know the room."""
    fields = cast("list[bytes]", await engines.fanout.line.call(("HKEYS", _key(room_id, "state"))))
    prefix = _sanction_field("ban", "").encode()
    return frozenset(name[len(prefix) :].decode() for name in fields if name.startswith(prefix)) if b"words" in fields else None


async def look_up_bans(engines: Engines, room_id: str, viewer_ids: Sequence[str]) -> list[bool | None]:
    """Of these viewers. None when the engine does not know the room."""
    fields = dict.fromkeys(_sanction_field("ban", viewer_id) for viewer_id in viewer_ids)
    words, *bans = cast("list[bytes | None]", await engines.fanout.line.call(("HMGET", _key(room_id, "state"), "words", *fields)))
    if words is None:
        return [None] * len(viewer_ids)
    banned = dict(zip(fields, bans, strict=True))
    return [banned[_sanction_field("ban", viewer_id)] is not None for viewer_id in viewer_ids]


def _sanction_field(kind: str, viewer_id: str) -> str:
    return f"{kind[0]}:{viewer_id}"


def _until_ms(sanction: ChatSanction) -> int:
    return 0 if sanction.until is None else round(sanction.until.timestamp() * 1000)


async def forget_mirrors(engines: Engines) -> None:
    """Makes every room mirror itself again at its next use: the platform's list changed."""
    for room_id in await list_rooms(engines):
        await engines.fanout.delete(_key(room_id, "state"))


async def read_said(engines: Engines, room_id: str) -> tuple[int, dict[str, int]]:
    """The engine's time and the counter's fields (`second`, `count`, `before`)."""
    raw = cast("dict[bytes, bytes]", await engines.fanout.hgetall(_key(room_id, "said")))
    now_ms = engines.runtime.script_now_ms() or await engine_now_ms(engines.fanout, _key(room_id, "said"))
    return now_ms, {name.decode(): int(value) for name, value in raw.items()}


async def hide_message(engines: Engines, room_id: str, message_id: str) -> None:
    async with engines.fanout.pipeline(transaction=True) as pipeline:
        pipeline.sadd(_key(room_id, "deleted"), message_id)
        pipeline.expire(_key(room_id, "deleted"), engines.settings.chat_history_ttl_s)
        await pipeline.execute()


async def hidden_messages(engines: Engines, room_id: str) -> set[str]:
    members = cast("set[bytes]", await engines.fanout.smembers(_key(room_id, "deleted")))
    return {member.decode() for member in members}


async def list_rooms(engines: Engines) -> list[str]:
    members = cast("set[bytes]", await engines.fanout.smembers(ROOMS_KEY))
    return sorted(member.decode() for member in members)


async def leave_out_idle_room(engines: Engines, room_id: str) -> None:
    """Takes a room whose mirror has expired off the list, and lets its empty archive stream go in time.

    Looks again afterwards: the room may have come back to life meanwhile.
    """
    if await engines.fanout.exists(_key(room_id, "state")):
        return
    await engines.fanout.srem(ROOMS_KEY, room_id)
    if await engines.fanout.exists(_key(room_id, "state")) or await engines.fanout.xlen(_key(room_id, "archive")):
        await engines.fanout.sadd(ROOMS_KEY, room_id)
    else:
        await engines.fanout.expire(_key(room_id, "archive"), engines.settings.hot_keys_ttl_s)


async def read_archive(engines: Engines, room_id: str) -> list[ArchiveEntry]:
    """The oldest entries that are not in SQL yet."""
    rows = cast("list[Any]", await engines.fanout.xrange(_key(room_id, "archive"), count=engines.settings.chat_archive_batch_max))
    return [
        ArchiveEntry(
            entry_id.decode(),
            fields[b"i"].decode(),
            int(fields[b"a"]),
            fields[b"s"].decode(),
            fields[b"w"].decode().split("\n") if fields[b"w"] else [],
            fields[b"d"],
        )
        for entry_id, fields in rows
    ]


async def drop_archived(engines: Engines, room_id: str, entries: Sequence[ArchiveEntry]) -> None:
    await engines.fanout.xdel(_key(room_id, "archive"), *[entry.entry_id for entry in entries])


# --- SQL: settings, words, sanctions ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def announcer_lock(engines: Engines, room_id: str) -> AsyncGenerator[AsyncSession]:
    """A transaction that excludes the room's announcer, so that a mirror made here and its reactions cannot overtake each other."""
    async with engines.sql.begin() as session:
        await session.execute(text(f"set local lock_timeout = {LOCK_WAIT_MS}"))
        await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"announce:{room_id}", 0))))
        yield session


async def lock_moderation(session: AsyncSession, room_id: str) -> None:
    """One moderator's command a room at a time: two at once would both see the sanction that only one of them may replace."""
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"chat:{room_id}", 0))))


async def fetch_key(session: AsyncSession, caller_id: str, key: str) -> ChatKey | None:
    return await session.get(ChatKey, (caller_id, key))


async def delete_keys_before(session: AsyncSession, at: datetime) -> None:
    await session.execute(delete(ChatKey).where(ChatKey.at < at))


async def fetch_room(session: AsyncSession, room_id: str) -> ChatRoom | None:
    return await session.get(ChatRoom, room_id)


async def set_room(session: AsyncSession, room_id: str, **values: str | int) -> None:
    statement = insert(ChatRoom).values(room_id=room_id, **{"slow_mode_s": 0, "notice": "", **values})
    await session.execute(statement.on_conflict_do_update(index_elements=["room_id"], set_=values))


async def list_words(session: AsyncSession, room_ids: Sequence[str]) -> dict[str, list[str]]:
    rows = await session.scalars(select(ChatWords).where(ChatWords.room_id.in_(room_ids)))
    return {row.room_id: list(row.words) for row in rows}


async def set_words(session: AsyncSession, room_id: str, words: list[str], *, at: datetime, by: str) -> None:
    values = {"words": words, "changed_at": at, "changed_by": by}
    statement = insert(ChatWords).values(room_id=room_id, **values)
    await session.execute(statement.on_conflict_do_update(index_elements=["room_id"], set_=values))


async def list_sanctions_in_force(session: AsyncSession, room_id: str, now: datetime) -> Sequence[ChatSanction]:
    return (await session.scalars(select(ChatSanction).where(ChatSanction.room_id == room_id, *_in_force(now)))).all()


async def fetch_sanction_in_force(session: AsyncSession, room_id: str, viewer_id: str, kind: str, now: datetime) -> ChatSanction | None:
    query = select(ChatSanction).where(
        ChatSanction.room_id == room_id, ChatSanction.viewer_id == viewer_id, ChatSanction.kind == kind, *_in_force(now)
    )
    return (await session.scalars(query)).one_or_none()


def _in_force(now: datetime) -> tuple[Any, ...]:
    return ChatSanction.lifted_at.is_(None), or_(ChatSanction.until.is_(None), ChatSanction.until > now)


async def lift_sanction(session: AsyncSession, room_id: str, viewer_id: str, kind: str, *, at: datetime, by: str) -> bool:
    """Also closes one that ran out. Whether there was one."""
    statement = (
        update(ChatSanction)
        .where(
            ChatSanction.room_id == room_id,
            ChatSanction.viewer_id == viewer_id,
            ChatSanction.kind == kind,
            ChatSanction.lifted_at.is_(None),
        )
        .values(lifted_at=at, lifted_by=by)
        .returning(ChatSanction.id)
    )
    return bool((await session.scalars(statement)).all())


async def list_sanctions(
    session: AsyncSession, room_id: str, *, before_id: int | None, limit: int, in_force_at: datetime | None
) -> list[ChatSanction]:
    """Newest first."""
    query = select(ChatSanction).where(ChatSanction.room_id == room_id)
    if before_id is not None:
        query = query.where(ChatSanction.id < before_id)
    if in_force_at is not None:
        query = query.where(*_in_force(in_force_at))
    return list(await session.scalars(query.order_by(ChatSanction.id.desc()).limit(limit)))


# --- SQL: messages and reviews -----------------------------------------------------------------------------------------------------------


async def insert_messages(session: AsyncSession, rows: list[dict[str, Any]]) -> set[str]:
    """The ids that were new. A batch that is read again after a crash inserts nothing."""
    statement = insert(ChatMessageRow).on_conflict_do_nothing().returning(ChatMessageRow.id)
    return set(await session.scalars(statement, rows))


async def lock_message(session: AsyncSession, room_id: str, message_id: str) -> ChatMessageRow | None:
    query = select(ChatMessageRow).where(ChatMessageRow.id == message_id, ChatMessageRow.room_id == room_id).with_for_update()
    return (await session.scalars(query)).one_or_none()


async def lock_review(session: AsyncSession, room_id: str, message_id: str) -> ChatReview | None:
    query = select(ChatReview).where(ChatReview.message_id == message_id, ChatReview.room_id == room_id).with_for_update()
    return (await session.scalars(query)).one_or_none()


async def list_roles_spoken_with(session: AsyncSession, room_id: str, viewer_id: str) -> set[str]:
    """The roles that a viewer's lines in this room bore."""
    query = (
        select(ChatMessageRow.role)
        .distinct()
        .where(ChatMessageRow.viewer_id == viewer_id, ChatMessageRow.room_id == room_id, ChatMessageRow.role != "")
    )
    return set(await session.scalars(query))


async def list_messages(
    session: AsyncSession, room_id: str, *, viewer_id: str, before: tuple[datetime, str] | None, limit: int
) -> list[ChatMessageRow]:
    """Newest first, with those that were held, rejected or deleted."""
    query = select(ChatMessageRow).where(ChatMessageRow.room_id == room_id)
    if viewer_id:
        query = query.where(ChatMessageRow.viewer_id == viewer_id)
    if before is not None:
        query = query.where(tuple_(ChatMessageRow.at, ChatMessageRow.id) < tuple_(*before))
    return list(await session.scalars(query.order_by(ChatMessageRow.at.desc(), ChatMessageRow.id.desc()).limit(limit)))


async def list_reviews(
    session: AsyncSession, room_id: str, *, state: str, after: tuple[datetime, str] | None, limit: int
) -> list[tuple[ChatReview, ChatMessageRow]]:
    """Oldest first: who waited longest comes first."""
    query = (
        select(ChatReview, ChatMessageRow)
        .join(ChatMessageRow, ChatMessageRow.id == ChatReview.message_id)
        .where(ChatReview.room_id == room_id, ChatReview.state == state)
    )
    if after is not None:
        query = query.where(tuple_(ChatMessageRow.at, ChatMessageRow.id) > tuple_(*after))
    rows: Sequence[Row[ChatReview, ChatMessageRow]] = (
        await session.execute(query.order_by(ChatMessageRow.at, ChatMessageRow.id).limit(limit))
    ).all()
    return [(row[0], row[1]) for row in rows]


async def count_messages(session: AsyncSession, session_id: str) -> dict[str, int]:
    """Of one session: `sent` (shown, at least for a while), `chatters`, `deleted`, `waiting`, `rejected`."""
    row, sent = ChatMessageRow, ChatMessageRow.state == "sent"
    query = select(
        func.count().filter(sent),
        func.count(func.distinct(row.viewer_id)).filter(sent),
        func.count().filter(row.deleted_at.is_not(None)),
        func.count().filter(row.state == "held"),
        func.count().filter(row.state == "rejected"),
    ).where(row.session_id == session_id)
    counts = (await session.execute(query)).one()
    return dict(zip(("sent", "chatters", "deleted", "waiting", "rejected"), counts, strict=True))


async def count_by_minute(session: AsyncSession, session_id: str) -> dict[datetime, int]:
    minute = func.date_trunc("minute", ChatMessageRow.at)
    query = select(minute, func.count()).where(ChatMessageRow.session_id == session_id, ChatMessageRow.state == "sent").group_by(minute)
    return {row[0]: row[1] for row in await session.execute(query)}


async def count_sanctions(session: AsyncSession, session_id: str) -> dict[str, int]:
    """Kind -> how many were given during the session."""
    query = select(ChatSanction.kind, func.count()).where(ChatSanction.session_id == session_id).group_by(ChatSanction.kind)
    return {row[0]: row[1] for row in await session.execute(query)}
