"""Stripe through its SDK, against a server on loopback: what is asked, what is heard, and that the books follow."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy import select

from app.core.errors import AppError
from app.core.settings import Settings
from app.domains.inventory import service as inventory
from app.domains.orders import aftersales, payments
from app.domains.orders import service as orders
from app.domains.orders.tables import Dispute, Payment, PaymentEvent, Refund
from app.protocol.order_commands import OrderPay, OrderPaying
from app.storage.work import Engines
from tests.domains.orders.stripe_api import (
    DISPUTE,
    INTENT,
    KEY,
    REFUND,
    REFUSED,
    UNCANCELLABLE,
    WEBHOOK_SECRET,
    StripeApi,
    event,
    signed,
    stripe_api,
)
from tests.support.auditor.ledger import audit_ledger
from tests.support.auditor.stock import audit_stock
from tests.support.runtime import TestRuntime
from tests.support.shelf import Shelf, open_shelf


@pytest.fixture
async def api(engines: Engines) -> AsyncGenerator[StripeApi]:
    async with stripe_api() as api:
        engines.settings.payment_provider = "stripe"
        engines.settings.stripe_secret_key = SecretStr(KEY)
        engines.settings.stripe_webhook_secret = SecretStr(WEBHOOK_SECRET)
        engines.settings.stripe_publishable_key = "pk_test_1"
        engines.settings.stripe_api_url = api.url
        yield api


@pytest.fixture
async def shelf(engines: Engines) -> Shelf:
    return await open_shelf(engines)


async def pay(engines: Engines, order: str, method: str = "") -> OrderPaying:
    return await payments.pay(engines, viewer_id="lin", request=OrderPay(order=order, key="m1", method=method))


async def hear(engines: Engines, kind: str, thing: dict[str, Any], number: int = 1) -> str:
    body = event(kind, thing, number)
    return await payments.receive_webhook(engines, "stripe", signed(body), body)


async def paid(shelf: Shelf, api: StripeApi) -> str:
    order = await shelf.order(await shelf.offer())
    api.answers.append((200, INTENT))
    paying = await pay(shelf.engines, order)
    intent = INTENT | {"status": "succeeded", "amount_received": 1990, "metadata": {"payment": paying.payment, "order": order}}
    assert await hear(shelf.engines, "payment_intent.succeeded", intent, 100) == "paid"
    await shelf.intake()
    return order


async def check_books(engines: Engines) -> None:
    assert await audit_ledger(engines) == []
    assert await audit_stock(engines, ["room1"]) == []


async def test_a_payment_begins_at_stripe_and_goes_on_in_the_app(shelf: Shelf, api: StripeApi, engines: Engines) -> None:
    order = await shelf.order(await shelf.offer())
    api.answers.append((200, INTENT))
    paying = await pay(engines, order)
    assert (paying.outcome, paying.provider, paying.publishable_key) == ("pending", "stripe", "pk_test_1")
    assert paying.client_secret == INTENT["client_secret"]
    call = api.calls[0]
    assert (call.path, call.key, call.authorization) == ("/v1/payment_intents", f"create {paying.payment}", f"Bearer {KEY}")
    assert call.form == {
        "amount": "1990",
        "currency": "cny",
        "description": f"Spring tea ({order})",
        "metadata[payment]": paying.payment,
        "metadata[order]": order,
        "automatic_payment_methods[enabled]": "true",
    }
    assert await pay(engines, order) == paying
    assert len(api.calls) == 1
    with pytest.raises(AppError, match="'cash' is none of card"):
        await pay(engines, order, "cash")


async def test_a_call_that_was_cut_or_refused_for_now_is_made_again_with_its_key(
    shelf: Shelf, api: StripeApi, engines: Engines, runtime: TestRuntime
) -> None:
    order = await shelf.order(await shelf.offer())
    api.answers += [(0, {}), (503, {"error": {"type": "api_error"}}), (429, {"error": {"type": "invalid_request_error"}}), (200, INTENT)]
    assert (await pay(engines, order, "alipay")).client_secret is None
    for _ in range(3):
        runtime.advance(4000)
        await payments.call_providers(engines)
    assert len({call.key for call in api.calls}) == 1
    assert [call.form["payment_method_types[0]"] for call in api.calls] == ["alipay"] * 4
    assert (await pay(engines, order, "alipay")).client_secret == INTENT["client_secret"]


async def test_an_intent_of_a_cancelled_order_is_cancelled(shelf: Shelf, api: StripeApi, engines: Engines, runtime: TestRuntime) -> None:
    """As soon as it is there: one that Stripe has not answered yet has no name to cancel it by."""
    order = await shelf.order(await shelf.offer())
    api.answers.append((503, {"error": {"type": "api_error"}}))
    payment = (await pay(engines, order)).payment
    await inventory.cancel_hold(engines, viewer_id="lin", hold_id=order)
    await shelf.intake()
    await payments.call_providers(engines)
    assert len(api.calls) == 1
    canceled = INTENT | {"status": "canceled", "cancellation_reason": "abandoned", "metadata": {"payment": payment}}
    api.answers += [(200, INTENT), (200, canceled)]
    for _ in range(3):
        runtime.advance(4000)
        await payments.call_providers(engines)
    call = api.calls[-1]
    assert [call.path for call in api.calls] == ["/v1/payment_intents"] * 2 + [f"/v1/payment_intents/{INTENT['id']}/cancel"]
    assert (call.key, call.form) == (f"cancel {payment}", {"cancellation_reason": "abandoned"})
    assert await hear(engines, "payment_intent.canceled", canceled) == "declined"
    async with engines.sql.read() as session:
        assert (await session.scalars(select(Payment.reason))).all() == ["abandoned"]


async def test_an_intent_that_was_paid_meanwhile_is_not_cancelled(
    shelf: Shelf, api: StripeApi, engines: Engines, runtime: TestRuntime
) -> None:
    """Stripe says no, and the money is sent back when it tells of it."""
    order = await shelf.order(await shelf.offer())
    api.answers += [(200, INTENT), (400, UNCANCELLABLE)]
    payment = (await pay(engines, order)).payment
    await inventory.cancel_hold(engines, viewer_id="lin", hold_id=order)
    await shelf.intake()
    await payments.call_providers(engines)
    intent = INTENT | {"status": "succeeded", "amount_received": 1990, "metadata": {"payment": payment}}
    assert await hear(engines, "payment_intent.succeeded", intent) == "order_cancelled"
    await shelf.intake()
    api.answers.append((200, REFUND))
    await payments.call_providers(engines)
    assert [call.path.removeprefix("/v1/") for call in api.calls[1:]] == [f"payment_intents/{INTENT['id']}/cancel", "refunds"]
    await check_books(engines)


async def test_money_comes_by_a_signed_event_once(shelf: Shelf, api: StripeApi, engines: Engines) -> None:
    order = await paid(shelf, api)
    async with engines.sql.read() as session:
        payment = (await session.scalars(select(Payment))).one()
    assert (payment.state, payment.reference) == ("succeeded", INTENT["id"])
    intent = INTENT | {"status": "succeeded", "amount_received": 1990, "metadata": {"payment": payment.id}}
    assert await hear(engines, "payment_intent.succeeded", intent, 100) == "paid"
    assert (await orders.find_order(engines, order)).state == "paid"  # type: ignore[union-attr]
    await check_books(engines)


async def test_only_what_stripe_signed_lately_is_heard(shelf: Shelf, api: StripeApi, engines: Engines) -> None:
    body = event("payment_intent.succeeded", INTENT)
    import time  # noqa: PLC0415 - the SDK reads the machine's clock

    now_s = int(time.time())
    wrong = [{}, {"Stripe-Signature": ""}, {"Stripe-Signature": "t=x"}, signed(body, secret="whsec_other"), signed(body, at_s=now_s - 400)]
    for headers in [*wrong, signed(body + b" ")]:
        with pytest.raises(AppError) as refused:
            await payments.receive_webhook(engines, "stripe", headers, body)
        assert refused.value.code.word == "unauthorized"
    with pytest.raises(AppError) as refused:
        await payments.receive_webhook(engines, "stripe", signed(b"{}"), b"{}")
    assert refused.value.code.word == "bad_request"
    async with engines.sql.read() as session:
        assert (await session.scalars(select(PaymentEvent))).all() == []
    strange = {"id": "in_1", "object": "invoice", "amount": None, "metadata": {"a": 1}, "payment_intent": {"id": "pi_x"}}
    assert await hear(engines, "invoice.paid", strange) == "unknown_payment"
    assert await hear(engines, "payment_intent.succeeded", INTENT, 2) == "unknown_payment"  # of another shop on the same account


async def test_a_declined_card_and_then_a_good_one(shelf: Shelf, api: StripeApi, engines: Engines) -> None:
    order = await shelf.order(await shelf.offer())
    api.answers.append((200, INTENT))
    paying = await pay(engines, order)
    failed = {
        "code": "card_declined",
        "decline_code": "insufficient_funds",
        "message": "Your card has insufficient funds.",
        "type": "card_error",
    }
    about = {"metadata": {"payment": paying.payment}}
    assert await hear(engines, "payment_intent.payment_failed", INTENT | about | {"last_payment_error": failed}, 1) == "declined"
    async with engines.sql.read() as session:
        assert (await session.scalars(select(Payment.reason))).one() == "Your card has insufficient funds."
    good = INTENT | about | {"status": "succeeded", "amount_received": 1990}
    assert await hear(engines, "payment_intent.succeeded", good, 2) == "paid"
    await shelf.intake()
    await check_books(engines)


async def test_refunds_are_asked_for_and_heard(shelf: Shelf, api: StripeApi, engines: Engines) -> None:
    order = await paid(shelf, api)
    async with engines.work() as work:
        await aftersales.refund(work, order, amount_minor=500, reason="damaged", restock=False, by="host")
    async with engines.sql.read() as session:
        refund = (await session.scalars(select(Refund.id))).one()
    api.answers.append((200, REFUND))
    await payments.call_providers(engines)
    call = api.calls[-1]
    assert (call.path, call.key) == ("/v1/refunds", f"refund {refund}")
    assert call.form == {"payment_intent": INTENT["id"], "amount": "500", "metadata[refund]": refund}
    done = REFUND | {"metadata": {"refund": refund}}
    assert await hear(engines, "refund.created", done, 1) == "ignored"  # still on its way
    assert await hear(engines, "refund.updated", done | {"status": "succeeded"}, 2) == "refund_succeeded"
    assert await hear(engines, "refund.updated", REFUND | {"status": "succeeded"}, 3) == "unknown_refund"  # made by hand at Stripe
    async with engines.sql.read() as session:
        found = await session.get(Refund, refund)
    assert found
    assert (found.state, found.reference) == ("succeeded", REFUND["id"])
    await check_books(engines)


async def test_a_refund_that_stripe_refuses_stands_in_the_books_again(shelf: Shelf, api: StripeApi, engines: Engines) -> None:
    order = await paid(shelf, api)
    async with engines.work() as work:
        await aftersales.refund(work, order, amount_minor=None, reason="damaged", restock=True, by="host")
    api.answers.append((400, REFUSED))
    await payments.call_providers(engines)
    view = await orders.find_order(engines, order)
    assert view
    assert (view.state, view.refunded_minor, view.reason) == ("paid", 0, "damaged")
    await check_books(engines)


async def test_disputes_are_recorded_and_inquiries_are_not(shelf: Shelf, api: StripeApi, engines: Engines) -> None:
    order = await paid(shelf, api)
    assert await hear(engines, "charge.dispute.created", DISPUTE | {"id": "du_0", "status": "warning_needs_response"}, 1) == "ignored"
    assert await hear(engines, "charge.dispute.created", DISPUTE, 2) == "dispute_open"
    async with engines.sql.read() as session:
        dispute = (await session.scalars(select(Dispute))).one()
    assert (dispute.reference, dispute.order_id, dispute.reason, dispute.covered) == (DISPUTE["id"], order, "product_not_received", True)
    assert dispute.answer_by
    assert dispute.answer_by.timestamp() == 1751000000
    assert await hear(engines, "charge.dispute.closed", DISPUTE | {"status": "won"}, 3) == "dispute_won"
    await check_books(engines)


def test_stripe_is_refused_without_its_secrets() -> None:
    with pytest.raises(ValidationError, match="stripe needs JISHI_STRIPE_SECRET_KEY and JISHI_STRIPE_WEBHOOK_SECRET"):
        Settings(payment_provider="stripe")
    whole = Settings(payment_provider="stripe", stripe_secret_key=SecretStr("a"), stripe_webhook_secret=SecretStr("b"))
    assert "SecretStr('**********')" in repr(whole)


async def test_who_has_not_set_stripe_up_has_no_webhook_for_it(engines: Engines) -> None:
    with pytest.raises(AppError) as refused:
        await payments.receive_webhook(engines, "stripe", {}, b"{}")
    assert refused.value.code.word == "not_found"
