"""The ledger as a state machine: a model of a few lines predicts the word of every answer, and the auditor reads the books after each."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import text

from app.core.errors import AppError
from app.core.registry import Registry
from app.core.settings import Settings
from app.domains.wallet import service as wallet
from app.protocol.codes import CONFLICT
from app.storage.work import Engines, Work
from tests.conftest import empty
from tests.support.auditor.ledger import audit_ledger
from tests.support.runtime import TestRuntime

pytestmark = pytest.mark.slow

# Few hot names, so that examples meet each other.
ACCOUNTS = st.sampled_from(["external:bank", "room:1", "viewer:a", "viewer:b", "envelope:1"])
IDS = st.sampled_from(["t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8"])
AMOUNTS = st.sampled_from([1, 2, 9, 10, 11, 100])


@dataclass
class Model:
    """Balances and transfers, without a lock, a table or a statement."""

    balance: dict[str, int] = field(default_factory=dict)
    pending: dict[str, int] = field(default_factory=dict)
    made: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    state: dict[str, tuple[str, int]] = field(default_factory=dict)

    def ask(self, transfer_id: str, debit: str, credit: str, amount: int, *, pending: bool) -> str:
        content = (debit, credit, amount, pending)
        if transfer_id in self.made:
            return "repeated" if self.made[transfer_id] == content else "conflict"
        free = self.balance.get(debit, 0) - self.pending.get(debit, 0)
        if not debit.startswith("external:") and free < amount:
            return "insufficient_funds"
        self.made[transfer_id] = content
        if pending:
            self.pending[debit] = self.pending.get(debit, 0) + amount
            self.state[transfer_id] = ("pending", 0)
        else:
            self._move(debit, credit, amount)
            self.state[transfer_id] = ("posted", amount)
        return "done"

    def post(self, transfer_id: str, amount: int | None) -> str:
        if transfer_id not in self.made:
            return "unknown"
        debit, credit, reserved, was_pending = self.made[transfer_id]
        wanted = reserved if amount is None else amount
        state, posted = self.state[transfer_id]
        if state == "voided":
            return "already_voided"
        if state == "posted":
            return "repeated" if was_pending and posted == wanted else "conflict"
        if wanted > reserved:
            return "conflict"
        self.pending[debit] -= reserved
        self._move(debit, credit, wanted)
        self.state[transfer_id] = ("posted", wanted)
        return "done"

    def void(self, transfer_id: str) -> str:
        if transfer_id not in self.made:
            return "unknown"
        state = self.state[transfer_id][0]
        if state != "pending":
            return "repeated" if state == "voided" else "already_posted"
        debit, _, reserved, _ = self.made[transfer_id]
        self.pending[debit] -= reserved
        self.state[transfer_id] = ("voided", 0)
        return "done"

    def _move(self, debit: str, credit: str, amount: int) -> None:
        self.balance[debit] = self.balance.get(debit, 0) - amount
        self.balance[credit] = self.balance.get(credit, 0) + amount


async def word_of(engines: Engines, act: Any) -> str:
    """One unit of work. A conflict is an error in the product, a word in the model."""
    try:
        async with engines.work() as work:
            return str((await act(work)).value)
    except AppError as refused:
        assert refused.code is CONFLICT
        return "conflict"


def machine(run: Any, engines: Engines) -> type[RuleBasedStateMachine]:
    class WalletMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            run(empty(engines.sales, engines))
            self.model = Model()
            self.last: tuple[Any, ...] | None = None
            self._ask("start", "external:bank", "viewer:a", 100, False)  # else most of what is asked for lacks funds

        def _ask(self, transfer_id: str, debit: str, credit: str, amount: int, pending: bool) -> None:
            expected = self.model.ask(transfer_id, debit, credit, amount, pending=pending)

            async def act(work: Work) -> Any:
                ask = wallet.reserve_transfer if pending else wallet.transfer
                return await ask(
                    work,
                    transfer_id=transfer_id,
                    from_account=debit,
                    to_account=credit,
                    amount_minor=amount,
                    currency="CNY",
                    kind="test",
                )

            assert run(word_of(engines, act)) == expected
            self.last = (transfer_id, debit, credit, amount, pending)

        @rule(transfer_id=IDS, debit=ACCOUNTS, credit=ACCOUNTS, amount=AMOUNTS, pending=st.booleans())
        def ask(self, transfer_id: str, debit: str, credit: str, amount: int, pending: bool) -> None:
            if debit != credit:
                self._ask(transfer_id, debit, credit, amount, pending)

        @rule(account=ACCOUNTS.filter(lambda name: not name.startswith("external:")), amount=AMOUNTS)
        def deposit(self, account: str, amount: int) -> None:
            self._ask(f"in:{account}", "external:bank", account, amount, False)

        @rule()
        def repeat_last(self) -> None:
            if self.last:
                self._ask(*self.last)

        @precondition(lambda self: self._pending_ids())
        @rule(data=st.data())
        def post_pending(self, data: st.DataObject) -> None:
            """Whole or in part: what is asked for at random is seldom pending."""
            transfer_id = data.draw(st.sampled_from(self._pending_ids()))
            reserved = self.model.made[transfer_id][2]
            self._post(transfer_id, data.draw(st.sampled_from([None, reserved, max(1, reserved - 1), 1, reserved + 1])))

        @precondition(lambda self: self._pending_ids())
        @rule(data=st.data())
        def void_pending(self, data: st.DataObject) -> None:
            self._void(data.draw(st.sampled_from(self._pending_ids())))

        def _pending_ids(self) -> list[str]:
            return sorted(transfer_id for transfer_id, (state, _) in self.model.state.items() if state == "pending")

        @rule(transfer_id=IDS, amount=st.one_of(st.none(), AMOUNTS))
        def post(self, transfer_id: str, amount: int | None) -> None:
            self._post(transfer_id, amount)

        def _post(self, transfer_id: str, amount: int | None) -> None:
            expected = self.model.post(transfer_id, amount)
            word = run(word_of(engines, lambda work: wallet.post_transfer(work, transfer_id=transfer_id, amount_minor=amount)))
            assert word == expected

        @rule(transfer_id=IDS)
        def void(self, transfer_id: str) -> None:
            self._void(transfer_id)

        def _void(self, transfer_id: str) -> None:
            expected = self.model.void(transfer_id)
            assert run(word_of(engines, lambda work: wallet.void_transfer(work, transfer_id=transfer_id))) == expected

        @invariant()
        def books_are_right(self) -> None:
            assert run(audit_ledger(engines)) == []

        @invariant()
        def funds_are_the_models(self) -> None:
            expected = {name: (self.model.balance.get(name, 0), self.model.pending.get(name, 0)) for name in self._accounts()}
            assert run(_funds(engines)) == {name: held for name, held in expected.items() if held != (0, 0)}

        def _accounts(self) -> set[str]:
            return {*self.model.balance, *self.model.pending}

    return WalletMachine


async def _funds(engines: Engines) -> dict[str, tuple[int, int]]:
    """Balance and reservations of every account that holds or owes anything."""
    async with engines.sql.read() as session:
        rows = await session.execute(text("select name, balance_minor, pending_minor from ledger_accounts"))
        return {name: (balance, pending) for name, balance, pending in rows if (balance, pending) != (0, 0)}


@asynccontextmanager
async def _connected(settings_: Settings, registry: Registry) -> AsyncIterator[Engines]:
    engines = Engines.connect(settings_, TestRuntime(), registry)
    try:
        yield engines
    finally:
        await engines.close()


@pytest.fixture
def own_loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def test_the_ledger_answers_as_the_model_does(settings: Settings, registry: Registry, own_loop: asyncio.Runner) -> None:
    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return own_loop.run(work)

    context = _connected(settings, registry)
    engines = run(context.__aenter__())
    try:
        run_state_machine_as_test(machine(run, engines), settings=_SETTINGS)
    finally:
        run(context.__aexit__(None, None, None))


_SETTINGS = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # on real engines shrinking outlasts the test's time limit, and then nothing is told at all
    suppress_health_check=list(HealthCheck),
)
