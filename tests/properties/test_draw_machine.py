"""A draw as a state machine: entries, retries, time, closing and cancelling, repeated intake, lost scripts, and new lives of the engine:
with all it had, with what it had a while ago, with nothing. The model predicts every word; an outsider computes again what is drawn."""

import asyncio
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.core.errors import AppError
from app.core.registry import Registry
from app.core.settings import Settings
from app.domains.lottery import service
from app.domains.lottery.rules import Condition, PrizeDraft, PrizeKind
from app.storage.intake import outbox_key
from app.storage.work import Engines
from tests.conftest import empty
from tests.domains.lottery.test_service import ROOM, draft, enter, fetch, funds, opened, outcome, recompute, take_in
from tests.properties.running import run_machine
from tests.support.auditor.ledger import audit_ledger
from tests.support.lives import Memory, fail_over, remember, renew
from tests.support.runtime import TestRuntime
from tests.support.shelf import open_shelf

pytestmark = pytest.mark.slow

DURATION_MS, ENTRANTS_MAX, PRIZE, KEYWORD = 60_000, 4, 500, "tea"
VIEWERS = st.sampled_from([f"v{i}" for i in range(6)])
KEYS, WORDS = st.sampled_from(["k1", "k2"]), st.sampled_from([KEYWORD, KEYWORD, "honey"])
SELDOM = st.sampled_from([True, False, False, False])  # what ends it all
Record = tuple[str, str] | None  # key and keyword of an entry; None: it came back from SQL, which does not know them


@dataclass
class Engine:
    """What the engine remembers of the draw."""

    has_draw: bool = True
    entries: dict[str, Record] = field(default_factory=dict[str, Record])
    is_closing: bool = False  # `draw.closed` is in the outbox


@dataclass
class Model:
    deadline_ms: int
    engine: Engine = field(default_factory=Engine)
    in_sql: set[str] = field(default_factory=set[str])
    over: str = ""  # as SQL knows it: drawn, cancelled
    drawn_from: set[str] = field(default_factory=set[str])
    is_frozen: bool = False

    def enter(self, viewer: str, key: str, keyword: str, now_ms: int, *, is_staff: bool) -> str:
        engine = self.engine
        if viewer in engine.entries:
            record = engine.entries[viewer]
            if record is None or record == (key, keyword):
                engine.entries[viewer] = (key, keyword)
                return "entered"
            return "key_reused" if record[0] == key else "again"
        if self.is_frozen and not self.over:
            return "frozen"
        if self.over or engine.is_closing or now_ms >= self.deadline_ms:
            return "closed"
        if is_staff or keyword != KEYWORD:
            return "not_eligible"
        if len(engine.entries) >= ENTRANTS_MAX:
            return "full"
        engine.entries[viewer] = (key, keyword)
        return "entered"

    def take_in(self) -> None:
        self.in_sql |= self.engine.entries.keys()
        if self.engine.is_closing:
            self.end("drawn")

    def end(self, how: str) -> None:
        if not self.over:
            self.over, self.drawn_from = how, set(self.engine.entries)

    def fail_over(self, engine: Engine) -> None:
        self.engine, self.is_frozen = replace(engine, entries=dict(engine.entries)), True

    def renew(self) -> None:
        self.take_in()
        if self.is_frozen and not self.over:
            self.engine.has_draw = True
            for viewer in self.in_sql:
                self.engine.entries.setdefault(viewer, None)
        self.is_frozen = False


