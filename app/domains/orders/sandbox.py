"""The sandbox: a payment provider that pretends to move money, over real HTTP, so that everything behind the webhook is as in production.

It behaves like a real one: it takes its time, declines, repeats itself, comes late, out of order, refuses refunds and disputes. A viewer's
app chooses how by the method; with `sandbox_amount_patterns` the last two digits of the amount do, for what chooses no method.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import msgspec
import structlog

from app.core.errors import AppError
from app.core.metrics import WEBHOOK_DELIVERIES
from app.core.settings import Settings
from app.core.tls import trusted_tls
from app.domains.orders import store
from app.domains.orders.providers import ProviderRefused, Taken
from app.domains.orders.rules import SIGNATURE_HEADER, PaymentNotice, sign, signature_fits
from app.domains.orders.tables import Payment, ProviderCall, SandboxCharge
from app.protocol.codes import BAD_REQUEST, UNAUTHORIZED
from app.storage.work import Engines

SENT_AT_ONCE_MAX = 50  # webhooks of one pass of the worker
SENDING_MAX = 10  # of these, at the same time
RETRY_MS = 1000  # doubled after each failed delivery, up to `sandbox_retry_ms_max`
SLOW_FACTOR = 10
ANSWER_DAYS = 7  # for evidence in a dispute

# The method's amount pattern: the last two digits of an amount that choose it.
METHODS: dict[str, int | None] = {
    "sandbox_ok": None,
    "sandbox_decline": 1,
    "sandbox_late": 2,  # pays after the order's payment deadline
    "sandbox_duplicate": 3,  # says everything twice
    "sandbox_slow": 4,
    "sandbox_reordered": 5,  # pays at the second try, and tells of the first one afterwards
    "sandbox_dispute": 6,  # the buyer asks the bank for the money back, and gets it
    "sandbox_dispute_won": 7,  # the buyer asks the bank for the money back, in vain
    "sandbox_refund_fails": 8,  # the card is closed when money is to go back
    "sandbox_abandoned": 9,  # the viewer leaves without paying: nothing more is said until it is cancelled
}
_BY_PATTERN = {pattern: method for method, pattern in METHODS.items()}
_DECLINED = "the sandbox's card was declined"

log = structlog.get_logger()


class Sandbox:
    name = "sandbox"
    publishable_key = ""

    def method_of(self, asked: str) -> str:
        method = asked or "sandbox_ok"
        if method not in METHODS:
            raise AppError(BAD_REQUEST, f"method: {method!r} is none of {', '.join(METHODS)}")
        return method

    async def create(self, engines: Engines, call: ProviderCall) -> Taken:
        method = call.data["method"]
        if engines.settings.sandbox_amount_patterns and method == "sandbox_ok":
            method = _BY_PATTERN.get(call.amount_minor % 100, method)
        delay_ms = engines.settings.sandbox_payment_delay_ms * (SLOW_FACTOR if method == "sandbox_slow" else 1)
        due_at = _now(engines) + timedelta(milliseconds=delay_ms)
        if method == "sandbox_late" and call.data["pay_by"]:
            due_at = datetime.fromisoformat(call.data["pay_by"]) + timedelta(seconds=1, milliseconds=delay_ms)
        steps = _steps(call, method, delay_ms, now_ms=engines.runtime.now_ms())
        charge: dict[str, Any] = {
            "payment_id": call.subject,
            "verdict": "payment.declined" if method == "sandbox_decline" else "payment.succeeded",
            "amount_minor": call.amount_minor,
            "currency": call.currency,
            "due_at": due_at,
            "left_to_send": len(steps) + {"sandbox_duplicate": 2, "sandbox_abandoned": 0}.get(method, 1),
            "method": method,
            "steps": steps,
        }
        async with engines.sql.begin() as session:
            await store.insert_charge(session, charge)
        return Taken(reference=f"sandbox_{call.subject}")

    async def refund(self, engines: Engines, call: ProviderCall, payment: Payment) -> Taken:
        async with engines.sql.begin() as session:
            charge = await store.lock_charge(session, payment.id)
            is_known = charge is not None and any(step["subject"] == call.subject for step in charge.steps)
            if charge is None or (not is_known and charge.refunded_minor + call.amount_minor > charge.amount_minor):
                raise ProviderRefused("the sandbox took no such amount")
            if not is_known:
                fails = charge.method == "sandbox_refund_fails"
                delay_ms = engines.settings.sandbox_payment_delay_ms
                step = _step(call, "refund.failed" if fails else "refund.succeeded", delay_ms, subject=call.subject)
                charge.steps = [*charge.steps, step | {"reason": "the sandbox's card is closed" if fails else ""}]
                charge.refunded_minor += 0 if fails else call.amount_minor
                if charge.left_to_send == 0:
                    charge.due_at = _now(engines) + timedelta(milliseconds=delay_ms)
                charge.left_to_send += 1
        return Taken(reference=f"sandbox_{call.subject}")

    async def cancel(self, engines: Engines, call: ProviderCall, payment: Payment) -> Taken:
        async with engines.sql.begin() as session:
            charge = await store.lock_charge(session, payment.id)
            if charge is None or charge.method != "sandbox_abandoned":
                raise ProviderRefused("the sandbox's money is on its way")
            if not charge.steps:
                delay_ms = engines.settings.sandbox_payment_delay_ms
                charge.steps = [_step(call, "payment.declined", delay_ms, subject="") | {"reason": "the payment was cancelled"}]
                charge.due_at = _now(engines) + timedelta(milliseconds=delay_ms)
                charge.left_to_send = 1
        return Taken(reference=payment.reference)

    def read_notice(self, settings: Settings, headers: Mapping[str, str], body: bytes, *, now_ms: int) -> PaymentNotice:
        header = headers.get(SIGNATURE_HEADER) or headers.get(SIGNATURE_HEADER.lower()) or ""
        fits = signature_fits(sandbox_secret(settings), header, body, now_s=now_ms // 1000, tolerance_s=settings.webhook_tolerance_s)
        if not fits:
            raise AppError(UNAUTHORIZED, f"the signature in {SIGNATURE_HEADER} is missing, wrong or too old")
        try:
            return msgspec.json.decode(body, type=PaymentNotice)
        except msgspec.DecodeError as failure:
            raise AppError(BAD_REQUEST, f"the body is no payment notice: {failure}") from failure


def _now(engines: Engines) -> datetime:
    return datetime.fromtimestamp(engines.runtime.now_ms() / 1000, UTC)


def _steps(call: ProviderCall, method: str, delay_ms: int, *, now_ms: int) -> list[dict[str, Any]]:
    """What it says after its verdict was heard."""
    if method == "sandbox_reordered":
        return [_step(call, "payment.declined", delay_ms, subject="") | {"reason": _DECLINED}]
    if method in {"sandbox_dispute", "sandbox_dispute_won"}:
        subject = f"dispute_{call.subject}"
        opened = _step(call, "dispute.opened", delay_ms, subject=subject)
        opened |= {"reason": "not_received", "answer_by_s": now_ms // 1000 + ANSWER_DAYS * 24 * 3600}
        return [opened, _step(call, "dispute.won" if method.endswith("_won") else "dispute.lost", delay_ms, subject=subject)]
    return []


def _step(call: ProviderCall, kind: str, after_ms: int, *, subject: str) -> dict[str, Any]:
    return {
        "id": f"evt_{kind}_{call.subject}",
        "type": kind,
        "subject": subject,
        "amount_minor": call.amount_minor,
        "reason": "",
        "answer_by_s": 0,
        "after_ms": after_ms,
    }


def sandbox_secret(settings: Settings) -> bytes:
    """Derived, so that the sandbox needs no setting of its own and a token's key signs nothing else."""
    return hmac.new(settings.secret_bytes, b"sandbox payment webhooks", hashlib.sha256).digest()


