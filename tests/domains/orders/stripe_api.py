"""Stripe, as its SDK sees it: a small HTTP server on loopback that answers with shapes as the real one gave them, and signs events."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import stripe

KEY = "sk_test_51Jishi"
WEBHOOK_SECRET = "whsec_jishi"

INTENT: dict[str, Any] = {
    "id": "pi_3MtwBwLkdIwHu7ix28a3tqPa",
    "object": "payment_intent",
    "amount": 1990,
    "amount_capturable": 0,
    "amount_details": {"tip": {}},
    "amount_received": 0,
    "application": None,
    "application_fee_amount": None,
    "automatic_payment_methods": {"enabled": True},
    "canceled_at": None,
    "cancellation_reason": None,
    "capture_method": "automatic_async",
    "client_secret": "pi_3MtwBwLkdIwHu7ix28a3tqPa_secret_YrKJUKribcBjcG8HVhfZluoGH",
    "confirmation_method": "automatic",
    "created": 1680800504,
    "currency": "cny",
    "customer": None,
    "description": None,
    "last_payment_error": None,
    "latest_charge": None,
    "livemode": False,
    "metadata": {},
    "next_action": None,
    "payment_method": None,
    "payment_method_options": {
        "card": {"installments": None, "mandate_options": None, "network": None, "request_three_d_secure": "automatic"}
    },
    "payment_method_types": ["card", "alipay"],
    "processing": None,
    "receipt_email": None,
    "setup_future_usage": None,
    "shipping": None,
    "status": "requires_payment_method",
    "transfer_data": None,
    "transfer_group": None,
}
REFUND: dict[str, Any] = {
    "id": "re_1Nispe2eZvKYlo2Cd31jOCgZ",
    "object": "refund",
    "amount": 500,
    "balance_transaction": "txn_1Nispe2eZvKYlo2CYezqFhEx",
    "charge": "ch_1NirD82eZvKYlo2CIvbtLWuY",
    "created": 1692942318,
    "currency": "cny",
    "destination_details": {"card": {"reference": "123456789012", "reference_status": "available", "type": "refund"}, "type": "card"},
    "metadata": {},
    "payment_intent": INTENT["id"],
    "reason": None,
    "receipt_number": None,
    "source_transfer_reversal": None,
    "status": "pending",
    "transfer_reversal": None,
}
DISPUTE: dict[str, Any] = {
    "id": "du_1MtJUT2eZvKYlo2CNaw2HvEv",
    "object": "dispute",
    "amount": 1990,
    "balance_transactions": [],
    "charge": "ch_1NirD82eZvKYlo2CIvbtLWuY",
    "created": 1680651737,
    "currency": "cny",
    "evidence": {"access_activity_log": None, "customer_name": None, "uncategorized_text": None},
    "evidence_details": {"due_by": 1751000000, "has_evidence": False, "past_due": False, "submission_count": 0},
    "is_charge_refundable": False,
    "livemode": False,
    "metadata": {},
    "payment_intent": INTENT["id"],
    "reason": "product_not_received",
    "status": "needs_response",
}
REFUSED = {
    "error": {"code": "charge_already_refunded", "message": "Charge ch_1 has already been refunded.", "type": "invalid_request_error"}
}

UNCANCELLABLE = {
    "error": {
        "code": "payment_intent_unexpected_state",
        "message": "You cannot cancel this PaymentIntent because it has a status of succeeded.",
        "type": "invalid_request_error",
    }
}


def event(kind: str, thing: dict[str, Any], number: int = 1) -> bytes:
    """As Stripe posts it: indented, with fields that nobody here reads."""
    whole = {
        "id": f"evt_3MtwBw{number:04d}",
        "object": "event",
        "api_version": "2025-03-31.basil",
        "created": 1680800506,
        "data": {"object": thing},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": "req_1", "idempotency_key": None},
        "type": kind,
    }
    return json.dumps(whole, indent=2).encode()


def signed(body: bytes, *, at_s: int | None = None, secret: str = WEBHOOK_SECRET) -> dict[str, str]:
    return {"Stripe-Signature": stripe.WebhookSignature.generate_signature_header(body.decode(), secret, at_s)}


@dataclass
class Call:
    path: str
    key: str
    authorization: str
    form: dict[str, str]


@dataclass
class StripeApi:
    port: int = 0
    answers: list[tuple[int, dict[str, Any]]] = field(default_factory=list)  # status and body, one a call; status 0 is a cut
    calls: list[Call] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            form = dict(parse_qsl((await reader.readexactly(int(headers.get("content-length", "0")))).decode()))
            self.calls.append(Call(head[0].split(" ")[1], headers["idempotency-key"], headers["authorization"], form))
            status, answer = self.answers.pop(0)
            if status:
                body = json.dumps(answer).encode()
                writer.write(
                    f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
                )
                await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def stripe_api() -> AsyncGenerator[StripeApi]:
    api = StripeApi()
    server = await asyncio.start_server(api.handle, "127.0.0.1", 0)
    api.port = server.sockets[0].getsockname()[1]
    try:
        yield api
    finally:
        server.close()
        await server.wait_closed()
