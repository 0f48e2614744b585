"""Payments: attempts to pay, the calls to providers, their webhooks.

A provider is told of an attempt, and of money to send back, by a call that stands in `provider_calls`: written with its cause, made at once
or by the worker, repeated with the same key until it is answered. It answers by a signed webhook, late, twice, out of order or never. A
webhook is recorded raw and has one effect by its event id: money that arrived goes to the engine first, whose outbox makes SQL follow. A
crash in between leaves the event without an outcome, the provider repeats it, and the engine gives the same answer for the same payment.
"""

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import structlog

from app.core.errors import AppError
from app.core.metrics import PROVIDER_CALLS
from app.core.settings import Settings
from app.domains.inventory import service as inventory
from app.domains.inventory.rules import ConfirmWord
from app.domains.orders import store
from app.domains.orders.aftersales import refund_unwanted, take_refund_notice
from app.domains.orders.disputes import take_dispute
from app.domains.orders.providers import PaymentProvider, ProviderAway, ProviderRefused, Taken
from app.domains.orders.rules import OrderState, PaymentNotice, decide_pay, payment_id
from app.domains.orders.sandbox import Sandbox
from app.domains.orders.service import find_order
from app.domains.orders.tables import Payment, ProviderCall
from app.protocol.channels import staff_channel, user_channel
from app.protocol.codes import KEY_REUSED, NOT_FOUND
from app.protocol.events import AlertRaised, PaymentDeclined, PaymentStarted
from app.protocol.order_commands import OrderPay, OrderPaying, OrderView, PayOutcome
from app.storage.gathering import gather_each, raise_first
from app.storage.work import Engines, Work

CALLS_AT_ONCE_MAX = 50  # of one pass of the worker
CALLING_MAX = 10  # of these, at the same time
RETRY_S = 1  # after a call without an answer, doubled each time
RETRY_S_MAX = 3600
ERROR_CHARS_MAX = 300
FORGOTTEN_AT_ONCE_MAX = 1000  # calls, and webhooks, of one pass of the worker

log = structlog.get_logger()


# --- which providers there are -------------------------------------------------------------------------------------------------------


def provider_named(engines: Engines, name: str) -> PaymentProvider:
    """Made once a process. Raises AppError `not_found` for a name that this product has no provider for.

    What was begun with another provider than the chosen one is still settled and refunded there.
    """
    key = f"payment provider {name}"
    if key not in engines.local:
        engines.local[key] = _make(engines.settings, name)
    return engines.local[key]


def _make(settings: Settings, name: str) -> PaymentProvider:
    if name == "sandbox":
        return Sandbox()
    if name == "stripe" and settings.stripe_secret_key.get_secret_value():
        from app.domains.orders.stripe import Stripe  # noqa: PLC0415 - its SDK is large, and for those alone who set it up

        return Stripe(settings)
    raise AppError(NOT_FOUND, f"there is no payment provider {name!r}")


# --- paying --------------------------------------------------------------------------------------------------------------------------


async def pay(engines: Engines, *, viewer_id: str, request: OrderPay) -> OrderPaying:
    """Starts an attempt to pay. The same key again: the same attempt."""
    attempt = payment_id(request.order, viewer_id, request.key)
    before = await _read(engines, attempt)
    if before is not None:
        return _repeated(engines, before, request)
    provider = provider_named(engines, engines.settings.payment_provider)
    method = provider.method_of(request.method)
    order = await find_order(engines, request.order, viewer_id)
    outcome = decide_pay(OrderState(order.state)) if order else PayOutcome.UNKNOWN
    if order is None or outcome is not PayOutcome.PENDING:
        return OrderPaying(outcome=outcome, order=request.order)
    async with engines.work() as work:
        await _start(work, provider, order, attempt=attempt, viewer_id=viewer_id, method=method)
    await call_provider(engines, "create", attempt)
    payment = await _read(engines, attempt)
    assert payment, "it was committed above"
    return _pending(engines, payment)


async def _read(engines: Engines, attempt: str) -> Payment | None:
    async with engines.sql.read() as session:
        return await store.fetch_payment(session, attempt)


