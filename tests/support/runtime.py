"""A runtime whose every run is the same: its own clock, a seeded generator, counted ids."""

import random

from app.core.runtime import Runtime

START_MS = 1_750_000_000_000  # 2025-06-15T15:06:40Z


class TestRuntime(Runtime):
    """Time stands still until `advance`; scripts get the same clock, so deadlines fall due when the test says so."""

    __test__ = False  # the name is no test class

    def __init__(self, *, seed: int = 1, start_ms: int = START_MS) -> None:
        self.rng = random.Random(seed)
        self.clock_ms = start_ms
        self._ids = 0

    def advance(self, milliseconds: int) -> None:
        assert milliseconds >= 0, "time does not run backwards"
        self.clock_ms += milliseconds

    def now_ms(self) -> int:
        return self.clock_ms

    def script_now_ms(self) -> int:
        return self.clock_ms

    def monotonic_ms(self) -> float:
        return float(self.clock_ms - START_MS)

    def new_id(self) -> str:
        self._ids += 1
        return f"0test{self._ids:021d}"

    def new_short_id(self) -> str:
        self._ids += 1
        return f"t{self._ids:09d}"
