"""The Redis protocol: clients by role, and Lua scripts declared by their file.

Two roles, each one engine or a cluster. `sales` holds stock, holds, orders, draws, envelopes and the room outboxes, and must be
durable. `fan-out` holds streams, pub/sub, presence and chat. They may be the same. Every call names its role; no script spans both.

A script is one `.lua` file beside its domain. It is sent by its SHA-1 and loaded again by itself when the engine has lost it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import redis.asyncio as redis_asyncio
from redis.asyncio.client import Pipeline as RedisPipeline
from redis.asyncio.connection import parse_url
from redis.exceptions import ConnectionError as EngineConnectionError
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as EngineTimeoutError

from app.storage.cluster import ClusterLine, is_cluster
from app.storage.gathering import raise_first
from app.storage.resp import EngineLine, Line, Part

Argument = Part


class Redis(redis_asyncio.Redis):
    """redis-py's commands, with its reading of their answers, over our line to one engine or to a cluster.

    Not for commands that wait in the engine, nor for pub/sub: what one asks keeps the others waiting. A pipeline may touch several
    shards; a transaction is of one hash tag, and watches nothing (a script does what that would be for).
    """

    def __init__(self, line: Line) -> None:
        super().__init__(protocol=2)  # of its own connections it opens none
        self.line = line

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        return self.read_answer(args, options, await self.line.call(_words(args)))

    def read_answer(self, args: tuple[Any, ...], options: Mapping[str, Any], answer: Any) -> Any:
        read = self.response_callbacks.get(args[0])
        if read is None:
            return answer
        return cast("Any", read)(answer, **{name: value for name, value in options.items() if name != "keys"})  # for its cache

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "Pipeline":
        return Pipeline(self, is_transaction=transaction)

    async def engines(self) -> "list[tuple[str, Redis]]":
        """Each engine that holds the data, by its place."""
        return [(line.name, self if line is self.line else Redis(line)) for line in await self.line.engines()]

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await self.line.aclose()
        await super().aclose(close_connection_pool)


class Pipeline(RedisPipeline):
    """Commands that leave together."""

    def __init__(self, client: Redis, *, is_transaction: bool) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, is_transaction, None)
        self._client = client

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """The answers in order. `raise_on_error=False`: an exception in the place of one that failed, as when one shard is away."""
        stack, self.command_stack = self.command_stack, []
        commands = [_words(args) for args, _ in stack]
        if not commands:
            return []
        if self.is_transaction:
            *_, answers = await self._client.line.call_together([("MULTI",), *commands, ("EXEC",)], key=_key_of(commands[0]))
        else:
            answers = await self._client.line.call_each(commands)
        if raise_on_error:
            raise_first(answers)
        read = self._client.read_answer
        return [
            answer if isinstance(answer, BaseException) else read(args, options, answer)
            for (args, options), answer in zip(stack, answers, strict=True)
        ]


def _words(args: tuple[Any, ...]) -> tuple[Part, ...]:
    """redis-py names some commands by two words in one."""
    name = args[0]
    return (*name.split(" "), *args[1:]) if isinstance(name, str) and " " in name else args


def _key_of(command: tuple[Part, ...]) -> str:
    key = command[1]
    return key.decode() if isinstance(key, bytes) else str(key)


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
            reply, reached = await client.line.call_together((("EVALSHA", self._sha, len(keys), *keys, *arguments), wait))
        except NoScriptError:
            reply, reached = await client.line.call_together((("EVAL", self.source, len(keys), *keys, *arguments), wait))
        if reached < replicas:
            raise EngineTimeoutError(f"{reached} of {replicas} replicas had the change after {wait_ms} ms")
        return reply

    async def call_all(self, client: Redis, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]) -> list[Any]:
        """Many calls in one trip, each with keys of one hash tag. Not atomic as a whole; may be done twice, so only for what bears that."""
        answers = await client.line.call_each([("EVALSHA", self._sha, len(keys), *keys, *arguments) for keys, arguments in calls])
        unknown = [number for number, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        for number in unknown:  # of each engine that does not know it the first call teaches it
            keys, arguments = calls[number]
            answers[number] = await self(client, keys, arguments)
        return raise_first(answers)


def command_client(url: str) -> Redis:
    """For commands that answer at once. Fails within seconds when the engine is away: a viewer gets an error, never silence.

    `redis+cluster://` and `rediss+cluster://` name some engines of a cluster, with commas between; all else is one engine.
    """
    return Redis(ClusterLine(url) if is_cluster(url) else EngineLine(cast("dict[str, Any]", parse_url(url))))


def blocking_client(options: Mapping[str, Any]) -> redis_asyncio.Redis:
    """For readers that wait (pub/sub): no read timeout, which redis-py sets to 5 s by default."""
    waiting: dict[str, Any] = {**options, "socket_timeout": None, "socket_connect_timeout": 2, "health_check_interval": 0}
    return redis_asyncio.Redis.from_pool(redis_asyncio.ConnectionPool(**waiting))


def epoch_ms(seconds: bytes | int, microseconds: bytes | int) -> int:
    """The engine's `TIME` in milliseconds."""
    return int(seconds) * 1000 + int(microseconds) // 1000


async def engine_now_ms(client: Redis, key: str) -> int:
    """The clock of the engine that holds `key`: whose deadlines are meant."""
    seconds, microseconds = await client.line.call(("TIME",), key)
    return epoch_ms(seconds, microseconds)


async def any_now_ms(client: Redis) -> int:
    """The clock of an engine that answers: of a cluster one shard may be away."""
    first_failure: EngineConnectionError | EngineTimeoutError | None = None
    for line in sorted(await client.line.engines(), key=lambda line: not line.is_open):
        try:
            return epoch_ms(*await line.call(("TIME",)))
        except (EngineConnectionError, EngineTimeoutError) as failure:
            first_failure = first_failure or failure
    raise first_failure or EngineConnectionError("no engine is known")