def _repeated(engines: Engines, before: Payment, request: OrderPay) -> OrderPaying:
    method = provider_named(engines, before.provider).method_of(request.method)
    if (before.order_id, before.method) != (request.order, method):
        raise AppError(KEY_REUSED, "this key has already paid another order or by another method; take a new key")
    return _pending(engines, before)


def _pending(engines: Engines, payment: Payment) -> OrderPaying:
    return OrderPaying(
        outcome=PayOutcome.PENDING,
        order=payment.order_id,
        payment=payment.id,
        provider=payment.provider,
        client_secret=payment.client_secret or None,
        publishable_key=provider_named(engines, payment.provider).publishable_key or None,
    )


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
    data = {"method": method, "pay_by": order.pay_by, "order": order.id, "name": order.name}
    await store.insert_calls(work.session, [store.call_row("create", attempt, row, at=work.now, data=data)])


# --- calls to providers --------------------------------------------------------------------------------------------------------------


async def call_providers(engines: Engines) -> None:
    """One pass of the worker: makes the calls that are due."""
    calls = await _lease(engines, CALLS_AT_ONCE_MAX)
    raise_first(await gather_each(calls, partial(_make_call, engines), at_once=CALLING_MAX))  # the lease of one that failed runs out


async def call_provider(engines: Engines, kind: str, subject: str) -> None:
    """Makes one call at once, for somebody who waits; the worker makes it again if it has no answer."""
    for call in await _lease(engines, 1, only=(kind, subject)):
        await _make_call(engines, call)


async def _lease(engines: Engines, limit: int, *, only: tuple[str, str] | None = None) -> list[ProviderCall]:
    now = engines.runtime.now()
    async with engines.sql.begin() as session:
        settings = engines.settings
        until = now + timedelta(seconds=settings.provider_timeout_s + settings.provider_takeover_s)  # then nobody is at it any more
        return await store.lease_calls(session, now, until=until, limit=limit, only=only)


async def _make_call(engines: Engines, call: ProviderCall) -> None:
    try:
        provider = provider_named(engines, call.provider)
        taken = await _ask(engines, provider, call)
    except (ProviderAway, AppError) as failure:  # AppError: the provider is not set up, which an operator can mend
        PROVIDER_CALLS.labels(call.provider, call.kind, "failed").inc()
        await _again_or_never(engines, call, str(failure) or type(failure).__name__)
        return
    except ProviderRefused as refusal:
        PROVIDER_CALLS.labels(call.provider, call.kind, "refused").inc()
        await _give_up(engines, call, str(refusal))
        return
    PROVIDER_CALLS.labels(call.provider, call.kind, "ok").inc()
    async with engines.work() as work:
        if await store.end_call(work.session, call, state="done"):
            await _note_taken(work, call, taken)


async def _ask(engines: Engines, provider: PaymentProvider, call: ProviderCall) -> Taken:
    if call.kind == "create":
        return await provider.create(engines, call)
    payment = await _read(engines, call.payment_id)
    assert payment, "what is to be undone was begun"
    if call.kind == "refund":
        return await provider.refund(engines, call, payment)
    if payment.state != "pending":
        return Taken(reference=payment.reference)  # it came to its end meanwhile
    return await provider.cancel(engines, call, payment)


async def _note_taken(work: Work, call: ProviderCall, taken: Taken) -> None:
    if call.kind == "refund":
        await take_refund_notice(work, call.subject, state=taken.state, reason="", reference=taken.reference)
    if call.kind != "create":
        return
    await store.note_reference(work.session, call.subject, reference=taken.reference, client_secret=taken.client_secret)
    payment = await store.fetch_payment(work.session, call.subject)
    if payment and taken.client_secret:
        started = PaymentStarted(
            at=work.at, order=payment.order_id, payment=payment.id, provider=payment.provider, client_secret=taken.client_secret
        )
        work.emit(payment.room_id, [user_channel(payment.viewer_id)], started)


async def _again_or_never(engines: Engines, call: ProviderCall, problem: str) -> None:
    log.warning("payment provider did not answer", provider=call.provider, call=call.kind, subject=call.subject, problem=problem)
    if call.attempts >= engines.settings.provider_attempts_max:
        await _give_up(engines, call, f"the provider does not answer: {problem}")
        return
    wait = timedelta(seconds=min(RETRY_S * 2 ** min(call.attempts - 1, 12), RETRY_S_MAX))
    async with engines.sql.begin() as session:
        await store.put_off_call(session, call, engines.runtime.now() + wait, problem[:ERROR_CHARS_MAX])


