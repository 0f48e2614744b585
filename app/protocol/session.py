"""One client's session of the protocol, without input or output: bytes come in, commands come out, answers go back as bytes.

    incoming = session.receive(frame, now_ms)      # what is to be carried out; the rest is answered already
    session.reply(incoming.id, result)             # or refuse(...); exactly once a command
    session.tick(now_ms)                           # at `due_ms`, and about once a second while it `is_busy`
    transport.write(codec.join(session.data_to_send()))

The caller's obligations: send `data_to_send()` after every call; once `state` is closed, send what is left and close the socket with
`close_code`; times come from one clock that never runs backwards.

It owns the life cycle, ids, limits, time-outs, and which channels the client has.
It does not know rights, rooms or histories, and publications of rooms do not pass through it: the gateway frames them once for all viewers.
There are very many of it and nearly all are idle, so what only a busy one needs is made when it is needed and dropped at the next ping.

    opening --connect accepted--> connected --drain()--> draining --answers are out--> closed
       '---------- any broken rule, time-out or close() -------------------------------'
"""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum, auto
from sys import intern
from typing import NamedTuple

from app.core.errors import ErrorCode
from app.protocol import codes
from app.protocol.buckets import Bucket
from app.protocol.channels import Kind, parse_channel
from app.protocol.codec import Codec, Malformed
from app.protocol.codes import CloseCode
from app.protocol.messages import (
    Command,
    ConnectRequest,
    ConnectResult,
    Disconnected,
    Error,
    PingRequest,
    PingResult,
    PresenceRequest,
    PublishRequest,
    Push,
    Reply,
    Request,
    Result,
    RpcRequest,
    SendRequest,
    SubRefreshRequest,
    SubscribeRequest,
    SubscribeResult,
    Unsubscribed,
    UnsubscribeRequest,
    UnsubscribeResult,
    reply_with,
)

FLOOD_FACTOR = 10  # this many times the command rate is no client of ours: closed, not answered
ERRORS_FORGIVEN_PER_S = 1 / 30  # a viewer who stays for hours may err now and then
NEVER_MS = float("inf")

_NOT_OFFERED: dict[type[Request], tuple[ErrorCode, str]] = {
    PublishRequest: (codes.PERMISSION_DENIED, "clients do not publish; use an RPC method such as chat.send"),
    PresenceRequest: (codes.NOT_AVAILABLE, "who is present is not told; presence_stats has the count"),
    SubRefreshRequest: (codes.NOT_AVAILABLE, "channels have no tokens of their own"),
}


class State(StrEnum):
    OPENING = auto()
    CONNECTED = auto()
    DRAINING = auto()
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class Limits:
    ping_interval_ms: int
    pong_timeout_ms: int
    connect_timeout_ms: int
    message_bytes_max: int
    channel_bytes_max: int
    channels_max: int
    commands_per_s_max: int
    errors_max: int
    calls_in_flight_max: int = 16
    held_commands_max: int = 256  # pipelined behind a connect that is being answered
    answer_ms_max: int = 4_000  # client SDKs drop the connection at 5 s; ticks come once a second
    refresh_grace_ms: int = 25_000  # SDKs refresh when the token expires, not before
    drain_grace_ms: int = 3_000


class Incoming(NamedTuple):
    """A command to carry out. Answer it under this id; an unsubscribe is answered already."""

    id: int
    request: Request


class _Awaited(NamedTuple):
    """A command that has no answer yet."""

    overdue_at_ms: float
    channel: str  # of a subscribe: given back when it is refused
    is_call: bool


