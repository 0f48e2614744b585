"""Disputes: a buyer asks the bank for the money back, and the bank decides. Recorded, announced to the team, and carried out in the ledger.

While one is open, the amount is set aside in the room's wallet, and the order cannot be refunded by the team: it would go back twice. Lost,
the money is gone; won, it is free again. A wallet that holds less owes it: the team is told, and it is taken as soon as it is there.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from app.core.errors import AppError
from app.domains.orders import store
from app.domains.orders.rules import PAID_STATES, DisputeState, OrderState, PaymentNotice, decide_dispute, dispute_id
from app.domains.orders.service import emit_changed
from app.domains.orders.tables import Dispute, Order, Payment
from app.domains.wallet import service as wallet
from app.domains.wallet.rules import TransferOutcome
from app.protocol.channels import staff_channel
from app.protocol.codes import SERVICE_UNAVAILABLE
from app.protocol.events import AlertRaised, DisputeClosed, DisputeOpened
from app.storage.work import Engines, Work

OWED_BATCH_MAX = 50


async def take_dispute(work: Work, payment: Payment, notice: PaymentNotice) -> str:
    """The outcome of a notice of type `dispute.*`. Any order of them leads to the same end."""
    order = await store.lock_order(work.session, payment.order_id)
    if order is None:
        raise AppError(SERVICE_UNAVAILABLE, "the order of this payment is not in SQL yet; send the notice again", retry_after_ms=1000)
    name = dispute_id(payment.room_id, payment.provider, notice.subject)
    dispute = await store.lock_dispute(work.session, name)
    state = decide_dispute(DisputeState(dispute.state) if dispute else None, notice.type)
    if state is None:
        return "ignored"
    if dispute is None:
        dispute = await _open(work, name, payment, notice)
    if state is not DisputeState.OPEN:
        await _close(work, dispute, order, state)
    return f"dispute_{state}"


async def _open(work: Work, name: str, payment: Payment, notice: PaymentNotice) -> Dispute:
    dispute = Dispute(
        id=name,
        provider=payment.provider,
        reference=notice.subject,
        payment_id=payment.id,
        order_id=payment.order_id,
        room_id=payment.room_id,
        amount_minor=notice.amount_minor,
        currency=notice.currency,
        reason=notice.reason,
        state=DisputeState.OPEN,
        covered=False,
        answer_by=datetime.fromtimestamp(notice.answer_by_s, UTC) if notice.answer_by_s else None,
        opened_at=work.now,
    )
    work.session.add(dispute)
    await work.session.flush()
    await _cover(work, dispute, f"dispute:{dispute.id}", wallet.reserve_transfer)
    opened = DisputeOpened(
        at=work.at,
        dispute=dispute.id,
        order=dispute.order_id,
        amount_minor=dispute.amount_minor,
        currency=dispute.currency,
        reason=dispute.reason,
    )
    work.emit(dispute.room_id, [staff_channel(dispute.room_id)], opened)
    await work.audit(dispute.room_id, "system", "dispute.open", dispute.id, order=dispute.order_id, amount_minor=dispute.amount_minor)
    return dispute


async def _close(work: Work, dispute: Dispute, order: Order, state: DisputeState) -> None:
    dispute.state, dispute.closed_at = state, work.now
    if state is DisputeState.WON and dispute.covered:
        await wallet.void_transfer(work, transfer_id=f"dispute:{dispute.id}")
    if state is DisputeState.LOST:
        if dispute.covered:
            await wallet.post_transfer(work, transfer_id=f"dispute:{dispute.id}")
        else:
            await _cover(work, dispute, f"dispute:{dispute.id}:lost", wallet.transfer)
        if not dispute.covered:
            text = f"Dispute {dispute.id}: the wallet owes {dispute.amount_minor} {dispute.currency} that the bank took back; pay in"
            work.emit(dispute.room_id, [staff_channel(dispute.room_id)], AlertRaised(at=work.at, word="dispute_owed", text=text))
        if order.payment_id == dispute.payment_id:
            _send_back(order, dispute.amount_minor)
    await work.session.flush()
    closed = DisputeClosed(at=work.at, dispute=dispute.id, order=dispute.order_id, outcome=state, amount_minor=dispute.amount_minor)
    work.emit(dispute.room_id, [staff_channel(dispute.room_id)], closed)
    if state is DisputeState.LOST:
        emit_changed(work, order)
    await work.audit(dispute.room_id, "system", "dispute.close", dispute.id, order=dispute.order_id, outcome=state)


def _send_back(order: Order, amount_minor: int) -> None:
    """What the bank took of the payment that the order stands on counts as refunded, up to what was paid: of an order that was refunded in
    part before, it may take more. Any other payment, and the money of an order that came to nothing, was on its way back anyhow."""
    if order.state not in PAID_STATES:
        return
    order.refunded_minor = min(order.amount_minor, order.refunded_minor + amount_minor)
    order.reason = "disputed"
    if order.refunded_minor == order.amount_minor:
        order.state = OrderState.REFUNDED


async def _cover(work: Work, dispute: Dispute, transfer_id: str, move: Callable[..., Awaitable[TransferOutcome]]) -> None:
    """Takes the amount from the room's wallet, or sets it aside, if it is there."""
    outcome = await move(
        work,
        transfer_id=transfer_id,
        from_account=f"room:{dispute.room_id}",
        to_account=f"external:{dispute.provider}",
        amount_minor=dispute.amount_minor,
        currency=dispute.currency,
        kind="dispute",
        reference=dispute.order_id,
    )
    dispute.covered = outcome is not TransferOutcome.INSUFFICIENT_FUNDS


async def settle_owed_disputes(engines: Engines) -> None:
    """One pass of the worker: takes what lost disputes still owe from wallets that hold it by now."""
    async with engines.work() as work:
        for dispute in await store.lock_owed_disputes(work.session, OWED_BATCH_MAX):
            await _cover(work, dispute, f"dispute:{dispute.id}:lost", wallet.transfer)