async def _give_up(engines: Engines, call: ProviderCall, reason: str) -> None:
    """A payment that cannot begin is declined; a refund that cannot go out stands in the books again; one that cannot be cancelled may
    still come, and goes back by itself."""
    reason = reason[:ERROR_CHARS_MAX]
    async with engines.work() as work:
        if not await store.end_call(work.session, call, state="failed", error=reason):
            return
        if call.kind == "refund":
            await take_refund_notice(work, call.subject, state="failed", reason=reason)
        if call.kind != "create":
            return
        payment = await store.fetch_payment(work.session, call.subject)
        assert payment, "a call begins a payment that is there"
        await _decline(work, payment, reason)


async def forget_provider_records(engines: Engines) -> None:
    """One pass of the worker. What they came to stays: payments, refunds, disputes, transfers, the audit log."""
    before = engines.runtime.now() - timedelta(days=engines.settings.provider_records_days)
    async with engines.sql.begin() as session:
        await store.delete_provider_records(session, before, FORGOTTEN_AT_ONCE_MAX)


# --- the webhook ---------------------------------------------------------------------------------------------------------------------


async def receive_webhook(engines: Engines, provider_name: str, headers: Mapping[str, str], body: bytes) -> str:
    """What became of the notice: paid, declined, or why the money goes back. Answer the provider with success only after this returns."""
    provider = provider_named(engines, provider_name)
    notice = provider.read_notice(engines.settings, headers, body, now_ms=engines.runtime.now_ms())
    async with engines.work() as work:
        payment = await store.find_payment(work.session, provider.name, payment=notice.payment, reference=notice.reference)
        row: dict[str, Any] = {
            "provider": provider.name,
            "event_id": notice.id,
            "payment_id": payment.id if payment else "",
            "raw": body,
            "received_at": work.now,
        }
        before = await store.record_event(work.session, row)
        if before:
            return before
        outcome = await _outcome_in_sql(work, payment, notice)
        if outcome or payment is None:
            await store.close_event(work.session, provider.name, notice.id, outcome)
            return outcome
    return await _confirm(engines, payment, notice)


async def _outcome_in_sql(work: Work, payment: Payment | None, notice: PaymentNotice) -> str:
    """The outcome of a notice that moves no stock; empty when the engine has to be asked."""
    if payment is None:
        # Repeating it would help nobody: it is of another product on the same account, or of a database that was restored from before.
        log.warning("webhook about a payment that is not known", type=notice.type, notice=notice.id, reference=notice.reference)
        return "unknown_payment"
    kind, _, word = notice.type.partition(".")
    if notice.reference and not payment.reference:
        await store.note_reference(work.session, payment.id, reference=notice.reference, client_secret=payment.client_secret)
    if notice.type == "payment.declined":
        await _decline(work, payment, notice.reason)
        return "declined"
    if kind == "refund" and word in {"succeeded", "failed"}:
        return await take_refund_notice(work, notice.subject, state=word, reason=notice.reason, elsewhere=payment)
    if kind == "dispute":
        return await take_dispute(work, payment, notice)
    if notice.type != "payment.succeeded":
        return "ignored"
    if (notice.amount_minor, notice.currency) != (payment.amount_minor, payment.currency):
        text = f"Payment {payment.id}: {notice.amount_minor} {notice.currency} came instead of {payment.amount_minor} {payment.currency}"
        work.emit(payment.room_id, [staff_channel(payment.room_id)], AlertRaised(at=work.at, word="payment_mismatch", text=text))
        return "amount_mismatch"
    return ""


async def _decline(work: Work, payment: Payment, reason: str) -> None:
    """Once; and not after the money came."""
    if await store.settle_payment(work.session, payment.id, state="declined", reason=reason, at=work.now):
        declined = PaymentDeclined(at=work.at, order=payment.order_id, payment=payment.id, reason=reason)
        work.emit(payment.room_id, [user_channel(payment.viewer_id)], declined)


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
