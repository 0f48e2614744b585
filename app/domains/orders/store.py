"""SQL of orders, payments and refunds."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, DateTime, Select, Text, cast, column, delete, exists, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.domains.orders.rules import PAYABLE_STATES, SOLD_STATES, OrderFacts, OrderState
from app.domains.orders.tables import Dispute, Order, Payment, PaymentEvent, ProviderCall, Refund, ReturnRequest, SandboxCharge
from app.storage.bulk import BulkInsert
from app.storage.due import NOW, Condition
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
    """placed or expired -> paid. Of (order, payment, at) those whose order was in one of these states.

    What had gone back of an expired order was another payment's, which had come when nothing was left.
    """
    orders, paid_by, at = (list(column) for column in zip(*payments, strict=True))
    paid = func.unnest(cast(orders, ARRAY(Text)), cast(paid_by, ARRAY(Text)), cast(at, ARRAY(DateTime(timezone=True))))
    rows = paid.table_valued(column("order_id", Text), column("payment_id", Text), column("at", DateTime(timezone=True))).render_derived()
    query = (
        update(Order)
        .where(Order.id == rows.c.order_id, Order.state.in_(PAYABLE_STATES))
        .values(state=OrderState.PAID, paid_at=rows.c.at, payment_id=rows.c.payment_id, refunded_minor=0, reason="")
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


def _chosen(room_id: str, filters: dict[str, str], since: datetime | None, until: datetime | None) -> Select[Order]:
    query = select(Order).where(Order.room_id == room_id).filter_by(**filters)
    if since:
        query = query.where(Order.placed_at >= since)
    return query.where(Order.placed_at < until) if until else query


async def count_chosen_orders(
    session: AsyncSession, room_id: str, filters: dict[str, str], since: datetime | None, until: datetime | None, *, limit: int
) -> int:
    """At most `limit`: whoever wants to know whether there are more than that asks for one more."""
    some = _chosen(room_id, filters, since, until).with_only_columns(Order.id).limit(limit).subquery()
    return int(await session.scalar(select(func.count()).select_from(some)) or 0)


async def list_chosen_orders(
    session: AsyncSession,
    room_id: str,
    filters: dict[str, str],
    since: datetime | None,
    until: datetime | None,
    *,
    after: tuple[datetime, str] | None,
    limit: int,
) -> list[Order]:
    return await _newest_first(session, _chosen(room_id, filters, since, until), after, limit)


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


async def find_payment(session: AsyncSession, provider: str, *, payment: str, reference: str) -> Payment | None:
    """By our id, or else by the provider's."""
    if payment:
        found = await session.get(Payment, payment)
        return found if found and found.provider == provider else None
    query = select(Payment).where(Payment.provider == provider, Payment.reference == reference, Payment.reference != "")
    return (await session.scalars(query)).one_or_none()


async def settle_payment(session: AsyncSession, payment: str, *, state: str, reason: str, at: datetime) -> bool:
    """pending -> succeeded, declined or refunded, once. Money may still come after a decline: another card, or notices out of order."""
    before = ("pending",) if state == "declined" else ("pending", "declined")
    query = (
        update(Payment)
        .where(Payment.id == payment, Payment.state.in_(before))
        .values(state=state, reason=reason, settled_at=at)
        .returning(Payment.id)
    )
    return (await session.scalar(query)) is not None


async def note_reference(session: AsyncSession, payment: str, *, reference: str, client_secret: str) -> None:
    query = update(Payment).where(Payment.id == payment).values(reference=reference, client_secret=client_secret)
    await session.execute(query)


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


async def settle_refund(session: AsyncSession, refund_id: str, *, state: str, reference: str = "") -> bool:
    """pending -> succeeded or failed, once."""
    values = {"state": state} | ({"reference": reference} if reference else {})
    query = update(Refund).where(Refund.id == refund_id, Refund.state == "pending").values(values).returning(Refund.id)
    return (await session.scalar(query)) is not None


async def sum_sent_back(session: AsyncSession, payment: str) -> int:
    """What of a payment went back: by refunds that did not fail, and by disputes that were lost."""
    refunds = select(func.coalesce(func.sum(Refund.amount_minor), 0)).where(Refund.payment_id == payment, Refund.state != "failed")
    disputes = select(func.coalesce(func.sum(Dispute.amount_minor), 0)).where(Dispute.payment_id == payment, Dispute.state == "lost")
    return int(await session.scalar(refunds) or 0) + int(await session.scalar(disputes) or 0)


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


CHARGE_IS_DUE: Condition = exists().where(SandboxCharge.left_to_send > 0, SandboxCharge.due_at <= NOW)


