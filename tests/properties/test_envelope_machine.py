"""An envelope as a state machine: grabs, retries, time, endings, repeated intake and lost scripts in any order. The model knows the split
(read from SQL before the first grab) and predicts the word, the amount and the position of every answer."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import text

from app.core.registry import Registry
from app.core.settings import Settings
from app.domains.envelopes import service, store
from app.domains.envelopes.rules import EnvelopeDraft, Mode
from app.domains.wallet import service as wallet
from app.storage.intake import outbox_key, take_in_room
from app.storage.work import Engines
from tests.conftest import empty
from tests.support.auditor.ledger import audit_ledger
from tests.support.runtime import TestRuntime

pytestmark = pytest.mark.slow

ROOM = "room1"
TTL_MS = 60_000
VIEWERS = st.sampled_from([f"v{i}" for i in range(6)])
KEYS = st.sampled_from(["k1", "k2"])


async def take_in(engines: Engines) -> None:
    while await take_in_room(engines, ROOM):
        pass


async def take_in_twice(engines: Engines) -> None:
    entries = await engines.sales.xrange(outbox_key(ROOM))
    await take_in(engines)
    for _, fields in entries:
        await engines.sales.xadd(outbox_key(ROOM), fields)
    await take_in(engines)


async def opened(engines: Engines, mode: Mode, count: int) -> tuple[str, list[int]]:
    draft = EnvelopeDraft(title="Harvest", mode=mode, total_minor=12 * count, count=count, ttl_s=TTL_MS // 1000)
    async with engines.work() as work:
        await wallet.deposit(work, room_id=ROOM, amount_minor=12 * count, currency="CNY", reference="bank", by="op")
        envelope = await service.open_envelope(work, draft, room_id=ROOM, session_id="room1-s1", by="host")
    async with engines.sql.read() as session:
        return envelope.id, [share.amount_minor for share in await store.list_shares(session, envelope.id)]


def machine(run: Any, engines: Engines, runtime: TestRuntime) -> type[RuleBasedStateMachine]:
    class EnvelopeMachine(RuleBasedStateMachine):
        @initialize(mode=st.sampled_from(Mode), count=st.integers(1, 5))
        def open(self, mode: Mode, count: int) -> None:
            run(empty(engines.sales, engines))
            self.id, self.split = run(opened(engines, mode, count))
            self.deadline_ms = runtime.now_ms() + TTL_MS
            self.taken: dict[str, tuple[int, str]] = {}  # viewer -> position, key
            self.ended = False

        def _expect(self, viewer: str, key: str, *, is_staff: bool) -> tuple[str, int | None, int | None]:
            if viewer in self.taken:
                position, first_key = self.taken[viewer]
                return "opened" if key == first_key else "already", self.split[position - 1], position
            if (self.ended and len(self.taken) < len(self.split)) or runtime.now_ms() >= self.deadline_ms:
                return "closed", None, None
            if is_staff:
                return "not_eligible", None, None
            if len(self.taken) == len(self.split):
                return "empty", None, None
            position = len(self.taken) + 1
            self.taken[viewer] = (position, key)
            return "opened", self.split[position - 1], position

        @rule(viewer=VIEWERS, key=KEYS, is_staff=st.sampled_from([False, False, False, True]))
        def grab(self, viewer: str, key: str, is_staff: bool) -> None:
            expected = self._expect(viewer, key, is_staff=is_staff)
            got = run(service.grab(engines, envelope_id=self.id, viewer_id=viewer, key=key, is_staff=is_staff))
            assert (got.outcome.value, got.amount_minor, got.position) == expected

        @rule(viewers=st.lists(VIEWERS, min_size=2, max_size=6, unique=True))
        def grab_at_once(self, viewers: list[str]) -> None:
            expected = [self._expect(viewer, "k1", is_staff=False) for viewer in viewers]

            async def all_at_once() -> list[Any]:
                attempts = (service.grab(engines, envelope_id=self.id, viewer_id=viewer, key="k1") for viewer in viewers)
                return await asyncio.gather(*attempts)

            assert [(got.outcome.value, got.amount_minor, got.position) for got in run(all_at_once())] == expected

        @rule(milliseconds=st.sampled_from([1, 1000, TTL_MS - 1, TTL_MS]))
        def advance(self, milliseconds: int) -> None:
            runtime.advance(milliseconds)

        @rule()
        def sweep(self) -> None:
            run(service.end_due_envelopes(engines))
            self.ended = self.ended or runtime.now_ms() >= self.deadline_ms

        @rule()
        def end(self) -> None:
            envelope = run(service.end_envelope(engines, self.id, by="host"))
            self.ended = True
            assert envelope.state == "settled"
            assert envelope.opened_minor == sum(self.split[: len(self.taken)])

        @rule()
        def take_in(self) -> None:
            run(take_in(engines))

        @rule()
        def take_in_twice(self) -> None:
            run(take_in_twice(engines))

        @rule()
        def lose_scripts(self) -> None:
            run(engines.sales.script_flush())

        @invariant()
        def books_are_right(self) -> None:
            assert run(audit_ledger(engines)) == []

        def teardown(self) -> None:
            if not hasattr(self, "id"):
                return
            run(take_in(engines))
            for viewer, (position, _) in self.taken.items():
                assert run(_free(engines, f"viewer:{viewer}")) == self.split[position - 1]
            assert run(_dead_letters(engines)) == 0

    return EnvelopeMachine


async def _free(engines: Engines, account: str) -> int:
    async with engines.sql.read() as session:
        return await wallet.balance(session, account, "CNY")


async def _dead_letters(engines: Engines) -> int:

    async with engines.sql.read() as session:
        return int(await session.scalar(text("select count(*) from dead_letters")) or 0)


def test_an_envelope_answers_as_the_model_does(settings: Settings, registry: Registry) -> None:
    runtime = TestRuntime()
    with asyncio.Runner() as runner:

        def run(work: Coroutine[Any, Any, Any]) -> Any:
            return runner.run(work)

        engines = Engines.connect(settings, runtime, registry)
        try:
            run_state_machine_as_test(machine(run, engines, runtime), settings=_SETTINGS)
        finally:
            run(engines.close())


_SETTINGS = settings(
    max_examples=30,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # on real engines shrinking outlasts the test's time limit, and then nothing is told at all
    suppress_health_check=list(HealthCheck),
)
