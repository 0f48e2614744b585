"""Commands about one order and one offer, side by side in every order that the search finds: afterwards all books agree.

What each of them answers depends on who came first, and is not predicted here (the sales machine does that, one command at a time). What
must hold whoever came first: no unit and no cent is lost or twice, and nothing is set aside or left under way.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from app.core.errors import AppError
from app.core.registry import Registry
from app.core.settings import Settings
from app.domains.inventory import renewal
from app.domains.inventory import service as inventory
from app.domains.orders import aftersales, payments, reconciliation, sandbox
from app.domains.orders import service as orders
from app.domains.orders.tables import SandboxCharge
from app.domains.wallet import service as wallet
from app.protocol.order_commands import OrderPay
from app.storage.announcements import announce_room
from app.storage.intake import take_in_room
from app.storage.work import Engines
from tests.conftest import empty
from tests.support.auditor.ledger import audit_ledger
from tests.support.auditor.stock import audit_stock
from tests.support.interleave import Interleaving
from tests.support.runtime import TestRuntime
from tests.support.shelf import Shelf

pytestmark = pytest.mark.slow

ROOM, TOTAL = "room1", 3
Command = Callable[["Sale"], Coroutine[Any, Any, Any]]


class Sale:
    """A hold of lin's, an order of mei's that is paid for and not yet told of, and an order of hua's that is paid."""

    def __init__(self, engines: Engines) -> None:
        self.engines = engines
        self.shelf = Shelf(engines)

    async def begin(self) -> None:
        await empty(self.engines.sales, self.engines)
        async with self.engines.work() as work:  # so that an empty wallet is not what keeps money from going back twice
            await wallet.deposit(work, room_id=ROOM, amount_minor=10_000, currency="CNY", reference="bank", by="op")
        await self.shelf.go_live()
        self.offer = await self.shelf.offer(total=TOTAL, price_minor=500)
        self.paid = await self.shelf.order(self.offer, viewer="hua")
        self.paid_by = await self.pay(self.paid, "hua")
        await self.notify(self.paid_by)
        self.ordered = await self.shelf.order(self.offer, viewer="mei")
        await self.shelf.intake()
        self.payment = await self.pay(self.ordered, "mei")
        self.held = (await self.shelf.reserve(self.offer, viewer="lin")).hold or ""

    async def pay(self, order: str, viewer: str, key: str = "m1") -> str:
        return (await payments.pay(self.engines, viewer_id=viewer, request=OrderPay(order=order, key=key))).payment or ""

    async def notify(self, payment: str) -> None:
        async with self.engines.sql.read() as session:
            charge = await session.get(SandboxCharge, payment)
        assert charge
        body, header = sandbox.sandbox_notice(self.engines.settings, charge, now_ms=self.engines.runtime.now_ms())
        await payments.receive_webhook(self.engines, "sandbox", {"Jishi-Signature": header}, body)

    async def refund(self) -> None:
        async with self.engines.work() as work:
            await aftersales.refund(work, self.paid, amount_minor=None, reason="damaged", restock=True, by="host")

    async def converge(self, runtime: TestRuntime) -> None:
        """The webhook comes again, what has run out ends, and the worker reads everything."""
        for payment in (self.payment, self.paid_by):
            await self.notify(payment)
        runtime.advance(2 * self.engines.settings.payment_ttl_s * 1000)
        await inventory.expire_sales(self.engines)
        await self.shelf.intake()
        await payments.call_providers(self.engines)
        await self.shelf.intake()
        await announce_room(self.engines, ROOM)

    async def faults(self) -> list[str]:
        async with self.engines.sql.read() as session:
            letters = await session.scalar(text("select count(*) from dead_letters"))
        stock = (await inventory.read_stock(self.engines, ROOM))[self.offer]
        return [
            *await audit_stock(self.engines, [ROOM]),
            *await audit_ledger(self.engines),
            *await reconciliation.reconcile(self.engines),
            *([f"{letters} dead letters"] if letters else []),
            *([f"under way: {stock}"] if stock.held or stock.ordered else []),
        ]


COMMANDS: dict[str, Command] = {
    "reserve": lambda sale: sale.shelf.reserve(sale.offer, viewer="bao", quantity=1),
    "place": lambda sale: sale.shelf.place(sale.held),
    "release": lambda sale: inventory.release(sale.engines, viewer_id="lin", hold_id=sale.held),
    "cancel": lambda sale: orders.cancel(sale.engines, viewer_id="mei", order_id=sale.ordered),
    "pay again": lambda sale: sale.pay(sale.ordered, "mei", key="m2"),
    "webhook": lambda sale: sale.notify(sale.payment),
    "refund": lambda sale: sale.refund(),
    "intake": lambda sale: take_in_room(sale.engines, ROOM),
    "expire": lambda sale: inventory.expire_sales(sale.engines),
    "announce": lambda sale: announce_room(sale.engines, ROOM),
    "top up": lambda sale: sale.shelf.add_stock(sale.offer, 1),
    "withdraw": lambda sale: sale.shelf.set_state(sale.offer, "withdrawn"),
    "rebuild": lambda sale: renewal.rebuild_room(sale.engines, ROOM),
    "reconcile": lambda sale: reconciliation.repair(sale.engines, ROOM),
}


async def side_by_side(sale: Sale, runtime: TestRuntime, names: list[str], schedule: list[int], *, is_late: bool) -> list[str]:
    await sale.begin()
    if is_late:  # all deadlines have passed, and nobody has swept
        runtime.advance(sale.engines.settings.payment_ttl_s * 1000)
    outcomes = await Interleaving(schedule).run(*[COMMANDS[name](sale) for name in names])
    await sale.converge(runtime)
    wrong = [repr(outcome) for outcome in outcomes if isinstance(outcome, Exception) and not isinstance(outcome, AppError)]
    return wrong + await sale.faults()


def test_whoever_comes_first_the_books_agree(settings: Settings, registry: Registry) -> None:
    runtime = TestRuntime()
    with asyncio.Runner() as runner:
        engines = Engines.connect(settings, runtime, registry)
        sale = Sale(engines)

        @_SETTINGS
        @given(
            twice=st.sampled_from(sorted(COMMANDS)),
            others=st.lists(st.sampled_from(sorted(COMMANDS)), max_size=2),
            schedule=st.lists(st.integers(0, 5), max_size=40),
            is_late=st.booleans(),
        )
        def check(twice: str, others: list[str], schedule: list[int], is_late: bool) -> None:
            names = [twice, twice, *others]
            assert runner.run(side_by_side(sale, runtime, names, schedule, is_late=is_late)) == []

        try:
            check()
        finally:
            runner.run(engines.close())


_SETTINGS = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # on real engines shrinking outlasts the test's time limit
    suppress_health_check=list(HealthCheck),
)