async def lock_charge(session: AsyncSession, payment: str) -> SandboxCharge | None:
    return (await session.scalars(select(SandboxCharge).where(SandboxCharge.payment_id == payment).with_for_update())).one_or_none()


async def mark_sent(session: AsyncSession, sent: SandboxCharge, next_at: datetime, *, heard: bool, gives_up: bool) -> None:
    """Relative to what is there now: a refund may have added a step meanwhile. Once a step: who was slower than their lease sent one that
    another has sent too."""
    query = update(SandboxCharge).where(
        SandboxCharge.payment_id == sent.payment_id,
        SandboxCharge.left_to_send > 0,
        func.jsonb_array_length(SandboxCharge.steps) - SandboxCharge.left_to_send == len(sent.steps) - sent.left_to_send,
    )
    values: dict[str, Any] = {"due_at": next_at}
    if heard:
        values |= {"left_to_send": SandboxCharge.left_to_send - 1, "attempts": 0}
    elif gives_up:
        values |= {"left_to_send": 0}
    await session.execute(query.values(values))


def call_row(kind: str, subject: str, payment: Mapping[str, Any], *, at: datetime, data: dict[str, Any] | None = None) -> dict[str, Any]:
    """A call that is due from `at` on; `payment` has its id, provider, amount and currency."""
    about = {name: payment[name] for name in ("provider", "amount_minor", "currency")}
    return about | {"kind": kind, "subject": subject, "payment_id": payment["id"], "data": data or {}, "state": "due", "due_at": at}


async def insert_calls(session: AsyncSession, rows: Sequence[dict[str, Any]]) -> None:
    """Those that are not there yet."""
    await session.execute(insert(ProviderCall).values(list(rows)).on_conflict_do_nothing())


async def list_unpaid(session: AsyncSession, order_ids: Collection[str]) -> list[dict[str, Any]]:
    """The attempts to pay these orders that are still open."""
    names = ("id", "provider", "amount_minor", "currency")
    query = select(*[getattr(Payment, name) for name in names]).where(Payment.order_id.in_(order_ids), Payment.state == "pending")
    return [dict(zip(names, row, strict=True)) for row in await session.execute(query)]


async def lease_calls(
    session: AsyncSession, now: datetime, *, until: datetime, limit: int, only: tuple[str, str] | None = None
) -> list[ProviderCall]:
    """Calls that are due, or `only` this one; nobody else makes them before `until`."""
    due = select(ProviderCall.kind, ProviderCall.subject).where(ProviderCall.state == "due", ProviderCall.due_at <= now)
    if only:
        due = due.where(ProviderCall.kind == only[0], ProviderCall.subject == only[1])
    due = due.order_by(ProviderCall.due_at).limit(limit).with_for_update(skip_locked=True)
    query = update(ProviderCall).where(tuple_(ProviderCall.kind, ProviderCall.subject).in_(due))
    leased = query.values(due_at=until, attempts=ProviderCall.attempts + 1).returning(ProviderCall)
    return list((await session.scalars(leased)).all())


CALL_IS_DUE: Condition = exists().where(ProviderCall.state == "due", ProviderCall.due_at <= NOW)


async def end_call(session: AsyncSession, call: ProviderCall, *, state: str, error: str = "") -> bool:
    """due -> done or failed, once."""
    mine = (ProviderCall.kind == call.kind, ProviderCall.subject == call.subject, ProviderCall.state == "due")
    query = update(ProviderCall).where(*mine).values(state=state, error=error).returning(ProviderCall.subject)
    return (await session.scalar(query)) is not None


async def put_off_call(session: AsyncSession, call: ProviderCall, due_at: datetime, error: str) -> None:
    mine = (ProviderCall.kind == call.kind, ProviderCall.subject == call.subject, ProviderCall.state == "due")
    await session.execute(update(ProviderCall).where(*mine).values(due_at=due_at, error=error))


async def delete_provider_records(session: AsyncSession, before: datetime, limit: int) -> None:
    """Calls and webhooks that came to their end before that; at most so many of each."""
    ended = select(ProviderCall.kind, ProviderCall.subject).where(ProviderCall.state != "due", ProviderCall.due_at < before)
    await session.execute(delete(ProviderCall).where(tuple_(ProviderCall.kind, ProviderCall.subject).in_(ended.limit(limit))))
    heard = select(PaymentEvent.id).where(PaymentEvent.outcome != "", PaymentEvent.received_at < before)
    await session.execute(delete(PaymentEvent).where(PaymentEvent.id.in_(heard.limit(limit))))


