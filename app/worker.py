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
from functools import partial
from typing import Any

import structlog
from redis.exceptions import RedisError

from app.composition import build_registry
from app.core.ids import derived_tail
from app.core.metrics import LOOP_FAILURES, LOOP_RUNS
from app.core.runtime import Runtime
from app.core.settings import Settings
from app.domains.analytics.service import push_figures, refresh_reports, sample_figures
from app.domains.analytics.store import SHOW_IS_LIVE
from app.domains.catalogue.store import STEP_IS_DUE
from app.domains.chat.service import archive_chat, prune_keys
from app.domains.envelopes.service import end_due_envelopes
from app.domains.envelopes.store import ENVELOPE_IS_DUE
from app.domains.integrations.service import deliver_webhooks, expire_webhook_deliveries
from app.domains.integrations.store import DELIVERY_IS_DUE
from app.domains.inventory.renewal import recall_rooms, renew_rooms
from app.domains.inventory.service import expire_sales, forget_hold_notes
from app.domains.lottery.service import close_due_draws
from app.domains.lottery.store import DRAW_IS_DUE
from app.domains.orders.aftersales import deliver_after_days
from app.domains.orders.disputes import settle_owed_disputes
from app.domains.orders.payments import call_providers, forget_provider_records
from app.domains.orders.reconciliation import reconcile_next
from app.domains.orders.returns import run_due_returns
from app.domains.orders.sandbox import settle_sandbox_payments
from app.domains.orders.store import CALL_IS_DUE, CHARGE_IS_DUE
from app.domains.rooms.service import pulse_rooms, take_price_steps
from app.domains.rooms.store import SHOW_IS_ON_AIR
from app.rest.idempotency import expire_idempotency_records
from app.storage.announcements import ANNOUNCEMENT_WAITS, announce_room
from app.storage.due import Condition, Watch
from app.storage.durability import watch_durability
from app.storage.gathering import gather_each, raise_first
from app.storage.intake import find_waiting, list_rooms, take_in_room
from app.storage.redis import engine_now_ms
from app.storage.work import Engines, rooms_to_announce

BACK_OFF_S_MAX = 2.0  # when an engine is back, sales must not wait for the end of a long pause: they are frozen until a pass renews them
PASS_S_MAX = 60.0  # an engine that never answers ends a pass; the next one starts afresh
STOP_S_MAX = 10.0
INTAKE_ROUNDS_MAX = 20  # in one pass: then it is looked again which rooms are ours
LOOK_MS = 250  # between two looks at what is due in SQL
WORKERS_KEY = "jishi:workers"  # sorted set: who takes in, until when that is sure (ms by the engine's clock)

log = structlog.get_logger()


def lease_key(room_id: str) -> str:
    return f"{{{room_id}}}:lease"


@dataclass(frozen=True, slots=True)
class Loop:
    """`run(engines)` is one pass; the next begins `every_ms` after the end of this one, or later: once `due` holds."""

    name: str
    run: Callable[[Engines], Awaitable[Any]]
    every_ms: int
    due: Condition | None = None


