"""Webhooks from the event to the receiver, over real sockets."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import msgspec
import pytest
from sqlalchemy import select, update

from app.domains.integrations import rules, service
from app.domains.integrations.tables import WebhookAttempt, WebhookDelivery
from app.protocol.channels import room_channel
from app.protocol.events import OrderPaid, SessionEnded
from app.storage.announcements import announce_room
from app.storage.tables import Announcement
from app.storage.work import Engines
from tests.domains.integrations.receiver import Receiver, receiving
from tests.rest.people import as_
from tests.support.runtime import TestRuntime
from tests.support.waiting import wait_until


@pytest.fixture
async def receiver(engines: Engines) -> AsyncGenerator[Receiver]:
    engines.settings.webhooks_to_private_addresses = True
    async with receiving() as receiver:
        yield receiver


async def subscribe(engines: Engines, url: str, *events: str) -> Any:
    async with engines.work() as work:
        return await service.create_endpoint(work, url=url, events=events or ("order.paid",), by="root")


def paid(engines: Engines, order: str = "a-1") -> OrderPaid:
    return OrderPaid(
        at="2026-05-01T12:00:00.000Z",
        order=order,
        session="a-s",
        offer="a-f",
        viewer="anna",
        quantity=2,
        amount_minor=3980,
        currency="CNY",
    )


async def happen(engines: Engines, *events: Any) -> None:
    """Only what webhooks make of the event: other domains' reactions have tests of their own."""
    async with engines.work() as work:
        for event in events:
            await service.queue_events(work, "a", [event])


async def deliveries(engines: Engines) -> list[WebhookDelivery]:
    async with engines.sql.read() as session:
        return list(await session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.id)))


async def attempts(engines: Engines) -> list[WebhookAttempt]:
    async with engines.sql.read() as session:
        return list(await session.scalars(select(WebhookAttempt).order_by(WebhookAttempt.id)))


async def test_an_event_arrives_signed(engines: Engines, runtime: TestRuntime, receiver: Receiver) -> None:
    endpoint = await subscribe(engines, receiver.url)
    await happen(engines, paid(engines))
    await service.deliver_webhooks(engines)
    (got,) = receiver.got
    assert got.path == "/hook?x=1"
    assert got.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert got.headers["content-type"] == "application/json"
    (delivery,) = await deliveries(engines)
    assert delivery.state == "delivered"
    assert got.headers["webhook-id"] == delivery.id
    timestamp_s = runtime.now_ms() // 1000
    assert got.headers["webhook-timestamp"] == str(timestamp_s)
    expected = rules.signature(endpoint.secret, message_id=delivery.id, timestamp_s=timestamp_s, body=got.body)
    assert got.headers["webhook-signature"] == expected
    assert msgspec.json.decode(got.body) == {
        "type": "order.paid",
        "timestamp": "2026-05-01T12:00:00.000Z",
        "data": {
            "room": "a",
            "order": "a-1",
            "session": "a-s",
            "offer": "a-f",
            "viewer": "anna",
            "quantity": 2,
            "amount_minor": 3980,
            "currency": "CNY",
        },
    }
    await service.deliver_webhooks(engines)
    assert len(receiver.got) == 1
    (attempt,) = await attempts(engines)
    assert (attempt.attempt, attempt.status, attempt.error) == (1, 200, "")


async def test_the_same_event_again_is_not_delivered_again(engines: Engines, receiver: Receiver) -> None:
    await subscribe(engines, receiver.url)
    await happen(engines, paid(engines), paid(engines))
    await happen(engines, paid(engines))
    await happen(engines, paid(engines, "a-2"))
    assert sorted(delivery.identity for delivery in await deliveries(engines)) == ["order.paid:a-1", "order.paid:a-2"]


async def test_a_delivery_is_queued_by_the_announcement_of_its_event(engines: Engines, receiver: Receiver) -> None:
    """Whatever else reacts to the end of a session, the delivery and the announcement's removal are one transaction."""
    await subscribe(engines, receiver.url, "session.ended")
    engines.registry.reactions = [{"session.ended": service.queue_events}]
    async with engines.sql.begin() as session:
        event = SessionEnded(at="2026-05-01T12:00:00.000Z", room="a", session="a-s")
        payload = msgspec.json.encode(event)
        session.add(Announcement(room_id="a", channels=[room_channel("a")], type="session.ended", payload=payload, attempts=0))
    assert await deliveries(engines) == []
    await announce_room(engines, "a")
    (delivery,) = await deliveries(engines)
    assert (delivery.event, delivery.identity) == ("session.ended", "session.ended:a-s")


