"""Engines that are killed with sales going on: `kill -9`, then the same data again."""

import asyncio
from collections import Counter

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from app.core.errors import AppError
from app.domains.inventory import renewal
from app.domains.inventory import service as inventory
from app.domains.orders import payments, sandbox
from app.domains.orders import service as orders
from app.domains.orders.tables import SandboxCharge
from app.protocol.order_commands import OrderPay
from app.storage.intake import take_in_room
from app.storage.tables import DeadLetter
from app.storage.work import Engines, is_away
from tests.support.auditor.stock import audit_stock
from tests.support.servers import Servers
from tests.support.shelf import open_shelf
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


async def test_a_killed_engine_keeps_what_it_acknowledged(own: tuple[Engines, Servers]) -> None:
    engines, servers = own
    shelf = await open_shelf(engines)
    offer = await shelf.offer(total=2000)
    acknowledged: dict[str, str] = {}

    async def buyer(number: int) -> None:
        for turn in range(200):
            key = f"{number}.{turn}"
            try:
                hold = (await shelf.reserve(offer, viewer=f"v{number}", key=key)).hold
                assert hold
                if turn % 2:
                    await shelf.place(hold, viewer=f"v{number}", key=key)
            except AppError:
                return
            acknowledged[key] = hold

    buyers = [asyncio.create_task(buyer(number)) for number in range(20)]
    await wait_until(lambda: len(acknowledged) >= 400)
    await asyncio.to_thread(servers.valkey.kill)
    await asyncio.gather(*buyers)
    assert len(acknowledged) < 2000, "it was killed in the middle"
    await asyncio.to_thread(servers.valkey.start)
    assert await audit_stock(engines, ["room1"], after_intake=False) == []
    await renewal.renew_room(engines, "room1")
    for key, hold in acknowledged.items():
        viewer = f"v{key.partition('.')[0]}"
        again = await shelf.reserve(offer, viewer=viewer, key=key)
        assert (again.hold, again.repeated) == (hold, True)
        record = await inventory.read_hold(engines, hold)
        assert record
        assert record.state == ("ordered" if int(key.partition(".")[2]) % 2 else "held")
    await shelf.intake()
    assert await audit_stock(engines, ["room1"]) == []


async def test_sales_go_on_without_sql_and_intake_catches_up(own: tuple[Engines, Servers]) -> None:
    """Whatever needs SQL says that it may be asked again, and nothing of it is counted against an entry."""
    engines, servers = own
    engines.settings = engines.settings.model_copy(update={"outbox_attempts_max": 1})
    shelf = await open_shelf(engines)
    offer = await shelf.offer(total=50)
    placed = [await shelf.order(offer, key=f"before{number}") for number in range(10)]
    started = await payments.pay(engines, viewer_id="lin", request=OrderPay(order=placed[0], key="m"))
    async with engines.sql.read() as session:
        charge = await session.get_one(SandboxCharge, started.payment)
    body, header = sandbox.sandbox_notice(engines.settings, charge, now_ms=engines.runtime.now_ms())
    await asyncio.to_thread(servers.postgres.kill)
    placed += [await shelf.order(offer, key=f"during{number}") for number in range(10)]
    assert (await orders.cancel(engines, viewer_id="lin", order_id=placed[1])).outcome == "cancelled"
    assert (await shelf.order(offer, key="during0")) == placed[10]
    for attempt in (
        take_in_room(engines, "room1"),
        payments.pay(engines, viewer_id="lin", request=OrderPay(order=placed[2], key="m2")),
        payments.receive_webhook(engines, "sandbox", {"Jishi-Signature": header}, body),
    ):
        with pytest.raises((SQLAlchemyError, OSError)) as failure:
            await attempt
        assert is_away(failure.value)
    await asyncio.to_thread(servers.postgres.start)
    assert await payments.receive_webhook(engines, "sandbox", {"Jishi-Signature": header}, body) == "paid"
    await shelf.intake()
    page = await orders.list_orders(engines, viewer_id="lin", room_id=None, cursor="", limit=100)
    assert sorted(order.id for order in page.orders) == sorted(placed)
    assert Counter(order.state for order in page.orders) == {"paid": 1, "cancelled": 1, "placed": 18}
    assert await audit_stock(engines, ["room1"]) == []
    async with engines.sql.read() as session:
        assert await session.scalar(select(func.count()).select_from(DeadLetter)) == 0
