"""Several commands at once, in an order that a test chooses: each stops before whatever it asks an engine or SQL, and a schedule says who
goes on. So a race is found by search, and found again by its schedule.

What a command begins beside itself (a batch of group commit) stops as well. Who waits for a row lock that another holds cannot go on: then
the next in the schedule does; when nobody can for long, that is told as a deadlock.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import cycle
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.storage.resp import EngineLine

STALL_S = 0.02  # without a step of anybody: whoever is not at a stop waits for a lock
DEADLOCK_S = 8.0  # PostgreSQL breaks those of its own after one

_is_actor: ContextVar[bool] = ContextVar("is_actor", default=False)
STOPS = (
    *((AsyncSession, name) for name in ("execute", "scalars", "scalar", "get", "flush", "commit")),
    (EngineLine, "call"),
    (EngineLine, "call_each"),
)


class Interleaving:
    """`run` returns what each command came to: its result, or its exception."""

    def __init__(self, schedule: Sequence[int]) -> None:
        self._schedule = cycle(schedule or [0])
        self._stopped: list[asyncio.Event] = []
        self._progress = asyncio.Event()
        self.steps = 0

    async def stop(self) -> None:
        if not _is_actor.get():
            return
        turn = asyncio.Event()
        self._stopped.append(turn)
        self._progress.set()
        await turn.wait()

    async def run(self, *commands: Coroutine[Any, Any, Any]) -> list[Any]:
        with _stops(self):
            tasks = [asyncio.create_task(self._begin(command)) for command in commands]
            try:
                async with asyncio.timeout(DEADLOCK_S * len(tasks)):
                    while not all(task.done() for task in tasks):
                        await self._step()
            finally:
                for turn in self._stopped:
                    turn.set()
                self._stopped.clear()
            return await asyncio.gather(*tasks, return_exceptions=True)

    async def _begin(self, command: Coroutine[Any, Any, Any]) -> Any:
        _is_actor.set(True)  # whatever it begins inherits it
        try:
            return await command
        finally:
            self._progress.set()

    async def _step(self) -> None:
        """Lets one go on that stands at a stop, until it stands at the next, or is seen to wait for somebody else."""
        self._progress.clear()
        if self._stopped:
            self.steps += 1
            self._stopped.pop(next(self._schedule) % len(self._stopped)).set()
        with suppress(TimeoutError):
            async with asyncio.timeout(STALL_S):
                await self._progress.wait()


@contextmanager
def _stops(interleaving: Interleaving) -> Iterator[None]:
    def stopping(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def stopped(*arguments: Any, **options: Any) -> Any:
            await interleaving.stop()
            return await call(*arguments, **options)

        return stopped

    with pytest.MonkeyPatch.context() as patched:
        for owner, name in STOPS:
            patched.setattr(owner, name, stopping(getattr(owner, name)))
        yield
