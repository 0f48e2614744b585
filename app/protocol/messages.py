"""The messages of the client protocol (Centrifugal, version 2): one model for every codec.

A command or reply carries exactly one body. Application payloads (`data`) stay the UTF-8 JSON bytes that they are, in both directions, so a
broadcast is serialised once whatever the codecs of its viewers. Unknown fields are ignored, as the protocol asks; what we do not offer
(`delta`, `flag`, tokens of subscriptions, who is present) is read past and so declined, and messages that we never send are not here.

JSON goes by the fields' names, Protobuf by the `Number` beside each, and both by the range that an integer's type states.
"""

from typing import Annotated

from msgspec import Meta, Raw, Struct
from msgspec.structs import astuple

NO_DATA = Raw(b"")  # an absent payload; the codecs leave it out

Uint32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Uint64 = Annotated[int, Meta(ge=0)]  # no upper end, so that a position which never was gets an answer, whatever its size
Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]


class Number(Struct, frozen=True):
    """A field's number in Protobuf."""

    value: int


class Message(Struct, omit_defaults=True):
    """Fields at their default are not sent. Empty literals as defaults are made anew for each message; msgspec sees to it."""


# --- what a client asks -------------------------------------------------------------------------------------------------------------


class SubscribeRequest(Message):
    channel: Annotated[str, Number(1)] = ""
    recover: Annotated[bool, Number(3)] = False
    epoch: Annotated[str, Number(6)] = ""
    offset: Annotated[Uint64, Number(7)] = 0


class ConnectRequest(Message):
    token: Annotated[str, Number(1)] = ""
    subs: Annotated[dict[str, SubscribeRequest], Number(3)] = {}  # where server-side channels resume
    name: Annotated[str, Number(4)] = ""
    version: Annotated[str, Number(5)] = ""


class UnsubscribeRequest(Message):
    channel: Annotated[str, Number(1)] = ""


class PublishRequest(Message):
    channel: Annotated[str, Number(1)] = ""


class PresenceRequest(Message):
    channel: Annotated[str, Number(1)] = ""


class PresenceStatsRequest(Message):
    channel: Annotated[str, Number(1)] = ""


class StreamPosition(Message):
    offset: Annotated[Uint64, Number(1)] = 0
    epoch: Annotated[str, Number(2)] = ""


class HistoryRequest(Message):
    channel: Annotated[str, Number(1)] = ""
    limit: Annotated[Int32, Number(7)] = 0  # 0: only the position; below 0: all that is kept
    since: Annotated[StreamPosition | None, Number(8)] = None
    reverse: Annotated[bool, Number(9)] = False


class PingRequest(Message):
    pass


class SendRequest(Message):
    pass


class RpcRequest(Message):
    data: Annotated[Raw, Number(1)] = NO_DATA
    method: Annotated[str, Number(2)] = ""


class RefreshRequest(Message):
    token: Annotated[str, Number(1)] = ""


class SubRefreshRequest(Message):
    channel: Annotated[str, Number(1)] = ""


Request = (
    ConnectRequest
    | SubscribeRequest
    | UnsubscribeRequest
    | PublishRequest
    | PresenceRequest
    | PresenceStatsRequest
    | HistoryRequest
    | PingRequest
    | SendRequest
    | RpcRequest
    | RefreshRequest
    | SubRefreshRequest
)


class Command(Message):
    """One request with the id that its reply bears; without any request it is the pong."""

    id: Annotated[Uint32, Number(1)] = 0
    connect: Annotated[ConnectRequest | None, Number(4)] = None
    subscribe: Annotated[SubscribeRequest | None, Number(5)] = None
    unsubscribe: Annotated[UnsubscribeRequest | None, Number(6)] = None
    publish: Annotated[PublishRequest | None, Number(7)] = None
    presence: Annotated[PresenceRequest | None, Number(8)] = None
    presence_stats: Annotated[PresenceStatsRequest | None, Number(9)] = None
    history: Annotated[HistoryRequest | None, Number(10)] = None
    ping: Annotated[PingRequest | None, Number(11)] = None
    send: Annotated[SendRequest | None, Number(12)] = None
    rpc: Annotated[RpcRequest | None, Number(13)] = None
    refresh: Annotated[RefreshRequest | None, Number(14)] = None
    sub_refresh: Annotated[SubRefreshRequest | None, Number(15)] = None

    def requests(self) -> list[Request]:
        """The bodies present: one in a valid command, none in a pong."""
        return [body for body in astuple(self)[1:] if body is not None]  # without the id


