"""The fair queue against a list that knows when everything came: turns, order, and who makes room."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from app.storage.fair_queue import FairQueue

pytestmark = pytest.mark.slow

OWNERS = st.sampled_from(["", "ann", "bo", "cy"])


class FairQueueMachine(RuleBasedStateMachine):
    """An item is (owner, number). `waiting`: all items in the order in which they came. `ahead`: of an item that came while its owner had
    none, how often each other owner has been served since."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[tuple[str, int]] = FairQueue()
        self.waiting: list[tuple[str, int]] = []
        self.ahead: dict[tuple[str, int], list[str]] = {}
        self.numbers = 0

    def count_of(self, owner: str) -> int:
        return sum(one == owner for one, _ in self.waiting) if owner else 0

    @rule(owner=OWNERS, count=st.integers(1, 5))
    def put(self, owner: str, count: int) -> None:
        for _ in range(count):
            self.numbers += 1
            item = (owner, self.numbers)
            if owner and not self.count_of(owner):
                self.ahead[item] = []
            self.waiting.append(item)
            self.queue.put(owner, item)

    @rule(most=st.integers(1, 6))
    def take(self, most: int) -> None:
        taken = self.queue.take(most)
        assert len(taken) == min(most, len(self.waiting))
        for item in taken:
            assert item == next(one for one in self.waiting if one[0] == item[0]), "each owner's items keep their order"
            self.waiting.remove(item)
            served = self.ahead.pop(item, [])
            assert len(served) == len(set(served)), "nobody was served twice while an owner's only item waited"
            for others in self.ahead.values():
                if item[0]:
                    others.append(item[0])

    @rule(owner=OWNERS)
    def make_room(self, owner: str) -> None:
        counts = {one: self.count_of(one) for one, _ in self.waiting if one}
        most = max(counts.values(), default=0)
        given_up = self.queue.make_room(owner)
        if most <= self.count_of(owner) + 1:
            assert given_up is None
            return
        assert given_up is not None
        assert counts[given_up[0]] == most
        assert given_up == [one for one in self.waiting if one[0] == given_up[0]][-1], "the newest"
        self.waiting.remove(given_up)

    @invariant()
    def counts(self) -> None:
        assert self.queue.length == len(self.waiting)

    def teardown(self) -> None:
        self.take(len(self.waiting) + 1)
        assert (self.queue._line, self.queue._behind, self.queue._owners_by_count) == (type(self.queue._line)(), {}, [])


TestFairQueue = FairQueueMachine.TestCase
TestFairQueue.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
