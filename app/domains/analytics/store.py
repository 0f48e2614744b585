"""SQL of the projections, and the key that keeps several workers from pushing the same figures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, false, func, or_, select, text, true, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.domains.analytics.tables import OfferReading, OrderFact, SessionFigures, SessionMinute
from app.domains.inventory.rules import Stock
from app.storage.bulk import BulkInsert
from app.storage.due import Condition
from app.storage.work import Engines


@dataclass(frozen=True, slots=True)
class Sales:
    """What the orders of one group come to."""

    orders: int = 0
    paid_orders: int = 0
    units: int = 0
    gmv_minor: int = 0
    refunded_minor: int = 0
    refunds: int = 0


async def claim_push(engines: Engines, room_id: str, for_ms: int) -> bool:
    """Whether this worker may push the room's figures now; nobody may again for `for_ms`."""
    return bool(await engines.fanout.set(f"{{{room_id}}}:figures:pushed", 1, nx=True, px=for_ms))


async def open_session(session: AsyncSession, session_id: str, room_id: str) -> None:
    values = {"room_id": room_id, "live": True, "stale": True, "final": False, "ended_at": None}
    statement = insert(SessionFigures).values(session_id=session_id, **values)
    await session.execute(statement.on_conflict_do_nothing())


async def end_session(session: AsyncSession, session_id: str, at: datetime) -> None:
    row = SessionFigures
    ended_at = func.coalesce(row.ended_at, at)
    await session.execute(update(row).where(row.session_id == session_id).values(live=False, stale=True, ended_at=ended_at))


async def mark_stale(session: AsyncSession, session_id: str) -> None:
    """Writes even what is so already: the row's lock makes this wait for a report under way, or that report for this transaction."""
    row = SessionFigures
    await session.execute(update(row).where(row.session_id == session_id, row.live == false(), row.final == false()).values(stale=True))


async def close_session(session: AsyncSession, session_id: str) -> None:
    await session.execute(update(SessionFigures).where(SessionFigures.session_id == session_id).values(final=True, live=False))


async def fetch_session(session: AsyncSession, session_id: str) -> SessionFigures | None:
    return await session.get(SessionFigures, session_id)


async def lock_session(session: AsyncSession, session_id: str) -> None:
    row = SessionFigures
    await session.execute(select(row.session_id).where(row.session_id == session_id).with_for_update())


async def set_report(session: AsyncSession, session_id: str, report: dict[str, Any], at: datetime) -> None:
    row = SessionFigures
    await session.execute(update(row).where(row.session_id == session_id).values(report=report, report_at=at, stale=False))


async def list_live(session: AsyncSession, limit: int) -> Sequence[SessionFigures]:
    query = select(SessionFigures).where(SessionFigures.live == true()).order_by(SessionFigures.session_id).limit(limit)
    return (await session.scalars(query)).all()


SHOW_IS_LIVE: Condition = exists().where(SessionFigures.live == true())


async def list_reports_due(
    session: AsyncSession, *, now: datetime, settling: timedelta, every: timedelta, limit: int
) -> Sequence[SessionFigures]:
    """Ended shows where something came in; and those still settling (holds and payments run out) whose report is older than `every`."""
    row = SessionFigures
    settles = and_(row.ended_at > now - settling, or_(row.report_at.is_(None), row.report_at <= now - every))
    query = select(row).where(row.live == false(), row.final == false(), or_(row.stale == true(), settles)).limit(limit)
    return (await session.scalars(query)).all()


async def note_viewers(session: AsyncSession, session_id: str, minute: datetime, viewers: int) -> None:
    statement = insert(SessionMinute).values(session_id=session_id, minute=minute, viewers=viewers)
    most = func.greatest(SessionMinute.viewers, statement.excluded.viewers)
    await session.execute(statement.on_conflict_do_update(index_elements=["session_id", "minute"], set_={"viewers": most}))


async def list_minutes(session: AsyncSession, session_id: str) -> dict[datetime, int]:
    query = select(SessionMinute.minute, SessionMinute.viewers).where(SessionMinute.session_id == session_id)
    return {row[0]: row[1] for row in await session.execute(query)}


async def set_readings(session: AsyncSession, stock: Mapping[str, Stock]) -> None:
    rows = [
        {
            "offer_id": offer_id,
            "session_id": reading.session,
            "total": reading.total,
            "available": reading.available,
            "held": reading.held,
            "ordered": reading.ordered,
            "sold": reading.sold,
            "holds": reading.holds,
        }
        for offer_id, reading in sorted(stock.items())
    ]
    if rows:
        statement = insert(OfferReading).values(rows)
        changed = {name: statement.excluded[name] for name in rows[0] if name != "offer_id"}
        await session.execute(statement.on_conflict_do_update(index_elements=["offer_id"], set_=changed))


