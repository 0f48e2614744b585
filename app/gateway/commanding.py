"""Carries out a client's commands: connect, refresh, RPC, and what `subscribing` does. Answers each exactly once.

Commands of one connection run side by side, as many as its session allows. One that outlives its answer ("no answer in time") runs on to
its end, since an engine may have it already; the retry with the same key gets what it did.
"""

from math import ceil

from msgspec import Raw

from app import __version__
from app.core.caller import Caller
from app.core.errors import AppError
from app.core.metrics import COMMANDS
from app.domains.accounts.service import authenticate
from app.gateway import subscribing
from app.gateway.connection import Connection
from app.gateway.hub import Hub
from app.protocol import codes
from app.protocol.channels import Kind, parse_channel, user_bucket, user_channel
from app.protocol.messages import (
    ConnectRequest,
    ConnectResult,
    HistoryRequest,
    PresenceStatsRequest,
    RefreshRequest,
    RefreshResult,
    RpcRequest,
    RpcResult,
    SubscribeRequest,
    SubscribeResult,
    UnsubscribeRequest,
)
from app.protocol.session import NEVER_MS, Incoming
from app.rest.dispatch import app_error, call_command
from app.storage.streams import push_channel


def take_frame(hub: Hub, connection: Connection, frame: bytes) -> None:
    """A frame from the client: what can be answered at once is, the rest is begun."""
    _begin(hub, connection, connection.session.receive(frame, hub.now_ms()))
    connection.flush()


def _begin(hub: Hub, connection: Connection, incoming: list[Incoming]) -> None:
    for command in incoming:
        if isinstance(command.request, UnsubscribeRequest):
            subscribing.unsubscribe(hub, connection, command.request.channel)  # at once: a subscribe may follow in the same frame
        else:
            hub.spawn(_carry_out(hub, connection, command))


async def _carry_out(hub: Hub, connection: Connection, command: Incoming) -> None:
    try:
        await _answer(hub, connection, command)
    except AppError as refusal:
        connection.session.refuse(command.id, refusal.code, refusal.detail, hub.now_ms())
    except Exception as failure:  # whatever failed, the client gets an answer; `app_error` logs it
        error = app_error(failure, command=type(command.request).__name__)
        connection.session.refuse(command.id, error.code, error.detail, hub.now_ms())
    connection.flush()


async def _answer(hub: Hub, connection: Connection, command: Incoming) -> None:
    session = connection.session
    match command.request:
        case RpcRequest() as request:
            session.reply(command.id, await _call(hub, connection.caller, request))
        case SubscribeRequest() as request:
            await subscribing.subscribe(hub, connection, command.id, request)
        case ConnectRequest() as request:
            await _connect(hub, connection, command.id, request)
        case RefreshRequest() as request:
            await _refresh(hub, connection, command.id, request)
        case HistoryRequest() as request:
            session.reply(command.id, await subscribing.read_history(hub, connection, request))
        case PresenceStatsRequest() as request:
            session.reply(command.id, await subscribing.read_presence(hub, connection, request.channel))
        case other:
            raise AssertionError(f"the session answers {type(other).__name__} itself")


async def _call(hub: Hub, caller: Caller, request: RpcRequest) -> RpcResult:
    command = hub.engines.registry.commands.get(request.method)
    if command is None:
        COMMANDS.labels("unknown", codes.METHOD_NOT_FOUND.word).inc()  # the client's word is no label
        raise AppError(codes.METHOD_NOT_FOUND, "no such method; the reference lists them")
    return RpcResult(data=Raw(await call_command(hub.engines, caller, command, bytes(request.data))))


# --- connect and refresh ------------------------------------------------------------------------------------------------------------


async def _connect(hub: Hub, connection: Connection, command_id: int, request: ConnectRequest) -> None:
    caller = await _identify(hub, connection, request.token)
    if caller is None:
        return
    channel = user_channel(caller.id)
    resume = request.subs.get(channel) or SubscribeRequest()
    resume.channel = channel
    with hub.user(caller.id) as feed:
        await hub.bus.open(push_channel(user_bucket(caller.id)))
        start = await subscribing.read_start(hub, feed, resume)
        tail = subscribing.settle(hub, feed, start)
        if not connection.session.is_awaited(command_id):
            return
        connection.caller = caller
        result = _connect_result(hub, connection, caller, {channel: subscribing.result_of(resume, start)})
        pipelined = connection.session.accept_connect(result, hub.now_ms(), expires_in_ms=_expires_in_ms(hub, caller))
        connection.flush()
        subscribing.send_tail(connection, tail)
        feed.enter(connection, tail[-1].offset if tail else start.top.offset)
    _begin(hub, connection, pipelined)


async def _identify(hub: Hub, connection: Connection, token: str) -> Caller | None:
    """None when the connection was closed for its token. An expired token is an error instead: the SDK gets a fresh one and comes again."""
    if not token:
        raise AppError(codes.UNAUTHORIZED, "connect needs a token; guests get one from POST /api/v1/guests")
    try:
        return await authenticate(hub.engines, token)
    except AppError as refusal:
        if refusal.code is not codes.UNAUTHORIZED:
            raise
        connection.close(codes.INVALID_TOKEN)
        return None


def _connect_result(hub: Hub, connection: Connection, caller: Caller, subs: dict[str, SubscribeResult]) -> ConnectResult:
    expires, ttl = _expiry(hub, caller)
    return ConnectResult(
        client=connection.id,
        version=__version__,
        ping=hub.settings.ping_interval_s,
        pong=True,
        expires=expires,
        ttl=ttl,
        subs=subs,
        node=hub.node_id,
    )


async def _refresh(hub: Hub, connection: Connection, command_id: int, request: RefreshRequest) -> None:
    """A fresh token of the same viewer. Channels that it no longer covers are taken away."""
    caller = await _identify(hub, connection, request.token)
    if caller is None:
        return
    if caller.id != connection.caller.id:
        connection.close(codes.INVALID_TOKEN)
        return
    connection.caller = caller
    expires, ttl = _expiry(hub, caller)
    if connection.session.reply(command_id, RefreshResult(client=connection.id, version=__version__, expires=expires, ttl=ttl)):
        connection.session.extend(hub.now_ms(), _expires_in_ms(hub, caller))
    for channel in list(connection.session.channels):
        kind, name = parse_channel(channel) or (Kind.USER, caller.id)
        if not subscribing.may_have(caller, kind, name):
            hub.unsubscribe(connection, channel, codes.UNSUBSCRIBED_BY_SERVER, "permission denied")


def _expires_in_ms(hub: Hub, caller: Caller) -> float:
    return NEVER_MS if caller.expires_at_s is None else max(0, caller.expires_at_s * 1000 - hub.engines.runtime.now_ms())


def _expiry(hub: Hub, caller: Caller) -> tuple[bool, int]:
    """`expires` only where the token says so: an SDK without a way to get a new one leaves for good otherwise."""
    if caller.expires_at_s is None:
        return False, 0
    return True, max(1, ceil(_expires_in_ms(hub, caller) / 1000))
