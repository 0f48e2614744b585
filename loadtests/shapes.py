"""How many come, and when. A shape is a list of phases; users read the phase's name to know what the evening is doing.

JISHI_SHAPE chooses: `evening` (all phases, short; the default), `doors`, `steady`, `flash`, `storm`.
"""

import os
from typing import NamedTuple

from locust import LoadTestShape


class Phase(NamedTuple):
    name: str
    seconds: int
    users: int
    joins_per_s: int


def shape_of(name: str, users: int) -> list[Phase]:
    """Raises KeyError for a shape that does not exist."""
    doors = Phase("doors open", 10, users, max(1, users // 8))
    return {
        "evening": [doors, Phase("steady", 15, users, 50), Phase("flash sale", 12, users, 50), Phase("reconnect storm", 10, users, 50)],
        "doors": [Phase("doors open", 30, users, users)],
        "steady": [doors, Phase("steady", 120, users, 50)],
        "flash": [doors, Phase("flash sale", 30, users, 50)],
        "storm": [doors, *[Phase("reconnect storm", 10, users, 50), Phase("steady", 10, users, 50)] * 3],
    }[name]


class Evening(LoadTestShape):
    """Walks through the phases; `Evening.phase` is where it is."""

    phases = shape_of(os.environ.get("JISHI_SHAPE", "evening"), int(os.environ.get("JISHI_LOAD_USERS", "200")))
    phase = "doors open"

    def tick(self) -> tuple[int, float] | None:
        elapsed_s = self.get_run_time()
        for phase in self.phases:
            if elapsed_s < phase.seconds:
                Evening.phase = phase.name
                return phase.users, phase.joins_per_s
            elapsed_s -= phase.seconds
        return None
