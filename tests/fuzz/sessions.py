"""A whole session, in either codec: any frames, any clock and any gateway behind it, in any order.

What must hold after every step: no exception; a closed session stays closed and silent, and says why; every reply answers a command that
came, and none more often than it came; what is kept is bounded; something is due within a ping's time, so no viewer is stuck. At the end
the clock runs on alone: what was handed out is answered, and the session closes by itself.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from centrifuge.protocol import client_pb2
from google.protobuf.json_format import MessageToDict
from msgspec import Raw

from app.core.errors import ErrorCode
from app.protocol import codes
from app.protocol.codec import Codec, Malformed
from app.protocol.json_codec import JSON
from app.protocol.messages import (
    ConnectRequest,
    ConnectResult,
    HistoryRequest,
    HistoryResult,
    PresenceStatsRequest,
    PresenceStatsResult,
    Publication,
    RefreshRequest,
    RefreshResult,
    RpcRequest,
    RpcResult,
    SubscribeRequest,
    SubscribeResult,
    UnsubscribeRequest,
)
from app.protocol.protobuf_codec import PROTOBUF
from app.protocol.session import FLOOD_FACTOR, NEVER_MS, Incoming, Session, State
from tests.fuzz.target import Target
from tests.protocol.sessions import LIMITS as SESSION_LIMITS
from tests.support.corpus import seeds
from tests.support.corpus.mutations import mutate
from tests.support.corpus.seeds import Vocabulary, to_json, to_protobuf

LIMITS = replace(SESSION_LIMITS, message_bytes_max=600)
ERRORS = (codes.INTERNAL, codes.BAD_REQUEST, codes.TOO_MANY_REQUESTS, codes.TOKEN_EXPIRED)
CLOSES = (codes.CLOSED, codes.SLOW, codes.FORCE_DISCONNECT, codes.INVALID_TOKEN)
REPLY_BYTES_MAX = 600  # of what a session says by itself, and of the small results here: what a client sends is never sent back to it
AWAITED_MAX = int(LIMITS.commands_per_s_max * (2 + LIMITS.answer_ms_max / 1000)) + LIMITS.held_commands_max + 2
WORDS = Vocabulary()


class Receive(NamedTuple):
    frame: bytes


class Tick(NamedTuple):
    """Time passes, and the clock looks."""

    after_ms: int


class Answer(NamedTuple):
    """The gateway answers one of those that wait, or what it has answered before."""

    choice: int
    error: ErrorCode | None


class TakeAway(NamedTuple):
    channel: str


class Drain(NamedTuple):
    pass


class Close(NamedTuple):
    code: codes.CloseCode | None  # None: the socket is gone


Step = Receive | Tick | Answer | TakeAway | Drain | Close


class Script(NamedTuple):
    codec: Codec
    steps: list[Step]

    def __repr__(self) -> str:
        return f"{self.codec.name}: {self.steps}"


# --- the check ----------------------------------------------------------------------------------------------------------------------


def check_script(script: Script) -> None:
    conversation = Conversation(script.codec)
    for step in script.steps:
        conversation.take(step)
        conversation.check_state()
    conversation.let_it_end()


class Conversation:
    """A session, the gateway behind it, and what the client has been told."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.now_ms = 0.0
        self.session = Session(codec, LIMITS, now_ms=0, first_ping_share=0.5)
        self.asked: Counter[int] = Counter()
        self.answered: Counter[int] = Counter()
        self.handed_out: list[Incoming] = []
        self.was_lost = False
        self.closing: dict[str, Any] | None = None

    def take(self, step: Step) -> None:
        was_closed = self.session.state is State.CLOSED
        said_max = 4
        match step:
            case Receive(frame):
                said_max += self._count_commands(frame) + len(self._awaited)
                self._hand_out(self.session.receive(frame, self.now_ms))
            case Tick(after_ms):
                self.now_ms += after_ms
                said_max += len(self._awaited)
                self.session.tick(self.now_ms)
            case Answer():
                said_max += LIMITS.held_commands_max
                self._answer(step)
            case TakeAway(channel):
                self.session.push_unsubscribe(channel, codes.UNSUBSCRIBED_BY_SERVER, "unsubscribed by the server")
            case Drain():
                self.session.drain(self.now_ms)
            case Close(None):
                self.was_lost = self.was_lost or not was_closed
                self.session.lose()
            case Close(code):
                self.session.close(code)
        said = self.session.data_to_send()
        assert len(said) <= said_max, f"says {len(said)} things at once"
        assert not (was_closed and said), "says something after its end"
        for message in said:
            self._hear(message)

    @property
    def _awaited(self) -> dict[int, Any]:
        return self.session._awaited or {}

    def _count_commands(self, frame: bytes) -> int:
        try:
            parts = self.codec.split(frame)
        except Malformed:
            return 0
        for part in parts:
            try:
                self.asked[self.codec.decode_id(part)] += 1
            except Malformed:
                continue
        return len(parts)

    def _hand_out(self, incoming: list[Incoming]) -> None:
        assert not incoming or self.session.state is not State.CLOSED, "hands out work of a session that is over"
        for one in incoming:
            assert one.id or isinstance(one.request, UnsubscribeRequest), "nobody could be answered"
            if not isinstance(one.request, UnsubscribeRequest):  # answered already; so may be a subscribe with its unsubscribe behind it
                self.handed_out.append(one)

    def _answer(self, step: Answer) -> None:
        if not self.handed_out:
            return
        one = self.handed_out[step.choice % len(self.handed_out)]
        if step.error is not None:
            self.session.refuse(one.id, step.error, "", self.now_ms)
        elif isinstance(one.request, ConnectRequest):
            self._hand_out(self.session.accept_connect(RESULT_OF[ConnectRequest], self.now_ms, expires_in_ms=60_000))
        else:
            self.session.reply(one.id, RESULT_OF[type(one.request)])

    def _hear(self, message: bytes) -> None:
        assert len(message) <= REPLY_BYTES_MAX, f"a reply of {len(message)} bytes"
        assert self.closing is None, "the disconnect push is the last word"
        reply = read_reply(self.codec, message)
        push = reply.get("push", {})
        if "disconnect" in push:
            self.closing = push["disconnect"]
        elif "id" in reply:
            self.answered[reply["id"]] += 1
            assert self.answered[reply["id"]] <= self.asked[reply["id"]], f"{reply['id']} is answered more often than asked"
        else:
            assert push or not reply, f"neither answer, push nor ping: {reply}"

    def check_state(self) -> None:
        session = self.session
        if session.state is State.CLOSED:
            assert (session.close_code is None) == (self.closing is None)
            assert self.was_lost or session.close_code is not None, "closed, and nobody knows why"
            if session.close_code is not None and self.closing is not None:
                assert (self.closing["code"], self.closing["reason"]) == (session.close_code.number, session.close_code.reason)
            assert not session.channels and session._awaited is None and session._held is None, "keeps nothing"
            return
        assert session.close_code is None and self.closing is None, "open, though it said goodbye"
        assert len(self._awaited) <= AWAITED_MAX, f"{len(self._awaited)} wait for an answer"
        assert len(session._held or ()) <= LIMITS.held_commands_max
        assert len(session.channels) <= LIMITS.channels_max + 1, "and the own channel, which the server subscribes"
        assert 0 <= session._calls <= LIMITS.calls_in_flight_max
        assert session._calls == sum(awaited.is_call for awaited in self._awaited.values())
        assert session.due_ms <= self.now_ms + LIMITS.ping_interval_ms, "nothing would ever end it"

    def let_it_end(self) -> None:
        """Nobody comes any more, from either side: only the clock."""
        for _ in range(20):
            if self.session.state is State.CLOSED:
                break
            self.take(Tick(LIMITS.answer_ms_max))
            self.check_state()
            assert self.session.state is State.CLOSED or not self._awaited, "a command without an answer in time"
            if self.session.due_ms != NEVER_MS:
                self.take(Tick(max(0, int(self.session.due_ms - self.now_ms) + 1)))
                self.check_state()
        assert self.session.state is State.CLOSED, "a viewer who is gone stays for ever"
        for step in (Receive(self.codec.ping), Tick(1), Drain(), Close(codes.SLOW), Answer(0, None), Answer(0, codes.INTERNAL)):
            self.take(step)
            self.check_state()


