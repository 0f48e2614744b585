"""Locust's entry point: `locust -f loadtests/locustfile.py`, usually through `make load` (run.py)."""

from typing import Any

from locust import events
from locust.env import Environment

from loadtests.shapes import Evening
from loadtests.thresholds import broken_thresholds
from loadtests.users import Buyer, Grabber, Host, Viewer

__all__ = ["Buyer", "Evening", "Grabber", "Host", "Viewer"]


@events.quitting.add_listener
def judge(environment: Environment, **_: Any) -> None:
    problems = broken_thresholds(environment)
    for problem in problems:
        print(f"threshold: {problem}")
    environment.process_exit_code = 1 if problems else 0
