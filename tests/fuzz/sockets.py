"""Any bytes on the socket of a real node with real engines: before the handshake, in it and after it, while a neighbour watches a show.

Each connection ends within a bound, with an HTTP answer that is no 500, or with whole frames of which the last is a close frame with a code
that is ours to send. The neighbour misses nothing. Afterwards the node has what it had before: connections, rooms, viewers, tasks and
sockets; and no log has an error or a traceback.

The clocks of the node are short, so that who says nothing more is let go while the run waits for it.
It is the product's own way in that is looked at. Over plain ASGI head and frames are the server's: uvicorn's websocket class answers bytes
that come before the application has accepted, and text that is not UTF-8, with tracebacks of its own.
"""

import asyncio
import gc
import itertools
import json
import logging
import random
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog
import uvloop

from app.composition import build_registry
from app.core.settings import Settings
from app.domains.accounts.service import make_token
from app.gateway.socket_transport import ViewerSocket
from app.protocol import codes
from app.protocol.codec import Codec
from app.protocol.codes import CloseCode
from app.protocol.json_codec import JSON
from app.protocol.protobuf_codec import PROTOBUF
from app.storage.work import Engines
from tests.fuzz.sessions import read_reply
from tests.gateway.conftest import Node, start_node
from tests.support.builders import open_room
from tests.support.clients import RawClient, raw_client
from tests.support.corpus import seeds
from tests.support.corpus.frames import BINARY, CLOSE, PONG, TEXT, client_frame, close_payload, server_frames
from tests.support.corpus.mutations import in_chunks, mutate
from tests.support.corpus.seeds import Vocabulary, to_json, to_protobuf
from tests.support.runtime import TestRuntime
from tests.support.servers import make_schema, run_apart, running_servers
from tests.support.waiting import wait_until

NAME = "sockets"
SHARE = 0.01  # of the inputs of a run: a connection costs a hundred times what a frame does
AT_ONCE = 24
END_S_MAX = 30.0  # generous, for a busy machine; the node's own clocks are a second each
EVENT_EVERY = 20  # connections, one event for the neighbour
CHECK_EVERY = 10  # events, a look at whether they have come
SHORT_CLOCKS = {"connect_timeout_s": 1, "ping_interval_s": 1, "pong_timeout_s": 1, "close_grace_s": 1, "joins_per_s": 100_000}

HTTP_STATUS = {200, 400, 403, 404, 405, 408, 426, 431}
FRAME_CODES = {1000, 1002, 1007, 1008, 1009}
OUR_CODES = {value.number for value in vars(codes).values() if isinstance(value, CloseCode)}


# --- what is sent -------------------------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """One connection. `ending`: how the client leaves when it has said all: a close frame, its end of the stream, a reset, not at all."""

    codec: Codec
    chunks: list[bytes]
    ending: str
    says: int  # the code of a close frame that the client sends

    def __repr__(self) -> str:
        return f"{self.codec.name}, {self.ending} after {self.chunks}"


