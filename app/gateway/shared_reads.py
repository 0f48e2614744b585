"""One engine read for all who want the same at the same time, and after, until the channel moves on.

In a storm a thousand viewers subscribe between two events: one snapshot is built and encoded, one history is read. Whoever publishes to the
channel calls `forget`; those who wait for a read that began before still get it, which is right: what came since is on its way to them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, TypeVar, cast

Value = TypeVar("Value")
Spawn = Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"]

KEYS_MAX = 512
AGE_S_MAX = 2.0  # readings such as stock grow old without an event


class SharedReads:
    __slots__ = ("_flights", "_spawn")

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._flights: dict[Hashable, tuple[float, asyncio.Task[Any]]] = {}

    async def get(self, key: Hashable, read: Callable[[], Awaitable[Value]]) -> Value:
        """The value of `read`, made once a key. A failed read is not kept."""
        now = asyncio.get_running_loop().time()
        began, flight = self._flights.get(key, (0.0, None))
        if flight is None or now - began > AGE_S_MAX or _has_failed(flight):
            if len(self._flights) >= KEYS_MAX:
                self._flights.clear()
            flight = self._spawn(_run(read))
            self._flights[key] = (now, flight)
        return cast("Value", await asyncio.shield(flight))

    def forget(self) -> None:
        """The channel has moved on."""
        self._flights.clear()


async def _run(read: Callable[[], Awaitable[Value]]) -> Value:
    return await read()


def _has_failed(flight: asyncio.Task[Any]) -> bool:
    return flight.done() and (flight.cancelled() or flight.exception() is not None)
