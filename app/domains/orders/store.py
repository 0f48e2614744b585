"""SQL of orders, payments and refunds."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, DateTime, Select, Text, cast, column, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.domains.orders.rules import PAYABLE_STATES, OrderState
from app.domains.orders.tables import Order, Payment, PaymentEvent, Refund, SandboxCharge
from app.storage.bulk import BulkInsert
from app.storage.tables import IdempotencyRecord

_insert_orders = BulkInsert(
    Order,
    *("id", "room_id", "session_id", "offer_id", "offer_version", "name", "viewer_id", "buyer", "quantity", "price_minor", "amount_minor"),
    *("currency", "return_policy", "address", "state", "reason", "prize", "placed_at", "pay_by", "paid_at", "refunded_minor", "returned"),
    after="on conflict do nothing returning id",
)


async def insert_orders(session: AsyncSession, rows: Sequence[dict[str, Any]]) -> set[str]:
    """The ids that are new."""
    return set((await _insert_orders(session, rows)).scalars())


async def fetch_order(session: AsyncSession, order_id: str) -> Order | None:
    return await session.get(Order, order_id)


async def lock_order(session: AsyncSession, order_id: str) -> Order | None:
    query = select(Order).where(Order.id == order_id).with_for_update().execution_options(populate_existing=True)
    return (await session.scalars(query)).one_or_none()


# The rows as they are now in SQL, without looking through all that the session knows for what the statement may have changed.
_FRESH = {"synchronize_session": False, "populate_existing": True}


async def record_key(session: AsyncSession, row: dict[str, Any]) -> tuple[str, str] | None:
    """Digest and answer of the first command with this key; None when this is the first."""
    if await session.scalar(insert(IdempotencyRecord).values(row).on_conflict_do_nothing().returning(IdempotencyRecord.key)):
        return None
    query = select(IdempotencyRecord.digest, IdempotencyRecord.body)
    found = await session.execute(query.filter_by(caller_id=row["caller_id"], key=row["key"]))
    digest, body = found.one()
    return digest, body.decode()


async def end_orders(session: AsyncSession, order_ids: Sequence[str], state: OrderState) -> list[Order]:
    """placed -> cancelled or expired. The orders that moved."""
    query = update(Order).where(Order.id.in_(order_ids), Order.state == OrderState.PLACED).values(state=state).returning(Order)
    return list((await session.scalars(query, execution_options=_FRESH)).all())


async def pay_orders(session: AsyncSession, payments: Sequence[tuple[str, str, datetime]]) -> dict[str, Order]:
    """placed or expired -> paid. Of (order, payment, at) those whose order was in one of these states."""
    orders, paid_by, at = (list(column) for column in zip(*payments, strict=True))
    paid = func.unnest(cast(orders, ARRAY(Text)), cast(paid_by, ARRAY(Text)), cast(at, ARRAY(DateTime(timezone=True))))
    rows = paid.table_valued(column("order_id", Text), column("payment_id", Text), column("at", DateTime(timezone=True))).render_derived()
    query = (
        update(Order)
        .where(Order.id == rows.c.order_id, Order.state.in_(PAYABLE_STATES))
        .values(state=OrderState.PAID, paid_at=rows.c.at, payment_id=rows.c.payment_id)
        .returning(Order)
    )
    return {order.id: order for order in await session.scalars(query, execution_options=_FRESH)}


async def fetch_orders(session: AsyncSession, order_ids: Collection[str]) -> list[Order]:
    return list((await session.scalars(select(Order).where(Order.id.in_(order_ids)).order_by(Order.id))).all())


async def list_viewer_orders(
    session: AsyncSession, viewer_id: str, *, room_id: str | None, after: tuple[datetime, str] | None, limit: int
) -> list[Order]:
    query = select(Order).where(Order.viewer_id == viewer_id)
    if room_id:
        query = query.where(Order.room_id == room_id)
    return await _newest_first(session, query, after, limit)


async def list_room_orders(
    session: AsyncSession, room_id: str, *, filters: dict[str, str], after: tuple[datetime, str] | None, limit: int
) -> list[Order]:
    query = select(Order).where(Order.room_id == room_id).filter_by(**filters)
    return await _newest_first(session, query, after, limit)


async def _newest_first(session: AsyncSession, query: Select[Order], after: tuple[datetime, str] | None, limit: int) -> list[Order]:
    if after:
        query = query.where(tuple_(Order.placed_at, Order.id) < after)
    return list((await session.scalars(query.order_by(Order.placed_at.desc(), Order.id.desc()).limit(limit))).all())


async def insert_payment(session: AsyncSession, row: dict[str, Any]) -> bool:
    """False when it is there already."""
    query = insert(Payment).values(row).on_conflict_do_nothing().returning(Payment.id)
    return (await session.scalar(query)) is not None


async def fetch_payment(session: AsyncSession, payment: str) -> Payment | None:
    return await session.get(Payment, payment)


async def settle_payment(session: AsyncSession, payment: str, *, state: str, reason: str, at: datetime) -> bool:
    """pending -> succeeded or declined, once."""
    query = (
        update(Payment)
        .where(Payment.id == payment, Payment.state == "pending")
        .values(state=state, reason=reason, settled_at=at)
        .returning(Payment.id)
    )
    return (await session.scalar(query)) is not None


async def record_event(session: AsyncSession, row: dict[str, Any]) -> str:
    """The outcome that this event already had; empty when its effect is still to be had."""
    await session.execute(insert(PaymentEvent).values(row).on_conflict_do_nothing())
    query = select(PaymentEvent.outcome).where(PaymentEvent.provider == row["provider"], PaymentEvent.event_id == row["event_id"])
    return (await session.scalars(query)).one()


async def close_event(session: AsyncSession, provider: str, event_id: str, outcome: str) -> None:
    query = update(PaymentEvent).where(PaymentEvent.provider == provider, PaymentEvent.event_id == event_id, PaymentEvent.outcome == "")
    await session.execute(query.values(outcome=outcome))


async def insert_refund(session: AsyncSession, row: dict[str, Any]) -> bool:
    """False when it is there already."""
    query = insert(Refund).values(row).on_conflict_do_nothing().returning(Refund.id)
    return (await session.scalar(query)) is not None


async def fetch_refund(session: AsyncSession, refund_id: str) -> Refund | None:
    return await session.get(Refund, refund_id)


async def lock_restocks(session: AsyncSession, order_ids: Collection[str]) -> list[Refund]:
    """Refunds of these orders whose units the engine does not have back yet."""
    query = select(Refund).where(Refund.order_id.in_(order_ids), Refund.restock > 0, Refund.restocked.is_(False))
    return list((await session.scalars(query.order_by(Refund.id).with_for_update())).all())


async def insert_charge(session: AsyncSession, row: dict[str, Any]) -> None:
    await session.execute(insert(SandboxCharge).values(row).on_conflict_do_nothing())


async def lease_charges(session: AsyncSession, now: datetime, *, until: datetime, limit: int) -> list[SandboxCharge]:
    """Charges that are due; nobody else gets them before `until`."""
    due = (
        select(SandboxCharge.payment_id)
        .where(SandboxCharge.left_to_send > 0, SandboxCharge.due_at <= now)
        .order_by(SandboxCharge.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    query = update(SandboxCharge).where(SandboxCharge.payment_id.in_(due.scalar_subquery()))
    leased = query.values(due_at=until, attempts=SandboxCharge.attempts + 1).returning(SandboxCharge)
    return list((await session.scalars(leased)).all())


async def mark_sent(session: AsyncSession, payment: str, next_at: datetime, left: int) -> None:
    query = update(SandboxCharge).where(SandboxCharge.payment_id == payment)
    await session.execute(query.values(left_to_send=left, due_at=next_at))


async def add_charge_refund(session: AsyncSession, payment: str, amount_minor: int) -> None:
    query = update(SandboxCharge).where(SandboxCharge.payment_id == payment)
    await session.execute(query.values(refunded_minor=SandboxCharge.refunded_minor + amount_minor))


async def list_all_orders(session: AsyncSession, room_id: str) -> list[Order]:
    """All orders of a room: for reconciliation."""
    return list((await session.scalars(select(Order).where(Order.room_id == room_id))).all())
