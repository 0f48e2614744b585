"""Waiting for something to become true, with a bound; tests never sleep for a guess."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Value = TypeVar("Value")

POLL_S = 0.01


async def wait_until(condition: Callable[[], Value | Awaitable[Value]], *, within_s: float = 15.0, what: str = "") -> Value:
    """The first true value of `condition()`, which may be async. Fails after `within_s` with the last value seen."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within_s} s: {what or inspect.getsource(condition).strip()} (last: {value!r})"
        await asyncio.sleep(POLL_S)


def wait_until_sync(condition: Callable[[], Value], *, within_s: float = 15.0, what: str = "") -> Value:
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within_s} s: {what or inspect.getsource(condition).strip()} (last: {value!r})"
        time.sleep(POLL_S)