class Planner:
    """Makes plans; knows a token and a room that are good."""

    def __init__(self, words: Vocabulary) -> None:
        self.heads = {name: seeds.upgrade(name) for name in ("right", "json", "protobuf")}
        self.head_seeds = seeds.as_list(seeds.head_seeds(), 4_000)
        self.streams = seeds.as_list(seeds.stream_seeds(words), 3_000)
        self.messages = {
            JSON: seeds.as_list(seeds.json_seeds(words), 2_000),
            PROTOBUF: seeds.as_list(seeds.protobuf_seeds(words), 2_000),
        }
        self.write = {JSON: to_json, PROTOBUF: to_protobuf}
        self.commands = [{name: body for name, body in one.items() if name != "id"} for one in seeds.commands(words)]
        self.connect = {"id": 1, "connect": {"token": words.token}}

    def make(self, rng: random.Random) -> Plan:
        codec = rng.choice((JSON, JSON, PROTOBUF))
        head = self.heads["protobuf" if codec is PROTOBUF else rng.choice(("right", "json"))]
        behind = b"" if rng.random() < 0.2 else self._stream(rng, codec)
        raw = head + behind if rng.random() < 0.8 else mutate(rng, self.head_seeds) + behind
        chunks = [raw[: len(head)], *in_chunks(rng, raw[len(head) :])] if rng.random() < 0.5 else in_chunks(rng, raw)
        ending = rng.choices(("close", "end", "reset", "wait"), (4, 5, 2, 0.2))[0]
        return Plan(codec, chunks, ending, rng.choice((1000, 1001, 3000, 4999)))

    def _stream(self, rng: random.Random, codec: Codec) -> bytes:
        """Mostly a life that begins well: the other ones end at their first frame."""
        opcode = TEXT if codec.is_text else BINARY
        frames = [client_frame(opcode, self.write[codec](self.connect), mask=rng.randbytes(4))] if rng.random() < 0.7 else []
        for _ in range(rng.randint(0, 5)):
            dice = rng.random()
            if dice < 0.35:
                command = {"id": rng.choice((2, 3, rng.randint(1, 99))), **rng.choice(self.commands)}
                frames.append(client_frame(opcode, self.write[codec](command), mask=rng.randbytes(4)))
            elif dice < 0.75:
                frames.append(client_frame(opcode, mutate(rng, self.messages[codec]), mask=rng.randbytes(4)))
            elif dice < 0.9:
                frames.append(rng.choice(self.streams))
            else:
                frames.append(mutate(rng, self.streams))
        return b"".join(frames)

    def corpus(self) -> Iterator[Plan]:
        heads = seeds.head_seeds()
        for raw in heads.values():
            yield Plan(JSON, [raw], "end", 1000)
        for name, raw in seeds.read_lines("recorded").items():  # a visit as an SDK made it, in one go
            part, _, speaker = name.partition(" ")
            if part == "stream":
                yield Plan(PROTOBUF if "protobuf" in speaker else JSON, [heads[f"head {speaker}"], raw], "end", 1000)
        for codec in (JSON, PROTOBUF):
            head = self.heads[codec.name]
            opcode = TEXT if codec.is_text else BINARY
            begin = client_frame(opcode, self.write[codec](self.connect))
            for raw in self.streams:
                yield Plan(codec, [head, begin + raw], "close", 1000)
            for raw in (*self.messages[codec], *(seeds.huge_json() if codec is JSON else seeds.huge_protobuf()).values()):
                yield Plan(codec, [head + begin, client_frame(opcode, raw)], "close", 1000)


# --- one connection -----------------------------------------------------------------------------------------------------------------


