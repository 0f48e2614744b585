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
from app.gateway.room import UserFeed
from app.gateway.start import Start
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

ROOMS_AHEAD_MAX = 4  # of one connect's frame


def take_frame(hub: Hub, connection: Connection, frame: bytes) -> None:
    """A frame from the client: what can be answered at once is, the rest is begun."""
    _begin(hub, connection, connection.session.receive(frame, hub.now_ms()))
    connection.flush()


def _begin(hub: Hub, connection: Connection, incoming: list[Incoming]) -> None:
    """One task for what concerns one room and waits for the same, one for each other command."""
    subscribes: dict[str, list[Incoming]] = {}
    for command in incoming:
        if isinstance(command.request, UnsubscribeRequest):
            subscribing.unsubscribe(hub, connection, command.request.channel)  # at once: a subscribe may follow in the same frame
        elif isinstance(command.request, SubscribeRequest):
            subscribes.setdefault(_room_of(command.request.channel), []).append(command)
        else:
            hub.spawn(_carry_out(hub, connection, command))
    for room_id, commands in subscribes.items():
        hub.spawn(_subscribe(hub, connection, room_id, commands))


def _room_of(channel: str) -> str:
    return channel.partition(":")[2]


async def _carry_out(hub: Hub, connection: Connection, command: Incoming) -> None:
    try:
        await _answer(hub, connection, command)
    except Exception as failure:  # whatever failed, the client gets an answer
        _refuse(hub, connection, command, failure)
    connection.flush()


def _refuse(hub: Hub, connection: Connection, command: Incoming, failure: Exception) -> None:
    error = app_error(failure, command=type(command.request).__name__)  # logs what is no AppError
    connection.session.refuse(command.id, error.code, error.detail, hub.now_ms())


async def _subscribe(hub: Hub, connection: Connection, room_id: str, commands: list[Incoming]) -> None:
    """The subscribes of one frame to the channels of one room: admitted once, answered in one write if nothing has to be read."""
    refusal = await _admit(hub, connection.caller, room_id)
    _subscribe_at_hand(hub, connection, commands, refusal)
    connection.flush()


async def _admit(hub: Hub, caller: Caller, room_id: str) -> Exception | None:
    try:
        await subscribing.admit(hub.engines, caller, room_id)
    except Exception as failure:  # told to the client once for each of its commands
        return failure
    return None


def _subscribe_at_hand(hub: Hub, connection: Connection, commands: list[Incoming], refusal: Exception | None) -> None:
    """Without a pause. Those that must read something go on apart."""
    for command in commands:
        try:
            if refusal is not None:
                raise refusal
            assert isinstance(command.request, SubscribeRequest)
            if not subscribing.subscribe_at_hand(hub, connection, command.id, command.request):
                hub.spawn(_carry_out(hub, connection, command))
        except Exception as failure:  # whatever failed, the client gets an answer, and the commands behind it their turn
            _refuse(hub, connection, command, failure)


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
    if not hub.method_rates.take(caller.id, command, hub.now_ms()):
        COMMANDS.labels(command.method, codes.TOO_MANY_REQUESTS.word).inc()
        raise AppError(codes.TOO_MANY_REQUESTS, f"too many calls of {command.method} a second; slow down")
    return RpcResult(data=Raw(await call_command(hub.engines, caller, command, bytes(request.data))))


# --- connect and refresh ------------------------------------------------------------------------------------------------------------


async def _connect(hub: Hub, connection: Connection, command_id: int, request: ConnectRequest) -> None:
    caller = await _identify(hub, connection, request.token)
    if caller is None or not connection.is_open:
        return
    channel = user_channel(caller.id)
    resume = request.subs.get(channel) or SubscribeRequest()
    resume.channel = channel
    with hub.user(caller.id) as feed:
        if len(feed.connections) >= hub.settings.connections_per_viewer_max:
            connection.close(codes.CONNECTION_LIMIT)
            return
        connection.caller = caller
        feed.expect(connection)
        await hub.bus.open(push_channel(user_bucket(caller.id)))
        asked = subscribing.ask_position(hub.engines, channel)  # on its way together with the questions of `_admit`
        refusals = {room_id: await _admit(hub, caller, room_id) for room_id in _rooms_ahead(hub, connection)}
        start = await subscribing.read_own_start(hub, feed, resume, await asked)
        if connection.session.is_awaited(command_id):
            pipelined = _come_in(hub, connection, feed, start, resume)
            _go_on(hub, connection, pipelined, refusals)
    connection.flush()


def _go_on(hub: Hub, connection: Connection, pipelined: list[Incoming], refusals: dict[str, Exception | None]) -> None:
    rest: list[Incoming] = []
    for command in pipelined:
        if isinstance(command.request, UnsubscribeRequest):
            subscribing.unsubscribe(hub, connection, command.request.channel)  # in its place: a subscribe may follow it
            continue
        room_id = _room_of(command.request.channel) if isinstance(command.request, SubscribeRequest) else ""
        if room_id in refusals:
            _subscribe_at_hand(hub, connection, [command], refusals[room_id])
        else:
            rest.append(command)
    _begin(hub, connection, rest)


def _rooms_ahead(hub: Hub, connection: Connection) -> list[str]:
    """Rooms that the client subscribes to in the same frame and that are open here: whether it may come in is looked up before the connect
    is answered, so that all of its answers leave in one write. A ban that comes meanwhile finds the connection by these channels."""
    rooms = dict.fromkeys(_room_of(channel) for channel in connection.session.pipelined_channels())
    return [room_id for room_id in rooms if room_id in hub.rooms and hub.bus.is_open(push_channel(room_id))][:ROOMS_AHEAD_MAX]


def _come_in(hub: Hub, connection: Connection, feed: UserFeed, start: Start, resume: SubscribeRequest) -> list[Incoming]:
    """The connect's reply and what came for the viewer since the reading; returns what was pipelined behind it."""
    own = start.result(is_recovering=resume.recover)
    result = _connect_result(hub, connection, connection.caller, {resume.channel: own})
    pipelined = connection.session.accept_connect(result, hub.now_ms(), expires_in_ms=_expires_in_ms(hub, connection.caller))
    tail = start.tail(feed.channel)
    assert tail is not None, "settled"
    if tail:
        connection.flush()
        connection.write(start.tail_frame(connection.codec))
    feed.enter(connection, tail[-1].offset if tail else start.top.offset)
    if resume.recover:
        subscribing.count_recovery(start)
    return pipelined


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
