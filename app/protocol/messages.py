"""The messages of the client protocol (Centrifugal, version 2): one model for every codec.

A command or reply carries exactly one body. Application payloads (`data`) stay the UTF-8 JSON bytes that they are, in both directions, so a
broadcast is serialised once whatever the codecs of its viewers. Unknown fields are ignored, as the protocol asks; what we do not offer
(`delta`, `flag`, tokens of subscriptions) is read past and so declined.
"""

from typing import Annotated

from msgspec import Meta, Raw, Struct

NO_DATA = Raw(b"")  # an absent payload; the codecs leave it out

CommandId = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Offset = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Message(Struct, omit_defaults=True):
    """Fields at their default are not sent. Empty literals as defaults are made anew for each message; msgspec sees to it."""


# --- what a client asks -------------------------------------------------------------------------------------------------------------


class SubscribeRequest(Message):
    channel: str = ""
    recover: bool = False
    epoch: str = ""
    offset: Offset = 0


class ConnectRequest(Message):
    token: str = ""
    subs: dict[str, SubscribeRequest] = {}  # where server-side channels resume
    name: str = ""
    version: str = ""


class UnsubscribeRequest(Message):
    channel: str = ""


class PublishRequest(Message):
    channel: str = ""


class PresenceRequest(Message):
    channel: str = ""


class PresenceStatsRequest(Message):
    channel: str = ""


class StreamPosition(Message):
    offset: Offset = 0
    epoch: str = ""


class HistoryRequest(Message):
    channel: str = ""
    limit: int = 0  # 0: only the position; below 0: all that is kept
    since: StreamPosition | None = None
    reverse: bool = False


class PingRequest(Message):
    pass


class SendRequest(Message):
    pass


class RpcRequest(Message):
    data: Raw = NO_DATA
    method: str = ""


class RefreshRequest(Message):
    token: str = ""


class SubRefreshRequest(Message):
    channel: str = ""


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

    id: CommandId = 0
    connect: ConnectRequest | None = None
    subscribe: SubscribeRequest | None = None
    unsubscribe: UnsubscribeRequest | None = None
    publish: PublishRequest | None = None
    presence: PresenceRequest | None = None
    presence_stats: PresenceStatsRequest | None = None
    history: HistoryRequest | None = None
    ping: PingRequest | None = None
    send: SendRequest | None = None
    rpc: RpcRequest | None = None
    refresh: RefreshRequest | None = None
    sub_refresh: SubRefreshRequest | None = None

    def requests(self) -> list[Request]:
        """The bodies present: one in a valid command, none in a pong."""
        bodies = (self.connect, self.subscribe, self.unsubscribe, self.publish, self.presence, self.presence_stats)
        others = (self.history, self.ping, self.send, self.rpc, self.refresh, self.sub_refresh)
        return [body for body in (*bodies, *others) if body is not None]


# --- what the server answers --------------------------------------------------------------------------------------------------------


class Error(Message):
    code: int
    message: str
    temporary: bool = False


class Publication(Message):
    data: Raw
    offset: int = 0


class SubscribeResult(Message):
    recoverable: bool = False
    epoch: str = ""
    publications: list[Publication] = []
    recovered: bool = False
    offset: int = 0
    positioned: bool = False
    data: Raw = NO_DATA
    was_recovering: bool = False


class ConnectResult(Message):
    client: str
    version: str
    ping: int  # seconds, never 0: one client's timer fails on it
    pong: bool
    expires: bool = False
    ttl: int = 0
    subs: dict[str, SubscribeResult] = {}
    node: str = ""


class UnsubscribeResult(Message):
    pass


class PresenceStatsResult(Message, omit_defaults=False):
    num_clients: int = 0
    num_users: int = 0


class HistoryResult(Message, omit_defaults=False):
    publications: list[Publication]
    epoch: str
    offset: int


class PingResult(Message):
    pass


class RpcResult(Message):
    data: Raw


class RefreshResult(Message):
    client: str
    version: str
    expires: bool = False
    ttl: int = 0


Result = ConnectResult | SubscribeResult | UnsubscribeResult | PresenceStatsResult | HistoryResult | PingResult | RpcResult | RefreshResult


class Unsubscribed(Message):
    code: int
    reason: str


class Disconnected(Message):
    code: int
    reason: str
    reconnect: bool = False


class Push(Message):
    """What the server says unasked, but for publications: those are framed around bytes that all viewers share."""

    channel: str = ""
    unsubscribe: Unsubscribed | None = None
    disconnect: Disconnected | None = None


class Reply(Message):
    """An answer, or with `push` and no id something unasked. A result without content is still there, as an empty object."""

    id: int = 0
    error: Error | None = None
    push: Push | None = None
    connect: ConnectResult | None = None
    subscribe: SubscribeResult | None = None
    unsubscribe: UnsubscribeResult | None = None
    presence_stats: PresenceStatsResult | None = None
    history: HistoryResult | None = None
    ping: PingResult | None = None
    rpc: RpcResult | None = None
    refresh: RefreshResult | None = None


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