class Identified(Message):
    """A command of which only the id is of interest."""

    id: Annotated[Uint32, Number(1)] = 0


# --- what the server answers --------------------------------------------------------------------------------------------------------


class Error(Message):
    code: Annotated[Uint32, Number(1)]
    message: Annotated[str, Number(2)]
    temporary: Annotated[bool, Number(3)] = False


class Publication(Message):
    data: Annotated[Raw, Number(4)]
    offset: Annotated[Uint64, Number(6)] = 0


class SubscribeResult(Message):
    recoverable: Annotated[bool, Number(3)] = False
    epoch: Annotated[str, Number(6)] = ""
    publications: Annotated[list[Publication], Number(7)] = []
    recovered: Annotated[bool, Number(8)] = False
    offset: Annotated[Uint64, Number(9)] = 0
    positioned: Annotated[bool, Number(10)] = False
    data: Annotated[Raw, Number(11)] = NO_DATA
    was_recovering: Annotated[bool, Number(12)] = False


class ConnectResult(Message):
    client: Annotated[str, Number(1)]
    version: Annotated[str, Number(2)]
    ping: Annotated[Uint32, Number(7)]  # seconds, never 0: one client's timer fails on it
    pong: Annotated[bool, Number(8)]
    expires: Annotated[bool, Number(3)] = False
    ttl: Annotated[Uint32, Number(4)] = 0
    subs: Annotated[dict[str, SubscribeResult], Number(6)] = {}
    node: Annotated[str, Number(10)] = ""


class UnsubscribeResult(Message):
    pass


class PresenceStatsResult(Message, omit_defaults=False):
    num_clients: Annotated[Uint32, Number(1)] = 0
    num_users: Annotated[Uint32, Number(2)] = 0


class HistoryResult(Message, omit_defaults=False):
    publications: Annotated[list[Publication], Number(1)]
    epoch: Annotated[str, Number(2)]
    offset: Annotated[Uint64, Number(3)]


class PingResult(Message):
    pass


class RpcResult(Message):
    data: Annotated[Raw, Number(1)]


class RefreshResult(Message):
    client: Annotated[str, Number(1)]
    version: Annotated[str, Number(2)]
    expires: Annotated[bool, Number(3)] = False
    ttl: Annotated[Uint32, Number(4)] = 0


Result = ConnectResult | SubscribeResult | UnsubscribeResult | PresenceStatsResult | HistoryResult | PingResult | RpcResult | RefreshResult


class Unsubscribed(Message):
    code: Annotated[Uint32, Number(2)]
    reason: Annotated[str, Number(3)]


class Disconnected(Message):
    code: Annotated[Uint32, Number(1)]
    reason: Annotated[str, Number(2)]
    reconnect: Annotated[bool, Number(3)] = False


class Push(Message):
    """What the server says unasked. Publications are not made of it but framed around bytes that all viewers share."""

    channel: Annotated[str, Number(2)] = ""
    pub: Annotated[Publication | None, Number(4)] = None
    unsubscribe: Annotated[Unsubscribed | None, Number(7)] = None
    disconnect: Annotated[Disconnected | None, Number(11)] = None


class Reply(Message):
    """An answer, or with `push` and no id something unasked. A result without content is still there, as an empty object."""

    id: Annotated[Uint32, Number(1)] = 0
    error: Annotated[Error | None, Number(2)] = None
    push: Annotated[Push | None, Number(4)] = None
    connect: Annotated[ConnectResult | None, Number(5)] = None
    subscribe: Annotated[SubscribeResult | None, Number(6)] = None
    unsubscribe: Annotated[UnsubscribeResult | None, Number(7)] = None
    presence_stats: Annotated[PresenceStatsResult | None, Number(10)] = None
    history: Annotated[HistoryResult | None, Number(11)] = None
    ping: Annotated[PingResult | None, Number(12)] = None
    rpc: Annotated[RpcResult | None, Number(13)] = None
    refresh: Annotated[RefreshResult | None, Number(14)] = None


_FIELD_OF: dict[type[Result], str] = {
    ConnectResult: "connect",
    SubscribeResult: "subscribe",
    UnsubscribeResult: "unsubscribe",
    PresenceStatsResult: "presence_stats",
    HistoryResult: "history",
    PingResult: "ping",
    RpcResult: "rpc",
    RefreshResult: "refresh",
}


def reply_with(command_id: int, result: Result) -> Reply:
    reply = Reply(id=command_id)
    setattr(reply, _FIELD_OF[type(result)], result)
    return reply
