"""The hot path's line to an engine: one socket, on which all tasks of the process ask at once, and the answers come back in order.

redis-py takes a connection from a pool for each command, under a lock and three time limits, and gives it back: of the CPU of a chat
message, a join or a hold that was a fifth. A script, or a plain read, needs none of it. Here a call is one `write` of bytes and one
future, and what several tasks ask in one turn of the loop leaves in one system call. Measured in turns, CPU of the client a call:

    one after the other      redis-py 121 µs    this 45 µs (of which the system calls are most)
    64 tasks side by side    redis-py  60 µs    this  6 µs

Not for pub/sub or commands that wait in the engine: those are redis-py's. Packing and parsing are hiredis's, in C. A transaction goes in
one piece (`call_together`), so that nothing of others comes between.

What it keeps of redis-py's client: the address (with password, database, TLS options), the exceptions, and the three retries of a call
whose connection broke or fell silent. Such a call may have been done: scripts are written so that a repetition does no harm.

Invariants
- Each request gets one reply or one exception, in the order of the requests; a caller that went away leaves its place in the line.
- An engine that answers nothing for `ANSWER_S_MAX` loses the connection, and all that wait for it hear so.
"""

import asyncio
import socket
import ssl
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import hiredis
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as EngineConnectionError
from redis.exceptions import TimeoutError as EngineTimeoutError

from app.storage.gathering import raise_first

ANSWER_S_MAX = 5.0
CONNECT_S_MAX = 2.0
RETRIES_MAX = 3
WAITING_MAX = 50_000  # requests without an answer; more is an engine that cannot follow

_pauses = ExponentialWithJitterBackoff(base=0.05, cap=0.5)  # seconds before the next attempt to open it

Part = str | bytes | int | float
Command = Sequence[Part]


class EngineDemotedError(EngineConnectionError):
    """The engine has become a replica and did nothing: whoever stands at its address now is to be asked, over a new connection."""


_ERRORS: dict[str, type[Exception]] = {
    "NOSCRIPT": NoScriptError,
    "LOADING": BusyLoadingError,  # a ConnectionError: asked again
    "READONLY": EngineDemotedError,
    "OOM": OutOfMemoryError,
}
_REDIRECTIONS: dict[str, type[Exception]] = {  # of a cluster; their texts are read without the first word
    "MOVED": MovedError,
    "ASK": AskError,
    "TRYAGAIN": TryAgainError,
    "CLUSTERDOWN": ClusterDownError,
}

_pack = cast("Callable[[tuple[Part, ...]], bytes]", hiredis.pack_command)  # its stub knows tuples of one part alone


def _error_of(message: str) -> Exception:
    word, _, rest = message.partition(" ")
    if word in _REDIRECTIONS:
        return _REDIRECTIONS[word](rest)
    return _ERRORS.get(word, ResponseError)(message)


class _Socket(asyncio.Protocol):
    """One connection, from its opening to its loss."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()  # with the time it was asked
        self._reader = hiredis.Reader(protocolError=EngineConnectionError, replyError=_error_of)
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._gone = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, packed: bytes) -> "asyncio.Future[Any]":
        answer: asyncio.Future[Any] = self._loop.create_future()
        if self._transport is None or self._transport.is_closing():  # lost since it was opened, or since the caller looked
            answer.set_exception(EngineConnectionError("the connection to the engine was lost"))
            return answer
        self._waiting.append((answer, self._loop.time()))
        self._transport.write(packed)
        if self._watch is None:
            self._watch = self._loop.call_later(ANSWER_S_MAX, self._look)
        return answer

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            await self._gone.wait()

    # --- from the loop ----------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        plain = transport.get_extra_info("socket")
        if plain is not None and plain.family != socket.AF_UNIX:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not False:
                answer, _ = waiting.popleft()
                if answer.done():
                    continue  # the caller went away
                if isinstance(reply, Exception):
                    answer.set_exception(reply)
                    if isinstance(reply, EngineDemotedError) and self._transport is not None:
                        self._transport.abort()
                else:
                    answer.set_result(reply)
        except (EngineConnectionError, IndexError):  # bytes that are no answers, or an answer that nobody asked for
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._fail_all(EngineConnectionError, f"the connection to the engine was lost: {exc or 'closed'}")
        self._gone.set()

    def _look(self) -> None:
        """The oldest request decides; whoever was asked later is looked at when its time comes."""
        self._watch = None
        if not self._waiting:
            return
        left_s = self._waiting[0][1] + ANSWER_S_MAX - self._loop.time()
        if left_s > 0:
            self._watch = self._loop.call_later(left_s, self._look)
            return
        self._fail_all(EngineTimeoutError, f"no answer from the engine in {ANSWER_S_MAX:g} s")
        if self._transport is not None:
            self._transport.abort()

    def _fail_all(self, kind: type[Exception], text: str) -> None:
        """One exception a caller: they are raised in different tasks, and a traceback must not be shared."""
        waiting, self._waiting = self._waiting, deque()
        for answer, _ in waiting:
            if not answer.done():
                answer.set_exception(kind(text))


class Line(ABC):
    """What scripts and commands are asked over: one engine, or the shards of a cluster (cluster.py). All raise redis-py's exceptions."""

    @abstractmethod
    async def call(self, command: Command, key: str = "") -> Any:
        """The answer. `key`: whose engine is meant, for a command that names no key."""

    @abstractmethod
    async def call_each(self, commands: Sequence[Command]) -> list[Any]:
        """The answers, in order, of commands that leave together; an exception in the place of one that failed. Each may be done twice."""

    @abstractmethod
    async def call_together(self, commands: Sequence[Command], key: str = "") -> list[Any]:
        """The answers of commands that go to one engine one behind the other with nothing between; asked again as a whole."""

    @abstractmethod
    async def engines(self) -> "list[EngineLine]":
        """The engines that hold the data."""

    @abstractmethod
    async def engine_of(self, key: str) -> "EngineLine":
        """The one that holds a key, as far as is known. Raises EngineConnectionError when that cannot be found out."""

    @abstractmethod
    async def look(self) -> None:
        """Finds out anew which engine holds what. Raises EngineConnectionError when nobody answers."""

    @abstractmethod
    async def aclose(self) -> None: ...

    async def call_all(self, commands: Sequence[Command]) -> list[Any]:
        """As `call_each`; raises the first failure."""
        return raise_first(await self.call_each(commands))


