"""Inventory and orders against a model that predicts the word of every reply.

Time is the machine's own, ids are few and hot, the scripts are flushed and intake runs whenever the machine likes. After every step the
books must add up in the engine, at the end also in SQL.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from app.composition import build_registry
from app.core.errors import AppError
from app.core.settings import Settings
from app.domains.inventory import service as inventory
from app.domains.inventory.rules import hold_id
from app.domains.orders import aftersales, payments, reconciliation, sandbox
from app.domains.orders import service as orders
from app.domains.orders.tables import SandboxCharge
from app.domains.wallet import service as wallet
from app.protocol.order_commands import OrderPay
from app.storage.sql import Sql
from app.storage.work import Engines
from tests.conftest import empty
from tests.properties.sales_model import HOLD_MS, LIMIT, PAY_MS, PRICE, ModelHold, ModelOffer, SalesModel
from tests.support.auditor.stock import audit_stock
from tests.support.servers import Servers
from tests.support.shelf import Shelf

Answer = TypeVar("Answer")

VIEWERS, KEYS = st.sampled_from(["lin", "mei"]), st.sampled_from(["k1", "k2", "k3", "k4"])
PICK = st.integers(0, 99)


class SalesMachine(SalesModel, RuleBasedStateMachine):
    servers: Servers  # set by the test, as is:
    sql: Sql

    def __init__(self) -> None:
        RuleBasedStateMachine.__init__(self)
        SalesModel.__init__(self)
        self.runner = asyncio.Runner()
        self.attempts: dict[str, tuple[str, str]] = {}  # payment -> order, outcome
        self.last: Any = None

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        return self.runner.run(work)

    @initialize()
    def open(self) -> None:
        self.run(self._open())

    async def _open(self) -> None:
        settings = Settings(
            environment="development",
            redis_url=self.servers.valkey.url,
            database_url=self.servers.postgres.url,
            hold_ttl_s=HOLD_MS // 1000,
            payment_ttl_s=PAY_MS // 1000,
        )
        self.engines = Engines.connect(settings, self.runtime, build_registry())
        self.engines.sql = self.sql
        await empty(self.engines.sales, self.engines)
        self.shelf = Shelf(self.engines)
        await self.shelf.go_live()
        self.offers[await self.shelf.offer(total=4, price_minor=PRICE, limit=LIMIT)] = ModelOffer(4, limit=LIMIT)
        fresh = await self.shelf.offer(total=3, price_minor=PRICE, return_policy="fresh_no_return", limit_per_order=LIMIT)
        self.offers[fresh] = ModelOffer(3, fresh=True, order_limit=LIMIT)
        first_paid = await self.shelf.offer(total=2, price_minor=PRICE, limit=LIMIT, selling_policy="first_paid")
        self.offers[first_paid] = ModelOffer(2, limit=LIMIT, first_paid=True)
        waitlist = await self.shelf.offer(total=2, price_minor=PRICE, limit=LIMIT, selling_policy="waitlist")
        self.offers[waitlist] = ModelOffer(2, limit=LIMIT, line=[])

    def teardown(self) -> None:
        if hasattr(self, "engines"):
            try:
                self.run(self._close())
            finally:
                self.run(self.engines.close())
        self.runner.close()

    async def _close(self) -> None:
        await self.shelf.intake()
        assert await audit_stock(self.engines, ["room1"]) == []
        assert await reconciliation.reconcile(self.engines) == []
        async with self.engines.sql.read() as session:
            assert await wallet.balance(session, "room:room1", "CNY") == self.money
        for name, hold in self.holds.items():
            order = await orders.find_order(self.engines, name, hold.winner or hold.viewer)
            words = {"ordered": "placed", "sold": "paid", "cancelled": "cancelled", "lapsed": "expired"}
            expected = words.get(hold.state) if hold.place_key or hold.winner else None
            if expected == "placed" and hold.deadline <= self.runtime.now_ms():
                expected = "expired"
            if hold.state == "sold" and hold.returned == hold.quantity:
                expected = "refunded"
            assert (order.state if order else None) == expected, hold

    def pick(self, number: int, *states: str) -> tuple[str, ModelHold]:
        """Three times out of four one in these states, where the command has something to do; else any."""
        wanted = [name for name, hold in self.holds.items() if hold.state in states and not hold.escrow] if number % 4 else []
        names = sorted(wanted or self.holds)
        return names[number % len(names)], self.holds[names[number % len(names)]]

    def an_offer(self, number: int) -> str:
        return sorted(self.offers)[number % len(self.offers)]

    # --- commands ---------------------------------------------------------------------------------------------------------------------

    @rule(viewer=VIEWERS, number=PICK, quantity=st.sampled_from([1, LIMIT, LIMIT + 1]), key=KEYS)
    def reserve(self, viewer: str, number: int, quantity: int, key: str) -> None:
        self.last = (viewer, self.an_offer(number), quantity, key, False)
        self.do_reserve(*self.last)

    @rule(viewer=VIEWERS, number=PICK, key=KEYS, started=st.booleans())
    def order(self, viewer: str, number: int, key: str, started: bool) -> None:
        """The usual way, in one step, so that runs get to what comes after it."""
        self.do_reserve(viewer, self.an_offer(number), 1, key, False)
        name = hold_id("room1", viewer, key)
        if name in self.holds:
            self.do_place(name, "p1", True)
            if started:
                self.do_pay(name, "m1")

    @rule(viewer=VIEWERS, number=PICK, quantity=st.sampled_from([1, LIMIT]), key=KEYS)
    def wait(self, viewer: str, number: int, quantity: int, key: str) -> None:
        lines = sorted(offer for offer, terms in self.offers.items() if terms.line is not None) if number % 8 else sorted(self.offers)
        offer = lines[number % len(lines)]
        expected = self.expect_wait(viewer, offer, quantity, key)
        try:
            answer = self.run(inventory.wait(self.engines, viewer_id=viewer, offer_id=offer, quantity=quantity, key=key))
        except AppError as refused:
            assert refused.code.word == expected
            return
        assert answer.outcome + (" again" if answer.repeated else "") == expected
        if answer.outcome == "waiting":
            assert answer.ahead == (self.offers[offer].line or []).index(answer.wait or "")

    @precondition(lambda self: any(hold.waited for hold in self.holds.values()))
    @rule(number=PICK, stranger=st.booleans())
    def leave(self, number: int, stranger: bool) -> None:
        waits = sorted(name for name, hold in self.holds.items() if hold.waited)
        name = waits[number % len(waits)]
        hold = self.holds[name]
        answer = self.run(inventory.leave(self.engines, viewer_id="stranger" if stranger else hold.viewer, wait_id=name))
        if not stranger and hold.state == "waiting":
            (self.offers[hold.offer].line or []).remove(name)
            hold.state = "released"
            self.serve()
        words = {"released": "left", "closed": "closed"}
        assert answer.outcome == ("unknown" if stranger else words.get(hold.state, "served"))

    @rule(number=PICK, key=KEYS)
    def reserve_prize(self, number: int, key: str) -> None:
        self.do_reserve("draw", self.an_offer(number), 1, key, True)

    @precondition(lambda self: self.last is not None)
    @rule()
    def repeat_last_key(self) -> None:
        self.do_reserve(*self.last)

    def do_reserve(self, viewer: str, offer: str, quantity: int, key: str, escrow: bool) -> None:
        expected = self.expect_reserve(viewer, offer, quantity, key, escrow=escrow)
        try:
            answer = self.run(self.shelf.reserve(offer, viewer, quantity, key, escrow=escrow))
        except AppError as refused:
            assert refused.code.word == expected
            return
        assert answer.outcome + (" again" if answer.repeated else "") == expected
        if answer.hold:
            assert (answer.hold, answer.set_aside) == (hold_id("room1", viewer, key), not self.holds[answer.hold].first_paid)
        if expected == "exhausted":
            assert answer.available == self.available(offer)

    @precondition(lambda self: self.holds)
    @rule(number=PICK, stranger=st.booleans())
    def release(self, number: int, stranger: bool) -> None:
        self.do_release(self.pick(number, "held")[0], stranger=stranger)

    def do_release(self, name: str, *, stranger: bool = False) -> None:
        hold = self.holds[name]
        answer = self.run(inventory.release(self.engines, viewer_id="stranger" if stranger else hold.viewer, hold_id=name))
        if stranger:
            assert answer.outcome == "unknown"
            return
        if hold.state == "held":
            self.move(hold, "expired" if self.due(hold) else "released")
        words = {"cancelled": "released", "lapsed": "expired", "waiting": "unknown", "closed": "unknown"}
        assert answer.outcome == words.get(hold.state, hold.state)

    @precondition(lambda self: self.holds)
    @rule(number=PICK, key=st.sampled_from(["p1", "p2"]), accepted=st.booleans())
    def place(self, number: int, key: str, accepted: bool) -> None:
        self.do_place(self.pick(number, "held")[0], key, accepted)

    def do_place(self, name: str, key: str, accepted: bool) -> None:
        hold = self.holds[name]
        expected = self.expect_place(hold, key, accepted)
        try:
            answer = self.run(self.shelf.place(name, hold.viewer, key, policy_accepted=accepted))
        except AppError as refused:
            assert refused.code.word == expected
            return
        assert answer.outcome + (" again" if answer.repeated else "") == expected
        if answer.order:
            assert answer.amount_minor == PRICE * hold.quantity

    @precondition(lambda self: self.holds)
    @rule(number=PICK)
    def cancel(self, number: int) -> None:
        self.do_cancel(self.pick(number, "ordered")[0])

    def do_cancel(self, name: str) -> None:
        hold = self.holds[name]
        answer = self.run(orders.cancel(self.engines, viewer_id=hold.viewer, order_id=name))
        if hold.state == "ordered":
            self.move(hold, "lapsed" if self.due(hold) else "cancelled")
        words = {"cancelled": "cancelled", "lapsed": "expired", "sold": "paid"}
        assert answer.outcome == (words[hold.state] if hold.place_key else "unknown")

    @precondition(lambda self: any(hold.place_key for hold in self.holds.values()))
    @rule(number=PICK, key=st.sampled_from(["m1", "m2"]))
    def pay(self, number: int, key: str) -> None:
        self.do_pay(self.pick(number, "ordered")[0], key)

    def do_pay(self, name: str, key: str) -> None:
        hold = self.holds[name]
        attempt = payments.payment_id(name, hold.viewer, f"{key}{name[-8:]}")
        answer = self.run(payments.pay(self.engines, viewer_id=hold.viewer, request=OrderPay(order=name, key=f"{key}{name[-8:]}")))
        state = "lapsed" if hold.state == "ordered" and self.due(hold) else hold.state
        if attempt in self.attempts:
            expected = "pending"
        elif not hold.place_key:
            expected = "unknown"
        else:
            expected = {"ordered": "pending", "sold": "paid", "cancelled": "cancelled", "lapsed": "expired"}[state]
            if hold.returned:
                expected = "refunded"
        assert answer.outcome == expected
        if answer.payment:
            self.attempts.setdefault(answer.payment, (name, ""))

    @precondition(lambda self: self.attempts)
    @rule(number=PICK)
    def webhook(self, number: int) -> None:
        self.deliver(sorted(self.attempts)[number % len(self.attempts)])

    def deliver(self, attempt: str) -> None:
        name, outcome = self.attempts[attempt]
        expected = outcome or self.expect_money(self.holds[name], attempt)
        self.attempts[attempt] = (name, expected)
        assert self.run(self._notify(attempt)) == expected

    async def _notify(self, attempt: str) -> str:
        async with self.engines.sql.read() as session:
            charge = await session.get(SandboxCharge, attempt)
        assert charge
        body, header = sandbox.sandbox_notice(self.engines.settings, charge, now_ms=self.runtime.now_ms())
        return await payments.receive_webhook(self.engines, "sandbox", {"Jishi-Signature": header}, body)

    @precondition(lambda self: any(hold.paid_by and not hold.returned for hold in self.holds.values()))
    @rule(number=PICK)
    def refund(self, number: int) -> None:
        name, hold = self.pick(number, "sold")
        if not hold.paid_by or hold.returned:
            return
        self.run(self._refund(name))
        hold.returned = hold.quantity
        self.money -= PRICE * hold.quantity

    async def _refund(self, order: str) -> None:
        await self.shelf.intake()
        async with self.engines.work() as work:
            await aftersales.refund(work, order, amount_minor=None, reason="damaged", restock=True, by="host")

    @precondition(lambda self: any(hold.escrow for hold in self.holds.values()))
    @rule(number=PICK, winner=VIEWERS)
    def award(self, number: int, winner: str) -> None:
        prizes = sorted(name for name, hold in self.holds.items() if hold.escrow)
        name = prizes[number % len(prizes)]
        hold = self.holds[name]
        call = orders.award_prize(self.engines, hold_id=name, holder_id="draw", viewer_id=winner, prize_name="tea")
        if hold.state == "held" or hold.winner == winner:
            assert self.run(call) == name
            self.move(hold, "sold")
            hold.winner = winner
        else:
            with pytest.raises(AppError, match="cannot be awarded"):
                self.run(call)

    # --- what happens by itself ---------------------------------------------------------------------------------------------------------

    @rule(milliseconds=st.sampled_from([1, 60_000, HOLD_MS - 1, HOLD_MS, PAY_MS]))
    def advance_time(self, milliseconds: int) -> None:
        self.runtime.advance(milliseconds)

    @precondition(lambda self: any(hold.deadline > self.runtime.now_ms() for hold in self.holds.values()))
    @rule(number=PICK, early_ms=st.integers(0, 1), command=st.sampled_from(["release", "place", "cancel", "pay"]))
    def at_the_deadline(self, number: int, early_ms: int, command: str) -> None:
        """Just before, or exactly when, a deadline falls due and nobody has swept."""
        running = sorted(name for name, hold in self.holds.items() if hold.deadline > self.runtime.now_ms())
        name = running[number % len(running)]
        hold = self.holds[name]
        self.runtime.advance(hold.deadline - early_ms - self.runtime.now_ms())
        {
            "release": lambda: self.do_release(name),
            "place": lambda: self.do_place(name, "p1", True),
            "cancel": lambda: self.do_cancel(name),
            "pay": lambda: self.do_pay(name, "m2"),
        }[command]()

    @precondition(lambda self: any(self.holds[name].state == "ordered" for name, _ in self.attempts.values()))
    @rule(number=PICK, rush=st.booleans())
    def late_money(self, number: int, rush: bool) -> None:
        """An order lapses with its payment under way; in a rush, somebody else takes all that is left."""
        waiting = sorted(attempt for attempt, (name, _) in self.attempts.items() if self.holds[name].state == "ordered")
        attempt = waiting[number % len(waiting)]
        hold = self.holds[self.attempts[attempt][0]]
        self.runtime.advance(max(0, hold.deadline - self.runtime.now_ms()))
        self.expire()
        left = self.available(hold.offer)
        if rush and left:
            self.do_reserve("draw", hold.offer, left, f"rush{self.runtime.now_ms()}", True)
        self.deliver(attempt)

    @rule()
    def expire(self) -> None:
        self.run(inventory.expire_sales(self.engines))
        self.settle()

    @rule()
    def intake(self) -> None:
        self.run(self.shelf.intake())

    @rule()
    def flush_scripts(self) -> None:
        self.run(self.engines.sales.script_flush())

    @rule(number=PICK, add=st.integers(1, 2))
    def add_stock(self, number: int, add: int) -> None:
        offer = self.an_offer(number)
        if self.offers[offer].total < 12:
            self.run(self.shelf.add_stock(offer, add))
            self.offers[offer].total += add

    @rule(number=PICK)
    def pause_or_resume(self, number: int) -> None:
        offer = self.an_offer(number)
        self.offers[offer].paused = not self.offers[offer].paused
        self.run(self.shelf.set_state(offer, "paused" if self.offers[offer].paused else "listed"))

    @invariant()
    def adds_up(self) -> None:
        if not self.offers:
            return
        self.serve()
        assert self.run(audit_stock(self.engines, ["room1"], after_intake=False)) == []
        stock = self.run(inventory.read_stock(self.engines, "room1"))
        for offer, terms in self.offers.items():
            assert (stock[offer].total, stock[offer].available) == (terms.total, self.available(offer))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_sales_follow_the_model(servers: Servers, sql: Sql) -> None:
    SalesMachine.servers, SalesMachine.sql = servers, sql
    run_state_machine_as_test(
        SalesMachine,
        settings=settings(max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True),
    )