# --- the sandbox's side --------------------------------------------------------------------------------------------------------------


async def settle_sandbox_payments(engines: Engines) -> None:
    """One pass of the worker: posts the webhooks that are due, and again later those that were not heard."""
    now = _now(engines)
    lease = timedelta(seconds=engines.settings.webhook_timeout_s * 2)
    async with engines.sql.begin() as session:
        charges = await store.lease_charges(session, now, until=now + lease, limit=SENT_AT_ONCE_MAX)
    if not charges:
        return
    gate = asyncio.Semaphore(SENDING_MAX)
    async with (
        httpx2.AsyncClient(timeout=engines.settings.webhook_timeout_s, trust_env=False, verify=trusted_tls()) as client,
        asyncio.TaskGroup() as group,
    ):
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
    if heard:
        next_step = len(charge.steps) - charge.left_to_send + 1
        wait_ms = charge.steps[next_step]["after_ms"] if 0 <= next_step < len(charge.steps) else 0
    else:
        wait_ms = min(RETRY_MS * 2 ** min(charge.attempts, 10), engines.settings.sandbox_retry_ms_max)
    gives_up = not heard and charge.attempts >= engines.settings.webhook_attempts_max  # as real providers do after their days of retries
    async with engines.sql.begin() as session:
        due_at = _now(engines) + timedelta(milliseconds=wait_ms)
        await store.mark_sent(session, charge, due_at, heard=heard, gives_up=gives_up)


def sandbox_notice(settings: Settings, charge: SandboxCharge, *, now_ms: int) -> tuple[bytes, str]:
    """The next webhook's body and signature. A repetition has the same event id, as from a real provider."""
    index = len(charge.steps) - charge.left_to_send
    declined = charge.verdict == "payment.declined"
    notice: dict[str, Any] = {"id": f"evt_{charge.payment_id}", "type": charge.verdict, "reason": _DECLINED if declined else ""}
    if 0 <= index < len(charge.steps):
        notice = {name: value for name, value in charge.steps[index].items() if name != "after_ms"}
    whole = {"payment": charge.payment_id, "amount_minor": charge.amount_minor, "currency": charge.currency}
    body = msgspec.json.encode(msgspec.convert(whole | notice, PaymentNotice))
    return body, sign(sandbox_secret(settings), now_ms // 1000, body)
