"""What SQL knows of holds: the orders that they became. An engine that has lost its records gets them back from here."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.domains.orders import store
from app.domains.orders.rules import HOLD_OF_ORDER, OrderState, automatic_refund_id
from app.domains.orders.tables import Order, Refund


async def standing_holds(session: AsyncSession, room_id: str, offer_ids: Sequence[str]) -> dict[str, Any]:
    orders = await store.list_orders_of(session, offer_ids)
    refunds: dict[str, list[Refund]] = {}
    for refund in await store.list_refunds_of(session, offer_ids):
        refunds.setdefault(refund.order_id, []).append(refund)
    return {order.id: _record(order, refunds.get(order.id, ())) for order in orders}


def _record(order: Order, refunds: Sequence[Refund]) -> dict[str, Any]:
    state = HOLD_OF_ORDER[OrderState(order.state)]
    record: dict[str, Any] = {
        "offer": order.offer_id,
        "session": order.session_id,
        "viewer": order.viewer_id,
        "quantity": order.quantity,
        "escrow": order.prize,
        "state": state,
        "price": order.price_minor,
        "version": order.offer_version,
        "currency": order.currency,
        "policy": order.return_policy,
        "deadline": _ms(order.pay_by) if order.state == OrderState.PLACED else 0,
        "pay_by": _ms(order.pay_by),
        "placed": _ms(order.placed_at),
        "name": order.name,
        "buyer": order.buyer,
    }
    if order.payment_id:
        record["payment"] = order.payment_id
    if order.prize:
        record |= {"winner": order.viewer_id, "prize": order.name}
    # Units whose refund the engine has not heard of yet come by the reaction to that refund.
    given = {refund.id: refund.restock for refund in refunds if refund.restock and refund.restocked}
    refused = {refund.payment_id: refund.reason for refund in refunds if refund.id == automatic_refund_id(refund.payment_id)}
    if given:
        record |= {"given": given, "returned": sum(given.values())}
    return record | ({"refused": refused} if refused else {})


def _ms(at: datetime | None) -> int:
    return round(at.timestamp() * 1000) if at else 0
