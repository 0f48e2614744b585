"""How much of everything a run measures, how it says where it is, and how figures of several rounds become one."""

import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Figures = dict[str, Any]


@dataclass(slots=True)
class Plan:
    """`missing`: what could not be measured, and why; it becomes a part of the conditions."""

    seconds: float = 4.0
    rounds: int = 3
    viewers: int = 15_000
    storm_viewers: int = 15_000
    servers: Sequence[str] = ("jishi", "plain_fastapi", "picows", "nchan", "kernel_floor")
    missing: dict[str, str] = field(default_factory=dict[str, str])
    notes: dict[str, str] = field(default_factory=dict[str, str])
    began: float = field(default_factory=time.monotonic)

    def say(self, line: str) -> None:
        """Progress, for whoever waits; the results go to stdout."""
        print(f"{time.monotonic() - self.began:5.0f} s  {line}", file=sys.stderr, flush=True)

    def turns(self) -> Iterator[tuple[int, list[str]]]:
        """The rounds, each with the servers in another order, so that none is always measured after the same."""
        servers = list(self.servers)
        for number in range(self.rounds):
            shift = number % len(servers)
            yield number + 1, servers[shift:] + servers[:shift]


def medians(turns: Iterable[dict[str, float]], digits: int = 2) -> dict[str, float]:
    """Of each figure that the rounds have in common."""
    rounds = list(turns)
    return {name: round(statistics.median(turn[name] for turn in rounds), digits) for name in rounds[0]}


def ratios(rounds: dict[str, list[float]], to: str) -> dict[str, float]:
    """Each server's figure as a multiple of one server's in the same round; the median of the rounds."""
    if to not in rounds:
        return {}
    pairs = {name: zip(figures, rounds[to], strict=True) for name, figures in rounds.items()}
    return {name: round(statistics.median(one / other for one, other in pair), 3) for name, pair in pairs.items()}