@dataclass(slots=True)
class RoomLeases:
    """Which rooms this worker takes in. Leases only spare several workers the same reads: two on one room are slower, never wrong.

    Workers know of each other by `WORKERS_KEY`, and a room belongs to the one whose hash with it is highest, so they share the rooms
    evenly, and one that comes or goes moves no more than its part. What is known is kept in memory for a quarter of `room_lease_s`, so a
    pass costs no command; a worker is taken for dead after two such quarters, and its leases end after three: within `room_lease_s`
    another has its rooms.
    """

    owner: str
    held: dict[str, float] = field(default_factory=dict[str, float])  # room -> when to look again, ours
    foreign: dict[str, float] = field(default_factory=dict[str, float])  # room -> when to look again, another's
    workers: list[str] = field(default_factory=list[str])
    workers_until: float = 0.0  # when to look again who is there

    async def ours(self, engines: Engines, rooms: list[str]) -> list[str]:
        now, quarter_ms = asyncio.get_running_loop().time(), engines.settings.room_lease_s * 250
        if self.workers_until <= now:
            try:
                await self._meet(engines, quarter_ms * 2)
            except RedisError:
                if not self.workers:
                    raise
                log.warning("workers not asked for")  # the shard that knows them is away: the rooms of the others go on as they were
            self.workers_until = now + quarter_ms / 1000
            listed = set(rooms)
            for known in (self.held, self.foreign):
                for room in known.keys() - listed:
                    del known[room]
        unsure = [room for room in rooms if max(self.held.get(room, 0.0), self.foreign.get(room, 0.0)) <= now]
        if unsure:
            for room in await self._ask(engines, unsure, quarter_ms * 3):
                (self.held if room in self.held else self.foreign)[room] = now + quarter_ms / 1000
        return [room for room in rooms if room in self.held]

    async def _meet(self, engines: Engines, ttl_ms: int) -> None:
        """Says that this worker is there, and hears who else is."""
        now_ms = await engine_now_ms(engines.sales, WORKERS_KEY)
        async with engines.sales.pipeline(transaction=True) as pipe:
            pipe.zadd(WORKERS_KEY, {self.owner: now_ms + ttl_ms})
            pipe.zremrangebyscore(WORKERS_KEY, "-inf", now_ms)
            pipe.zrange(WORKERS_KEY, 0, -1)
            *_, members = await pipe.execute()
        self.workers = [member.decode() for member in members]

    async def _ask(self, engines: Engines, rooms: list[str], ttl_ms: int) -> list[str]:
        """Takes or renews the leases of rooms that are this worker's, and gives up those that are no longer. Returns those that are sure
        now: what the engine of a room does not answer leaves the room as it was."""
        mine = [room for room in rooms if self._is_mine(room)]
        await self._let_go(engines, [room for room in rooms if room in self.held and room not in mine])
        async with engines.sales.pipeline(transaction=False) as pipe:
            for room in mine:
                pipe.set(lease_key(room), self.owner, nx=True, px=ttl_ms)
                pipe.get(lease_key(room))
            owners = dict(zip(mine, (await pipe.execute(raise_on_error=False))[1::2], strict=True))
        unknown = [room for room, owner in owners.items() if isinstance(owner, Exception)]
        if mine and len(unknown) == len(mine):
            raise_first(list(owners.values()))
        owned = [room for room, owner in owners.items() if owner == self.owner.encode()]
        async with engines.sales.pipeline(transaction=False) as pipe:
            for room in owned:
                pipe.pexpire(lease_key(room), ttl_ms)
            await pipe.execute(raise_on_error=False)  # a lease that ran out meanwhile is taken anew
        sure = [room for room in rooms if room not in unknown]
        for room in sure:
            self.held.pop(room, None)
            self.foreign.pop(room, None)
        self.held.update(dict.fromkeys(owned, 0.0))
        return sure

    def _is_mine(self, room: str) -> bool:
        return max(self.workers, key=lambda worker: derived_tail(worker, room), default=self.owner) == self.owner

    async def _let_go(self, engines: Engines, rooms: list[str]) -> None:
        """What is not given up runs out."""

        async def one(room: str) -> None:
            if await engines.sales.get(lease_key(room)) == self.owner.encode():
                await engines.sales.delete(lease_key(room))

        await gather_each(rooms, one)

    async def release(self, engines: Engines) -> None:
        """On a clean stop, so that others go on at once."""
        await engines.sales.zrem(WORKERS_KEY, self.owner)
        await self._let_go(engines, list(self.held))
        self.held.clear()


async def announce(engines: Engines) -> None:
    """Publishes what a crash left between commit and publication."""
    raise_first(await gather_each(await rooms_to_announce(engines), partial(announce_room, engines)))