async def carry_out(node: Node, plan: Plan) -> bytes:
    """What the node said. Raises TimeoutError for a connection that it does not end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    said = bytearray()
    listening = asyncio.create_task(_listen(reader, said))
    try:
        for chunk in plan.chunks:
            writer.write(chunk)
            await asyncio.sleep(0)  # lets the node read it by itself; a guess that need not come true
        if plan.ending == "close":
            writer.write(client_frame(CLOSE, close_payload(plan.says)))
        if plan.ending == "reset":
            writer.transport.abort()
        elif plan.ending != "wait" and writer.can_write_eof():
            await _drain(writer)
            writer.write_eof()
        await asyncio.wait_for(asyncio.shield(listening), END_S_MAX)
    except (OSError, RuntimeError):
        pass  # the node had enough before we had said all; uvloop raises a RuntimeError then
    finally:
        writer.transport.abort()
        await asyncio.wait({listening}, timeout=END_S_MAX)
    return bytes(said)


async def _drain(writer: asyncio.StreamWriter) -> None:
    """Written out, unless the node takes no more."""
    await asyncio.wait_for(writer.drain(), END_S_MAX)


async def _listen(reader: asyncio.StreamReader, said: bytearray) -> None:
    try:
        while data := await reader.read(1 << 16):
            said += data
    except OSError:
        return  # reset: by us, or by a node that had unread bytes of ours


def judge(plan: Plan, said: bytes) -> None:
    """Whole answers of HTTP; after an upgrade whole frames, messages that others can read, and a right end."""
    while said:
        head, end, said = said.partition(b"\r\n\r\n")
        if not end:
            assert plan.ending == "reset", f"half an answer: {head!r}"
            return
        status = int(head.split(b" ", 2)[1])
        if status == 101:
            _judge_frames(plan, said)
            return
        assert status in HTTP_STATUS, head
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        said = said[length:]


def _judge_frames(plan: Plan, said: bytes) -> None:
    frames, rest = server_frames(said)
    assert not rest or plan.ending == "reset", "a frame that did not come whole"
    goodbye = 0
    for number, (opcode, payload) in enumerate(frames):
        assert opcode in {TEXT, BINARY, PONG, CLOSE}, opcode
        if opcode == CLOSE:
            assert number == len(frames) - 1, "the last word"
            code = int.from_bytes(payload[:2], "big")
            reason = payload[2:].decode()
            assert code in FRAME_CODES | OUR_CODES or 1000 <= code < 5000, code
            assert code not in OUR_CODES or not goodbye or code == goodbye, f"closed with {code} after a push that said {goodbye}"
            assert not goodbye or reason, "SDKs need a reason"
        elif opcode != PONG:
            for reply in read_replies(opcode, payload):
                goodbye = reply.get("push", {}).get("disconnect", {}).get("code", goodbye)
                assert reply.get("error", {}).get("message") != codes.INTERNAL.text, "something failed that should not"
    if plan.ending == "wait":
        assert frames and frames[-1][0] == CLOSE, "let go without a word"


def read_replies(opcode: int, payload: bytes) -> list[dict[str, Any]]:
    if opcode == TEXT:
        return [json.loads(line) for line in payload.split(b"\n")]
    return [read_reply(PROTOBUF, message) for message in _whole_messages(payload)]


def _whole_messages(payload: bytes) -> Iterator[bytes]:
    """With their lengths."""
    position = 0
    while position < len(payload):
        size, shift, start = 0, 0, position
        while True:
            byte = payload[position]
            size |= (byte & 0x7F) << shift
            position, shift = position + 1, shift + 7
            if byte < 0x80:
                break
        position += size
        assert position <= len(payload), "a message that did not come whole"
        yield payload[start:position]


# --- the neighbour, and what is left behind -------------------------------------------------------------------------------------------


class Neighbour:
    """A viewer as they should be, in a room where something happens. Whatever the others do, it must not miss any of it."""

    def __init__(self, client: RawClient, engines: Engines, channel: str) -> None:
        self._client = client
        self._engines = engines
        self._channel = channel
        self._said = 0
        self._checked = 0
        self._offset: int | None = None
        self._turn = asyncio.Lock()

    async def say(self) -> None:
        async with self._turn:
            self._said += 1
            await self._engines.streams.publish(self._channel, b'{"neighbour":%d}' % self._said)
            if self._said - self._checked >= CHECK_EVERY:
                await self._check()

    async def check(self) -> None:
        async with self._turn:
            await self._check()

    async def _check(self) -> None:
        """And forgets what it has seen: its memory is not what is measured."""
        seen: list[int] = []
        while seen[-1:] != [self._said]:
            await wait_until(lambda: self._client.pushes, within_s=END_S_MAX, what="the neighbour gets all events")
            publications = self._client.publications(self._channel)
            self._client.pushes.clear()
            seen += [one["data"]["neighbour"] for one in publications if "neighbour" in one["data"]]
            for one in publications:
                offset = one.get("offset", self._offset)  # a reading has none
                assert self._offset is None or offset == self._offset + ("offset" in one), "no gap and no duplicate"
                self._offset = offset
        assert seen == list(range(self._checked + 1, self._said + 1)), "each event once, in order"
        self._checked = self._said


class Kept(NamedTuple):
    """What a node holds on to."""

    connections: int
    viewers: tuple[str, ...]
    rooms: tuple[str, ...]
    http: int
    transports: int
    watched: int
    tasks: int


def kept_by(node: Node) -> Kept:
    hub = node.hub
    gc.collect()
    watched = hub.clocks._busy.union(*(slot.connections for slot in hub.clocks._slots.values()))
    return Kept(
        connections=len(hub.connections),
        viewers=tuple(sorted(hub.users)),
        rooms=tuple(sorted(hub.rooms)),
        http=len(node.server.server_state.connections),
        transports=sum(type(one) is ViewerSocket for one in gc.get_objects()),
        watched=len(watched),
        tasks=len(asyncio.all_tasks()),
    )


@contextmanager
def watched_logs() -> Iterator[list[str]]:
    """Whatever is logged as an error, or with a traceback, through structlog or the standard library."""
    found: list[str] = []

    def take(logger: Any, name: str, event: Any) -> Any:
        if name in {"error", "exception", "critical"} or event.get("exc_info"):
            trace = event.get("exc_info")
            found.append(repr(event) + ("".join(traceback.format_exception(trace)) if isinstance(trace, BaseException) else ""))
        raise structlog.DropEvent

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR or record.exc_info:
                trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
                found.append(f"{record.name}: {record.getMessage()}\n{trace}")

    processors = structlog.get_config()["processors"]
    before = list(processors)
    processors[:] = [take]  # in place: loggers that were used before keep this very list
    handler = Handler()
    logging.getLogger().addHandler(handler)
    try:
        yield found
    finally:
        logging.getLogger().removeHandler(handler)
        processors[:] = before


# --- a run --------------------------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    inputs: int = 0
    corpus: int = 0
    slowest_s: float = 0.0
    slowest: int | str = 0
    failures: list[tuple[int | str, object, BaseException]] = field(default_factory=list[tuple[int | str, object, BaseException]])


class Run:
    def __init__(self, node: Node, engines: Engines, neighbour: Neighbour, planner: Planner) -> None:
        self.node = node
        self.planner = planner
        self.neighbour = neighbour
        self.report = Report()
        self._engines = engines

    async def through(self, plans: Iterator[tuple[int | str, Plan]], on_progress: Callable[[int], None]) -> None:
        """All of them, some at once, with an event for the neighbour now and then; `report` has what went wrong."""

        async def work() -> None:
            for number, plan in plans:
                started = time.monotonic()
                try:
                    judge(plan, await carry_out(self.node, plan))
                except Exception as failure:
                    self.report.failures.append((number, plan, failure))
                took_s = time.monotonic() - started
                if took_s > self.report.slowest_s and plan.ending != "wait":
                    self.report.slowest_s, self.report.slowest = took_s, number
                self.report.inputs += isinstance(number, int)
                self.report.corpus += not isinstance(number, int)
                if (self.report.inputs + self.report.corpus) % EVENT_EVERY == 0:
                    await self.neighbour.say()
                on_progress(self.report.inputs)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))

    async def check_after(self, before: Kept) -> None:
        try:
            await self.neighbour.check()
            await wait_until(lambda: kept_by(self.node) == before, within_s=END_S_MAX, what="the node has what it had before")
        except AssertionError as failure:
            self.report.failures.append(("after", kept_by(self.node), failure))


@asynccontextmanager
async def a_run(engines: Engines) -> AsyncGenerator[tuple[Run, Kept]]:
    """A node, a show and its neighbour."""
    shop = await open_room(engines)
    settings = engines.settings.model_copy(update=SHORT_CLOCKS)
    node = await start_node(engines, settings)
    try:
        now_ms = engines.runtime.now_ms()
        tokens = {
            name: make_token(settings, subject=name, name=name.title(), ttl_s=None, now_ms=now_ms, roles=roles)
            for name, roles in (("ann", ("host",)), ("nora", ()))
        }
        known = {"room": shop.room_id, "offer": shop.offer_ids[0], "viewer": "bob"}
        bodies = {
            method: {name: known.get(name, value) for name, value in command.example.items()}
            for method, command in engines.registry.commands.items()
        }
        words = Vocabulary(token=tokens["ann"], room=shop.room_id, bodies=bodies)
        async with raw_client(node.http, tokens["nora"]) as client:
            await client.subscribe(f"room:{shop.room_id}")
            await client.subscribe(f"chat:{shop.room_id}")
            neighbour = Neighbour(client, engines, f"room:{shop.room_id}")
            run = Run(node, engines, neighbour, Planner(words))
            await wait_until(lambda: not node.hub._tasks, what="the node is at rest")
            yield run, kept_by(node)
    finally:
        await node.stop()


Numbered = tuple[int | str, Plan]


def made(planner: Planner, seed: int, count: int) -> Iterator[Numbered]:
    return ((number, planner.make(random.Random(f"{seed} {NAME} {number}"))) for number in range(count))


def corpus_of(planner: Planner) -> Iterator[Numbered]:
    return ((f"corpus-{number}", plan) for number, plan in enumerate(planner.corpus()))


def run_sockets(seed: int, count: int, on_progress: Callable[[int, int], None], on_end: Callable[[], None], *, only: str = "") -> Report:
    """For the driver: with engines and a loop of its own, uvloop as in production. `only`: one input by its number."""

    async def go(engines: Engines) -> Report:
        async with a_run(engines) as (run, before):
            plans: Iterator[Numbered] = itertools.chain(corpus_of(run.planner), made(run.planner, seed, count))
            if only.startswith("corpus-"):
                plans = (one for one in plans if one[0] == only)
            elif only:
                plans = (one for one in made(run.planner, seed, int(only) + 1) if one[0] == int(only))
            with watched_logs() as logged:
                await run.through(plans, lambda done: on_progress(done, len(run.report.failures) + len(logged)))
                await run.check_after(before)
            run.report.failures += [("log", None, AssertionError(text)) for text in dict.fromkeys(logged)]
            on_end()
            return run.report

    with running_servers() as servers:
        run_apart(make_schema(servers.postgres.url))
        settings = Settings(
            environment="development",
            redis_url=servers.valkey.url,
            database_url=servers.postgres.url,
            data_dir=servers.data_dir,
            drain_s=0.2,
        )

        async def main() -> Report:
            engines = Engines.connect(settings, TestRuntime(), build_registry())
            try:
                return await go(engines)
            finally:
                await engines.close()

        return uvloop.run(main())
