"""Webhooks to the company's backend: subscribe, queue with the event's own transaction, deliver with retries.

Invariants
- A delivery is queued in the transaction that announces its event, once an endpoint and happening.
- It is sent at least once, signed; the receiver tells repeats by `webhook-id`. Order is not promised.
- A request goes to the very address that was checked, never to one that a second look-up or a redirect names.
"""

import asyncio
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

import httpx2
import msgspec

from app.core.errors import AppError
from app.core.metrics import WEBHOOK_DELIVERIES
from app.core.tls import trusted_tls
from app.domains.integrations import rules, store
from app.domains.integrations.tables import WebhookAttempt, WebhookEndpoint
from app.protocol.codes import BAD_REQUEST, CONFLICT, NOT_FOUND
from app.protocol.events import Event
from app.storage.work import Engines, Work

ENDPOINTS_MAX = 20
BATCH_MAX = 32
PER_ENDPOINT_MAX = 4
KEEP_DAYS = 30
EXPIRE_BATCH_MAX = 1000
ERROR_CHARS_MAX = 300
USER_AGENT = "Jishi-Webhooks/1"


class RefusedAddress(Exception):
    """The host resolves to an address that webhooks may not reach."""


@dataclass(frozen=True, slots=True)
class Leased:
    """What one attempt needs, free of any session."""

    delivery_id: str
    attempt: int
    url: str
    secret: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    status: int | None
    error: str
    duration_ms: int

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


# --- endpoints ----------------------------------------------------------------------------------------------------------------------


async def create_endpoint(work: Work, *, url: str, events: Sequence[str], by: str) -> WebhookEndpoint:
    """Raises AppError `bad_request` for a URL that may not be used, `conflict` when there are too many endpoints."""
    fault = rules.url_fault(url, private_allowed=work.engines.settings.webhooks_to_private_addresses)
    if fault is not None:
        raise AppError(BAD_REQUEST, f"url: {fault}")
    await store.lock_endpoints(work.session)
    if await store.count_endpoints(work.session) >= ENDPOINTS_MAX:
        raise AppError(CONFLICT, f"at most {ENDPOINTS_MAX} webhooks: delete one first")
    endpoint = WebhookEndpoint(
        id=work.runtime.new_short_id(),
        url=url,
        secret=rules.new_secret(work.runtime.token_bytes(rules.SECRET_BYTES)),
        events=sorted(set(events)),
        created_by=by,
        created_at=work.now,
    )
    work.session.add(endpoint)
    await work.session.flush()
    return endpoint


async def remove_endpoint(work: Work, endpoint_id: str) -> None:
    """Its deliveries and their log go with it."""
    if not await store.delete_endpoint(work.session, endpoint_id):
        raise AppError(NOT_FOUND, f"no webhook has the id {endpoint_id}")


async def queue_test(work: Work, endpoint_id: str) -> str:
    """Queues a test event; the id of the delivery."""
    endpoint = await store.fetch_endpoint(work.session, endpoint_id)
    if endpoint is None:
        raise AppError(NOT_FOUND, f"no webhook has the id {endpoint_id}")
    delivery_id = work.runtime.new_id()
    data = {"text": "This is a test. Nothing happened."}
    body = _body(rules.TEST_EVENT, work.at, data)
    delivery = _delivery(work, endpoint.id, event=rules.TEST_EVENT, identity=f"test:{delivery_id}", body=body) | {"id": delivery_id}
    await store.insert_deliveries(work.session, [delivery])
    return delivery_id


# --- from events to deliveries ------------------------------------------------------------------------------------------------------


async def queue_events(work: Work, room_id: str, events: list[Event]) -> None:
    """A reaction: may see the same event twice."""
    endpoints = await store.list_endpoints(work.session, limit=ENDPOINTS_MAX)
    if not endpoints:
        return
    deliveries: list[dict[str, object]] = []
    for event in events:
        event_type, identity = rules.webhook_event(event) or ("", "")
        wanted = [endpoint.id for endpoint in endpoints if event_type in endpoint.events]
        if wanted:
            body = _event_body(room_id, event_type, event)
            deliveries += [_delivery(work, endpoint_id, event=event_type, identity=identity, body=body) for endpoint_id in wanted]
    if deliveries:
        await store.insert_deliveries(work.session, deliveries)


def _event_body(room_id: str, event_type: str, event: Event) -> bytes:
    data = {"room": room_id, **msgspec.to_builtins(event)}
    for name in ("type", "at", "v"):
        data.pop(name, None)
    return _body(event_type, event.at, data)


def _body(event_type: str, at: str, data: Mapping[str, object]) -> bytes:
    return msgspec.json.encode({"type": event_type, "timestamp": at, "data": data})


