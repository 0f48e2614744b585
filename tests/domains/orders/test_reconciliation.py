"""Reconciliation: exact while sales go on, in words, and mending what follows from the rest; each kind of damage is done on purpose."""

import asyncio
import json
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text

from app.cli import main
from app.domains.inventory import service as inventory
from app.domains.inventory import store as engine
from app.domains.orders import payments, reconciliation
from app.domains.orders import service as orders
from app.protocol.channels import staff_channel
from app.protocol.order_commands import OrderPay
from app.storage.intake import outbox_key
from app.storage.work import Engines
from tests.support.auditor.stock import audit_stock
from tests.support.shelf import Shelf, open_shelf

OFFERS, HOLDS, COUNTS, DEADLINES, *_ = engine.sales_keys("room1")


@pytest.fixture
async def shelf(engines: Engines) -> Shelf:
    return await open_shelf(engines)


async def change(engines: Engines, key: str, name: str, **values: Any) -> None:
    record = msgspec.json.decode(await engines.sales.hget(key, name) or b"{}")
    await engines.sales.hset(key, name, msgspec.json.encode(record | values))


async def sql(engines: Engines, statement: str, **values: Any) -> None:
    async with engines.sql.begin() as session:
        await session.execute(text(statement), values)


async def differences(engines: Engines) -> list[tuple[str, str]]:
    return [(one.text, one.remedy) for one in await reconciliation.find_differences(engines, "room1")]


async def paid(shelf: Shelf, offer: str, viewer: str) -> str:
    order = await shelf.order(offer, viewer)
    attempt = await payments.pay(shelf.engines, viewer_id=viewer, request=OrderPay(order=order, key="m"))
    await inventory.confirm_hold(
        shelf.engines, hold_id=order, payment_id=attempt.payment or "", provider="sandbox", amount_minor=attempt and 1990
    )
    return order