class Session:
    __slots__ = (
        "_awaited",
        "_calls",
        "_codec",
        "_connect_id",
        "_drain_until_ms",
        "_errors",
        "_expires_at_ms",
        "_first_ping_share",
        "_flood",
        "_held",
        "_is_refused",
        "_limits",
        "_out",
        "_ping_at_ms",
        "_pong_due_ms",
        "_rate",
        "_stale_at_ms",
        "channels",
        "close_code",
        "due_ms",
        "state",
    )

    def __init__(self, codec: Codec, limits: Limits, *, now_ms: float, first_ping_share: float) -> None:
        """`first_ping_share` in (0, 1]: how far into the interval the first ping comes, so that neighbours do not ping in step."""
        self.state = State.OPENING
        self.close_code: CloseCode | None = None
        self.channels: dict[str, bool] = {}  # channel -> subscribed (False: being subscribed)
        self._codec = codec
        self._limits = limits
        self._out: list[bytes] | None = None
        self._awaited: dict[int, _Awaited] | None = None
        self._calls = 0
        self._held: deque[Command] | None = None
        self._connect_id = 0  # of the connect being answered
        self._is_refused = False  # a connect has failed: what follows is ignored
        self._stale_at_ms = now_ms + limits.connect_timeout_ms
        self._first_ping_share: float | None = first_ping_share  # until the client is connected
        self._ping_at_ms = NEVER_MS
        self._pong_due_ms = NEVER_MS
        self._expires_at_ms = NEVER_MS
        self._drain_until_ms = NEVER_MS
        self._rate: Bucket | None = None  # None: full
        self._flood: Bucket | None = None
        self._errors: Bucket | None = None
        self.due_ms = self._stale_at_ms  # when it is next to be ticked, if nothing happens before

    # --- from the client ------------------------------------------------------------------------------------------------------------

    def receive(self, frame: bytes, now_ms: float) -> list[Incoming]:
        """The commands of a frame that the caller is to carry out, in order."""
        incoming: list[Incoming] = []
        if self.state is State.CLOSED or self._is_refused:
            return incoming
        if self._pong_due_ms != NEVER_MS:
            self._pong_due_ms = NEVER_MS  # any sign of life will do
            self._reckon()
            if frame == self._codec.ping:
                return incoming  # the one pong that is expected: nothing to read, nothing to count
        try:
            for message in self._codec.split(frame):
                self._take_message(message, incoming, now_ms)
                if self.state is State.CLOSED or self._is_refused:
                    break
        except Malformed:
            self.close(codes.CLOSE_BAD_REQUEST)
        return [] if self.state is State.CLOSED else incoming

    def _take_message(self, message: bytes, incoming: list[Incoming], now_ms: float) -> None:
        if not self._may_flow(now_ms):
            self.close(codes.CONNECTION_RATE)
        elif len(message) > self._limits.message_bytes_max:
            self._refuse_oversized(message, now_ms)
        else:
            self._take_command(self._codec.decode(message), incoming, now_ms)

    def _may_flow(self, now_ms: float) -> bool:
        if self._flood is None:
            rate = self._limits.commands_per_s_max * FLOOD_FACTOR
            self._flood = Bucket(per_s=rate, burst=rate, now_ms=now_ms)
        return self._flood.take(now_ms)

    def _may_command(self, now_ms: float) -> bool:
        if self._rate is None:
            rate = self._limits.commands_per_s_max
            self._rate = Bucket(per_s=rate, burst=rate * 2, now_ms=now_ms)
        return self._rate.take(now_ms)

    def _may_err(self, now_ms: float) -> bool:
        if self._errors is None:
            self._errors = Bucket(per_s=ERRORS_FORGIVEN_PER_S, burst=self._limits.errors_max, now_ms=now_ms)
        return self._errors.take(now_ms)

    def _refuse_oversized(self, message: bytes, now_ms: float) -> None:
        """By an error reply: closing with 1009 is final for some SDKs and retried for ever by others."""
        command_id = self._codec.decode_id(message)
        if not command_id:
            self.close(codes.CLOSE_BAD_REQUEST)
            return
        text = f"a message has at most {self._limits.message_bytes_max} bytes"
        self._send_error(command_id, codes.LIMIT_EXCEEDED, text, now_ms)
        if self.state is State.OPENING and not self._connect_id:
            self._give_up_connect()

    def _take_command(self, command: Command, incoming: list[Incoming], now_ms: float) -> None:
        requests = command.requests()
        if not requests and not command.id:  # the pong
            if self.state is State.OPENING and not self._connect_id:
                self.close(codes.CLOSE_BAD_REQUEST)
            return
        if len(requests) != 1 or (command.id == 0 and not isinstance(requests[0], SendRequest)) or self._is_awaiting(command.id):
            self.close(codes.CLOSE_BAD_REQUEST)
            return
        if self.state is State.OPENING:
            self._take_before_connected(command, requests[0], incoming, now_ms)
        else:
            self._take_request(command.id, requests[0], incoming, now_ms)

    def _take_before_connected(self, command: Command, request: Request, incoming: list[Incoming], now_ms: float) -> None:
        """Only a connect may come first; what is pipelined behind it waits for its outcome."""
        is_connect = isinstance(request, ConnectRequest)
        held = self._held if self._held is not None else deque[Command]()
        if self._connect_id and not is_connect and len(held) < self._limits.held_commands_max:
            held.append(command)
            self._held = held
        elif is_connect and not self._connect_id:
            self._connect_id = command.id
            self._await(command.id, now_ms)
            incoming.append(Incoming(command.id, request))
        else:
            self.close(codes.CLOSE_BAD_REQUEST)

    def _take_request(self, command_id: int, request: Request, incoming: list[Incoming], now_ms: float) -> None:
        match request:
            case ConnectRequest():
                self.close(codes.CLOSE_BAD_REQUEST)
            case SendRequest():
                pass  # one-way messages have no meaning here, and no answer
            case PingRequest():
                self._say(reply_with(command_id, PingResult()))
            case _ if self.state is State.DRAINING:
                self._send_error(command_id, codes.SERVICE_UNAVAILABLE, "this node is shutting down; connect again", now_ms)
            case _ if not self._may_command(now_ms):
                self._send_error(command_id, codes.TOO_MANY_REQUESTS, "too many commands a second; slow down", now_ms)
            case RpcRequest() if self._calls >= self._limits.calls_in_flight_max:
                self._send_error(command_id, codes.TOO_MANY_REQUESTS, "too many calls without an answer; wait for some", now_ms)
            case RpcRequest():  # asked first of those that are left: nearly every command is one
                self._await(command_id, now_ms, is_call=True)
                incoming.append(Incoming(command_id, request))
            case PublishRequest() | PresenceRequest() | SubRefreshRequest():
                self._send_error(command_id, *_NOT_OFFERED[type(request)], now_ms)
            case UnsubscribeRequest():
                self._unsubscribe(command_id, request.channel, now_ms)
                incoming.append(Incoming(command_id, request))
            case SubscribeRequest():
                self._take_subscribe(command_id, request, incoming, now_ms)
            case _:
                self._await(command_id, now_ms)
                incoming.append(Incoming(command_id, request))

    def _take_subscribe(self, command_id: int, request: SubscribeRequest, incoming: list[Incoming], now_ms: float) -> None:
        refusal = self._refusal_of_channel(request.channel)
        if refusal is not None:
            self._send_error(command_id, *refusal, now_ms)
            return
        self.channels[intern(request.channel)] = False  # the same name in thousands of sessions
        self._await(command_id, now_ms, channel=request.channel)
        incoming.append(Incoming(command_id, request))

    def _unsubscribe(self, command_id: int, channel: str, now_ms: float) -> None:
        """Answered at once; a channel that the client does not have is no error. Its own channel stays."""
        parsed = parse_channel(channel)
        if parsed is not None and parsed[0] is not Kind.USER:
            under_way = [one for one, awaited in (self._awaited or {}).items() if awaited.channel == channel]
            for subscribe_id in under_way:
                self.refuse(subscribe_id, codes.INTERNAL, "unsubscribed before it was subscribed", now_ms)
            self.channels.pop(channel, None)
        self._say(reply_with(command_id, UnsubscribeResult()))

    def _refusal_of_channel(self, channel: str) -> tuple[ErrorCode, str] | None:
        parsed = parse_channel(channel)
        if len(channel.encode()) > self._limits.channel_bytes_max:
            return codes.LIMIT_EXCEEDED, f"a channel name has at most {self._limits.channel_bytes_max} bytes"
        if parsed is None:
            return codes.UNKNOWN_CHANNEL, "no such channel: room:<id>, chat:<id> and staff:<id> are there"
        if parsed[0] is Kind.USER:
            return codes.PERMISSION_DENIED, "the own channel is subscribed by the server at connect"
        if channel in self.channels:
            return codes.ALREADY_SUBSCRIBED, ""
        if len(self.channels) >= self._limits.channels_max:
            return codes.LIMIT_EXCEEDED, f"a connection has at most {self._limits.channels_max} channels"
        return None

    def _await(self, command_id: int, now_ms: float, *, channel: str = "", is_call: bool = False) -> None:
        if self._awaited is None:
            self._awaited = {}
        self._awaited[command_id] = _Awaited(now_ms + self._limits.answer_ms_max, channel, is_call)
        self._calls += is_call

    # --- answers --------------------------------------------------------------------------------------------------------------------

    def accept_connect(self, result: ConnectResult, now_ms: float, *, expires_in_ms: float = NEVER_MS) -> list[Incoming]:
        """The client is in. Returns what it had pipelined behind the connect. Nothing, if it is gone or was answered as overdue."""
        command_id = self._connect_id
        if self._answered(command_id) is None:
            return []
        self._connect_id = 0
        self.state = State.CONNECTED
        self._ping_at_ms = now_ms + self._limits.ping_interval_ms * (self._first_ping_share or 1.0)
        self._first_ping_share = None
        self._stale_at_ms = NEVER_MS
        self.channels |= {intern(channel): True for channel in result.subs}
        self._say(reply_with(command_id, result))
        self.extend(now_ms, expires_in_ms)
        return self._release_held(now_ms)

    def _release_held(self, now_ms: float) -> list[Incoming]:
        incoming: list[Incoming] = []
        held, self._held = self._held, None
        while held and self.state is State.CONNECTED:
            command = held.popleft()
            if self._is_awaiting(command.id):
                self.close(codes.CLOSE_BAD_REQUEST)
            else:
                self._take_request(command.id, command.requests()[0], incoming, now_ms)
        return [] if self.state is State.CLOSED else incoming

    def extend(self, now_ms: float, expires_in_ms: float) -> None:
        """The token of the connection holds for so long from now."""
        self._expires_at_ms = now_ms + expires_in_ms + self._limits.refresh_grace_ms
        self._reckon()

    def reply(self, command_id: int, result: Result) -> bool:
        """False when the command was answered before (overdue) or the session is over; then nothing is sent."""
        awaited = self._answered(command_id)
        if awaited is None:
            return False
        if isinstance(result, SubscribeResult):
            self.channels[awaited.channel] = True
        self._say(reply_with(command_id, result))
        return True

    def reply_subscribed(self, command_id: int, result: bytes) -> bool:
        """The same for a subscribe whose result the codec has encoded before, for all who get the same."""
        awaited = self._answered(command_id)
        if awaited is None:
            return False
        self.channels[awaited.channel] = True
        self.put(self._codec.reply(command_id, result))
        return True

    def pipelined_channels(self) -> list[str]:
        """What the client asked to subscribe to in the frame of a connect that has no answer yet."""
        return [command.subscribe.channel for command in self._held or () if command.subscribe is not None]

    def refuse(self, command_id: int, error: ErrorCode, text: str, now_ms: float) -> None:
        """Answers with an error. A connect that is refused ends it all: what follows is ignored, and SDKs decide by `temporary`."""
        awaited = self._answered(command_id)
        if awaited is None:
            return
        if awaited.channel:
            self.channels.pop(awaited.channel, None)
        self._send_error(command_id, error, text, now_ms)
        if command_id == self._connect_id:
            self._give_up_connect()

    def _give_up_connect(self) -> None:
        self._is_refused = True
        self._connect_id = 0
        self._held = None

    def is_awaited(self, command_id: int) -> bool:
        return self.state is not State.CLOSED and self._is_awaiting(command_id)

    def _is_awaiting(self, command_id: int) -> bool:
        return self._awaited is not None and command_id in self._awaited

    def _answered(self, command_id: int) -> _Awaited | None:
        awaited = self._awaited.pop(command_id, None) if self._awaited is not None else None
        if awaited is not None:
            self._calls -= awaited.is_call
        return awaited

    def _send_error(self, command_id: int, error: ErrorCode, text: str, now_ms: float) -> None:
        self._say(Reply(id=command_id, error=Error(error.number, text or error.text, error.temporary)))
        if not error.temporary and not self._may_err(now_ms):
            self.close(codes.TOO_MANY_ERRORS)

    # --- unasked --------------------------------------------------------------------------------------------------------------------

    def push_unsubscribe(self, channel: str, code: int, reason: str) -> None:
        """Takes a channel away. From code 2500 on the SDK subscribes again by itself."""
        if self.channels.pop(channel, None) and self.state is not State.CLOSED:
            self._say(Reply(push=Push(channel=channel, unsubscribe=Unsubscribed(code, reason))))

    def is_subscribed(self, channel: str) -> bool:
        return self.state in {State.CONNECTED, State.DRAINING} and self.channels.get(channel, False)

    def drain(self, now_ms: float) -> None:
        """No new commands; closes 3001 once those under way are answered."""
        if self.state is State.OPENING:
            self.close(codes.SHUTDOWN)
        elif self.state is State.CONNECTED:
            self.state = State.DRAINING
            self._drain_until_ms = now_ms + self._limits.drain_grace_ms
            self._close_if_drained(now_ms)

    def close(self, code: CloseCode) -> None:
        """Says so in a push, since proxies lose close codes, and ends the session. The first reason stands."""
        if self.state is State.CLOSED:
            return
        self._say(Reply(push=Push(disconnect=Disconnected(code.number, code.reason, code.reconnect))))
        self.lose()
        self.close_code = code

    def lose(self) -> None:
        """The socket is gone, or is about to be closed."""
        self.state = State.CLOSED
        self._awaited = self._held = None
        self.channels = {}

    # --- time -----------------------------------------------------------------------------------------------------------------------

    def _reckon(self) -> None:
        """After any of these has changed. Kept, since it is asked for with every command and changes with few."""
        self.due_ms = min(self._stale_at_ms, self._ping_at_ms, self._pong_due_ms, self._expires_at_ms)

    @property
    def is_busy(self) -> bool:
        """Something is under way whose end may have to be enforced."""
        return bool(self._awaited) or self.state is State.DRAINING

    def tick(self, now_ms: float) -> None:
        if self.state is State.CLOSED:
            return
        self._answer_overdue(now_ms)
        if self.state is State.OPENING and now_ms >= self._stale_at_ms:
            self.close(codes.STALE)
        elif now_ms >= self._pong_due_ms:
            self.close(codes.NO_PONG)
        elif now_ms >= self._expires_at_ms:
            self.close(codes.EXPIRED)
        elif now_ms >= self._ping_at_ms:
            self._ping(now_ms)
        self._close_if_drained(now_ms)

    def _answer_overdue(self, now_ms: float) -> None:
        """An SDK that waits in vain drops the whole connection. All waits are equally long, so the oldest is first."""
        while self._awaited:
            command_id, awaited = next(iter(self._awaited.items()))
            if now_ms < awaited.overdue_at_ms:
                return
            self.refuse(command_id, codes.INTERNAL, "no answer in time; try again with the same key", now_ms)

    def _ping(self, now_ms: float) -> None:
        """Also when data flowed: some SDKs restart their timer only on a ping."""
        self.put(self._codec.ping)
        self._ping_at_ms = now_ms + self._limits.ping_interval_ms
        self._pong_due_ms = now_ms + self._limits.pong_timeout_ms
        self._reckon()
        self._let_go(now_ms)

    def _let_go(self, now_ms: float) -> None:
        """What the busy time left behind."""
        if not self._awaited:
            self._awaited = None
        if self._rate is not None and self._rate.is_full(now_ms):
            self._rate = None
        if self._flood is not None and self._flood.is_full(now_ms):
            self._flood = None
        if self._errors is not None and self._errors.is_full(now_ms):
            self._errors = None

    def _close_if_drained(self, now_ms: float) -> None:
        if self.state is State.DRAINING and (not self._awaited or now_ms >= self._drain_until_ms):
            self.close(codes.SHUTDOWN)

    def data_to_send(self) -> list[bytes]:
        """Messages for the client since the last call, in order."""
        out, self._out = self._out, None
        return out or []

    def _say(self, reply: Reply) -> None:
        self.put(self._codec.encode(reply))

    def put(self, message: bytes) -> None:
        """As the codec has made it; also a publication of the viewer's own channel, in its place among the answers. Not once closed."""
        if self._out is None:
            self._out = [message]
        else:
            self._out.append(message)