def _delivery(work: Work, endpoint_id: str, *, event: str, identity: str, body: bytes) -> dict[str, object]:
    return {
        "id": work.runtime.new_id(),
        "endpoint_id": endpoint_id,
        "identity": identity,
        "event": event,
        "body": body,
        "state": "pending",
        "attempts": 0,
        "next_attempt_at": work.now,
        "created_at": work.now,
    }


# --- delivery -----------------------------------------------------------------------------------------------------------------------


async def deliver_webhooks(engines: Engines) -> None:
    """One pass of the worker's loop: sends what is due, at most BATCH_MAX at once. Holds no transaction while it waits for answers."""
    leased = await _lease(engines)
    if not leased:
        return
    timeout = httpx2.Timeout(engines.settings.webhook_timeout_s)
    # The environment's proxies are not asked: they would connect to an address that was never checked.
    async with httpx2.AsyncClient(timeout=timeout, follow_redirects=False, trust_env=False, verify=trusted_tls()) as client:
        await asyncio.gather(*(_deliver(engines, client, item) for item in leased))


async def _lease(engines: Engines) -> list[Leased]:
    lease = timedelta(seconds=engines.settings.webhook_timeout_s * 2 + 30)
    async with engines.sql.begin() as session:
        rows = await store.lease_due(session, now=engines.runtime.now(), lease=lease, limit=BATCH_MAX, per_endpoint=PER_ENDPOINT_MAX)
        return [Leased(delivery.id, delivery.attempts, endpoint.url, endpoint.secret, delivery.body) for delivery, endpoint in rows]


async def _deliver(engines: Engines, client: httpx2.AsyncClient, item: Leased) -> None:
    started_ms = engines.runtime.monotonic_ms()
    status: int | None = None
    error = ""
    try:
        async with asyncio.timeout(engines.settings.webhook_timeout_s):  # the whole exchange: the client's own limits are per step
            status = await _post(engines, client, item)
    except TimeoutError:
        error = f"no answer within {engines.settings.webhook_timeout_s} s"
    except (RefusedAddress, httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as failure:
        error = f"{type(failure).__name__}: {failure}"[:ERROR_CHARS_MAX]
    await _record(engines, item, Answer(status, error, int(engines.runtime.monotonic_ms() - started_ms)))


async def _post(engines: Engines, client: httpx2.AsyncClient, item: Leased) -> int:
    """The status of the answer; its body is not read, so that no answer can fill the memory or be shown to anyone."""
    host = urlsplit(item.url).hostname or ""
    address = await resolve_checked(item.url, private_allowed=engines.settings.webhooks_to_private_addresses)
    url = httpx2.URL(item.url)
    timestamp_s = engines.runtime.now_ms() // 1000
    headers = {
        "host": url.netloc.decode(),
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        "webhook-id": item.delivery_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": rules.signature(item.secret, message_id=item.delivery_id, timestamp_s=timestamp_s, body=item.body),
    }
    # Connects to the checked address; the certificate is still checked against the name.
    request = client.build_request(
        "POST", url.copy_with(host=address), headers=headers, content=item.body, extensions={"sni_hostname": host}
    )
    response = await client.send(request, stream=True)
    await response.aclose()
    return response.status_code


async def resolve_checked(url: str, *, private_allowed: bool) -> str:
    """The address to connect to. Raises RefusedAddress when the host has an address that is not public, even beside one that is."""
    parts = urlsplit(url)
    fault = rules.url_fault(url, private_allowed=private_allowed)
    if fault is not None:
        raise RefusedAddress(f"url: {fault}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses:
        raise RefusedAddress("the host has no address")
    if not private_allowed and not all(rules.is_public_address(address) for address in addresses):
        raise RefusedAddress("the host has a private or loopback address")
    return addresses[0]


async def _record(engines: Engines, item: Leased, answer: Answer) -> None:
    settings = engines.settings
    last = item.attempt >= settings.webhook_attempts_max
    state = "delivered" if answer.delivered else "failed" if last else "pending"
    now = engines.runtime.now()
    delay_ms = rules.next_delay_ms(item.attempt, spread=engines.runtime.rng.random())
    record = WebhookAttempt(
        delivery_id=item.delivery_id,
        attempt=item.attempt,
        at=now,
        status=answer.status,
        error=answer.error,
        duration_ms=answer.duration_ms,
    )
    async with engines.sql.begin() as session:
        await store.finish_attempt(
            session,
            delivery_id=item.delivery_id,
            attempt=item.attempt,
            state=state,
            next_attempt_at=now + timedelta(milliseconds=delay_ms),
            record=record,
        )
    WEBHOOK_DELIVERIES.labels({"pending": "retry"}.get(state, state)).inc()


async def expire_webhook_deliveries(engines: Engines) -> None:
    """One pass of the worker's loop: forgets finished deliveries after KEEP_DAYS."""
    before = engines.runtime.now() - timedelta(days=KEEP_DAYS)
    async with engines.sql.begin() as session:
        await store.delete_old_deliveries(session, before=before, limit=EXPIRE_BATCH_MAX)