async def lock_long_shipped(session: AsyncSession, before: datetime, limit: int) -> list[Order]:
    query = select(Order).where(Order.state == OrderState.SHIPPED, Order.shipped_at <= before).order_by(Order.shipped_at).limit(limit)
    return list((await session.scalars(query.with_for_update(skip_locked=True))).all())


async def fetch_return(session: AsyncSession, request_id: str) -> ReturnRequest | None:
    return await session.get(ReturnRequest, request_id)


async def lock_return(session: AsyncSession, request_id: str) -> ReturnRequest | None:
    query = select(ReturnRequest).where(ReturnRequest.id == request_id).with_for_update().execution_options(populate_existing=True)
    return (await session.scalars(query)).one_or_none()


async def list_order_returns(session: AsyncSession, order_id: str) -> list[ReturnRequest]:
    """Bounded by `returns_per_order_max`."""
    return list((await session.scalars(select(ReturnRequest).where(ReturnRequest.order_id == order_id))).all())


async def list_returns(
    session: AsyncSession, filters: dict[str, str], *, after: tuple[datetime, str] | None, limit: int
) -> list[ReturnRequest]:
    """Newest first; `filters` name a viewer, a room, an order or a state."""
    query = select(ReturnRequest).filter_by(**filters)
    if after:
        query = query.where(tuple_(ReturnRequest.requested_at, ReturnRequest.id) < after)
    query = query.order_by(ReturnRequest.requested_at.desc(), ReturnRequest.id.desc()).limit(limit)
    return list((await session.scalars(query)).all())


async def list_due_returns(session: AsyncSession, now: datetime, limit: int) -> list[str]:
    query = select(ReturnRequest.id).where(ReturnRequest.due_at <= now).order_by(ReturnRequest.due_at).limit(limit)
    return list((await session.scalars(query)).all())


async def lock_dispute(session: AsyncSession, dispute: str) -> Dispute | None:
    return (await session.scalars(select(Dispute).where(Dispute.id == dispute).with_for_update())).one_or_none()


async def has_open_dispute(session: AsyncSession, order_id: str) -> bool:
    query = select(Dispute.id).where(Dispute.order_id == order_id, Dispute.state == "open").limit(1)
    return (await session.scalar(query)) is not None


async def list_room_disputes(session: AsyncSession, room_id: str, *, after: tuple[datetime, str] | None, limit: int) -> list[Dispute]:
    query = select(Dispute).where(Dispute.room_id == room_id)
    if after:
        query = query.where(tuple_(Dispute.opened_at, Dispute.id) < after)
    return list((await session.scalars(query.order_by(Dispute.opened_at.desc(), Dispute.id.desc()).limit(limit))).all())


async def lock_owed_disputes(session: AsyncSession, limit: int) -> list[Dispute]:
    """Lost ones that the room's wallet could not pay for yet."""
    query = select(Dispute).where(Dispute.state == "lost", Dispute.covered.is_(False))
    return list((await session.scalars(query.order_by(Dispute.closed_at).limit(limit).with_for_update(skip_locked=True))).all())


async def list_orders_of(session: AsyncSession, offer_ids: Collection[str]) -> Sequence[Order]:
    return (await session.scalars(select(Order).where(Order.offer_id.in_(offer_ids)).execution_options(populate_existing=True))).all()


async def list_refunds_of(session: AsyncSession, offer_ids: Collection[str]) -> Sequence[Refund]:
    query = select(Refund).join(Order, Order.id == Refund.order_id).where(Order.offer_id.in_(offer_ids))
    return (await session.scalars(query.execution_options(populate_existing=True))).all()


async def list_facts(session: AsyncSession, offer_ids: Collection[str]) -> dict[str, OrderFacts]:
    """All orders of these offers, as reconciliation compares them."""
    restocked = select(func.sum(Refund.restock)).where(Refund.order_id == Order.id, Refund.restocked).scalar_subquery()
    query = select(Order.id, Order.offer_id, Order.state, Order.quantity, Order.returned, restocked).where(Order.offer_id.in_(offer_ids))
    return {
        row[0]: OrderFacts(offer=row[1], state=OrderState(row[2]), quantity=row[3], returned=row[4], restocked=int(row[5] or 0))
        for row in await session.execute(query)
    }


async def count_units(session: AsyncSession, offer_id: str) -> int:
    """Units of paid orders, less what was given back."""
    query = select(func.sum(Order.quantity - Order.returned)).where(Order.offer_id == offer_id, Order.state.in_(SOLD_STATES))
    return int(await session.scalar(query) or 0)
