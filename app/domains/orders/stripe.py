"""Stripe, through its SDK: a PaymentIntent for each attempt to pay, which the viewer's app confirms with Stripe's own SDK for its platform.

The SDK builds requests, reads answers and checks webhook signatures; bytes go over the product's HTTP client. It takes 24 MiB and 0.4 s to
import, so this module is imported where Stripe is set up alone. Repeating a call is left to `provider_calls`: all of a call's attempts lie
within the 24 hours for which Stripe remembers an idempotency key.

What it deliberately does not do: see a card, keep a customer, or hand in evidence in a dispute.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import httpx2
import msgspec
import stripe
from msgspec import Struct

from app.core.errors import AppError
from app.core.settings import Settings
from app.core.tls import trusted_tls
from app.domains.orders.providers import ProviderAway, ProviderRefused, Taken
from app.domains.orders.rules import PaymentNotice
from app.domains.orders.tables import Payment, ProviderCall
from app.protocol.codes import BAD_REQUEST, UNAUTHORIZED
from app.storage.work import Engines

METHODS = ("card", "alipay", "wechat_pay", "link", "klarna", "paypal")

stripe.enable_telemetry = False


class _Http(stripe.HTTPClient):
    name = "httpx2"

    def __init__(self, timeout_s: float) -> None:
        super().__init__()
        self._timeout_s = timeout_s

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None, **_: Any
    ) -> tuple[bytes, int, Mapping[str, str]]:
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                httpx2.AsyncClient(timeout=self._timeout_s, trust_env=False, verify=trusted_tls()) as client,
            ):
                answer = await client.request(method, url, headers=headers, content=post_data)
        except (httpx2.HTTPError, TimeoutError) as failure:
            raise stripe.APIConnectionError(type(failure).__name__, should_retry=False) from failure
        return answer.content, answer.status_code, answer.headers


class Stripe:
    name = "stripe"

    def __init__(self, settings: Settings) -> None:
        self.publishable_key = settings.stripe_publishable_key
        self._webhook_secret = settings.stripe_webhook_secret.get_secret_value()
        self._client = stripe.StripeClient(
            settings.stripe_secret_key.get_secret_value(),
            http_client=_Http(settings.provider_timeout_s),
            base_addresses={"api": settings.stripe_api_url} if settings.stripe_api_url else None,
            max_network_retries=0,
        )

    def method_of(self, asked: str) -> str:
        """Empty: what the account offers and the viewer chooses, which is Stripe's own advice."""
        if asked and asked not in METHODS:
            raise AppError(BAD_REQUEST, f"method: {asked!r} is none of {', '.join(METHODS)}; leave it empty to let the viewer choose")
        return asked

    async def create(self, engines: Engines, call: ProviderCall) -> Taken:
        method = call.data["method"]
        params: Any = {
            "amount": call.amount_minor,
            "currency": call.currency.lower(),
            "description": f"{call.data['name']} ({call.data['order']})"[:1000],
            "metadata": {"payment": call.subject, "order": call.data["order"]},
        }
        params |= {"payment_method_types": [method]} if method else {"automatic_payment_methods": {"enabled": True}}
        with _Failures():
            intent = await self._client.v1.payment_intents.create_async(params, {"idempotency_key": f"create {call.subject}"})
        return Taken(reference=intent.id, client_secret=intent.client_secret or "")

    async def refund(self, engines: Engines, call: ProviderCall, payment: Payment) -> Taken:
        params: Any = {"payment_intent": payment.reference, "amount": call.amount_minor, "metadata": {"refund": call.subject}}
        with _Failures():
            refund = await self._client.v1.refunds.create_async(params, {"idempotency_key": f"refund {call.subject}"})
        return Taken(reference=refund.id, state=_refund_state(refund.status))

    async def cancel(self, engines: Engines, call: ProviderCall, payment: Payment) -> Taken:
        """The viewer's app can go on with it no longer; `payment_intent.canceled` follows."""
        if not payment.reference:
            raise ProviderAway("the payment has not begun at Stripe yet")
        params: Any = {"cancellation_reason": "abandoned"}
        with _Failures():
            await self._client.v1.payment_intents.cancel_async(payment.reference, params, {"idempotency_key": f"cancel {call.subject}"})
        return Taken(reference=payment.reference)

    def read_notice(self, settings: Settings, headers: Mapping[str, str], body: bytes, *, now_ms: int) -> PaymentNotice:
        """The time is checked by the SDK, against this machine's clock."""
        header = headers.get("Stripe-Signature") or headers.get("stripe-signature") or ""
        try:
            stripe.WebhookSignature.verify_header(body, header, self._webhook_secret, settings.webhook_tolerance_s)
            return _notice_of(msgspec.json.decode(body, type=_Event))
        except stripe.SignatureVerificationError as refusal:
            raise AppError(UNAUTHORIZED, "the signature in Stripe-Signature is missing, wrong or too old") from refusal
        except ValueError as failure:  # not text, or not JSON; msgspec's errors are such too
            raise AppError(BAD_REQUEST, "the body is no event of Stripe") from failure


