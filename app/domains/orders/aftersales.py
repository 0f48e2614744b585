"""What happens to an order besides paying it: its address, shipped, delivered, refunded whole or in part, its units back on the shelf.

SQL decides here and the engine follows: a refund that restocks is a row first, and the units return through a reaction to the committed
event, once a refund. All money moves are ledger transfers whose ids name the payment or refund.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import msgspec

from app.core.errors import AppError
from app.core.ids import derived_tail, room_of
from app.domains.catalogue import service as catalogue
from app.domains.inventory import service as inventory
from app.domains.orders import store
from app.domains.orders.rules import OrderState, RefundRefusal, automatic_refund_id, decide_address, decide_refund
from app.domains.orders.service import emit_changed, money_in, take_in_awarded, take_in_ended, take_in_paid, take_in_placed
from app.domains.orders.tables import Order, Payment, Refund
from app.domains.wallet import service as wallet
from app.domains.wallet.rules import Movement, TransferOutcome
from app.protocol.channels import staff_channel, user_channel
from app.protocol.codes import CONFLICT, INSUFFICIENT_FUNDS, KEY_REUSED, NOT_FOUND
from app.protocol.events import AlertRaised, OrderChanged, RefundSettled
from app.protocol.order_commands import OrderAddressed, OrderSetAddress, SetAddressOutcome
from app.protocol.return_commands import ReceiptOutcome
from app.storage.intake import OutboxEntry, catch_up
from app.storage.sql import sql_now_ms
from app.storage.work import Engines, Work

DELIVERED_BATCH_MAX = 100

_REFUSALS = {
    RefundRefusal.DISPUTED: "the buyer has asked the bank for this money: wait for its word, then refund what is left",
    RefundRefusal.NOT_PAID: "the order holds no payment that could go back",
    RefundRefusal.TOO_MUCH: "this is more than is left of the payment",
    RefundRefusal.TOO_MANY_UNITS: "these units are back on the shelf already",
}


async def set_address(engines: Engines, *, viewer_id: str, request: OrderSetAddress) -> OrderAddressed:
    """Where to send an order that is not on its way yet. A prize has no address until its winner says so here.

    A late retry of an earlier address must not undo a newer one, so the key is recorded with its answer, in the same transaction.
    """
    await _take_in(engines, request.order)
    async with engines.work() as work:
        order = await store.lock_order(work.session, request.order)
        if order is None or order.viewer_id != viewer_id:
            return OrderAddressed(outcome=SetAddressOutcome.UNKNOWN, order=request.order)
        outcome = decide_address(OrderState(order.state))
        before = await store.record_key(work.session, _key_row(work, viewer_id, request, outcome))
        if before is not None:
            if before[0] != _digest(request):
                raise AppError(KEY_REUSED, "this key has already set another address or order; take a new key")
            return OrderAddressed(outcome=SetAddressOutcome(before[1]), order=order.id)
        if outcome is SetAddressOutcome.SET:
            order.address = msgspec.to_builtins(request.address)
            await work.session.flush()
            emit_changed(work, order)
        return OrderAddressed(outcome=outcome, order=order.id)


async def _take_in(engines: Engines, order_id: str) -> None:
    """The engine knows an order first: whoever changes its mind at once need not wait for the worker."""
    async with engines.sql.read() as session:
        known = await store.fetch_order(session, order_id)
    if known is None and await inventory.read_hold(engines, order_id):
        await catch_up(engines, room_of(order_id))


def _key_row(work: Work, viewer_id: str, request: OrderSetAddress, outcome: SetAddressOutcome) -> dict[str, Any]:
    return {
        "caller_id": viewer_id,
        "key": f"order.set_address {request.key}",
        "digest": _digest(request),
        "status": 200,
        "body": outcome.encode(),
        "headers": {},
        "created_at": work.now,
    }


def _digest(request: OrderSetAddress) -> str:
    return derived_tail(request.order, *msgspec.to_builtins(request.address).values())


async def ship(work: Work, order_id: str, *, carrier: str, tracking: str, by: str) -> Order:
    """paid -> shipped. Again with the same carrier and number: nothing more happens."""
    order = await lock_order(work, order_id)
    if order.state == OrderState.SHIPPED and (order.carrier, order.tracking) == (carrier, tracking):
        return order
    if order.state != OrderState.PAID:
        raise AppError(CONFLICT, f"only a paid order can be shipped; this one is {order.state}")
    order.state, order.carrier, order.tracking, order.shipped_at = OrderState.SHIPPED, carrier, tracking, work.now
    await work.session.flush()
    emit_changed(work, order)
    await work.audit(order.room_id, by, "order.ship", order.id, carrier=carrier, tracking=tracking)
    return order


async def confirm_receipt(engines: Engines, *, viewer_id: str, order_id: str) -> ReceiptOutcome:
    """shipped -> delivered, by the viewer."""
    async with engines.work() as work:
        order = await store.lock_order(work.session, order_id)
        if order is None or order.viewer_id != viewer_id:
            return ReceiptOutcome.UNKNOWN
        if order.delivered_at is not None:
            return ReceiptOutcome.CONFIRMED
        if order.state != OrderState.SHIPPED:
            return ReceiptOutcome.NOT_SHIPPED
        await _deliver(work, order, by=viewer_id)
        return ReceiptOutcome.CONFIRMED


async def deliver(work: Work, order_id: str, *, by: str) -> Order:
    """shipped -> delivered, by the team or the carrier. Again: nothing more happens."""
    order = await lock_order(work, order_id)
    if order.delivered_at is None:
        if order.state != OrderState.SHIPPED:
            raise AppError(CONFLICT, f"only a shipped order can be delivered; this one is {order.state}")
        await _deliver(work, order, by=by)
    return order


async def _deliver(work: Work, order: Order, *, by: str) -> None:
    now_ms = await sql_now_ms(work.session, work.runtime.script_now_ms())
    order.state, order.delivered_at = OrderState.DELIVERED, datetime.fromtimestamp(now_ms / 1000, UTC)
    await work.session.flush()
    emit_changed(work, order)
    await work.audit(order.room_id, by, "order.deliver", order.id)


async def deliver_after_days(engines: Engines) -> None:
    """One pass of the worker: what was shipped long ago counts as delivered."""
    async with engines.work() as work:
        now_ms = await sql_now_ms(work.session, engines.runtime.script_now_ms())
        before = datetime.fromtimestamp(now_ms / 1000, UTC) - timedelta(days=engines.settings.receipt_days_max)
        for order in await store.lock_long_shipped(work.session, before, DELIVERED_BATCH_MAX):
            await _deliver(work, order, by="system")


async def refund(work: Work, order_id: str, *, amount_minor: int | None, reason: str, restock: bool, by: str) -> Order:
    """Sends money back: all that is left, or a part. `restock` returns the units, or as many whole ones as the part pays for."""
    order = await lock_order(work, order_id)
    amount = order.amount_minor - order.refunded_minor if amount_minor is None else amount_minor
    units = _units(order, amount, order.quantity - order.returned) if restock else 0
    await send_back(work, order, amount=amount, units=units, reason=reason, by=by)
    return order


def _units(order: Order, amount_minor: int, units_left: int) -> int:
    whole = order.refunded_minor + amount_minor >= order.amount_minor
    return units_left if whole else min(units_left, amount_minor // order.price_minor)


async def send_back(work: Work, order: Order, *, amount: int, units: int, reason: str, by: str) -> None:
    """Money of a locked order goes back, and units on the shelf. Raises AppError `conflict` or `insufficient_funds` when it cannot."""
    refusal = decide_refund(
        OrderState(order.state),
        paid_minor=order.amount_minor,
        refunded_minor=order.refunded_minor,
        asked_minor=amount,
        units_left=order.quantity - order.returned,
        units=units,
        disputed=await store.has_open_dispute(work.session, order.id),
    )
    if refusal or not order.payment_id:
        raise AppError(CONFLICT, _REFUSALS[refusal or RefundRefusal.NOT_PAID])
    payment = await store.fetch_payment(work.session, order.payment_id)
    assert payment, "a paid order has its payment"
    refund_id = f"{order.room_id}-{work.runtime.new_short_id()}"
    await store.insert_refund(
        work.session, _refund_row(work, refund_id, order, payment=payment.id, amount=amount, reason=reason, by=by) | {"restock": units}
    )
    outcomes = await wallet.transfer_all(work, [_money_out(order, payment.provider, refund_id, amount)])
    if outcomes[0] is TransferOutcome.INSUFFICIENT_FUNDS:
        raise AppError(INSUFFICIENT_FUNDS, "the room's wallet holds less than this refund; pay in first")
    await _ask_provider(work, refund_id, payment=payment.id, provider=payment.provider, amount=amount, currency=order.currency)
    if units:
        await catalogue.count_sold(work.session, order.offer_id, -units)
    order.refunded_minor += amount
    order.returned += units
    order.reason = reason
    if order.refunded_minor == order.amount_minor:
        order.state = OrderState.REFUNDED
    await work.session.flush()
    emit_changed(work, order)
    await work.audit(order.room_id, by, "order.refund", order.id, amount_minor=amount, reason=reason, units=units)


def _refund_row(work: Work, refund_id: str, order: Order, *, payment: str, amount: int, reason: str, by: str) -> dict[str, Any]:
    return {
        "id": refund_id,
        "order_id": order.id,
        "payment_id": payment,
        "amount_minor": amount,
        "currency": order.currency,
        "reason": reason,
        "by": by,
        "at": work.now,
        "state": "pending",
    }


async def _ask_provider(work: Work, refund_id: str, *, payment: str, provider: str, amount: int, currency: str) -> None:
    """The provider sends the money back; payments.py makes the call."""
    about = {"id": payment, "provider": provider, "amount_minor": amount, "currency": currency}
    await store.insert_calls(work.session, [store.call_row("refund", refund_id, about, at=work.now)])


def _money_out(order: Order, provider: str, refund_id: str, amount: int) -> Movement:
    return Movement(
        transfer_id=f"refund:{refund_id}",
        from_account=f"room:{order.room_id}",
        to_account=f"external:{provider}",
        amount_minor=amount,
        currency=order.currency,
        kind="refund",
        reference=order.id,
    )


async def lock_order(work: Work, order_id: str) -> Order:
    """Raises AppError `not_found`."""
    order = await store.lock_order(work.session, order_id)
    if order is None:
        raise AppError(NOT_FOUND, f"there is no order {order_id}")
    return order


async def take_in_orders(work: Work, entries: list[OutboxEntry]) -> None:
    """An order begins before all else that becomes of it, so the beginnings of a batch go first; the rest keeps its order."""
    for kind, take_in in (("order.placed", take_in_placed), ("order.awarded", take_in_awarded)):
        begun = [entry for entry in entries if entry.type == kind]
        if begun:
            await take_in(work, begun)
    steps = {"order.paid": take_in_paid, "order.ended": take_in_ended, "order.refund_due": take_in_refund_due}
    later = [entry for entry in entries if entry.type in steps]
    for kind, run in groupby(later, key=lambda entry: entry.type):
        await steps[kind](work, list(run))


async def take_in_refund_due(work: Work, entries: list[OutboxEntry]) -> None:
    """Money that came for nothing: too late and sold out, after a cancellation, or a second time. It goes back by itself."""
    for entry in entries:
        data = entry.data
        await refund_unwanted(
            work, data["order"], payment=data["payment"], provider=data["provider"], amount=data["amount"], reason=data["reason"]
        )


async def refund_unwanted(work: Work, order_id: str, *, payment: str, provider: str, amount: int, reason: str) -> None:
    """In and out again, once a payment. The order keeps its state; `refunded_minor` and `reason` say what happened."""
    order = await lock_order(work, order_id)
    refund_id = automatic_refund_id(payment)
    row = _refund_row(work, refund_id, order, payment=payment, amount=amount, reason=reason, by="system")
    if amount == 0 or not await store.insert_refund(work.session, row):
        return
    await wallet.transfer_all(
        work, [money_in(order.room_id, provider, payment, amount, order), _money_out(order, provider, refund_id, amount)]
    )
    await _ask_provider(work, refund_id, payment=payment, provider=provider, amount=amount, currency=order.currency)
    if order.payment_id is None:
        order.refunded_minor = amount
        order.reason = reason
    await work.session.flush()
    emit_changed(work, order, reason=reason)


# --- what became of a refund ----------------------------------------------------------------------------------------------------------


async def take_refund_notice(
    work: Work, refund_id: str, *, state: str, reason: str, reference: str = "", elsewhere: Payment | None = None
) -> str:
    """The outcome of a provider's word about a refund, by its answer or by webhook: pending, succeeded or failed, the last two once.

    `elsewhere`: the payment that a webhook is about, for a refund that nobody made here.
    """
    refund = await store.fetch_refund(work.session, refund_id)
    if refund is None or (elsewhere and refund.payment_id != elsewhere.id):
        if elsewhere is None:
            raise ValueError(f"there is no refund {refund_id}")
        text = f"Payment {elsewhere.id}: the provider sent money back that nobody refunded here; book it, or ask who did"
        work.emit(elsewhere.room_id, [staff_channel(elsewhere.room_id)], AlertRaised(at=work.at, word="refund_elsewhere", text=text))
        return "unknown_refund"
    order = await lock_order(work, refund.order_id)
    if not await store.settle_refund(work.session, refund_id, state=state, reference=reference) or state == "pending":
        return f"refund_{state}"
    if state == "failed":
        await _undo(work, order, refund, reason)
    settled = RefundSettled(
        at=work.at,
        refund=refund.id,
        order=order.id,
        state=state,
        amount_minor=refund.amount_minor,
        currency=refund.currency,
        reason=reason,
    )
    work.emit(order.room_id, [user_channel(order.viewer_id), staff_channel(order.room_id)], settled)
    return f"refund_{state}"


async def _undo(work: Work, order: Order, refund: Refund, reason: str) -> None:
    """The money stayed: a correcting transfer, and it can be refunded again, by another way. Units that went back stay on the shelf."""
    payment = await store.fetch_payment(work.session, refund.payment_id)
    assert payment, "money that goes back came by a payment"
    out = _money_out(order, payment.provider, refund.id, refund.amount_minor)
    back = replace(
        out,
        transfer_id=f"refund_failed:{refund.id}",
        from_account=out.to_account,
        to_account=out.from_account,
        kind="refund_failed",
    )
    await wallet.transfer_all(work, [back])
    if order.payment_id in {None, payment.id}:
        order.refunded_minor = min(order.amount_minor, await store.sum_sent_back(work.session, payment.id))
    if order.state == OrderState.REFUNDED and order.refunded_minor < order.amount_minor:
        shipped = OrderState.DELIVERED if order.delivered_at else OrderState.SHIPPED
        order.state = shipped if order.shipped_at else OrderState.PAID
    await work.session.flush()
    emit_changed(work, order, reason="refund_failed")
    text = f"Order {order.id}: {refund.amount_minor} {refund.currency} could not be sent back ({reason}); find another way"
    work.emit(order.room_id, [staff_channel(order.room_id)], AlertRaised(at=work.at, word="refund_failed", text=text))
    await work.audit(order.room_id, "system", "refund.fail", refund.id, order=order.id, reason=reason)


async def on_order_changed(work: Work, room_id: str, events: list[OrderChanged]) -> None:
    """Gives the units of a refund back to the engine's shelf; the refund's id makes a repetition harmless."""
    refunded = {event.order for event in events if event.refunded_minor}
    for row in await store.lock_restocks(work.session, refunded) if refunded else ():
        await inventory.give_back(work.engines, hold_id=row.order_id, quantity=row.restock, refund_id=row.id)
        row.restocked = True
