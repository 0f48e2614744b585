"""One engine read for all who want the same at the same time, and for a short while after.

In a storm a thousand viewers subscribe within a second: one snapshot is built and encoded, one history is read. What was read grows old,
not wrong: it bears the position that it was read at, and whoever gets it is sent what came since. From half its age on it is read anew
while others still get the old one, so that in a storm nobody waits for a reading after the first.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, TypeVar, cast

Value = TypeVar("Value")
Spawn = Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"]

KEYS_MAX = 16
AGE_S_MAX = 2.0  # readings such as stock grow old without an event
RENEW_AGE_S = AGE_S_MAX / 2


class _Flight:
    """A read that is under way or done."""

    __slots__ = ("began", "task")

    def __init__(self, began: float, task: "asyncio.Task[Any]") -> None:
        self.began = began
        self.task = task

    @property
    def is_done(self) -> bool:
        return self.task.done() and not self.has_failed

    @property
    def has_failed(self) -> bool:
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)


class SharedReads:
    __slots__ = ("_flights", "_is_sweeping", "_renewals", "_spawn", "kept")

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._flights: dict[Hashable, _Flight] = {}
        self._renewals: dict[Hashable, _Flight] = {}
        self.kept: dict[int, Any] = {}  # what was made of the node's own copy, by whoever knows when it is out of date
        self._is_sweeping = False

    def at_hand(self, key: Hashable, read: Callable[[], Awaitable[Value]]) -> Value | None:
        """What was read a moment ago, without a wait; None when nothing was. `read` is begun when it will soon be too old."""
        flight = self._flights.get(key)
        if flight is None or not flight.is_done:
            return None
        age = asyncio.get_running_loop().time() - flight.began
        if age > RENEW_AGE_S:
            renewal = self._renewals.get(key)
            if renewal is not None and renewal.is_done:
                del self._renewals[key]
                self._flights[key] = flight = renewal
                age = asyncio.get_running_loop().time() - flight.began
            elif renewal is None or renewal.has_failed:
                self._renewals[key] = self._begin(read)
        return cast("Value", flight.task.result()) if age <= AGE_S_MAX else None

    async def get(self, key: Hashable, read: Callable[[], Awaitable[Value]], *, instead_of: object = None) -> Value:
        """The value of `read`, made once a key. A failed read is not kept, and neither is the value `instead_of`, which will not do."""
        flight = self._flights.get(key)
        is_refused = flight is not None and flight.is_done and instead_of is not None and flight.task.result() is instead_of
        if flight is None or flight.has_failed or is_refused or asyncio.get_running_loop().time() - flight.began > AGE_S_MAX:
            flight = self._renewals.pop(key, None)
            if flight is None or flight.task.done():
                flight = self._begin(read)
            if len(self._flights) >= KEYS_MAX:
                self._flights.clear()
            self._flights[key] = flight
        return cast("Value", flight.task.result() if flight.is_done else await asyncio.shield(flight.task))

    def let_go_later(self) -> None:
        """After the storm nothing of it stays: histories and snapshots as they were sent are megabytes."""
        if not self._is_sweeping:
            self._is_sweeping = True
            asyncio.get_running_loop().call_later(AGE_S_MAX, self._let_go)

    def _let_go(self) -> None:
        self._is_sweeping = False
        self.kept.clear()
        oldest = asyncio.get_running_loop().time() - AGE_S_MAX
        for flights in (self._flights, self._renewals):
            for key in [key for key, flight in flights.items() if flight.began < oldest and flight.task.done()]:
                del flights[key]
        if self._flights or self._renewals:
            self.let_go_later()

    def _begin(self, read: Callable[[], Awaitable[Any]]) -> _Flight:
        self.let_go_later()
        return _Flight(asyncio.get_running_loop().time(), self._spawn(_run(read)))

    def forget(self) -> None:
        """What was read is wrong from now on."""
        self._flights.clear()
        self._renewals.clear()
        self.kept.clear()


async def _run(read: Callable[[], Awaitable[Value]]) -> Value:
    return await read()