RESULT_OF: dict[Any, Any] = {
    ConnectRequest: ConnectResult(client="c", version="1", ping=25, pong=True, subs={"user:ann": SubscribeResult(recoverable=True)}),
    SubscribeRequest: SubscribeResult(recoverable=True, epoch="e", offset=3, data=Raw(b'{"a":1}')),
    RpcRequest: RpcResult(Raw(b'{"outcome":"held"}')),
    HistoryRequest: HistoryResult([Publication(Raw(b"{}"), 3)], "e", 3),
    PresenceStatsRequest: PresenceStatsResult(1, 1),
    RefreshRequest: RefreshResult("c", "1"),
}


def read_reply(codec: Codec, message: bytes) -> dict[str, Any]:
    """By others than our codec. What comes after a closed session's results is theirs too."""
    if codec is JSON:
        return json.loads(message)
    size, start = _read_length(message)
    assert len(message) == start + size, "its length before it"
    return MessageToDict(client_pb2.Reply.FromString(message[start:]), preserving_proto_field_name=True)


def _read_length(raw: bytes) -> tuple[int, int]:
    value = 0
    for position, byte in enumerate(raw):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value, position + 1
    raise AssertionError("a length that does not end")


# --- the targets --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """What clients of one codec say."""

    codec: Codec
    right: list[bytes]  # messages
    seeds: list[bytes]
    huge: list[bytes]

    def write(self, command: dict[str, Any]) -> bytes:
        return to_json(command) if self.codec is JSON else to_protobuf(command)