async def test_only_what_was_asked_for_is_sent(engines: Engines, receiver: Receiver) -> None:
    await subscribe(engines, receiver.url, "session.ended")
    await happen(engines, paid(engines))
    assert await deliveries(engines) == []


async def test_a_failure_is_tried_again_later_and_later_and_then_given_up(
    engines: Engines, runtime: TestRuntime, receiver: Receiver
) -> None:
    engines.settings.webhook_attempts_max = 3
    receiver.status = 500
    await subscribe(engines, receiver.url)
    await happen(engines, paid(engines))
    await service.deliver_webhooks(engines)
    runtime.advance(3_749)  # three quarters of 5 s: the least wait
    await service.deliver_webhooks(engines)
    assert len(receiver.got) == 1
    runtime.advance(2_501)
    await service.deliver_webhooks(engines)
    assert len(receiver.got) == 2
    assert [delivery.state for delivery in await deliveries(engines)] == ["pending"]
    runtime.advance(12_500)
    await service.deliver_webhooks(engines)
    assert len(receiver.got) == 3
    assert [delivery.state for delivery in await deliveries(engines)] == ["failed"]
    runtime.advance(86_400_000)
    await service.deliver_webhooks(engines)
    assert len(receiver.got) == 3
    assert [(attempt.attempt, attempt.status) for attempt in await attempts(engines)] == [(1, 500), (2, 500), (3, 500)]
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 1


async def test_a_receiver_that_comes_back_gets_it(engines: Engines, runtime: TestRuntime, receiver: Receiver) -> None:
    receiver.status = 503
    await subscribe(engines, receiver.url)
    await happen(engines, paid(engines))
    await service.deliver_webhooks(engines)
    receiver.status = 204
    runtime.advance(6_250)
    await service.deliver_webhooks(engines)
    assert [delivery.state for delivery in await deliveries(engines)] == ["delivered"]


async def test_a_deaf_receiver_costs_its_timeout_and_no_more(engines: Engines, receiver: Receiver) -> None:
    engines.settings.webhook_timeout_s = 1
    receiver.deaf = True
    await subscribe(engines, receiver.url)
    await happen(engines, paid(engines))
    await service.deliver_webhooks(engines)
    (attempt,) = await attempts(engines)
    assert (attempt.status, attempt.error) == (None, "no answer within 1 s")


async def test_a_redirect_is_not_followed(engines: Engines, receiver: Receiver) -> None:
    async with receiving() as elsewhere:
        receiver.status = 302
        receiver.extra = f"Location: {elsewhere.url}\r\n"
        await subscribe(engines, receiver.url)
        await happen(engines, paid(engines))
        await service.deliver_webhooks(engines)
        assert elsewhere.got == []
    (attempt,) = await attempts(engines)
    assert attempt.status == 302
    assert [delivery.state for delivery in await deliveries(engines)] == ["pending"]


async def test_two_workers_do_not_send_the_same(engines: Engines, receiver: Receiver) -> None:
    await subscribe(engines, receiver.url)
    await happen(engines, *(paid(engines, f"a-{number}") for number in range(6)))
    await asyncio.gather(*(service.deliver_webhooks(engines) for _ in range(4)))
    await service.deliver_webhooks(engines)
    assert len(receiver.got) == 6
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 6


async def test_a_worker_that_died_while_sending_is_followed_by_another(engines: Engines, runtime: TestRuntime, receiver: Receiver) -> None:
    receiver.deaf = True
    await subscribe(engines, receiver.url)
    await happen(engines, paid(engines))
    dying = asyncio.create_task(service.deliver_webhooks(engines))
    await wait_until(lambda: len(receiver.got) == 1)
    dying.cancel()
    await asyncio.wait([dying])
    receiver.deaf = False
    await service.deliver_webhooks(engines)
    assert len(receiver.got) == 1  # leased still
    runtime.advance((engines.settings.webhook_timeout_s * 2 + 30) * 1000)
    await service.deliver_webhooks(engines)
    assert len(receiver.got) == 2
    assert [delivery.state for delivery in await deliveries(engines)] == ["delivered"]


