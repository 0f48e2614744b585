"""Payments: attempts to pay, providers, their webhooks.

A provider is told of an attempt and answers by a signed webhook, late, twice or never. A webhook is recorded raw and has one effect by its
event id: money that arrived goes to the engine first, whose outbox makes SQL follow. A crash in between leaves the event without an
outcome, the provider repeats it, and the engine gives the same answer for the same payment.

The sandbox behaves like a real provider, over real HTTP, so that everything behind the webhook is the same in demo and production.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Protocol

import httpx2
import msgspec
import structlog

from app.core.errors import AppError
from app.core.metrics import WEBHOOK_DELIVERIES
from app.core.settings import Settings
from app.domains.inventory import service as inventory
from app.domains.inventory.rules import ConfirmWord
from app.domains.orders import store
from app.domains.orders.aftersales import refund_unwanted
from app.domains.orders.rules import SIGNATURE_HEADER, OrderState, PaymentNotice, decide_pay, payment_id, sign, signature_fits
from app.domains.orders.service import find_order
from app.domains.orders.tables import Payment, SandboxCharge
from app.protocol.channels import staff_channel, user_channel
from app.protocol.codes import BAD_REQUEST, KEY_REUSED, NOT_FOUND, UNAUTHORIZED
from app.protocol.events import AlertRaised, PaymentDeclined
from app.protocol.order_commands import OrderPay, OrderPaying, OrderView, PayOutcome
from app.storage.work import Engines, Work

SENT_AT_ONCE_MAX = 50  # sandbox webhooks of one pass of the worker
SENDING_MAX = 10  # of these, at the same time
RETRY_MS = 1000  # after a failed delivery, doubled each time
RETRY_MS_MAX = 60_000

log = structlog.get_logger()


class PaymentProvider(Protocol):
    """What Jishi needs of a payment provider."""

    name: str

    def knows_method(self, method: str) -> bool: ...

    async def start(self, work: Work, payment: Payment, order: OrderView) -> None:
        """Takes the attempt in the transaction that records it; the outcome comes by webhook."""
        ...

    def read_notice(self, settings: Settings, headers: Mapping[str, str], body: bytes, *, now_ms: int) -> PaymentNotice:
        """The notice in a webhook. Raises AppError `unauthorized` unless its signature and time are right."""
        ...


class Sandbox:
    """Pretends to move money. The method says how it behaves; `sandbox_late` pays after the order's payment deadline."""

    name = "sandbox"
    methods = ("sandbox_ok", "sandbox_decline", "sandbox_late", "sandbox_duplicate", "sandbox_slow")
    slow_factor = 10

    def knows_method(self, method: str) -> bool:
        return method in self.methods

    async def start(self, work: Work, payment: Payment, order: OrderView) -> None:
        delay_ms = work.engines.settings.sandbox_payment_delay_ms * (self.slow_factor if payment.method == "sandbox_slow" else 1)
        due_at = work.now + timedelta(milliseconds=delay_ms)
        if payment.method == "sandbox_late" and order.pay_by:
            due_at = datetime.fromisoformat(order.pay_by) + timedelta(seconds=1, milliseconds=delay_ms)
        charge = {
            "payment_id": payment.id,
            "verdict": "payment.declined" if payment.method == "sandbox_decline" else "payment.succeeded",
            "amount_minor": payment.amount_minor,
            "currency": payment.currency,
            "due_at": due_at,
            "left_to_send": 2 if payment.method == "sandbox_duplicate" else 1,
        }
        await store.insert_charge(work.session, charge)

    def read_notice(self, settings: Settings, headers: Mapping[str, str], body: bytes, *, now_ms: int) -> PaymentNotice:
        header = headers.get(SIGNATURE_HEADER) or headers.get(SIGNATURE_HEADER.lower()) or ""
        fits = signature_fits(sandbox_secret(settings), header, body, now_s=now_ms // 1000, tolerance_s=settings.webhook_tolerance_s)
        if not fits:
            raise AppError(UNAUTHORIZED, f"the signature in {SIGNATURE_HEADER} is missing, wrong or too old")
        try:
            return msgspec.json.decode(body, type=PaymentNotice)
        except msgspec.DecodeError as failure:
            raise AppError(BAD_REQUEST, f"the body is no payment notice: {failure}") from failure


PROVIDERS: dict[str, PaymentProvider] = {"sandbox": Sandbox()}


def sandbox_secret(settings: Settings) -> bytes:
    """Derived, so that the sandbox needs no setting of its own and a token's key signs nothing else."""
    return hmac.new(settings.secret_bytes, b"sandbox payment webhooks", hashlib.sha256).digest()


async def pay(engines: Engines, *, viewer_id: str, request: OrderPay) -> OrderPaying:
    """Starts an attempt to pay. The same key again: the same attempt."""
    attempt = payment_id(request.order, viewer_id, request.key)
    async with engines.sql.read() as session:
        before = await store.fetch_payment(session, attempt)
    if before is not None:
        return _repeated(before, request)
    provider = PROVIDERS["sandbox"]
    if not provider.knows_method(request.method):
        raise AppError(BAD_REQUEST, f"method: {request.method!r} is none of {', '.join(Sandbox.methods)}")
    order = await find_order(engines, request.order, viewer_id)
    outcome = decide_pay(OrderState(order.state)) if order else PayOutcome.UNKNOWN
    if order is None or outcome is not PayOutcome.PENDING:
        return OrderPaying(outcome=outcome, order=request.order)
    async with engines.work() as work:
        await _start(work, provider, order, attempt=attempt, viewer_id=viewer_id, method=request.method)
    return OrderPaying(outcome=PayOutcome.PENDING, order=order.id, payment=attempt)


def _repeated(before: Payment, request: OrderPay) -> OrderPaying:
    if (before.order_id, before.method) != (request.order, request.method):
        raise AppError(KEY_REUSED, "this key has already paid another order or by another method; take a new key")
    return OrderPaying(outcome=PayOutcome.PENDING, order=before.order_id, payment=before.id)


async def _start(work: Work, provider: PaymentProvider, order: OrderView, *, attempt: str, viewer_id: str, method: str) -> None:
    row = {
        "id": attempt,
        "order_id": order.id,
        "room_id": order.room,
        "viewer_id": viewer_id,
        "provider": provider.name,
        "method": method,
        "amount_minor": order.amount_minor,
        "currency": order.currency,
        "created_at": work.now,
    }
    if not await store.insert_payment(work.session, row):
        return  # the same call twice at once: the other one has started it
    payment = await store.fetch_payment(work.session, attempt)
    assert payment
    await provider.start(work, payment, order)


# --- the webhook ---------------------------------------------------------------------------------------------------------------------


async def receive_webhook(engines: Engines, provider_name: str, headers: Mapping[str, str], body: bytes) -> str:
    """What became of the notice: paid, declined, or why the money goes back. Answer the provider with success only after this returns."""
    provider = PROVIDERS.get(provider_name)
    if provider is None:
        raise AppError(NOT_FOUND, f"there is no payment provider {provider_name!r}")
    notice = provider.read_notice(engines.settings, headers, body, now_ms=engines.runtime.now_ms())
    async with engines.work() as work:
        payment = await store.fetch_payment(work.session, notice.payment)
        if payment is None or payment.provider != provider.name:
            raise AppError(NOT_FOUND, f"there is no payment {notice.payment}")
        row = {"provider": provider.name, "event_id": notice.id, "payment_id": payment.id, "raw": body, "received_at": work.now}
        before = await store.record_event(work.session, row)
        if before:
            return before
        outcome = await _outcome_in_sql(work, payment, notice)
        if outcome:
            await store.close_event(work.session, provider.name, notice.id, outcome)
            return outcome
    return await _confirm(engines, payment, notice)


async def _outcome_in_sql(work: Work, payment: Payment, notice: PaymentNotice) -> str:
    """The outcome of a notice that moves no stock; empty when the engine has to be asked."""
    if notice.type == "payment.declined":
        if await store.settle_payment(work.session, payment.id, state="declined", reason=notice.reason, at=work.now):
            declined = PaymentDeclined(at=work.at, order=payment.order_id, payment=payment.id, reason=notice.reason)
            work.emit(payment.room_id, [user_channel(payment.viewer_id)], declined)
        return "declined"
    if notice.type != "payment.succeeded":
        return "ignored"
    if (notice.amount_minor, notice.currency) != (payment.amount_minor, payment.currency):
        text = f"Payment {payment.id}: {notice.amount_minor} {notice.currency} came instead of {payment.amount_minor} {payment.currency}"
        work.emit(payment.room_id, [staff_channel(payment.room_id)], AlertRaised(at=work.at, word="payment_mismatch", text=text))
        return "amount_mismatch"
    return ""


async def _confirm(engines: Engines, payment: Payment, notice: PaymentNotice) -> str:
    answer = await inventory.confirm_hold(
        engines, hold_id=payment.order_id, payment_id=payment.id, provider=payment.provider, amount_minor=payment.amount_minor
    )
    async with engines.work() as work:
        if answer.word == ConfirmWord.UNKNOWN:
            reason = "too_late"  # the engine forgot the order long after its end
            await refund_unwanted(
                work, payment.order_id, payment=payment.id, provider=payment.provider, amount=payment.amount_minor, reason=reason
            )
        else:
            reason = answer.reason
        state = "succeeded" if answer.word == ConfirmWord.PAID else "refunded"
        await store.settle_payment(work.session, payment.id, state=state, reason=reason, at=work.now)
        await store.close_event(work.session, payment.provider, notice.id, reason or answer.word)
    return reason or answer.word


# --- the sandbox's side --------------------------------------------------------------------------------------------------------------


async def settle_sandbox_payments(engines: Engines) -> None:
    """One pass of the worker: posts the webhooks that are due, and again later those that were not heard."""
    now = datetime.fromtimestamp(engines.runtime.now_ms() / 1000, UTC)
    lease = timedelta(seconds=engines.settings.webhook_timeout_s * 2)
    async with engines.sql.begin() as session:
        charges = await store.lease_charges(session, now, until=now + lease, limit=SENT_AT_ONCE_MAX)
    if not charges:
        return
    gate = asyncio.Semaphore(SENDING_MAX)
    async with httpx2.AsyncClient(timeout=engines.settings.webhook_timeout_s, trust_env=False) as client, asyncio.TaskGroup() as group:
        for charge in charges:
            group.create_task(_send(engines, client, gate, charge))


async def _send(engines: Engines, client: httpx2.AsyncClient, gate: asyncio.Semaphore, charge: SandboxCharge) -> None:
    body, header = sandbox_notice(engines.settings, charge, now_ms=engines.runtime.now_ms())
    async with gate:
        try:
            url = f"{engines.settings.base_url}/api/v1/payments/sandbox/webhook"
            answer = await client.post(url, content=body, headers={SIGNATURE_HEADER: header, "Content-Type": "application/json"})
            heard = answer.is_success
            problem = "" if heard else f"HTTP {answer.status_code}"
        except httpx2.HTTPError as failure:
            heard, problem = False, type(failure).__name__
    WEBHOOK_DELIVERIES.labels("delivered" if heard else "failed").inc()
    if not heard:
        log.warning("sandbox webhook not delivered", payment=charge.payment_id, attempt=charge.attempts, problem=problem)
    await _note_sent(engines, charge, heard=heard)


async def _note_sent(engines: Engines, charge: SandboxCharge, *, heard: bool) -> None:
    now = datetime.fromtimestamp(engines.runtime.now_ms() / 1000, UTC)
    left = charge.left_to_send - 1 if heard else charge.left_to_send
    if charge.attempts >= engines.settings.webhook_attempts_max and not heard:
        left = 0  # gives up, as real providers do after their days of retries
    wait_ms = 0 if heard else min(RETRY_MS * 2 ** min(charge.attempts, 10), RETRY_MS_MAX)
    async with engines.sql.begin() as session:
        await store.mark_sent(session, charge.payment_id, now + timedelta(milliseconds=wait_ms), left)


def sandbox_notice(settings: Settings, charge: SandboxCharge, *, now_ms: int) -> tuple[bytes, str]:
    """The webhook's body and signature. A repetition has the same event id, as from a real provider."""
    notice = PaymentNotice(
        id=f"evt_{charge.payment_id}",
        type=charge.verdict,
        payment=charge.payment_id,
        amount_minor=charge.amount_minor,
        currency=charge.currency,
        reason="the sandbox's card was declined" if charge.verdict == "payment.declined" else "",
    )
    body = msgspec.json.encode(notice)
    return body, sign(sandbox_secret(settings), now_ms // 1000, body)
