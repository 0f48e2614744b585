"""SQL and engine keys of draws.

Engine keys of one draw, both under the room's hash tag: `{room}:draw:<id>:meta`, `:entrants`. They live until `hot_keys_ttl_s` after
the deadline; what must last is in SQL by then.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Select, and_, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.ids import room_of
from app.domains.lottery.tables import Draw, DrawEntry, DrawPrize, DrawWinner
from app.storage.due import ENGINE_NOW, NOW, Condition, Time
from app.storage.intake import outbox_key, register_room
from app.storage.life import LIFE, list_open_of, room_key
from app.storage.redis import Script
from app.storage.work import Engines

_HERE = Path(__file__).parent
_load = Script(_HERE / "load.lua", after=(LIFE,))
_enter = Script(_HERE / "enter.lua", after=(LIFE,))
_close = Script(_HERE / "close.lua", after=(LIFE,))

STRANDED_AFTER = timedelta(seconds=15)  # an opening takes a second, and its caller waits for five
INSERT_ROWS_MAX = 2000  # PostgreSQL takes at most 32,767 parameters a statement
LOAD_VIEWERS_MAX = 2000  # of one script call in a renewal: a draw with a hundred thousand entrants must not stop the engine for all others


class Entering(NamedTuple):
    """One viewer's attempt. `refusal` names a condition that is not met, whatever the draw; empty: eligible."""

    draw_id: str
    viewer_id: str
    name: str
    key: str
    keyword: str
    refusal: str = ""


class Entered(NamedTuple):
    word: str  # entered, again, key_reused, frozen, not_eligible, closed, full, missing
    condition: str
    entrants: int


def _keys(draw_id: str) -> list[str]:
    prefix = f"{{{room_of(draw_id)}}}:draw:{draw_id}"
    return [f"{prefix}:meta", f"{prefix}:entrants"]


async def load_engine(engines: Engines, draw: Draw, viewers: Sequence[str], now_ms: int, *, renewed: str = "") -> str:
    """`loaded`, `kept`, `frozen`, or `stale`. `viewers` are those whom SQL has as entrants; `renewed`: the life in which the closed room
    is renewed."""
    closes_ms = round(draw.closes_at.timestamp() * 1000) if draw.closes_at else 0
    life_ms = max(0, closes_ms - now_ms) + engines.settings.hot_keys_ttl_s * 1000
    is_open = draw.state == "open"
    if is_open:
        await register_room(engines, room_of(draw.id), for_ms=life_ms)
    keys = [room_key(room_of(draw.id)), *_keys(draw.id)]
    shared = [renewed, "open" if is_open else "over", closes_ms, life_ms, draw.keyword, draw.entrants_max]
    word, part = "", LOAD_VIEWERS_MAX if renewed else max(1, len(viewers))
    for start in range(0, max(1, len(viewers)), part):
        word = (await engines.run_on_sales(_load, keys, [*shared, *viewers[start : start + part]])).decode()
        if word == "stale":
            break
    return word


async def enter_batch(engines: Engines, room_id: str, members: Sequence[Entering]) -> list[Entered]:
    """One script call for the batch; one answer each, in order."""
    numbers: dict[str, int] = {}
    for member in members:
        numbers.setdefault(member.draw_id, len(numbers) + 1)
    keys = [outbox_key(room_id), room_key(room_id), *[key for draw_id in numbers for key in _keys(draw_id)]]
    arguments: list[str | int] = [engines.runtime.script_now_ms(), len(numbers), *numbers]
    for member in members:
        arguments += [numbers[member.draw_id], member.viewer_id, member.name, member.key, member.keyword, member.refusal]
    replies: list[bytes] = await engines.run_on_sales(_enter, keys, arguments)
    entered = [Entered(replies[i].decode(), replies[i + 1].decode(), int(replies[i + 2])) for i in range(0, len(replies), 3)]
    if all(answer.word != "frozen" for answer in entered):
        return entered
    query = select(Draw.id).where(Draw.id.in_(numbers), Draw.state == "open")
    open_ones = await list_open_of(engines, list(numbers), query)
    return [
        answer._replace(word="missing") if answer.word == "frozen" and member.draw_id not in open_ones else answer
        for member, answer in zip(members, entered, strict=True)
    ]


async def close_engine(engines: Engines, draw_id: str, *, actor: str, reason: str = "") -> str:
    """`closed`, `already`, `not_due`, `frozen` or `missing`. With a reason it is cancelled instead of drawn."""
    keys = [*_keys(draw_id), outbox_key(room_of(draw_id)), room_key(room_of(draw_id))]
    reply: bytes = await engines.run_on_sales(_close, keys, [engines.runtime.script_now_ms(), draw_id, actor, reason])
    return reply.decode()


async def fetch_draw(session: AsyncSession, draw_id: str) -> Draw | None:
    return await session.get(Draw, draw_id)


async def lock_draw(session: AsyncSession, draw_id: str) -> Draw | None:
    query = select(Draw).where(Draw.id == draw_id).with_for_update().execution_options(populate_existing=True)
    return (await session.scalars(query)).one_or_none()


async def list_prizes(session: AsyncSession, draw_id: str) -> Sequence[DrawPrize]:
    query = select(DrawPrize).where(DrawPrize.draw_id == draw_id).order_by(DrawPrize.position)
    return (await session.scalars(query)).all()


