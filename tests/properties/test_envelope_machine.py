"""An envelope as a state machine: grabs, retries, time, endings, repeated intake, lost scripts, and new lives of the engine: with all it
had, with what it had a while ago, with nothing. The model knows the split (read from SQL before the first grab) and predicts the word, the
amount and the position of every answer."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import text

from app.core.errors import AppError
from app.core.registry import Registry
from app.core.settings import Settings
from app.domains.envelopes import service, store
from app.domains.envelopes.rules import EnvelopeDraft, Mode
from app.domains.wallet import service as wallet
from app.storage.intake import outbox_key, take_in_room
from app.storage.work import Engines
from tests.conftest import empty
from tests.properties.running import run_machine
from tests.support.auditor.ledger import audit_ledger
from tests.support.lives import Memory, fail_over, remember, renew
from tests.support.runtime import TestRuntime

pytestmark = pytest.mark.slow

ROOM = "room1"
TTL_MS = 60_000
VIEWERS = st.sampled_from([f"v{i}" for i in range(6)])
KEYS = st.sampled_from(["k1", "k2"])
SELDOM = st.sampled_from([True, False, False, False])  # what ends it all


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


Taken = dict[str, tuple[int, str | None]]  # viewer -> position, key of the first grab; None: SQL has the share, and does not know the key
Answer = tuple[str, int | None, int | None]


@dataclass
class Engine:
    """What the engine remembers of the envelope."""

    taken: Taken = field(default_factory=Taken)
    has_envelope: bool = True
    is_ended: bool = False  # closed, or the last share is gone; the word of it may still be in the outbox

    def copy(self) -> "Engine":
        return replace(self, taken=dict(self.taken))


@dataclass
class Model:
    split: list[int]
    deadline_ms: int
    engine: Engine = field(default_factory=Engine)
    in_sql: dict[str, int] = field(default_factory=dict[str, int])  # viewer -> position
    is_settled: bool = False
    is_frozen: bool = False

    def grab(self, viewer: str, key: str, now_ms: int, *, is_staff: bool) -> Answer:
        taken = self.engine.taken
        if viewer in taken:
            position, first_key = taken[viewer]
            taken[viewer] = (position, first_key or key)
            return "opened" if key == (first_key or key) else "already", self.split[position - 1], position
        if self.is_settled and (self.is_frozen or not self.engine.has_envelope):
            return self._from_sql(viewer)
        if self.is_frozen:
            return "frozen", None, None
        is_emptied = self._next() is None
        if (self.engine.is_ended and not is_emptied) or (self.is_settled and not is_emptied) or now_ms >= self.deadline_ms:
            return "closed", None, None
        if is_staff:
            return "not_eligible", None, None
        position = self._next()
        if position is None:
            return "empty", None, None
        taken[viewer] = (position, key)
        self.engine.is_ended = self._next() is None
        return "opened", self.split[position - 1], position

    def _from_sql(self, viewer: str) -> Answer:
        position = self.in_sql.get(viewer)
        if position is not None:
            return "already", self.split[position - 1], position
        return "closed", None, None

    def _next(self) -> int | None:
        positions = {position for position, _ in self.engine.taken.values()}
        return next((position for position in range(1, len(self.split) + 1) if position not in positions), None)

    def take_in(self) -> None:
        if not self.is_settled:
            self.in_sql |= {viewer: position for viewer, (position, _) in self.engine.taken.items()}
            self.is_settled = self.engine.is_ended

    def fail_over(self, engine: Engine) -> None:
        self.engine, self.is_frozen = engine.copy(), True

    def renew(self) -> None:
        self.take_in()
        if not self.is_frozen:
            return
        self.is_frozen = False
        if len(self.in_sql) == len(self.split):
            self.is_settled = True
        if self.is_settled:
            self.engine.is_ended = True
            return
        self.engine.has_envelope = True
        for viewer, position in self.in_sql.items():
            self.engine.taken.setdefault(viewer, (position, None))


def machine(run: Any, engines: Engines, runtime: TestRuntime) -> type[RuleBasedStateMachine]:
    class EnvelopeMachine(RuleBasedStateMachine):
        @initialize(mode=st.sampled_from(Mode), count=st.integers(1, 5))
        def open(self, mode: Mode, count: int) -> None:
            run(empty(engines.sales, engines))
            self.id, split = run(opened(engines, mode, count))
            self.model = Model(split, runtime.now_ms() + TTL_MS)
            self.memory: tuple[Memory, Engine] | None = None
            self.grab_at_once(["v0", "v1"])

        async def _grab(self, viewer: str, key: str, *, is_staff: bool) -> Answer:
            got = await service.grab(engines, envelope_id=self.id, viewer_id=viewer, key=key, is_staff=is_staff)
            return got.outcome.value, got.amount_minor, got.position

        @rule(viewer=VIEWERS, key=KEYS, is_staff=st.sampled_from([False, False, False, True]))
        def grab(self, viewer: str, key: str, is_staff: bool) -> None:
            expected = self.model.grab(viewer, key, runtime.now_ms(), is_staff=is_staff)
            assert run(self._grab(viewer, key, is_staff=is_staff)) == expected

        @rule(viewers=st.lists(VIEWERS, min_size=2, max_size=6, unique=True))
        def grab_at_once(self, viewers: list[str]) -> None:
            expected = [self.model.grab(viewer, "k1", runtime.now_ms(), is_staff=False) for viewer in viewers]

            async def all_at_once() -> list[Answer]:
                return await asyncio.gather(*[self._grab(viewer, "k1", is_staff=False) for viewer in viewers])

            assert run(all_at_once()) == expected

        @rule(milliseconds=st.sampled_from([1, TTL_MS // 10, TTL_MS // 10, TTL_MS // 2]))
        def advance(self, milliseconds: int) -> None:
            runtime.advance(milliseconds)

        @rule()
        def sweep(self) -> None:
            run(service.end_due_envelopes(engines))
            if not self.model.is_frozen and not self.model.is_settled and runtime.now_ms() >= self.model.deadline_ms:
                self.model.engine.is_ended = True

        @rule(is_time=SELDOM)
        def end(self, is_time: bool) -> None:
            if not is_time:
                return
            try:
                envelope = run(service.end_envelope(engines, self.id, by="host"))
            except AppError as refusal:
                assert (refusal.code.word, self.model.is_frozen, self.model.is_settled) == ("service_unavailable", True, False)
                return
            assert not self.model.is_frozen or self.model.is_settled
            if not self.model.is_settled:
                self.model.engine.is_ended = True
                self.model.take_in()
            assert envelope.state == "settled"
            assert envelope.opened_minor == sum(self.model.split[position - 1] for position in self.model.in_sql.values())

        @rule(is_repeated=st.booleans())
        def take_in(self, is_repeated: bool) -> None:
            run((take_in_twice if is_repeated else take_in)(engines))
            self.model.take_in()

        @rule()
        def lose_scripts(self) -> None:
            run(engines.sales.script_flush())

        @rule()
        def remember(self) -> None:
            self.memory = (run(remember(engines)), self.model.engine.copy())

        @rule(kept=st.sampled_from(["all", "all but the tail", "nothing"]), is_taken_in=st.booleans(), is_renewed=st.booleans())
        def new_life(self, kept: str, is_taken_in: bool, is_renewed: bool) -> None:
            if is_taken_in:
                self.take_in(is_repeated=False)
            memory, engine = {}, Engine(has_envelope=False)
            if kept == "all":  # as after a restart with its file: nothing is lost, and nobody knows that yet
                memory, engine = run(remember(engines)), self.model.engine
            elif kept == "all but the tail" and self.memory:
                memory, engine = self.memory
            run(fail_over(engines, memory, ROOM))
            self.model.fail_over(engine)
            if is_renewed:
                self.renew()

        @rule()
        def renew(self) -> None:
            """And then who has a share is asked for it."""
            run(renew(engines))
            self.model.renew()
            for viewer in list(self.model.engine.taken):
                self.grab(viewer, "k1", is_staff=False)

        @invariant()
        def books_are_right(self) -> None:
            assert run(audit_ledger(engines)) == []

        def teardown(self) -> None:
            if not hasattr(self, "id"):
                return
            self.renew()
            for viewer, position in self.model.in_sql.items():
                assert run(_free(engines, f"viewer:{viewer}")) == self.model.split[position - 1]
            assert run(_dead_letters(engines)) == 0

    return EnvelopeMachine


async def _free(engines: Engines, account: str) -> int:
    async with engines.sql.read() as session:
        return await wallet.balance(session, account, "CNY")


async def _dead_letters(engines: Engines) -> int:

    async with engines.sql.read() as session:
        return int(await session.scalar(text("select count(*) from dead_letters")) or 0)


def test_an_envelope_answers_as_the_model_does(settings: Settings, registry: Registry) -> None:
    run_machine(machine, settings, registry, examples=20, steps=25)