async def test_what_is_under_way_is_no_difference(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer(total=50)
    for number in range(5):
        await shelf.order(offer, f"v{number}")
    await paid(shelf, offer, "lin")
    assert await differences(engines) == [], "SQL has heard of none of it"
    await shelf.intake()
    assert await differences(engines) == []


async def test_nothing_is_found_while_sales_go_on_at_full_speed(shelf: Shelf, engines: Engines) -> None:
    """Buyers, the expiry loop and intake in the same moments as reconciliation, which looks again and again."""
    offer = await shelf.offer(total=400)
    running = True

    async def buyer(number: int) -> None:
        for turn in range(12):
            order = await shelf.order(offer, f"v{number}", key=f"k{turn}")
            if turn % 3 == 0:
                await orders.cancel(engines, viewer_id=f"v{number}", order_id=order)
            elif turn % 3 == 1:
                await inventory.confirm_hold(
                    engines, hold_id=order, payment_id=f"room1-{number}-{turn}", provider="sandbox", amount_minor=1990
                )

    async def take_in() -> None:
        while running:
            await shelf.intake()
            await asyncio.sleep(0)

    taking = asyncio.create_task(take_in())
    buying = [asyncio.create_task(buyer(number)) for number in range(10)]
    looks = 0
    while not all(task.done() for task in buying) or looks < 5:
        assert await differences(engines) == []
        looks += 1
    await asyncio.gather(*buying)
    running = False
    await taking
    assert await differences(engines) == []
    assert looks >= 5


async def test_damage_of_the_engine_is_told_and_worked_out_again(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer(total=10)
    held, ordered = (await shelf.reserve(offer, "mei")).hold or "", await shelf.order(offer, "hua")
    gone, sold = await shelf.order(offer, "an"), await paid(shelf, offer, "lin")
    await shelf.intake()
    await change(engines, OFFERS, offer, available=9)
    await engines.sales.hset(COUNTS, f"{offer}|mei", 7)
    await engines.sales.zrem(DEADLINES, ordered)
    await engines.sales.hdel(HOLDS, gone)
    await change(engines, HOLDS, sold, state="ordered", deadline=0)
    texts = [text for text, _ in await differences(engines)]
    assert f"room1: order {gone}: placed in SQL, the engine has no hold of it" in texts
    assert f"room1: order {sold}: paid in SQL, ordered in the engine" in texts
    assert any("the total 10 is not the sum" in text for text in texts)
    assert any(f"hold {ordered}: its deadline" in text for text in texts)
    assert {remedy for _, remedy in await differences(engines)} == {"rebuild"}
    lines = await reconciliation.repair(engines, "room1")
    assert len(lines) == len(texts)
    assert all(line.endswith("-> the engine's records were worked out again") for line in lines)
    assert await differences(engines) == []
    assert await audit_stock(engines, ["room1"]) == []
    stock = (await inventory.read_stock(engines, "room1"))[offer]
    assert (stock.available, stock.held, stock.ordered, stock.sold) == (6, 1, 2, 1)
    assert (await shelf.place(held, "mei")).outcome == "placed"


async def test_orders_that_sql_lost_are_written_from_the_engine(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer(total=10)
    gone, behind, ended = await shelf.order(offer, "an"), await paid(shelf, offer, "lin"), await shelf.order(offer, "hua")
    await orders.cancel(engines, viewer_id="hua", order_id=ended)
    await shelf.intake()
    await sql(engines, "delete from orders where id = :id", id=gone)
    await sql(engines, "update orders set state = 'placed', paid_at = null, payment_id = null where id in (:a, :b)", a=behind, b=ended)
    await sql(engines, "update offers set sold = 0")  # the unit of the order that is unpaid now
    assert sorted(await differences(engines)) == sorted(
        [
            (f"room1: hold {gone}: ordered, but there is no order in SQL", "write"),
            (f"room1: order {behind}: placed in SQL, sold in the engine", "write"),
            (f"room1: order {ended}: placed in SQL, cancelled in the engine", "write"),
        ]
    )
    lines = await reconciliation.repair(engines, "room1")
    assert sorted(line.partition(" -> ")[2] for line in lines) == [
        "written from the engine's hold: order.ended",
        "written from the engine's hold: order.paid",
        "written from the engine's hold: order.placed, without its address",
    ]
    assert await differences(engines) == []
    assert await audit_stock(engines, ["room1"]) == []
    assert (await orders.fetch_order(engines, gone)).buyer == "An"


async def test_units_are_counted_again_and_what_cannot_be_derived_is_left(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer(total=10)
    order, odd = await paid(shelf, offer, "lin"), await shelf.order(offer, "mei")
    await shelf.intake()
    await sql(engines, "update offers set sold = 5")
    await sql(engines, "update orders set quantity = 3 where id = :id", id=odd)
    found = await differences(engines)
    assert (f"room1: offer {offer}: sold 5 in SQL, its orders say 1", "count") in found
    assert (f"room1: order {odd}: 3 units in SQL, 1 in the engine", "none") in found
    done = sorted(line.partition(" -> ")[2] for line in await reconciliation.repair(engines, "room1"))
    assert done == ["counted again: 1", "left: it cannot be derived, an operator must decide"]
    assert [remedy for _, remedy in await differences(engines)] == ["none"]
    assert (await orders.fetch_order(engines, order)).state == "paid"


async def test_what_waits_as_a_dead_letter_is_not_written_twice(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer()
    order = await shelf.order(offer)
    ((entry_id, fields),) = [row for row in await engines.sales.xrange(outbox_key("room1")) if row[1][b"t"] == b"order.placed"]
    await engines.sales.xdel(outbox_key("room1"), entry_id)
    await shelf.intake()
    await sql(
        engines,
        "insert into dead_letters (source, room_id, type, payload, error, at) values ('intake', 'room1', 'order.placed', :p, 'x', now())",
        p=fields[b"d"],
    )
    (line,) = await reconciliation.repair(engines, "room1")
    assert line == (
        f"room1: hold {order}: ordered, but there is no order in SQL -> left: dead letter 1 holds it, see `jishi dead-letters show 1`"
    )


async def test_the_worker_tells_the_team_once(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer(total=10)
    await reconciliation.reconcile_next(engines, ["room1"])
    assert REGISTRY.get_sample_value("jishi_books_differences") == 0
    await change(engines, OFFERS, offer, available=11)
    for _ in range(3):
        await reconciliation.reconcile_next(engines, ["room1"])
    told, _ = await engines.streams.history(staff_channel("room1"))
    (alert,) = [event for row in told if (event := json.loads(row.data))["type"] == "alert.raised"]
    assert alert["word"] == "books_differ"
    assert alert["text"].endswith("see `jishi reconcile`")
    assert REGISTRY.get_sample_value("jishi_books_differences") == 1
    await reconciliation.repair(engines, "room1")
    await reconciliation.reconcile_next(engines, ["room1"])
    assert REGISTRY.get_sample_value("jishi_books_differences") == 0


async def test_the_worker_takes_one_room_after_the_other(engines: Engines) -> None:
    rooms = ["a", "b", "c"]
    seen = []
    for _ in range(5):
        await reconciliation.reconcile_next(engines, rooms)
        seen.append(engines.local["books.last"])
    assert seen == ["a", "b", "c", "a", "b"]


async def test_the_command_explains_and_repairs(
    shelf: Shelf, engines: Engines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer = await shelf.offer(total=10)
    await shelf.order(offer)
    await shelf.intake()
    monkeypatch.setenv("REDIS_URL", engines.settings.redis_url)
    monkeypatch.setenv("DATABASE_URL", engines.settings.database_url)
    await change(engines, OFFERS, offer, ordered=4)

    async def run(*arguments: str) -> tuple[int, list[str]]:
        capsys.readouterr()
        code = await asyncio.to_thread(main, ["reconcile", *arguments])
        return code, capsys.readouterr().out.splitlines()

    code, lines = await run()
    assert (code, len(lines)) == (1, 2)
    assert f"room1: offer {offer}: ordered is 4, its holds say 1" in lines
    code, lines = await run("--repair")
    assert (code, len(lines)) == (0, 3)
    assert lines[-1] == "both engines agree now"
    assert await run() == (0, ["both engines agree"])