async def insert_entries(session: AsyncSession, rows: Sequence[dict[str, Any]]) -> None:
    """A viewer who is in stays as he was."""
    for start in range(0, len(rows), INSERT_ROWS_MAX):
        await session.execute(insert(DrawEntry).values(list(rows[start : start + INSERT_ROWS_MAX])).on_conflict_do_nothing())


async def count_entries(session: AsyncSession, draw_id: str) -> int:
    return await session.scalar(select(func.count()).select_from(DrawEntry).where(DrawEntry.draw_id == draw_id)) or 0


class Leaf(NamedTuple):
    pseudonym: str
    evidence_hash: str
    viewer_id: str
    name: str


async def list_leaves(session: AsyncSession, draw_id: str) -> list[Leaf]:
    """All entrants, sorted as the leaves are: a pseudonym is unique, so the order of the hex text is the order of the bytes."""
    query = select(DrawEntry.pseudonym, DrawEntry.evidence_hash, DrawEntry.viewer_id, DrawEntry.name).where(DrawEntry.draw_id == draw_id)
    return sorted(Leaf(*row) for row in await session.execute(query))


async def list_viewers(session: AsyncSession, draw_id: str) -> Sequence[str]:
    return (await session.scalars(select(DrawEntry.viewer_id).where(DrawEntry.draw_id == draw_id))).all()


async def list_winners(session: AsyncSession, draw_id: str) -> Sequence[DrawWinner]:
    query = select(DrawWinner).where(DrawWinner.draw_id == draw_id).order_by(DrawWinner.unit)
    return (await session.scalars(query)).all()


async def mark_delivered(session: AsyncSession, draw_id: str, unit: int, order_id: str, at: datetime) -> bool:
    """True the first time."""
    statement = (
        update(DrawWinner)
        .where(DrawWinner.draw_id == draw_id, DrawWinner.unit == unit, DrawWinner.delivered_at.is_(None))
        .values(delivered_at=at, order_id=order_id)
        .returning(DrawWinner.unit)
    )
    return (await session.execute(statement)).first() is not None


async def list_due(session: AsyncSession, now: datetime, limit: int) -> Sequence[str]:
    return (await session.scalars(_due(now).order_by(Draw.closes_at).limit(limit))).all()


async def list_unsettled(session: AsyncSession, now: datetime, limit: int) -> Sequence[str]:
    """Over, but with prizes to deliver or escrow to return. One that never opened may be setting prizes aside for a while yet."""
    return (await session.scalars(_unsettled(now).order_by(Draw.ended_at).limit(limit))).all()


async def list_in_escrow(session: AsyncSession, room_id: str) -> Sequence[str]:
    """Draws of a room whose prizes are, or may be, set aside."""
    unsettled = and_(Draw.state.in_(["drawn", "cancelled"]), Draw.settled_at.is_(None), Draw.rules_hash != "")
    query = select(Draw.id).where(Draw.room_id == room_id, or_(Draw.state == "open", unsettled)).order_by(Draw.id)
    return (await session.scalars(query)).all()


async def list_stranded(session: AsyncSession, now: datetime, limit: int) -> Sequence[str]:
    """Draws whose opening was cut off between escrow and announcement."""
    return (await session.scalars(_stranded(now).limit(limit))).all()


def _due(now: Time) -> Select[str]:
    return select(Draw.id).where(Draw.state == "open", Draw.closes_at <= now)


def _stranded(now: Time) -> Select[str]:
    return select(Draw.id).where(Draw.state == "preparing", Draw.created_at < now - STRANDED_AFTER)


def _unsettled(now: Time) -> Select[str]:
    was_open = or_(Draw.rules_hash != "", Draw.created_at < now - STRANDED_AFTER)
    return select(Draw.id).where(Draw.state.in_(["drawn", "cancelled"]), Draw.settled_at.is_(None), was_open)


DRAW_IS_DUE: Condition = or_(_due(ENGINE_NOW).exists(), _unsettled(NOW).exists(), _stranded(NOW).exists())


async def list_rooms_in_play(session: AsyncSession) -> Sequence[str]:
    return (await session.scalars(select(Draw.room_id).where(Draw.state == "open").distinct())).all()


async def lock_remembered(session: AsyncSession, room_id: str, since: datetime) -> Sequence[Draw]:
    """Draws of a room that are not over, or that an engine may still have because they would have closed, or ended, after `since`."""
    lasting = or_(Draw.state.in_(["preparing", "open"]), Draw.closes_at > since, Draw.ended_at > since)
    query = select(Draw).where(Draw.room_id == room_id, lasting).order_by(Draw.id)
    return (await session.scalars(query.with_for_update().execution_options(populate_existing=True))).all()


async def list_open(session: AsyncSession, room_id: str) -> Sequence[Draw]:
    query = select(Draw).where(Draw.room_id == room_id, Draw.state == "open").order_by(Draw.opened_at, Draw.id)
    return (await session.scalars(query.limit(100))).all()


async def list_of_session(session: AsyncSession, session_id: str, *, limit: int, before: tuple[datetime, str] | None) -> Sequence[Draw]:
    """Newest first, after the sort key `before`."""
    query = select(Draw).where(Draw.session_id == session_id)
    if before is not None:
        query = query.where(or_(Draw.created_at < before[0], and_(Draw.created_at == before[0], Draw.id < before[1])))
    return (await session.scalars(query.order_by(Draw.created_at.desc(), Draw.id.desc()).limit(limit))).all()