def machine(run: Any, engines: Engines, runtime: TestRuntime) -> type[RuleBasedStateMachine]:
    class DrawMachine(RuleBasedStateMachine):
        @initialize()
        def open(self) -> None:
            run(empty(engines.sales, engines))
            run(open_shelf(engines))
            prize = PrizeDraft(PrizeKind.MONEY, "Red packet", 2, amount_minor=PRIZE)
            wanted = draft(prize, condition=Condition.KEYWORD, keyword=KEYWORD, entrants_max=ENTRANTS_MAX, duration_s=DURATION_MS // 1000)
            self.id = run(opened(engines, wanted, money=2 * PRIZE))
            self.model = Model(runtime.now_ms() + DURATION_MS)
            self.memory: tuple[Memory, Engine] | None = None
            self.enter_at_once(["v0", "v1"], "k1")

        async def _enter(self, viewer: str, key: str, keyword: str, *, is_staff: bool) -> tuple[str, int | None]:
            try:
                got = await enter(engines, self.id, viewer, key, keyword=keyword, is_staff=is_staff)
            except AppError as refusal:
                return refusal.code.word, None
            return got.outcome.value, got.entrants

        @rule(viewer=VIEWERS, key=KEYS, keyword=WORDS, is_staff=st.sampled_from([False, False, True]))
        def enter(self, viewer: str, key: str, keyword: str, is_staff: bool) -> None:
            expected = self.model.enter(viewer, key, keyword, runtime.now_ms(), is_staff=is_staff)
            word, entrants = run(self._enter(viewer, key, keyword, is_staff=is_staff))
            assert word == expected
            assert word not in {"entered", "again", "full"} or entrants == len(self.model.engine.entries)

        @rule(viewers=st.lists(VIEWERS, min_size=2, max_size=6, unique=True), key=KEYS)
        def enter_at_once(self, viewers: list[str], key: str) -> None:
            expected = [self.model.enter(viewer, key, KEYWORD, runtime.now_ms(), is_staff=False) for viewer in viewers]

            async def all_at_once() -> list[tuple[str, int | None]]:
                return await asyncio.gather(*[self._enter(viewer, key, KEYWORD, is_staff=False) for viewer in viewers])

            assert [word for word, _ in run(all_at_once())] == expected

        @rule(milliseconds=st.sampled_from([1, DURATION_MS // 10, DURATION_MS // 10, DURATION_MS // 2]))
        def advance(self, milliseconds: int) -> None:
            runtime.advance(milliseconds)

        @rule()
        def sweep(self) -> None:
            run(service.close_due_draws(engines))
            if not self.model.over and not self.model.is_frozen and runtime.now_ms() >= self.model.deadline_ms:
                self.model.engine.is_closing = True

        @rule(cancels=st.booleans(), is_time=SELDOM)
        def end(self, cancels: bool, is_time: bool = True) -> None:
            if not is_time:
                return
            wanted, other = ("cancelled", "drawn") if cancels else ("drawn", "cancelled")
            close, cancel = service.close_draw, partial(service.cancel_draw, reason="rain")
            try:
                said = run((cancel if cancels else close)(engines, self.id, by="host")).state
            except AppError as refusal:
                said = refusal.code.word
            if self.model.is_frozen and not self.model.over:
                assert said == "service_unavailable"
                return
            if self.model.engine.is_closing:
                self.model.end("drawn")  # whoever comes later finds it closed
            self.model.end(wanted)
            if not self.model.is_frozen:
                self.model.take_in()
            assert said == {wanted: wanted, other: "conflict"}[self.model.over]

        @rule(is_repeated=st.booleans())
        def take_in(self, is_repeated: bool) -> None:
            entries = run(engines.sales.xrange(outbox_key(ROOM)))
            run(take_in(engines))
            for _, fields in entries if is_repeated else ():
                run(engines.sales.xadd(outbox_key(ROOM), fields))
            run(take_in(engines))
            self.model.take_in()

        @rule()
        def lose_scripts(self) -> None:
            run(engines.sales.script_flush())

        @rule()
        def remember(self) -> None:
            engine = replace(self.model.engine, entries=dict(self.model.engine.entries))
            self.memory = (run(remember(engines)), engine)

        @rule(kept=st.sampled_from(["all", "all but the tail", "nothing"]), is_taken_in=st.booleans(), is_renewed=st.booleans())
        def new_life(self, kept: str, is_taken_in: bool, is_renewed: bool) -> None:
            if is_taken_in:
                self.take_in(is_repeated=False)
            memory, engine = {}, Engine(has_draw=False)
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
            """And then who is in comes again."""
            run(renew(engines))
            self.model.renew()
            for viewer in list(self.model.engine.entries):
                self.enter(viewer, "k1", KEYWORD, is_staff=False)

        @invariant()
        def books_are_right(self) -> None:
            assert run(audit_ledger(engines)) == []

        def teardown(self) -> None:
            if not hasattr(self, "id"):
                return
            self.renew()
            if not self.model.over:
                self.end(cancels=False)
            assert run(fetch(engines, self.id)).state == self.model.over
            winners = 0
            if self.model.over == "drawn":
                draw, leaves, won = run(outcome(engines, self.id))
                raw = [bytes.fromhex(leaf.pseudonym + leaf.evidence_hash) for leaf in leaves]
                root, places = recompute(draw.rules_json, raw, draw.seed)
                assert {leaf.viewer_id for leaf in leaves} == self.model.drawn_from
                assert (root, places) == (draw.entrants_root, [winner.entrant_index for winner in won])
                winners = len(won)
                assert winners == min(2, len(leaves))
                assert all(run(funds(engines, f"viewer:{winner.viewer_id}")) == PRIZE for winner in won)
            assert run(funds(engines, f"room:{ROOM}")) == (2 - winners) * PRIZE

    return DrawMachine


def test_a_draw_answers_as_the_model_does(settings: Settings, registry: Registry) -> None:
    run_machine(machine, settings, registry, examples=20, steps=30)
