"""Between nodes: one subscription a room, one for each bucket of viewers, one for control messages.

A reader of its own, on a connection without a read timeout. When the connection is lost it comes back by itself, subscribes to all again,
and tells the hub, which looks into the histories for what was said meanwhile and at who may still be there: pub/sub remembers nothing.
A line that has gone deaf is noticed too: after `bus_silence_s` without a word the engine is asked for a sign of life, and has as long
again to give one.
Sharded pub/sub (`SSUBSCRIBE`), so that in a cluster a room's messages stay on the room's shard.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from app.core.errors import AppError
from app.protocol.codes import SERVICE_UNAVAILABLE
from app.storage.streams import CONTROL_CHANNEL

OPEN_TIMEOUT_S = 3.0  # under the 5 s in which a subscribe must be answered
PAUSE_S_MAX = 2.0

log = structlog.get_logger()


class Bus:
    """`on_push(message)` and `on_control(message)` are called for every message, in order, and must not block."""

    def __init__(
        self,
        client: Redis,
        *,
        silence_s: float,
        on_push: Callable[[bytes], None],
        on_control: Callable[[bytes], None],
        on_return: Callable[[], None],
    ) -> None:
        client.set_retry(Retry(NoBackoff(), 0))  # a silent reconnect would hide the gap
        self._client = client
        self._silence_s = silence_s
        self._on_push = on_push
        self._on_control = on_control
        self._on_return = on_return
        self._pubsub: PubSub | None = None
        self._wanted: dict[str, asyncio.Future[None]] = {}  # channel -> done when the engine has confirmed it
        self._sending = asyncio.Lock()
        self._lives = 0
        self._now = asyncio.get_running_loop().time
        self._lost_at: float | None = self._now()  # None: the engine is heard

    @property
    def is_connected(self) -> bool:
        """The engine is heard; up to twice `bus_silence_s` after it fell silent this is not known to be over."""
        return self._lost_at is None

    @property
    def lost_s(self) -> float:
        """For how long the engine has not been heard."""
        return 0.0 if self._lost_at is None else self._now() - self._lost_at

    def is_open(self, channel: str) -> bool:
        """The engine sends us this channel, as far as we know."""
        ready = self._wanted.get(channel)
        return ready is not None and ready.done()

    async def open(self, channel: str) -> None:
        """Returns once the engine sends us this channel: what is published from now on arrives. Raises AppError when it is away."""
        ready = self._wanted.get(channel)
        if ready is None:
            ready = self._wanted[channel] = asyncio.get_running_loop().create_future()
            await self._send("ssubscribe", channel)
        if ready.done():
            return  # as nearly always: no timer for it
        if self.lost_s > OPEN_TIMEOUT_S:  # who comes while the engine is long away is told at once, and not held for seconds
            raise _away()
        try:
            await asyncio.wait_for(asyncio.shield(ready), OPEN_TIMEOUT_S)
        except TimeoutError:
            raise _away() from None

    async def shut(self, channel: str) -> None:
        if self._wanted.pop(channel, None) is not None:
            await self._send("sunsubscribe", channel)

    async def _send(self, verb: str, channel: str) -> None:
        """When the connection is down or fails now, the reader finds out and subscribes to all that is wanted."""
        async with self._sending:  # a channel that is shut and opened again must end open
            if self._pubsub is None:
                return
            try:
                await getattr(self._pubsub, verb)(channel)
            except (RedisError, OSError) as failure:
                log.debug("bus cannot send", verb=verb, error=type(failure).__name__)

    async def run(self) -> None:
        """The reader. Runs until it is cancelled."""
        failures = 0
        while True:
            pubsub = self._client.pubsub()
            try:
                await self._read(pubsub)
            except (RedisError, OSError, asyncio.IncompleteReadError) as failure:
                failures = 0 if self.is_connected else failures + 1
                log.warning("bus lost the engine", error=type(failure).__name__)
            finally:
                self._pubsub = None
                self._lost_at = self._now() if self._lost_at is None else self._lost_at
                self._forget_confirmations()
                await pubsub.aclose()
            await asyncio.sleep(min(PAUSE_S_MAX, 0.05 * 2 ** min(failures, 6)) * random.uniform(0.5, 1.0))  # noqa: S311 - spreads nodes, no secret

    def _forget_confirmations(self) -> None:
        for channel, ready in self._wanted.items():
            if ready.done():
                self._wanted[channel] = asyncio.get_running_loop().create_future()

    async def _read(self, pubsub: PubSub) -> None:
        async with asyncio.timeout(OPEN_TIMEOUT_S):  # a deaf engine takes connections too; the reader itself waits without a limit
            await pubsub.subscribe(CONTROL_CHANNEL)
        self._pubsub = pubsub  # from here on `open` sends for itself
        if self._wanted:
            await pubsub.ssubscribe(*self._wanted)
        unconfirmed = set(self._wanted)
        is_back = self._lives > 0
        self._lives += 1
        asked = False
        while True:
            message: dict[str, Any] | None = await pubsub.get_message(timeout=self._silence_s)
            if message is None:
                if asked:
                    raise RedisConnectionError("the engine gives no sign of life")
                asked = True
                async with asyncio.timeout(self._silence_s):
                    await pubsub.ping()
                continue
            asked = False
            self._lost_at = None
            try:
                self._take(message, unconfirmed)
            except Exception:  # one message that nobody can take must not make the node deaf for all rooms
                log.exception("message not taken", channel=message.get("channel"))
            if is_back and not unconfirmed:
                is_back = False
                self._on_return()

    def _take(self, message: dict[str, Any], unconfirmed: set[str]) -> None:
        match message["type"]:
            case "smessage":
                self._on_push(message["data"])
            case "message":
                self._on_control(message["data"])
            case "ssubscribe":
                channel = message["channel"].decode()
                unconfirmed.discard(channel)
                ready = self._wanted.get(channel)
                if ready is not None and not ready.done():
                    ready.set_result(None)
            case "sunsubscribe":
                unconfirmed.discard(message["channel"].decode())
            case _:
                pass


def _away() -> AppError:
    return AppError(SERVICE_UNAVAILABLE, "the engine does not answer; try again", retry_after_ms=1000)
