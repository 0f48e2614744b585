"""Orders over HTTP: the buyer's commands, the team's routes, and the sandbox's webhooks through a real socket."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import func, select

from app.domains.orders.sandbox import settle_sandbox_payments
from app.domains.orders.tables import PaymentEvent, SandboxCharge
from app.rest.pages import encode_cursor
from app.storage.work import Engines
from tests.rest.people import as_
from tests.support.auditor.stock import audit_stock
from tests.support.runtime import TestRuntime
from tests.support.shelf import Shelf, open_shelf
from tests.support.waiting import wait_until

ADDRESS = {"name": "Lin", "phone": "13800000000", "line": "8 Tea Street, Anxi"}


@pytest.fixture
async def shelf(engines: Engines) -> Shelf:
    return await open_shelf(engines)


async def command(client: httpx2.AsyncClient, engines: Engines, name: str, viewer: str = "lin", **body: Any) -> dict[str, Any]:
    answer = await client.post("/api/v1/" + name.replace(".", "/"), json=body, headers=as_(engines, viewer))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def buy(client: httpx2.AsyncClient, engines: Engines, offer: str, **how: Any) -> str:
    """Reserved, placed, and its payment on the way."""
    hold = (await command(client, engines, "inventory.reserve", offer=offer, quantity=1, key="k1"))["hold"]
    placed = await command(client, engines, "order.place", hold=hold, address=ADDRESS, key="k2")
    assert placed["outcome"] == "placed"
    paying = await command(client, engines, "order.pay", order=hold, key="k3", **how)
    assert paying["outcome"] == "pending"
    return hold


@asynccontextmanager
async def listening(app: FastAPI, engines: Engines) -> AsyncGenerator[None]:
    """The app behind a real port, where the sandbox's webhooks go."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        engines.settings.public_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, ws="none"))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await wait_until(lambda: server.started)
        try:
            yield
        finally:
            server.should_exit = True
            await task


async def test_the_sandbox_pays_by_webhook(
    app: FastAPI, client: httpx2.AsyncClient, engines: Engines, shelf: Shelf, runtime: TestRuntime
) -> None:
    order = await buy(client, engines, await shelf.offer(), method="sandbox_duplicate")
    async with listening(app, engines):
        await settle_sandbox_payments(engines)  # not due yet
        assert (await command(client, engines, "order.get", order=order))["state"] == "placed"
        runtime.advance(800)
        await settle_sandbox_payments(engines)
        assert (await command(client, engines, "order.get", order=order))["state"] == "paid"
        await settle_sandbox_payments(engines)  # the same notice once more
        await settle_sandbox_payments(engines)
    await shelf.intake()
    async with engines.sql.read() as session:
        assert (await session.scalars(select(PaymentEvent.outcome))).all() == ["paid"]
        assert (await session.scalars(select(SandboxCharge.left_to_send))).all() == [0]
    assert await audit_stock(engines, ["room1"]) == []


@pytest.mark.parametrize(("retry_ms_max", "wait_ms"), [(60_000, 2000), (1500, 1500)])
async def test_an_unheard_webhook_is_sent_again(
    app: FastAPI, client: httpx2.AsyncClient, engines: Engines, shelf: Shelf, runtime: TestRuntime, retry_ms_max: int, wait_ms: int
) -> None:
    engines.settings.sandbox_retry_ms_max = retry_ms_max
    order = await buy(client, engines, await shelf.offer())
    runtime.advance(800)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        engines.settings.public_url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        await settle_sandbox_payments(engines)
    assert (await command(client, engines, "order.get", order=order))["state"] == "placed"
    async with listening(app, engines):
        runtime.advance(wait_ms - 1)
        await settle_sandbox_payments(engines)
        assert (await command(client, engines, "order.get", order=order))["state"] == "placed"
        runtime.advance(1)
        await settle_sandbox_payments(engines)
        assert (await command(client, engines, "order.get", order=order))["state"] == "paid"


