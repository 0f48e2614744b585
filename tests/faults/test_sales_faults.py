"""Sales with the line cut, the engine killed, SQL gone: safe while it is broken, whole again soon after."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from app.core.errors import AppError
from app.domains.inventory import service as inventory
from app.domains.orders import payments
from app.domains.orders import service as orders
from app.protocol.order_commands import OrderPay
from app.storage.intake import take_in_room
from app.storage.work import Engines
from tests.faults.lines import Line
from tests.support.auditor.stock import audit_stock
from tests.support.servers import Servers
from tests.support.shelf import Shelf, open_shelf
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


Command = Callable[[], Awaitable[str]]


async def commands_of(line: Line) -> dict[str, tuple[Command, str]]:
    """Each command that moves stock, ready to be sent, with the word that it must end in."""
    shelf, offer = line.shelf, await line.shelf.offer(total=10, price_minor=500)
    await shelf.reserve(offer, key="held")
    held = (await shelf.reserve(offer, key="to place")).hold or ""
    ordered, paid = await shelf.order(offer, key="to cancel"), await shelf.order(offer, key="to pay")
    attempt = await payments.pay(line.direct, viewer_id="lin", request=OrderPay(order=paid, key="m"))

    async def reserve() -> str:
        return (await shelf.reserve(offer, key="new", quantity=2)).outcome

    async def release() -> str:
        hold = (await Shelf(line.direct).reserve(offer, key="held")).hold or ""
        return (await inventory.release(shelf.engines, viewer_id="lin", hold_id=hold)).outcome

    async def place() -> str:
        return (await shelf.place(held)).outcome

    async def cancel() -> str:
        return (await orders.cancel(shelf.engines, viewer_id="lin", order_id=ordered)).outcome

    async def pay() -> str:
        return await line.post_webhook(attempt.payment or "")

    return {
        "reserve": (reserve, "held"),
        "release": (release, "released"),
        "place": (place, "placed"),
        "cancel": (cancel, "cancelled"),
        "pay": (pay, "paid"),
    }


@pytest.mark.parametrize("mode", ["cut_request", "cut_reply"])
@pytest.mark.parametrize("name", ["reserve", "release", "place", "cancel", "pay"])
async def test_a_cut_line_and_a_retry_give_one_effect(line: Line, mode: str, name: str) -> None:
    command, word = (await commands_of(line))[name]
    before = await audit_stock(line.direct, ["room1"], after_intake=False)
    line.proxy.mode, line.proxy.only = mode, b"evalsha"
    with pytest.raises(AppError) as failure:
        await command()
    assert failure.value.code.word == "service_unavailable"
    assert line.proxy.cuts > 0
    assert (before, await audit_stock(line.direct, ["room1"], after_intake=False)) == ([], [])
    line.proxy.heal()
    assert [await command(), await command()] == [word, word]
    await Shelf(line.direct).intake()
    assert await audit_stock(line.direct, ["room1"]) == []
    stock = next(iter((await inventory.read_stock(line.direct, "room1")).values()))
    usual = {"available": 6, "held": 2, "ordered": 2, "sold": 0}
    effects = {
        "reserve": {"available": 4, "held": 4},
        "release": {"available": 7, "held": 1},
        "place": {"held": 1, "ordered": 3},
        "cancel": {"available": 7, "ordered": 1},
        "pay": {"ordered": 1, "sold": 1},
    }
    assert {counter: getattr(stock, counter) for counter in usual} == usual | effects[name]


@pytest.mark.parametrize("mode", ["cut_request", "cut_reply"])
async def test_intake_that_cannot_acknowledge_repeats_without_effect(line: Line, mode: str) -> None:
    """SQL has committed, the entries are still in the outbox: the mark skips them."""
    offer = await line.shelf.offer()
    placed = [await line.shelf.order(offer, key=f"k{number}") for number in range(3)]
    line.proxy.mode, line.proxy.only = mode, b"xdel"
    with pytest.raises((RedisError, OSError)):
        await take_in_room(line.shelf.engines, "room1")
    line.proxy.heal()
    await line.shelf.intake()
    page = await orders.list_orders(line.direct, viewer_id="lin", room_id=None, cursor="", limit=10)
    assert sorted(order.id for order in page.orders) == sorted(placed)
    publications, _ = await line.direct.streams.history("user:lin")
    assert len([row for row in publications if b'"order.placed"' in row.data]) == 3
    assert await audit_stock(line.direct, ["room1"]) == []


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
    engines, servers = own
    shelf = await open_shelf(engines)
    offer = await shelf.offer(total=50)
    placed = [await shelf.order(offer, key=f"before{number}") for number in range(10)]
    await asyncio.to_thread(servers.postgres.kill)
    with pytest.raises((SQLAlchemyError, OSError)):
        await take_in_room(engines, "room1")
    placed += [await shelf.order(offer, key=f"during{number}") for number in range(10)]
    await asyncio.to_thread(servers.postgres.start)
    await shelf.intake()
    page = await orders.list_orders(engines, viewer_id="lin", room_id=None, cursor="", limit=100)
    assert sorted(order.id for order in page.orders) == sorted(placed)
    assert await audit_stock(engines, ["room1"]) == []