async def take_in(engines: Engines, leases: RoomLeases) -> None:
    """One pass over the rooms of this worker that have entries: a batch of each, whoever has waited longest first, then the next round.
    So a flooded room costs the others the time of one batch."""
    rooms = await leases.ours(engines, await list_rooms(engines))
    for _ in range(INTAKE_ROUNDS_MAX):
        rooms = await find_waiting(engines, rooms)
        results = await gather_each(rooms, partial(take_in_room, engines))
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures and len(failures) == len(results):
            raise failures[0]
        for failure in failures:  # one room's trouble must not make the others wait for the loop's back-off
            log.warning("a room was not taken in", error=repr(failure))
        rooms = [room for room, taken in zip(rooms, results, strict=True) if taken == engines.settings.intake_batch_max]
        if not rooms:
            return


# Other domains add their lines here: what falls due, what is projected, what is cleaned up.
LOOPS: tuple[Loop, ...] = (
    Loop("announce", announce, 1000, ANNOUNCEMENT_WAITS),
    Loop("pulse", pulse_rooms, 1000, SHOW_IS_ON_AIR),
    Loop("expire_sales", expire_sales, 250),
    Loop("take_price_steps", take_price_steps, 250, STEP_IS_DUE),
    Loop("call_providers", call_providers, 250, CALL_IS_DUE),
    Loop("renew_rooms", renew_rooms, 100),
    Loop("recall_rooms", recall_rooms, 2000),
    Loop("settle_sandbox_payments", settle_sandbox_payments, 250, CHARGE_IS_DUE),
    Loop("run_due_returns", run_due_returns, 10_000),
    Loop("deliver_after_days", deliver_after_days, 60_000),
    Loop("settle_owed_disputes", settle_owed_disputes, 30_000),
    Loop("close_due_draws", close_due_draws, 250, DRAW_IS_DUE),
    Loop("end_due_envelopes", end_due_envelopes, 500, ENVELOPE_IS_DUE),
    Loop("archive_chat", archive_chat, 500),
    Loop("push_figures", push_figures, 2000, SHOW_IS_LIVE),
    Loop("sample_figures", sample_figures, 3000, SHOW_IS_LIVE),
    Loop("refresh_reports", refresh_reports, 3000),
    Loop("prune_chat_keys", prune_keys, 600_000),
    Loop("deliver_webhooks", deliver_webhooks, 1000, DELIVERY_IS_DUE),
    Loop("expire_webhook_deliveries", expire_webhook_deliveries, 600_000),
    Loop("forget_provider_records", forget_provider_records, 60_000),
    Loop("forget_hold_notes", forget_hold_notes, 60_000),
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

    async def reconcile(engines: Engines) -> None:
        await reconcile_next(engines, sorted(leases.held))

    conditions = {loop.name: loop.due for loop in loops if loop.due is not None}
    wakes, watch = {name: asyncio.Event() for name in conditions}, Watch(conditions)

    async def look(engines: Engines) -> None:
        for name in await watch.find_due(engines) if conditions else ():
            wakes[name].set()

    shared = (Loop("intake", intake, 50), Loop("reconcile", reconcile, 2000), Loop("look", look, LOOK_MS))
    tasks = [asyncio.create_task(_run_loop(engines, loop, stopping, wakes.get(loop.name)), name=loop.name) for loop in (*loops, *shared)]
    log.info("worker started", loops=[task.get_name() for task in tasks])
    await stopping.wait()
    for wake in wakes.values():
        wake.set()
    _, late = await asyncio.wait(tasks, timeout=STOP_S_MAX)
    for task in late:
        log.warning("loop cut off", loop=task.get_name())
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await leases.release(engines)
    log.info("worker stopped")


async def _run_loop(engines: Engines, loop: Loop, stopping: asyncio.Event, wake: asyncio.Event | None) -> None:
    failures = 0
    while True:
        if wake:
            await wake.wait()
            wake.clear()  # before the pass: what comes due while it runs must not be missed
        if stopping.is_set():
            return
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
