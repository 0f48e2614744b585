"""Nodes whose clocks are a day off: deadlines and windows are the engine's, whoever asks."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta

import pytest

from app.core.errors import AppError
from app.core.runtime import Runtime
from app.core.settings import Settings
from app.domains.inventory import service as inventory
from app.domains.orders import payments, sandbox
from app.domains.orders import service as orders
from app.domains.orders.tables import Order, SandboxCharge
from app.protocol.order_commands import OrderPay
from app.storage.redis import engine_now_ms
from app.storage.work import Engines
from tests.support.auditor.stock import audit_stock
from tests.support.shelf import Shelf, open_shelf

pytestmark = pytest.mark.slow

DAY_MS = 86_400_000


class WrongClock(Runtime):
    """Scripts get 0, as in production: the engine's own clock."""

    def __init__(self, off_ms: int) -> None:
        super().__init__()
        self.off_ms = off_ms

    def now_ms(self) -> int:
        return super().now_ms() + self.off_ms


@pytest.fixture
async def nodes(engines: Engines, settings: Settings) -> AsyncGenerator[list[Engines]]:
    """One is a day ahead, one a day behind, one is right. `engines` empties the engines before."""
    all_nodes = [Engines.connect(settings, WrongClock(off_ms), engines.registry) for off_ms in (DAY_MS, -DAY_MS, 0)]
    yield all_nodes
    for node in all_nodes:
        await node.close()


def at_ms(text: str | None) -> int:
    assert text
    return round(datetime.fromisoformat(text).timestamp() * 1000)


async def test_deadlines_are_the_engines_whichever_node_asks(nodes: list[Engines]) -> None:
    shelf = await open_shelf(nodes[2])
    offer = await shelf.offer(total=10)
    for number, node in enumerate(nodes):
        other = nodes[number - 1]
        before = await engine_now_ms(node.sales, "k")
        held = await Shelf(node).reserve(offer, key=f"k{number}")
        placed = await Shelf(other).place(held.hold or "")
        after = await engine_now_ms(node.sales, "k")
        assert before <= at_ms(held.expires_at) - node.settings.hold_ttl_s * 1000 <= after
        assert before <= at_ms(placed.pay_by) - node.settings.payment_ttl_s * 1000 <= after
        for judge in nodes:  # none of them ends it early, none thinks it over
            await inventory.expire_sales(judge)
            seen = await orders.find_order(judge, held.hold or "")
            assert seen
            assert seen.state == "placed"
        await Shelf(other).intake()
        async with node.sql.read() as session:
            row = await session.get_one(Order, held.hold)
        assert row.pay_by
        assert before <= at_ms(row.placed_at.isoformat()) <= after
        assert at_ms(row.pay_by.isoformat()) == at_ms(placed.pay_by)
    assert await audit_stock(nodes[2], ["room1"]) == []


async def test_windows_are_the_engines_whichever_node_asks(nodes: list[Engines]) -> None:
    shelf = await open_shelf(nodes[2])
    true = datetime.fromtimestamp(await engine_now_ms(nodes[2].sales, "k") / 1000, UTC)
    hour = timedelta(hours=1)
    windows = {"not_open": (true + hour, true + 2 * hour), "held": (true - hour, true + hour), "closed": (true - 2 * hour, true - hour)}
    offers = {word: await shelf.offer(total=9, opens_at=opens, closes_at=closes) for word, (opens, closes) in windows.items()}
    for number, node in enumerate(nodes):
        for word, offer in offers.items():
            assert (await Shelf(node).reserve(offer, key=f"{word}{number}")).outcome == word


async def test_a_webhook_that_a_wrong_clock_refuses_loses_no_money(nodes: list[Engines]) -> None:
    """Its signature is too old or too young there; the provider comes again, to another node."""
    ahead, behind, right = nodes
    shelf = await open_shelf(right)
    order = await shelf.order(await shelf.offer(total=1))
    started = await payments.pay(ahead, viewer_id="lin", request=OrderPay(order=order, key="m"))
    async with right.sql.read() as session:
        charge = await session.get_one(SandboxCharge, started.payment)
    body, header = sandbox.sandbox_notice(right.settings, charge, now_ms=right.runtime.now_ms())
    for node in (ahead, behind):
        with pytest.raises(AppError) as refused:
            await payments.receive_webhook(node, "sandbox", {"Jishi-Signature": header}, body)
        assert refused.value.code.word == "unauthorized"
    assert await payments.receive_webhook(right, "sandbox", {"Jishi-Signature": header}, body) == "paid"
    await shelf.intake()
    assert await audit_stock(right, ["room1"]) == []
