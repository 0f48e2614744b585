"""What a target is."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Input = TypeVar("Input")


@dataclass(frozen=True)
class Target(Generic[Input]):
    """`check` raises for an input that breaks a rule. `corpus` is checked whole, before anything is made of it."""

    name: str
    share: float  # of the inputs of a run
    make: Callable[[random.Random], Input]
    check: Callable[[Input], None]
    corpus: Callable[[], Iterable[Input]]

    def generator(self, seed: int, number: int) -> random.Random:
        """Each input has its own, so that it can be made again without those before it."""
        return random.Random(f"{seed} {self.name} {number}")

    def run(self, seed: int, count: int) -> None:
        for raw in self.corpus():
            self.check(raw)
        for number in range(count):
            self.check(self.make(self.generator(seed, number)))