JSON_WORDS = Words(
    JSON,
    [to_json(one) for one in seeds.commands(WORDS)],
    list(seeds.as_list(seeds.json_seeds(WORDS), 2_000)),
    list(seeds.huge_json().values()),
)
PROTOBUF_WORDS = Words(
    PROTOBUF,
    [to_protobuf(one) for one in seeds.commands(WORDS)],
    list(seeds.as_list(seeds.protobuf_seeds(WORDS), 2_000)),
    list(seeds.huge_protobuf().values()),
)
_COMMANDS = [{name: body for name, body in one.items() if name != "id"} for one in seeds.commands(WORDS)]
_CHANNELS = ("room:r1", "chat:r1", "room:r2", "chat:r2", "staff:r1", "user:ann", "room:", "nothing")


def make_script(rng: random.Random, words: Words) -> Script:
    steps: list[Step] = []
    if rng.random() < 0.85:  # else most would end at the first frame
        steps.append(Receive(words.write({"id": 1, "connect": {"token": "t"}})))
        if rng.random() < 0.9:
            steps.append(Answer(0, None))
    steps += [_step(rng, words) for _ in range(rng.randint(1, 14))]
    return Script(words.codec, steps)


def _step(rng: random.Random, words: Words) -> Step:
    dice = rng.random()
    if dice < 0.45:
        return Receive(_right_frame(rng, words))
    if dice < 0.6:
        return Receive(mutate(rng, words.seeds))
    if dice < 0.72:
        return Tick(rng.choice((0, 1, 40, 1_000, 4_000, 10_000, 15_000, 25_000, 90_000)))
    if dice < 0.94:
        return Answer(rng.randrange(8), rng.choice((None, None, None, *ERRORS)))
    if dice < 0.97:
        return TakeAway(rng.choice(_CHANNELS))
    return Drain() if dice < 0.985 else Close(rng.choice((None, *CLOSES)))


def _right_frame(rng: random.Random, words: Words) -> bytes:
    """Commands as they should be, with few ids, so that they meet; now and then a crowd of them."""
    messages = [_right_message(rng, words) for _ in range(rng.choice((1, 1, 1, 2, 3, 8)))]
    if rng.random() < 0.03:
        messages *= 60
    return words.codec.join(messages)


def _right_message(rng: random.Random, words: Words) -> bytes:
    dice = rng.random()
    if dice < 0.05:
        return words.codec.ping
    if dice < 0.3:
        channel = rng.choice(_CHANNELS)
        body: dict[str, Any] = {rng.choice(("subscribe", "subscribe", "unsubscribe", "history")): {"channel": channel}}
    else:
        body = rng.choice(_COMMANDS)
    return words.write({"id": rng.choice((1, 2, 3, rng.randint(1, 30), rng.randrange(2**32))), **body})


def _corpus(words: Words) -> Iterator[Script]:
    """Each seed as the first frame, and behind a connect that is accepted; then more of the same than any rate allows."""
    begin: list[Step] = [Receive(words.write({"id": 1, "connect": {"token": "t"}})), Answer(0, None)]
    for raw in (*words.seeds, *words.huge):
        yield Script(words.codec, [Receive(raw)])
        yield Script(words.codec, [*begin, Receive(raw), Tick(40), Receive(raw)])
    for raw in words.right:
        yield Script(words.codec, [*begin, *[Receive(raw)] * 30])
    flood = words.codec.join([words.codec.ping] * (LIMITS.commands_per_s_max * FLOOD_FACTOR + 5))
    yield Script(words.codec, [*begin, Receive(flood)])
    yield Script(words.codec, [*begin, Tick(12_500), Receive(words.codec.ping), Receive(words.codec.ping), Tick(25_000), Tick(10_000)])


def _target(words: Words) -> Target[Script]:
    return Target(f"session-{words.codec.name}", 0.095, lambda rng: make_script(rng, words), check_script, lambda: _corpus(words))


SESSION_TARGETS = (_target(JSON_WORDS), _target(PROTOBUF_WORDS))