class _Failures:
    """Turns what the SDK raises into what a provider raises. A wrong key or right can be mended by an operator, so it is tried again."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, failure: BaseException | None, __: object) -> None:
        if isinstance(failure, stripe.CardError | stripe.InvalidRequestError):
            raise ProviderRefused(failure.user_message or str(failure)) from failure
        if isinstance(failure, stripe.StripeError):
            raise ProviderAway(f"{type(failure).__name__}: {failure.user_message or failure}") from failure


# --- what webhooks say ---------------------------------------------------------------------------------------------------------------


class _Failure(Struct, frozen=True):
    message: str | None = None
    code: str | None = None


class _Evidence(Struct, frozen=True):
    due_by: int | None = None


class _Object(Struct, frozen=True):
    """The fields that matter of a PaymentIntent, a refund or a dispute."""

    id: str
    currency: str
    amount: int
    amount_received: int = 0
    payment_intent: str | None = None
    metadata: dict[str, str] | None = None
    status: str | None = None
    reason: str | None = None
    failure_reason: str | None = None
    cancellation_reason: str | None = None
    last_payment_error: _Failure | None = None
    evidence_details: _Evidence | None = None


class _Data(Struct, frozen=True):
    object: msgspec.Raw


class _Event(Struct, frozen=True):
    id: str
    type: str
    data: _Data


def _notice_of(event: _Event) -> PaymentNotice:
    """What an event says in our words; one of a type that we do not follow, whatever is in it, is a notice without effect."""
    read = _READERS.get(event.type)
    if read is None:
        return PaymentNotice(id=event.id, type=event.type)
    thing = msgspec.json.decode(event.data.object, type=_Object)
    said: dict[str, Any] = {"id": event.id, "amount_minor": thing.amount, "currency": thing.currency.upper(), **read(thing)}
    return msgspec.convert(said, PaymentNotice)


def _succeeded(intent: _Object) -> dict[str, Any]:
    said = {"type": "payment.succeeded", "payment": _ours(intent, "payment"), "reference": intent.id}
    return said | {"amount_minor": intent.amount_received}


def _declined(intent: _Object) -> dict[str, Any]:
    failure = intent.last_payment_error or _Failure()
    reason = failure.message or failure.code or intent.cancellation_reason or "the payment failed"
    return {"type": "payment.declined", "payment": _ours(intent, "payment"), "reference": intent.id, "reason": reason}


def _refund(refund: _Object) -> dict[str, Any]:
    said = {"type": f"refund.{_refund_state(refund.status)}", "reference": refund.payment_intent or ""}
    return said | {"subject": _ours(refund, "refund"), "reason": refund.failure_reason or ""}


def _opened(dispute: _Object) -> dict[str, Any]:
    return _about_dispute(dispute, "opened")


def _closed(dispute: _Object) -> dict[str, Any]:
    return _about_dispute(dispute, dispute.status or "")


def _about_dispute(dispute: _Object, word: str) -> dict[str, Any]:
    """An inquiry (`warning_...`) takes no money: it is no dispute yet."""
    word = "inquiry" if (dispute.status or "").startswith("warning") else word
    due_by = dispute.evidence_details.due_by if dispute.evidence_details else None
    said = {"type": f"dispute.{word}", "reference": dispute.payment_intent or "", "subject": dispute.id}
    return said | {"reason": dispute.reason or "", "answer_by_s": due_by or 0}


def _ours(thing: _Object, name: str) -> str:
    """Our id, which a call of ours put there."""
    return (thing.metadata or {}).get(name, "")


def _refund_state(status: str | None) -> str:
    return {"succeeded": "succeeded", "failed": "failed", "canceled": "failed"}.get(status or "", "pending")


_READERS: dict[str, Callable[[_Object], dict[str, Any]]] = {
    "payment_intent.succeeded": _succeeded,
    "payment_intent.payment_failed": _declined,
    "payment_intent.canceled": _declined,
    "refund.created": _refund,
    "refund.updated": _refund,
    "refund.failed": _refund,
    "charge.dispute.created": _opened,
    "charge.dispute.closed": _closed,
}
