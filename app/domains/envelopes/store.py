"""SQL and engine keys of envelopes.

Engine keys of one envelope, all under the room's hash tag: `{room}:envelope:<id>:meta`, `:shares`, `:takers`. They live until
`hot_keys_ttl_s` after the deadline; what must last is in SQL by then.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Select, and_, insert, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.ids import room_of
from app.domains.envelopes.rules import SHOWN_EVERY_MS, CommittedShare
from app.domains.envelopes.tables import Envelope, EnvelopeShare
from app.storage.due import ENGINE_NOW, NOW, Condition, Time
from app.storage.intake import outbox_key, register_room
from app.storage.life import LIFE, list_open_of, room_key
from app.storage.redis import Script
from app.storage.work import Engines

_HERE = Path(__file__).parent
_load = Script(_HERE / "load.lua", after=(LIFE,))
_grab = Script(_HERE / "grab.lua", after=(LIFE,))
_close = Script(_HERE / "close.lua", after=(LIFE,))


class Grab(NamedTuple):
    """One viewer's attempt. `refusal` names why the viewer may not; empty: eligible."""

    envelope_id: str
    viewer_id: str
    key: str
    refusal: str = ""


class Grabbed(NamedTuple):
    word: str  # opened, already, frozen, empty, not_eligible, closed, missing
    amount_minor: int | None
    position: int | None


def _keys(envelope_id: str) -> list[str]:
    prefix = f"{{{room_of(envelope_id)}}}:envelope:{envelope_id}"
    return [f"{prefix}:meta", f"{prefix}:shares", f"{prefix}:takers"]


async def load_engine(engines: Engines, envelope: Envelope, shares: Sequence[EnvelopeShare], now_ms: int, *, renewed: str = "") -> str:
    """`loaded`, `kept`, `frozen`, or `stale`. `renewed`: the life in which the closed room is renewed."""
    takers = [share for share in shares if share.viewer_id is not None]
    life_ms = max(0, _ms(envelope.expires_at) - now_ms) + engines.settings.hot_keys_ttl_s * 1000
    is_open = envelope.state == "open"
    if is_open:
        await register_room(engines, room_of(envelope.id), for_ms=life_ms)
    arguments: list[str | int] = [renewed, "open" if is_open else "over", _ms(envelope.expires_at), life_ms, len(takers)]
    for share in takers:
        arguments += [share.viewer_id or "", f"{share.position} {share.amount_minor} "]
    arguments += [f"{share.position} {share.amount_minor}" for share in shares if share.viewer_id is None]
    reply: bytes = await engines.run_on_sales(_load, [room_key(room_of(envelope.id)), *_keys(envelope.id)], arguments)
    return reply.decode()


async def grab_batch(engines: Engines, room_id: str, grabs: Sequence[Grab]) -> list[Grabbed]:
    """One script call for the batch; one answer each, in order."""
    numbers: dict[str, int] = {}
    for grab in grabs:
        numbers.setdefault(grab.envelope_id, len(numbers) + 1)
    keys = [outbox_key(room_id), room_key(room_id), *[key for envelope_id in numbers for key in _keys(envelope_id)]]
    arguments: list[str | int] = [engines.runtime.script_now_ms(), len(numbers), *numbers]
    for grab in grabs:
        arguments += [numbers[grab.envelope_id], grab.viewer_id, grab.key, grab.refusal]
    replies: list[bytes] = await engines.run_on_sales(_grab, keys, arguments)
    grabbed = [
        Grabbed(replies[i].decode(), int(replies[i + 1]) if replies[i + 1] else None, int(replies[i + 2]) if replies[i + 2] else None)
        for i in range(0, len(replies), 3)
    ]
    if all(answer.word != "frozen" for answer in grabbed):
        return grabbed
    query = select(Envelope.id).where(Envelope.id.in_(numbers), Envelope.state == "open")
    open_ones = await list_open_of(engines, list(numbers), query)
    return [
        answer._replace(word="missing") if answer.word == "frozen" and grab.envelope_id not in open_ones else answer
        for grab, answer in zip(grabs, grabbed, strict=True)
    ]


async def close_engine(engines: Engines, envelope_id: str, actor: str) -> str:
    """`closed`, `already`, `not_due`, `frozen` or `missing`. Without an actor only an envelope whose time is up is closed."""
    room_id = room_of(envelope_id)
    keys = [_keys(envelope_id)[0], outbox_key(room_id), room_key(room_id)]
    reply: bytes = await engines.run_on_sales(_close, keys, [engines.runtime.script_now_ms(), envelope_id, actor])
    return reply.decode()


async def insert_envelope(session: AsyncSession, envelope: Envelope, shares: Sequence[CommittedShare]) -> None:
    session.add(envelope)
    await session.flush()
    rows = [
        {"envelope_id": envelope.id, "position": share.position, "amount_minor": share.amount_minor, "salt": share.salt, "viewer_id": None}
        for share in shares
    ]
    await session.execute(insert(EnvelopeShare), rows)