async def test_a_dead_endpoint_holds_up_no_other(engines: Engines, receiver: Receiver) -> None:
    async with receiving() as dead:
        dead.status = 500
        await subscribe(engines, dead.url)
        await happen(engines, *(paid(engines, f"a-{number}") for number in range(50)))
        await subscribe(engines, receiver.url)
        await happen(engines, paid(engines, "a-last"))
        await service.deliver_webhooks(engines)
        assert len(receiver.got) == 1
        assert len(dead.got) == service.PER_ENDPOINT_MAX


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_name_that_leads_inside_is_refused_at_every_delivery(
    engines: Engines, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    """The name was fine when it was stored; now it also resolves to loopback."""
    await subscribe(engines, f"http://shop.example:{receiver.port}/hook")
    async with engines.sql.begin() as session:  # as if it had been stored with https
        await session.execute(update(service.WebhookEndpoint).values(url=f"http{'' if allowed else 's'}://shop.example:{receiver.port}/"))
    engines.settings.webhooks_to_private_addresses = allowed
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, receiver.port)) for address in ("127.0.0.1", "93.184.216.34")]

    async def getaddrinfo(*_: Any, **__: Any) -> Any:
        return found

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    await happen(engines, paid(engines))
    await service.deliver_webhooks(engines)
    (attempt,) = await attempts(engines)
    if allowed:
        assert receiver.got[0].headers["host"] == f"shop.example:{receiver.port}"
        assert attempt.status == 200
    else:
        assert receiver.got == []
        assert attempt.error == "RefusedAddress: the host has a private or loopback address"


async def test_finished_deliveries_are_forgotten_after_a_month(engines: Engines, runtime: TestRuntime, receiver: Receiver) -> None:
    await subscribe(engines, receiver.url)
    await happen(engines, paid(engines))
    await service.deliver_webhooks(engines)
    await happen(engines, paid(engines, "a-2"))
    runtime.advance(service.KEEP_DAYS * 86_400_000 + 1)
    await service.expire_webhook_deliveries(engines)
    assert [delivery.identity for delivery in await deliveries(engines)] == ["order.paid:a-2"]  # pending: not ours to forget


async def test_the_control_panel_shows_the_log(client: httpx2.AsyncClient, engines: Engines, receiver: Receiver) -> None:
    root = as_(engines, "root", "operator")
    made = await client.post("/api/v1/webhooks", json={"url": receiver.url, "events": ["order.paid"]}, headers=root)
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    secret, path = made.json()["secret"], f"/api/v1/webhooks/{made.json()['id']}"
    assert secret not in (await client.get("/api/v1/webhooks", headers=root)).text
    queued = await client.post(f"{path}/test", headers=root)
    assert queued.status_code == 202
    pending = (await client.get(f"{path}/deliveries", headers=root)).json()["items"]
    assert [(item["id"], item["state"], item["attempts"]) for item in pending] == [(queued.json()["delivery"], "pending", [])]
    await service.deliver_webhooks(engines)
    (item,) = (await client.get(f"{path}/deliveries", headers=root)).json()["items"]
    assert (item["event"], item["state"], item["next_attempt_at"]) == ("webhook.test", "delivered", None)
    assert [(attempt["attempt"], attempt["status"]) for attempt in item["attempts"]] == [(1, 200)]
    assert msgspec.json.decode(receiver.got[0].body)["type"] == "webhook.test"
    await client.post(f"{path}/test", headers=root)
    first = (await client.get(f"{path}/deliveries?limit=1", headers=root)).json()
    second = (await client.get(f"{path}/deliveries?limit=1&cursor={first['next_cursor']}", headers=root)).json()
    assert [page["items"][0]["state"] for page in (first, second)] == ["pending", "delivered"]
    assert (await client.delete(path, headers=root)).status_code == 204
    for answer in (await client.delete(path, headers=root), await client.get(f"{path}/deliveries", headers=root)):
        assert answer.status_code == 404
    assert (await client.post(f"{path}/test", headers=root)).status_code == 404
    assert await deliveries(engines) == []


@pytest.mark.parametrize(
    "body",
    [
        {"url": "https://127.0.0.1/", "events": ["order.paid"]},
        {"url": "http://shop.example/", "events": ["order.paid"]},
        {"url": "https://shop.example/", "events": []},
        {"url": "https://shop.example/", "events": ["made.up"]},
        {"url": "", "events": ["order.paid"]},
    ],
)
async def test_a_webhook_that_cannot_be_is_a_bad_request(client: httpx2.AsyncClient, engines: Engines, body: dict[str, Any]) -> None:
    answer = await client.post("/api/v1/webhooks", json=body, headers=as_(engines, "root", "operator"))
    assert (answer.status_code, answer.json()["word"]) == (400, "bad_request")


async def test_there_is_a_limit_on_webhooks(client: httpx2.AsyncClient, engines: Engines) -> None:
    root = as_(engines, "root", "operator")
    body = {"url": "https://shop.example/", "events": ["order.paid"]}
    statuses = [(await client.post("/api/v1/webhooks", json=body, headers=root)).status_code for _ in range(service.ENDPOINTS_MAX + 1)]
    assert statuses == [201] * service.ENDPOINTS_MAX + [409]
