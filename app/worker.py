"""Composition root of the worker process: what happens because time passed or an entry arrived. `jishi worker` runs `run_worker`.

Invariants
- Every loop is a task of its own; one that fails is counted, logged and tried again later, and never holds up the others.
- A pass does bounded work and may be cut off anywhere: what it does is idempotent, so any number of workers may run, and be killed.

What it deliberately does not do: decide anything. Each loop is one function of a domain or of storage, listed below.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from app.composition import build_registry
from app.core.metrics import LOOP_FAILURES, LOOP_RUNS
from app.core.runtime import Runtime
from app.core.settings import Settings
from app.domains.analytics.service import push_figures, refresh_reports, sample_figures
from app.domains.chat.service import archive_chat, prune_keys
from app.domains.envelopes.service import end_due_envelopes
from app.domains.integrations.service import deliver_webhooks, expire_webhook_deliveries
from app.domains.inventory.service import expire_sales
from app.domains.lottery.service import close_due_draws
from app.domains.orders.payments import settle_sandbox_payments
from app.domains.rooms.service import pulse_rooms
from app.rest.idempotency import expire_idempotency_records
from app.storage.announcements import announce_room
from app.storage.durability import watch_durability
from app.storage.intake import list_rooms, outbox_key, take_in_room
from app.storage.work import Engines, rooms_to_announce

BACK_OFF_S_MAX = 15.0
PASS_S_MAX = 60.0  # an engine that never answers ends a pass; the next one starts afresh
STOP_S_MAX = 10.0
ROOMS_AT_ONCE = 16
INTAKE_BATCHES_MAX = 20  # of one room in one pass: a flooded room does not starve the others
LEASE_PREFIX = "jishi:lease:intake:"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Loop:
    """`run(engines)` is one pass; the next begins `every_ms` after the end of this one."""

    name: str
    run: Callable[[Engines], Awaitable[Any]]
    every_ms: int


@dataclass(slots=True)
class RoomLeases:
    """Which rooms this worker takes in. Leases only spare several workers the same reads: two on one room are slower, never wrong.

    Kept in memory for a third of their time, so a pass over rooms that are all ours, or all another's, costs no command.
    """

    owner: str
    held: dict[str, float] = field(default_factory=dict[str, float])  # room -> when to look again, ours
    foreign: dict[str, float] = field(default_factory=dict[str, float])  # room -> when to look again, another's

    async def ours(self, engines: Engines, rooms: list[str]) -> list[str]:
        now = asyncio.get_running_loop().time()
        unsure = [room for room in rooms if max(self.held.get(room, 0.0), self.foreign.get(room, 0.0)) <= now]
        if unsure:
            await self._ask(engines, unsure, now)
        return [room for room in rooms if room in self.held]

    async def _ask(self, engines: Engines, rooms: list[str], now: float) -> None:
        ttl_ms = engines.settings.room_lease_s * 1000
        async with engines.sales.pipeline(transaction=False) as pipe:
            for room in rooms:
                pipe.set(LEASE_PREFIX + room, self.owner, nx=True, px=ttl_ms)
                pipe.get(LEASE_PREFIX + room)
            answers = await pipe.execute()
        owned = [room for room, owner in zip(rooms, answers[1::2], strict=True) if owner == self.owner.encode()]
        if owned:
            async with engines.sales.pipeline(transaction=False) as pipe:
                for room in owned:
                    pipe.pexpire(LEASE_PREFIX + room, ttl_ms)
                await pipe.execute()
        again = now + ttl_ms / 3000
        for room in rooms:
            self.held.pop(room, None)
            self.foreign.pop(room, None)
            (self.held if room in owned else self.foreign)[room] = again

    async def release(self, engines: Engines) -> None:
        """On a clean stop, so that another worker goes on at once."""
        mine = [room for room in self.held if await engines.sales.get(LEASE_PREFIX + room) == self.owner.encode()]
        if mine:
            await engines.sales.delete(*[LEASE_PREFIX + room for room in mine])
        self.held.clear()


async def announce(engines: Engines) -> None:
    """Publishes what a crash left between commit and publication."""
    for room_id in await rooms_to_announce(engines):
        await announce_room(engines, room_id)


async def take_in(engines: Engines, leases: RoomLeases) -> None:
    """One pass over the rooms of this worker that have entries."""
    rooms = await leases.ours(engines, await list_rooms(engines))
    if not rooms:
        return
    async with engines.sales.pipeline(transaction=False) as pipe:
        for room in rooms:
            pipe.xlen(outbox_key(room))
        lengths = await pipe.execute()
    at_once = asyncio.Semaphore(ROOMS_AT_ONCE)

    async def one(room_id: str) -> None:
        async with at_once:
            for _ in range(INTAKE_BATCHES_MAX):
                if await take_in_room(engines, room_id) < engines.settings.intake_batch_max:
                    return

    results = await asyncio.gather(*[one(room) for room, length in zip(rooms, lengths, strict=True) if length], return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    if failures:
        raise failures[0]  # after the other rooms had their turn


# Other domains add their lines here: what falls due, what is projected, what is cleaned up.
LOOPS: tuple[Loop, ...] = (
    Loop("announce", announce, 1000),
    Loop("pulse", pulse_rooms, 1000),
    Loop("expire_sales", expire_sales, 250),
    Loop("settle_sandbox_payments", settle_sandbox_payments, 250),
    Loop("close_due_draws", close_due_draws, 250),
    Loop("end_due_envelopes", end_due_envelopes, 500),
    Loop("archive_chat", archive_chat, 500),
    Loop("push_figures", push_figures, 2000),
    Loop("sample_figures", sample_figures, 3000),
    Loop("refresh_reports", refresh_reports, 3000),
    Loop("prune_chat_keys", prune_keys, 600_000),
    Loop("deliver_webhooks", deliver_webhooks, 1000),
    Loop("expire_webhook_deliveries", expire_webhook_deliveries, 600_000),
    Loop("expire_idempotency_records", expire_idempotency_records, 60_000),
    Loop("watch_durability", watch_durability, 60_000),
)


async def run_worker(settings: Settings) -> None:
    """Runs until SIGINT or SIGTERM, then lets the passes under way come to their end."""
    runtime = Runtime()
    engines = Engines.connect(settings, runtime, build_registry())
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        await run_loops(engines, stopping, owner=runtime.new_id())
    finally:
        await engines.close()


async def run_loops(engines: Engines, stopping: asyncio.Event, *, owner: str, loops: tuple[Loop, ...] = LOOPS) -> None:
    leases = RoomLeases(owner)

    async def intake(engines: Engines) -> None:
        await take_in(engines, leases)

    tasks = [asyncio.create_task(_run_loop(engines, loop, stopping), name=loop.name) for loop in (*loops, Loop("intake", intake, 50))]
    log.info("worker started", loops=[task.get_name() for task in tasks])
    await stopping.wait()
    _, late = await asyncio.wait(tasks, timeout=STOP_S_MAX)
    for task in late:
        log.warning("loop cut off", loop=task.get_name())
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await leases.release(engines)
    log.info("worker stopped")


async def _run_loop(engines: Engines, loop: Loop, stopping: asyncio.Event) -> None:
    failures = 0
    while not stopping.is_set():
        LOOP_RUNS.labels(loop.name).inc()
        try:
            async with asyncio.timeout(PASS_S_MAX):
                await loop.run(engines)
            failures = 0
        except Exception as failure:  # whatever it is, the loop must live: the work is still there at the next pass
            failures += 1
            LOOP_FAILURES.labels(loop.name).inc()
            if failures & (failures - 1) == 0:  # the 1st, 2nd, 4th, 8th ...: an engine that is away fills no disk
                log.warning("loop failed", loop=loop.name, failures=failures, error=repr(failure), exc_info=failures == 1)
        await _pause(stopping, pause_s(loop.every_ms, failures))


def pause_s(every_ms: int, failures: int) -> float:
    """Doubled with each failure in a row, up to `BACK_OFF_S_MAX`."""
    pause = every_ms / 1000
    return pause if failures == 0 else max(pause, min(BACK_OFF_S_MAX, 0.1 * 2 ** min(failures, 10)))


async def _pause(stopping: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stopping.wait(), seconds)
    except TimeoutError:
        return
