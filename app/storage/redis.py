"""The Redis protocol: clients by role, and Lua scripts declared by their file.

Two roles. `sales` holds stock, holds, orders, draws, envelopes and the room outboxes, and must be durable. `fan-out` holds streams,
pub/sub, presence and chat. They may be one engine. Every call names its role; no script spans both.

A script is one `.lua` file beside its domain. It is sent by its SHA-1 and loaded again by itself when the engine has lost it.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import redis.asyncio as redis_asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as EngineTimeoutError

from app.storage.resp import EngineLine, Part

Argument = Part

CONNECTIONS_MAX = 64  # of one process and role
CONNECTION_WAIT_S = 3  # for one of them, when all are busy: an error still comes before client SDKs give up


class Redis(redis_asyncio.Redis):
    """One engine: redis-py's client for single commands and transactions, and a line of our own for scripts, which are the hot path."""

    line: EngineLine

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await self.line.aclose()
        await super().aclose(close_connection_pool)


class Script:
    """A Lua script. Call it with the client of its role, its keys (all of one hash tag) and its arguments.

    Replies are what the script returns, with bytes for strings; the domain's store parses the words into its own StrEnum.
    """

    def __init__(self, path: Path, *, after: Sequence[Path] = ()) -> None:
        """`after` names files whose texts come first: what the scripts of one domain share, since Lua in the engine cannot import."""
        self.name = path.stem
        self.source = "".join(part.read_text(encoding="utf-8") for part in (*after, path))
        self._sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, client: Redis, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        try:
            return await client.line.call(("EVALSHA", self._sha, len(keys), *keys, *arguments))
        except NoScriptError:
            return await client.line.call(("EVAL", self.source, len(keys), *keys, *arguments))

    async def call_replicated(
        self, client: Redis, keys: Sequence[str], arguments: Sequence[Argument], *, replicas: int, wait_ms: int
    ) -> Any:
        """The same, answered once so many replicas have what it did. `WAIT` goes out behind the script in one write; while it
        waits, what others ask on this line waits too.

        Raises redis-py's TimeoutError when they have not by then: it is done, and a repetition with the same key waits for them again.
        """
        wait = ("WAIT", replicas, wait_ms)
        try:
            reply, reached = await client.line.call_all((("EVALSHA", self._sha, len(keys), *keys, *arguments), wait))
        except NoScriptError:
            reply, reached = await client.line.call_all((("EVAL", self.source, len(keys), *keys, *arguments), wait))
        if reached < replicas:
            raise EngineTimeoutError(f"{reached} of {replicas} replicas had the change after {wait_ms} ms")
        return reply

    async def call_all(self, client: Redis, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]) -> list[Any]:
        """Many calls in one trip, each with keys of one hash tag. Not atomic as a whole; may be done twice, so only for what bears that."""
        commands = [("EVALSHA", self._sha, len(keys), *keys, *arguments) for keys, arguments in calls]
        try:
            return await client.line.call_all(commands)
        except NoScriptError:
            await client.line.call(("SCRIPT", "LOAD", self.source))
            return await client.line.call_all(commands)


def command_client(url: str) -> Redis:
    """For commands that answer at once. Fails within 5 s when the engine is away: a viewer gets an error, never silence."""
    retry = Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 3)  # redis-py waits seconds: client SDKs give up a command after 5
    # The blocking pool: the other one fails the 65th call of a moment at once, and a handful of clients can make that many.
    pool = redis_asyncio.BlockingConnectionPool.from_url(
        url,
        socket_timeout=5,
        socket_connect_timeout=2,
        max_connections=CONNECTIONS_MAX,
        timeout=CONNECTION_WAIT_S,
        health_check_interval=15,
        retry=retry,
    )
    client = cast("Redis", Redis.from_pool(pool))
    client.line = EngineLine(url)
    return client


def blocking_client(url: str) -> redis_asyncio.Redis:
    """For readers that wait (pub/sub): no read timeout, which redis-py sets to 5 s by default."""
    return redis_asyncio.from_url(url, socket_timeout=None, socket_connect_timeout=2, health_check_interval=0)


def epoch_ms(seconds: bytes | int, microseconds: bytes | int) -> int:
    """The engine's `TIME` in milliseconds."""
    return int(seconds) * 1000 + int(microseconds) // 1000


async def engine_now_ms(client: Redis) -> int:
    seconds, microseconds = await client.line.call(("TIME",))
    return epoch_ms(seconds, microseconds)