async def test_the_team_lists_ships_and_refunds(
    app: FastAPI, client: httpx2.AsyncClient, engines: Engines, shelf: Shelf, runtime: TestRuntime
) -> None:
    offer = await shelf.offer(total=5)
    order = await buy(client, engines, offer)
    runtime.advance(800)
    async with listening(app, engines):
        await settle_sandbox_payments(engines)
    await shelf.intake()
    host, stranger = as_(engines, "mei", "host@room1"), as_(engines, "bo", "host@room2")
    listed = (await client.get("/api/v1/rooms/room1/orders", params={"state": "paid", "offer": offer}, headers=host)).json()
    assert [(item["id"], item["viewer"], item["address"]["line"]) for item in listed["items"]] == [(order, "lin", "8 Tea Street, Anxi")]
    assert (await client.get("/api/v1/rooms/room1/orders", params={"state": "placed"}, headers=host)).json()["items"] == []
    assert (await client.get("/api/v1/rooms/room1/orders", headers=stranger)).status_code == 403
    assert (await client.get(f"/api/v1/orders/{order}", headers=stranger)).status_code == 403
    assert (await client.get("/api/v1/orders/room1-none", headers=host)).status_code == 404
    shipped = await client.post(f"/api/v1/orders/{order}/ship", json={"carrier": "SF", "tracking": "1"}, headers=host)
    assert (shipped.status_code, shipped.json()["state"]) == (200, "shipped")
    whole = {"reason": "arrived damaged", "restock": True}
    refunded = await client.post(f"/api/v1/orders/{order}/refund", json=whole, headers=host)
    assert (refunded.status_code, refunded.json()["state"], refunded.json()["refunded_minor"]) == (200, "refunded", 1990)
    assert (await client.post(f"/api/v1/orders/{order}/refund", json=whole, headers=host)).status_code == 409
    stock = (await client.get(f"/api/v1/sessions/{shelf.session_id}/stock", headers=host)).json()
    assert stock == [
        {"offer": offer, "total": 5, "available": 5, "held": 0, "ordered": 0, "sold": 0, "short": 0, "expired": 0, "waiting": 0}
    ]
    assert await audit_stock(engines, ["room1"]) == []


async def test_an_unsigned_webhook_leaves_no_trace(client: httpx2.AsyncClient, engines: Engines) -> None:
    answer = await client.post("/api/v1/payments/sandbox/webhook", content=b"{}", headers={"Jishi-Signature": "t=1,v1=00"})
    assert (answer.status_code, answer.json()["word"]) == (401, "unauthorized")
    assert (await client.post("/api/v1/payments/none/webhook", content=b"{}")).status_code == 404
    async with engines.sql.read() as session:
        assert await session.scalar(select(func.count()).select_from(PaymentEvent)) == 0


async def test_others_orders_do_not_exist(client: httpx2.AsyncClient, engines: Engines, shelf: Shelf) -> None:
    order = await buy(client, engines, await shelf.offer())
    answer = await client.post("/api/v1/order/get", json={"order": order}, headers=as_(engines, "bo"))
    assert answer.status_code == 404
    assert (await command(client, engines, "order.cancel", "bo", order=order, key="k"))["outcome"] == "unknown"
    assert (await command(client, engines, "order.pay", "bo", order=order, key="k"))["outcome"] == "unknown"
    assert (await command(client, engines, "order.list", "bo"))["orders"] == []


async def test_a_forged_cursor_is_a_bad_request(client: httpx2.AsyncClient, engines: Engines, shelf: Shelf) -> None:
    for key in (("2026-01-01T00:00:00", "x"), (-(10**20), "x"), (10**30, "x"), ("x", "x")):
        answer = await client.post("/api/v1/order/list", json={"cursor": encode_cursor(*key)}, headers=as_(engines, "lin"))
        assert (answer.status_code, answer.json()["word"]) == (400, "bad_request"), answer.text
