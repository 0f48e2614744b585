"""How a state machine runs on real engines: one loop and one pair of engines for all its examples."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from app.core.registry import Registry
from app.core.settings import Settings
from app.storage.work import Engines
from tests.support.runtime import TestRuntime

MakeMachine = Callable[[Callable[[Coroutine[Any, Any, Any]], Any], Engines, TestRuntime], type[RuleBasedStateMachine]]


def run_machine(make: MakeMachine, product: Settings, registry: Registry, *, examples: int, steps: int) -> None:
    runtime = TestRuntime()
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # on real engines shrinking outlasts the test's time limit, and then nothing is told at all
        suppress_health_check=list(HealthCheck),
    )
    with asyncio.Runner() as runner:
        engines = Engines.connect(product, runtime, registry)
        try:
            run_state_machine_as_test(make(runner.run, engines, runtime), settings=chosen)
        finally:
            runner.run(engines.close())