async def list_readings(session: AsyncSession, session_id: str) -> dict[str, OfferReading]:
    rows = await session.scalars(select(OfferReading).where(OfferReading.session_id == session_id))
    return {row.offer_id: row for row in rows}


# --- orders ------------------------------------------------------------------------------------------------------------------------------


_FACT = ("order_id", "session_id", "offer_id", "viewer_id", "quantity", "amount_minor", "state", "refunded_minor")
_insert_placed = BulkInsert(
    OrderFact,
    *(*_FACT, "placed_at"),
    after="on conflict (order_id) do update set placed_at = coalesce(order_facts.placed_at, excluded.placed_at)",
)
_insert_paid = BulkInsert(
    OrderFact,
    *(*_FACT, "paid_at"),
    after="on conflict (order_id) do update set paid_at = coalesce(order_facts.paid_at, excluded.paid_at),"
    " state = case when order_facts.state in ('placed', 'expired') then 'paid' else order_facts.state end",
)
_CHANGE = text(
    "update order_facts f set state = c.state, refunded_minor = greatest(f.refunded_minor, c.refunded_minor)"
    " from unnest(cast(:ids as text[]), cast(:states as text[]), cast(:refunded as bigint[])) as c(order_id, state, refunded_minor)"
    " where f.order_id = c.order_id"
)


async def note_placed(session: AsyncSession, facts: Sequence[dict[str, Any]]) -> None:
    """A fact is an order with the time `at` that it was placed at. Said twice, the first stands."""
    await _insert_placed(session, [fact | {"state": "placed", "refunded_minor": 0, "placed_at": fact["at"]} for fact in _first(facts)])


async def note_paid(session: AsyncSession, facts: Sequence[dict[str, Any]]) -> None:
    """The same for `paid`. A refund that is already noted stands."""
    await _insert_paid(session, [fact | {"state": "paid", "refunded_minor": 0, "paid_at": fact["at"]} for fact in _first(facts)])


def _first(facts: Sequence[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """One row an order: a statement may not touch a row twice."""
    return {fact["order_id"]: fact for fact in reversed(facts)}.values()


async def note_changed(session: AsyncSession, changes: Sequence[tuple[str, str, int]]) -> None:
    """(order, state, refunded): of each order the last state, and the most that went back."""
    last: dict[str, tuple[str, int]] = {}
    for order_id, state, refunded_minor in changes:
        last[order_id] = (state, max(refunded_minor, last[order_id][1] if order_id in last else 0))
    parameters = {"ids": list(last), "states": [row[0] for row in last.values()], "refunded": [row[1] for row in last.values()]}
    await session.execute(_CHANGE, parameters)


_PAID = OrderFact.paid_at.is_not(None)


def _bought(session_id: str) -> ColumnElement[bool]:
    return and_(OrderFact.session_id == session_id, OrderFact.placed_at.is_not(None))


async def sum_sales(session: AsyncSession, session_id: str) -> dict[str, Sales]:
    """Offer -> its sales."""
    query = (
        select(
            OrderFact.offer_id,
            func.count(),
            func.count().filter(_PAID),
            func.coalesce(func.sum(OrderFact.quantity).filter(_PAID), 0),
            func.coalesce(func.sum(OrderFact.amount_minor).filter(_PAID), 0),
            func.coalesce(func.sum(OrderFact.refunded_minor), 0),
            func.count().filter(OrderFact.refunded_minor > 0),
        )
        .where(_bought(session_id))
        .group_by(OrderFact.offer_id)
    )
    return {row[0]: Sales(*(int(value) for value in row[1:])) for row in await session.execute(query)}


def total_sales(sales: Iterable[Sales]) -> Sales:
    rows = list(sales)
    return Sales(**{name: sum(getattr(row, name) for row in rows) for name in Sales.__dataclass_fields__})


async def count_states(session: AsyncSession, session_id: str) -> dict[str, int]:
    query = select(OrderFact.state, func.count()).where(_bought(session_id)).group_by(OrderFact.state)
    return {row[0]: row[1] for row in await session.execute(query)}


async def sales_by_minute(session: AsyncSession, session_id: str) -> tuple[dict[datetime, int], dict[datetime, tuple[int, int]]]:
    """Minute -> orders placed in it; minute -> orders paid in it and their amount."""
    placed, paid = (func.date_trunc("minute", column) for column in (OrderFact.placed_at, OrderFact.paid_at))
    placed_query = select(placed, func.count()).where(_bought(session_id)).group_by(placed)
    paid_query = select(paid, func.count(), func.sum(OrderFact.amount_minor)).where(_bought(session_id), _PAID).group_by(paid)
    orders = {row[0]: row[1] for row in await session.execute(placed_query)}
    return orders, {row[0]: (row[1], int(row[2])) for row in await session.execute(paid_query)}
