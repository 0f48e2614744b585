"""Money that comes late, twice, out of order or for nothing: one effect, and what cannot be served goes back by itself."""

import asyncio
from itertools import permutations

import pytest

from app.domains.orders import aftersales, payments, reconciliation, sandbox
from app.domains.orders import service as orders
from app.domains.orders.tables import Payment, SandboxCharge
from app.domains.wallet import service as wallet
from app.protocol.order_commands import OrderPay
from app.storage.work import Engines
from tests.support.auditor.ledger import audit_ledger
from tests.support.auditor.stock import audit_stock
from tests.support.runtime import TestRuntime
from tests.support.shelf import Shelf, open_shelf

pytestmark = pytest.mark.slow

PRICE = 500


async def start(engines: Engines, order: str, key: str, method: str = "sandbox_ok") -> str:
    started = await payments.pay(engines, viewer_id="lin", request=OrderPay(order=order, key=key, method=method))
    assert started.payment
    return started.payment


async def hear(engines: Engines, payment: str) -> str:
    """The provider's webhook, signed now; all of one payment have one event id."""
    async with engines.sql.read() as session:
        charge = await session.get_one(SandboxCharge, payment)
    body, header = sandbox.sandbox_notice(engines.settings, charge, now_ms=engines.runtime.now_ms())
    return await payments.receive_webhook(engines, "sandbox", {"Jishi-Signature": header}, body)


async def check_books(shelf: Shelf, *, paid: int) -> None:
    engines = shelf.engines
    await shelf.intake()
    assert await audit_stock(engines, ["room1"]) == []
    assert await audit_ledger(engines) == []
    assert await reconciliation.reconcile(engines) == []
    async with engines.sql.read() as session:
        assert await wallet.balance(session, "room:room1", "CNY") == paid * PRICE


@pytest.mark.parametrize(("left", "word", "state", "refunded"), [(1, "paid", "paid", 0), (0, "late_and_sold_out", "expired", PRICE)])
async def test_money_after_the_deadline_buys_what_is_left_or_goes_back(
    engines: Engines, runtime: TestRuntime, left: int, word: str, state: str, refunded: int
) -> None:
    shelf = await open_shelf(engines)
    offer = await shelf.offer(total=1, price_minor=PRICE)
    order = await shelf.order(offer)
    payment = await start(engines, order, "late")
    runtime.advance(engines.settings.payment_ttl_s * 1000 + 1)
    if not left:
        await shelf.order(offer, viewer="mei", key="faster")
    assert await asyncio.gather(*(hear(engines, payment) for _ in range(3))) == [word] * 3
    await check_books(shelf, paid=left)
    seen = await orders.find_order(engines, order)
    assert seen
    assert (seen.state, seen.refunded_minor, seen.reason) == (state, refunded, "" if left else word)


async def test_a_second_late_payment_buys_what_has_come_back_since_the_first_went_back(engines: Engines, runtime: TestRuntime) -> None:
    """What had gone back of the first once counted as refunded of the order: paid for, and nothing of it could be refunded any more."""
    shelf = await open_shelf(engines)
    offer = await shelf.offer(total=1, price_minor=PRICE)
    order = await shelf.order(offer)
    first, second = await start(engines, order, "first"), await start(engines, order, "second")
    runtime.advance(engines.settings.payment_ttl_s * 1000 + 1)
    faster = await shelf.order(offer, viewer="mei", key="faster")
    assert await hear(engines, first) == "late_and_sold_out"
    await shelf.intake()
    assert (await orders.cancel(engines, viewer_id="mei", order_id=faster)).outcome == "cancelled"
    assert await hear(engines, second) == "paid"
    await check_books(shelf, paid=1)
    seen = await orders.find_order(engines, order)
    assert seen
    assert (seen.state, seen.refunded_minor, seen.reason) == ("paid", 0, "")
    async with engines.work() as work:
        await aftersales.refund(work, order, amount_minor=None, reason="damaged", restock=True, by="host")
    await check_books(shelf, paid=0)


async def test_webhooks_in_any_order_and_number_have_one_effect(engines: Engines) -> None:
    """A declined attempt and two that succeed, each told twice, in every order, before or after intake: one of them pays, once."""
    shelf = await open_shelf(engines)
    offer = await shelf.offer(total=20, price_minor=PRICE)
    methods = {"a": "sandbox_decline", "b": "sandbox_ok", "c": "sandbox_duplicate"}
    for number, order_of_arrival in enumerate(permutations(methods)):
        order = await shelf.order(offer, key=f"k{number}")
        attempts = {key: await start(engines, order, f"{key}{number}", method) for key, method in methods.items()}
        if number % 2:
            await shelf.intake()
        heard = {key: {await hear(engines, attempts[key])} for key in order_of_arrival}
        for key in reversed(order_of_arrival):
            heard[key].add(await hear(engines, attempts[key]))
        first, second = (key for key in order_of_arrival if key != "a")
        assert heard == {"a": {"declined"}, first: {"paid"}, second: {"paid_twice"}}
        async with engines.sql.read() as session:
            states = {key: (await session.get_one(Payment, payment)).state for key, payment in attempts.items()}
        assert states == {"a": "declined", first: "succeeded", second: "refunded"}
    await check_books(shelf, paid=6)


async def test_money_for_an_order_that_was_cancelled_meanwhile_goes_back(engines: Engines) -> None:
    shelf = await open_shelf(engines)
    order = await shelf.order(await shelf.offer(total=1, price_minor=PRICE))
    payment = await start(engines, order, "m")
    assert (await orders.cancel(engines, viewer_id="lin", order_id=order)).outcome == "cancelled"
    assert await asyncio.gather(*(hear(engines, payment) for _ in range(3))) == ["order_cancelled"] * 3
    await check_books(shelf, paid=0)
    seen = await orders.find_order(engines, order)
    assert seen
    assert (seen.state, seen.refunded_minor) == ("cancelled", PRICE)
