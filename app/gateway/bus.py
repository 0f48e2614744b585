"""Between nodes: one subscription a room, one for each bucket of viewers, one for control messages.

All are sharded pub/sub (`SSUBSCRIBE`), so that in a cluster a room's messages stay on the room's shard. At each engine that holds something
of what is wanted the bus has one ear: a reader on a connection of its own, without a read timeout. An ear lives as long as its connection.
What a lost one heard is looked for again, at the same engine or at the one that has taken its place; then the hub is told, which looks into
the histories for what was said meanwhile and at who may still be there: pub/sub remembers nothing.
An ear that has gone deaf is noticed too: after `bus_silence_s` without a word its engine is asked for a sign of life, and has as long
again to give one.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import structlog
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from app.core.errors import AppError
from app.protocol.codes import SERVICE_UNAVAILABLE
from app.storage.redis import blocking_client
from app.storage.resp import EngineLine, Line
from app.storage.streams import CONTROL_CHANNEL

OPEN_TIMEOUT_S = 3.0  # under the 5 s in which a subscribe must be answered
PAUSE_S_MAX = 2.0

log = structlog.get_logger()


class Bus:
    """`on_push(message)` and `on_control(message)` are called for every message, in order of its channel, and must not block."""

    def __init__(
        self,
        line: Line,
        *,
        silence_s: float,
        on_push: Callable[[bytes], None],
        on_control: Callable[[bytes], None],
        on_return: Callable[[], None],
    ) -> None:
        self.silence_s = silence_s
        self.on_push = on_push
        self.on_control = on_control
        self.on_return = on_return
        self.now = asyncio.get_running_loop().time
        self._line = line
        self._wanted: dict[str, asyncio.Future[None]] = {}  # channel -> done when an engine has confirmed it
        self._placed: dict[str, Ear] = {}  # channel -> who listens to it, or tries to
        self._ears: dict[str, Ear] = {}  # by the engine's place
        self._homeless: dict[str, float] = {}  # channel -> since when nobody listens to it
        self._are_homeless = asyncio.Event()  # and it is time to try again
        self._resting: dict[str, tuple[float, float]] = {}  # engine's place -> since when it is away, when to try again
        self._failures = 0  # in a row, of ears that never heard anything
        self._tasks: set[asyncio.Task[None]] = set()
        self._want(CONTROL_CHANNEL)
        self._lose(CONTROL_CHANNEL, self.now())

    @property
    def is_connected(self) -> bool:
        """An engine is heard; up to twice `bus_silence_s` after it fell silent this is not known to be over."""
        return any(ear.lost_since is None for ear in self._ears.values())

    @property
    def lost_s(self) -> float:
        """For how long nothing at all has been heard."""
        since = self._lost_since()
        return 0.0 if self.is_connected or not since else self.now() - max(since)

    @property
    def lost_longest_s(self) -> float:
        """For how long the engine that is lost the longest has not been heard."""
        since = self._lost_since()
        return self.now() - min(since) if since else 0.0

    def _lost_since(self) -> list[float]:
        return [*self._homeless.values(), *(ear.lost_since for ear in self._ears.values() if ear.lost_since is not None)]

    def lost_s_of(self, channel: str) -> float:
        """For how long the engine of a channel that is wanted has not been heard."""
        ear = self._placed.get(channel)
        since = self._homeless.get(channel) if ear is None else ear.lost_since
        return 0.0 if since is None else self.now() - since

    def is_open(self, channel: str) -> bool:
        """An engine sends us this channel, as far as we know."""
        ready = self._wanted.get(channel)
        return ready is not None and ready.done()

    async def open(self, channel: str) -> None:
        """Returns once an engine sends us this channel: what is published from now on arrives. Raises AppError when it is away."""
        ready = self._wanted.get(channel)
        if ready is None:
            ready = self._want(channel)
            await self._place(channel, None)
        if ready.done():
            return  # as nearly always: no timer for it
        if self.lost_s_of(channel) > OPEN_TIMEOUT_S:
            raise _away()  # who comes while the engine is long away is told at once, and not held for seconds
        try:
            await asyncio.wait_for(asyncio.shield(ready), OPEN_TIMEOUT_S)
        except TimeoutError:
            raise _away() from None

    async def shut(self, channel: str) -> None:
        self._homeless.pop(channel, None)
        ear = self._placed.pop(channel, None)
        if self._wanted.pop(channel, None) is not None and ear is not None:
            await ear.drop(channel)

    async def run(self) -> None:
        """Runs until it is cancelled, and takes the ears with it."""
        try:
            while True:
                await self._are_homeless.wait()
                self._are_homeless.clear()
                for channel, since in list(self._homeless.items()):
                    await self._place(channel, since)
                if self._are_homeless.is_set():  # no engine was found
                    await asyncio.sleep(self._pause_s())
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- who listens to what ----------------------------------------------------------------------------------------------------------

    def _want(self, channel: str) -> "asyncio.Future[None]":
        ready = self._wanted[channel] = asyncio.get_running_loop().create_future()
        return ready

    def _lose(self, channel: str, since: float) -> None:
        self._homeless[channel] = since
        self._are_homeless.set()

    async def _place(self, channel: str, lost_since: float | None) -> None:
        """With the ear at the engine that holds the channel. `lost_since`: somebody listened to it before."""
        try:
            engine = await self._line.engine_of(channel)
        except (RedisError, OSError) as failure:
            log.debug("bus knows no engine", channel=channel, error=type(failure).__name__)
            self._failures += 1
            if channel in self._wanted:
                self._lose(channel, self.now() if lost_since is None else lost_since)
            return
        if channel not in self._wanted or channel in self._placed:
            return  # shut meanwhile, or placed by another way
        ear = self._ears.get(engine.name)
        if ear is None:
            away_since, rests_until = self._resting.get(engine.name, (self.now(), 0.0))
            if self.now() < rests_until:
                self._homeless[channel] = away_since if lost_since is None else lost_since
                return  # tried again with the others
            ear = self._ears[engine.name] = Ear(self, engine, away_since)
            task = asyncio.create_task(ear.run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._homeless.pop(channel, None)
        self._placed[channel] = ear
        await ear.take(channel, lost_since)

    def _pause_s(self) -> float:
        seconds = min(PAUSE_S_MAX, 0.05 * 2 ** min(self._failures, 6))
        return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - spreads nodes, no secret

    # --- from the ears ----------------------------------------------------------------------------------------------------------------

    def on_confirmed(self, channel: str) -> None:
        ready = self._wanted.get(channel)
        if ready is not None and not ready.done():
            ready.set_result(None)

    async def on_end(self, ear: "Ear") -> None:
        """Its connection is lost, or it has nothing left to listen to."""
        self._ears.pop(ear.name)
        since = self.now() if ear.lost_since is None else ear.lost_since
        self._failures = 0 if ear.lost_since is None else self._failures + 1
        lost = [channel for channel, owner in self._placed.items() if owner is ear]
        for channel in lost:
            del self._placed[channel]
            self._homeless[channel] = since
            if self._wanted[channel].done():
                self._want(channel)
        if not lost:
            return
        pause_s = self._pause_s()
        self._resting[ear.name] = (since, self.now() + pause_s)
        await asyncio.sleep(pause_s)
        self._resting.pop(ear.name, None)
        try:
            await self._line.look()
        except (RedisError, OSError) as failure:  # nobody answers: what was known is tried again
            log.debug("bus finds no engine", error=type(failure).__name__)
        self._are_homeless.set()


class Ear:
    """One connection to one engine. Runs until it is lost or nothing is wanted of it any more."""

    def __init__(self, bus: Bus, engine: EngineLine, lost_since: float) -> None:
        self.name = engine.name
        self.lost_since: float | None = lost_since  # None: the engine is heard
        self._bus = bus
        self._engine = engine
        self._channels: set[str] = set()
        self._missed: set[str] = set()  # taken over from a lost ear, and not confirmed yet
        self._leaving: set[str] = set()
        self._pubsub: PubSub | None = None
        self._sending = asyncio.Lock()

    async def take(self, channel: str, lost_since: float | None) -> None:
        self._channels.add(channel)
        if lost_since is not None:
            self._missed.add(channel)
            if self.lost_since is not None:
                self.lost_since = min(self.lost_since, lost_since)
        await self._send("ssubscribe", channel)

    async def drop(self, channel: str) -> None:
        self._channels.discard(channel)
        self._leaving.add(channel)
        self._settle(channel)
        await self._send("sunsubscribe", channel)

    async def _send(self, verb: str, channel: str) -> None:
        """When the connection is not up, or fails now, the reader subscribes to all that is wanted, or finds out."""
        async with self._sending:  # a channel that is shut and opened again must end open
            if self._pubsub is None:
                return
            try:
                await getattr(self._pubsub, verb)(channel)
            except (RedisError, OSError) as failure:
                log.debug("bus cannot send", verb=verb, error=type(failure).__name__)

    async def run(self) -> None:
        client = blocking_client(self._engine.options)
        client.set_retry(Retry(NoBackoff(), 0))  # a silent reconnect would hide the gap
        pubsub = client.pubsub()
        try:
            await self._read(pubsub)
        except (RedisError, OSError, asyncio.IncompleteReadError) as failure:
            log.warning("bus lost the engine", engine=self.name, error=type(failure).__name__)
        finally:
            self._pubsub = None
            await pubsub.aclose()
            await client.aclose()
        await self._bus.on_end(self)

    async def _read(self, pubsub: PubSub) -> None:
        async with asyncio.timeout(OPEN_TIMEOUT_S):  # a deaf engine takes connections too; the reader itself waits without a limit
            await pubsub.connect()
        self._pubsub = pubsub  # from here on `take` sends for itself
        for channel in list(self._channels):  # one by one: a cluster takes those of one slot together, no others
            await self._send("ssubscribe", channel)
        asked = False
        while self._channels:
            message: dict[str, Any] | None = await pubsub.get_message(timeout=self._bus.silence_s)
            if message is None:
                if asked:
                    raise RedisConnectionError("the engine gives no sign of life")
                asked = True
                async with asyncio.timeout(self._bus.silence_s):
                    await pubsub.ping()
                continue
            asked = False
            self.lost_since = None
            try:
                self._take_message(message)
            except RedisConnectionError:
                raise
            except Exception:  # one message that nobody can take must not make the node deaf for all rooms
                log.exception("message not taken", channel=message.get("channel"))

    def _take_message(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "smessage":
                is_control = message["channel"] == _CONTROL
                (self._bus.on_control if is_control else self._bus.on_push)(message["data"])
            case "ssubscribe":
                channel = message["channel"].decode()
                self._bus.on_confirmed(channel)
                self._settle(channel)
            case "sunsubscribe":
                channel = message["channel"].decode()
                if channel in self._channels and channel not in self._leaving:
                    raise RedisConnectionError("a channel's slot has moved to another engine")
                self._leaving.discard(channel)
            case _:
                pass

    def _settle(self, channel: str) -> None:
        """When the last that was missed is heard again, the hub may look for what was said meanwhile."""
        if channel in self._missed:
            self._missed.discard(channel)
            if not self._missed:
                self._bus.on_return()


_CONTROL = CONTROL_CHANNEL.encode()


def _away() -> AppError:
    return AppError(SERVICE_UNAVAILABLE, "the engine does not answer; try again", retry_after_ms=1000)