def is_passing(answer: object) -> bool:
    """The connection broke or fell silent: asking again may help."""
    return isinstance(answer, EngineConnectionError | EngineTimeoutError)


class EngineLine(Line):
    """The process's line to one engine. Opens its connection with the first call, and again after a loss."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """`options` as redis-py's `parse_url` makes them."""
        self.options = options
        self._socket: _Socket | None = None
        self._opening: asyncio.Task[_Socket] | None = None
        self._failures = 0  # to open it, in a row

    @property
    def name(self) -> str:
        """Where it leads, for messages: without the password."""
        return self.options.get("path") or f"{self.options.get('host', 'localhost')}:{self.options.get('port', 6379)}"

    @property
    def is_open(self) -> bool:
        return self._socket is not None and self._socket.is_open

    async def call(self, command: Command, key: str = "") -> Any:
        line = self._socket
        if line is not None and line.is_open and line.waiting < WAITING_MAX:
            with suppress(EngineConnectionError, EngineTimeoutError):  # asked again below
                return await line.ask(_pack(tuple(command)))
        return (await self.call_all((command,)))[0]

    async def call_each(self, commands: Sequence[Command]) -> list[Any]:
        answers = await self.attempt(commands)
        for _ in range(RETRIES_MAX):
            if not any(map(is_passing, answers)):
                break
            answers = await self.attempt(commands)
        return answers

    async def call_together(self, commands: Sequence[Command], key: str = "") -> list[Any]:
        return await self.call_all(commands)

    async def attempt(self, commands: Sequence[Command]) -> list[Any]:
        """`call_each` without asking again."""
        line = self._socket
        if line is None or not line.is_open:
            try:
                line = await self._open()
            except RedisError as failure:
                return [failure] * len(commands)
        if line.waiting + len(commands) > WAITING_MAX:
            return [ResponseError(f"more than {WAITING_MAX} requests wait for the engine")] * len(commands)
        answers = [line.ask(_pack(tuple(command))) for command in commands]
        if len(answers) == 1:
            try:
                return [await answers[0]]
            except RedisError as failure:
                return [failure]
        return await asyncio.gather(*answers, return_exceptions=True)

    async def engines(self) -> "list[EngineLine]":
        return [self]

    async def engine_of(self, key: str) -> "EngineLine":
        return self

    async def look(self) -> None:
        """There is only this one."""

    async def aclose(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        line, self._socket = self._socket, None
        if line is not None:
            await line.close()

    # --- opening ----------------------------------------------------------------------------------------------------------------------

    async def _open(self) -> _Socket:
        """All who find it closed wait for the same opening; each gets an exception of its own."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._connect())
        opening = self._opening
        try:
            return await asyncio.shield(opening)
        except ResponseError as refusal:  # a wrong password, say
            raise type(refusal)(str(refusal)) from refusal
        except (OSError, TimeoutError, EngineConnectionError) as failure:
            raise EngineConnectionError(f"the engine is out of reach: {type(failure).__name__}") from failure
        finally:
            if opening.done() and self._opening is opening:
                self._opening = None

    async def _connect(self) -> _Socket:
        """Pauses first when the last attempts failed: all callers together, not each for itself."""
        if self._failures:
            await asyncio.sleep(_pauses.compute(self._failures))
        self._failures += 1
        async with asyncio.timeout(CONNECT_S_MAX):
            line = await self._dial()
            try:
                for command in self._greetings():
                    await line.ask(_pack(command))
            except BaseException:  # also a cancelled opening must leave no socket behind
                await line.close()
                raise
        self._failures = 0
        self._socket = line
        return line

    async def _dial(self) -> _Socket:
        loop, options = asyncio.get_running_loop(), self.options
        if options.get("connection_class") is UnixDomainSocketConnection:
            _, line = await loop.create_unix_connection(_Socket, options["path"])
        else:
            host, port = options.get("host", "localhost"), options.get("port", 6379)
            _, line = await loop.create_connection(_Socket, host, port, ssl=self._tls())
        return line

    def _tls(self) -> ssl.SSLContext | None:
        if self.options.get("connection_class") is not SSLConnection:
            return None
        options = {name: value for name, value in self.options.items() if name.startswith("ssl_")}
        return SSLConnection(**options).ssl_context.get()

    def _greetings(self) -> list[tuple[Part, ...]]:
        """What a connection says first."""
        options = self.options
        greetings: list[tuple[Part, ...]] = []
        if options.get("password"):
            greetings.append(("AUTH", *([options["username"]] if options.get("username") else []), options["password"]))
        if options.get("db"):
            greetings.append(("SELECT", options["db"]))
        return [*greetings, ("CLIENT", "SETNAME", "jishi-line")]