async def fetch_envelope(session: AsyncSession, envelope_id: str) -> Envelope | None:
    return await session.get(Envelope, envelope_id)


async def lock_envelopes(session: AsyncSession, envelope_ids: Sequence[str]) -> dict[str, Envelope]:
    query = select(Envelope).where(Envelope.id.in_(envelope_ids)).order_by(Envelope.id).with_for_update()
    return {row.id: row for row in await session.scalars(query.execution_options(populate_existing=True))}


async def list_shares(session: AsyncSession, envelope_id: str) -> Sequence[EnvelopeShare]:
    query = select(EnvelopeShare).where(EnvelopeShare.envelope_id == envelope_id).order_by(EnvelopeShare.position)
    return (await session.scalars(query)).all()


async def fetch_share_of(session: AsyncSession, envelope_id: str, viewer_id: str) -> EnvelopeShare | None:
    query = select(EnvelopeShare).where(EnvelopeShare.envelope_id == envelope_id, EnvelopeShare.viewer_id == viewer_id)
    return (await session.scalars(query)).one_or_none()


_TAKE = text(
    "update envelope_shares s set viewer_id = t.viewer, opened_at = :at"
    " from unnest(cast(:envelopes as text[]), cast(:positions as bigint[]), cast(:viewers as text[])) as t(envelope, position, viewer)"
    " where s.envelope_id = t.envelope and s.position = t.position and s.viewer_id is null"
    " and not exists (select 1 from envelope_shares o where o.envelope_id = t.envelope and o.viewer_id = t.viewer)"
    " returning s.envelope_id, s.position, s.viewer_id, s.amount_minor"
)


class Taken(NamedTuple):
    envelope_id: str
    position: int
    viewer_id: str
    amount_minor: int


async def take_shares(session: AsyncSession, taken: Sequence[tuple[str, int, str]], at: datetime) -> list[Taken]:
    """Gives (envelope, position, viewer) their shares, by position. A share that is gone, and a viewer who has one, are left out."""
    parameters: Mapping[str, object] = {
        "at": at,
        "envelopes": [envelope_id for envelope_id, _, _ in taken],
        "positions": [position for _, position, _ in taken],
        "viewers": [viewer_id for _, _, viewer_id in taken],
    }
    rows = await session.execute(_TAKE, parameters)
    return sorted(Taken(*row) for row in rows)


async def list_due(session: AsyncSession, now: datetime, limit: int) -> Sequence[str]:
    return (await session.scalars(_due(now).order_by(Envelope.expires_at).limit(limit))).all()


async def list_unshown(session: AsyncSession, now: datetime, limit: int) -> Sequence[str]:
    """Open envelopes of which shares were taken since the last event, which is old enough."""
    return (await session.scalars(_unshown(now).limit(limit))).all()


def _due(now: Time) -> Select[str]:
    return select(Envelope.id).where(Envelope.state == "open", Envelope.expires_at <= now)


def _unshown(now: Time) -> Select[str]:
    shown_before = now - timedelta(milliseconds=SHOWN_EVERY_MS)
    taken = Envelope.remaining != Envelope.shown_remaining
    return select(Envelope.id).where(Envelope.state == "open", taken, Envelope.shown_at <= shown_before)


ENVELOPE_IS_DUE: Condition = or_(_due(ENGINE_NOW).exists(), _unshown(NOW).exists())


async def list_open(session: AsyncSession, room_id: str) -> Sequence[Envelope]:
    query = select(Envelope).where(Envelope.room_id == room_id, Envelope.state == "open").order_by(Envelope.opened_at, Envelope.id)
    return (await session.scalars(query.limit(100))).all()


async def list_rooms_in_play(session: AsyncSession) -> Sequence[str]:
    return (await session.scalars(select(Envelope.room_id).where(Envelope.state == "open").distinct())).all()


async def lock_remembered(session: AsyncSession, room_id: str, since: datetime) -> Sequence[Envelope]:
    """Envelopes of a room that are open, or that an engine may still have because they would have run out after `since`."""
    query = select(Envelope).where(Envelope.room_id == room_id, or_(Envelope.state == "open", Envelope.expires_at > since))
    return (await session.scalars(query.order_by(Envelope.id).with_for_update().execution_options(populate_existing=True))).all()


async def list_of_session(session: AsyncSession, session_id: str, *, limit: int, before: tuple[datetime, str] | None) -> Sequence[Envelope]:
    """Newest first, after the sort key `before`."""
    query = select(Envelope).where(Envelope.session_id == session_id)
    if before is not None:
        query = query.where(or_(Envelope.opened_at < before[0], and_(Envelope.opened_at == before[0], Envelope.id < before[1])))
    return (await session.scalars(query.order_by(Envelope.opened_at.desc(), Envelope.id.desc()).limit(limit))).all()


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)
