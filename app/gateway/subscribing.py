"""Subscribe, recover, read history: who may have a channel, and from which state on.

The order is what makes it right. First the node takes part in the room's channel; then position, history or snapshot are read, the position
before the snapshot; then, without a pause, the reply goes out, what arrived meanwhile follows it, and the client joins the sweeps. So
nothing falls between the snapshot and the first publication, and nothing comes twice.
"""

from typing import NamedTuple

import msgspec

from app.core.caller import Caller
from app.core.errors import AppError
from app.core.metrics import DELIVERIES, RECOVERIES, SUBSCRIPTIONS
from app.domains.chat.service import without_deleted
from app.gateway.connection import Connection
from app.gateway.hub import Hub
from app.gateway.recovery import recover
from app.gateway.room import Feed
from app.protocol import codes
from app.protocol.channels import Kind, Lane, parse_channel
from app.protocol.messages import (
    NO_DATA,
    HistoryRequest,
    HistoryResult,
    PresenceStatsResult,
    Publication,
    SubscribeRequest,
    SubscribeResult,
)
from app.storage import presence
from app.storage.streams import Delivered, Position, push_channel
from app.storage.work import Engines

RIGHT_OF = {Kind.ROOM: "room.watch", Kind.CHAT: "room.watch", Kind.STAFF: "staff.watch"}

_encoder = msgspec.json.Encoder()


class Start(NamedTuple):
    """From where a subscriber goes on. `missed` is what it recovers; None: it starts afresh, with `data`."""

    top: Position
    missed: list[Delivered] | None = None
    data: msgspec.Raw = NO_DATA


async def subscribe(hub: Hub, connection: Connection, command_id: int, request: SubscribeRequest) -> None:
    """Raises AppError; the caller answers with it."""
    kind, room_id = _parse(request.channel)
    await admit(hub.engines, connection.caller, kind, room_id)
    with hub.room(room_id) as room:
        await hub.bus.open(push_channel(room_id))
        feed = room.feeds[kind]
        start = await read_start(hub, feed, request)
        tail = settle(hub, feed, start)
        if not connection.session.reply(command_id, result_of(request, start)):
            return
        connection.flush()
        send_tail(connection, tail)
        room.enter(connection, kind, tail[-1].offset if tail else start.top.offset)
        SUBSCRIPTIONS.inc()


async def admit(engines: Engines, caller: Caller, kind: Kind, room_id: str) -> None:
    """Raises AppError unless this caller may have this channel of the room."""
    if not may_have(caller, kind, room_id):
        raise AppError(codes.PERMISSION_DENIED, f"this channel needs the right `{RIGHT_OF.get(kind, 'none')}` in the room")
    for check in engines.registry.admission:
        await check(engines, caller, room_id)


def may_have(caller: Caller, kind: Kind, name: str) -> bool:
    return caller.id == name if kind is Kind.USER else caller.may(RIGHT_OF[kind], name)


async def read_start(hub: Hub, feed: Feed, request: SubscribeRequest) -> Start:
    if request.recover:
        start = await _recover(hub, feed, Position(request.epoch, request.offset))
        RECOVERIES.labels("whole" if start else "afresh").inc()
        if start is not None:
            return start
    channel = feed.channel
    if channel.kind is Kind.ROOM:
        room_id = channel.name.partition(":")[2]
        top, data = await feed.reads.get("snapshot", lambda: _read_snapshot(hub.engines, channel.name, room_id))
        return Start(top, None, msgspec.Raw(data))
    return Start(await feed.reads.get("position", lambda: hub.engines.streams.position(channel.name)))


async def _recover(hub: Hub, feed: Feed, since: Position) -> Start | None:
    """One read of the engine for all who come back to the same place."""
    channel = feed.channel
    history, top = await feed.reads.get(since.offset, lambda: _read_history(hub.engines, channel.kind, channel.name, since.offset))
    missed = recover(since, history, top)
    return None if missed is None else Start(top, missed)


async def _read_history(engines: Engines, kind: Kind, channel: str, since_offset: int) -> tuple[list[Delivered], Position]:
    publications, top = await engines.streams.history(channel, since_offset=since_offset)
    return (await without_deleted(engines, publications) if kind is Kind.CHAT else publications), top


async def _read_snapshot(engines: Engines, channel: str, room_id: str) -> tuple[Position, bytes]:
    """The position first: an event that falls in between is then applied twice, which does no harm, and never missed."""
    top = await engines.streams.position(channel)
    parts = {name: await part(engines, room_id) for name, part in engines.registry.snapshot.items()}
    return top, _encoder.encode(parts)


def settle(hub: Hub, feed: Feed, start: Start) -> list[Delivered]:
    """Brings the node's copy and what was read together; returns what came after the reading. No pause from here to the reply."""
    channel = feed.channel
    channel.anchor(start.top)
    if channel.epoch != start.top.epoch:  # the stream began anew, and the bus has not told us yet
        hub.give_up(feed)
        channel.restart(start.top)
    tail = channel.after(start.top.offset)
    if tail is None:
        raise AppError(codes.SERVICE_UNAVAILABLE, "the room moved on too fast; try again")
    return tail


def result_of(request: SubscribeRequest, start: Start) -> SubscribeResult:
    """Recovered: the request's offset, the client moves on through the publications. Otherwise the stream's top."""
    recovered = start.missed is not None
    return SubscribeResult(
        recoverable=True,
        positioned=True,
        epoch=start.top.epoch,
        offset=request.offset if recovered else start.top.offset,
        publications=_publications(start.missed or []),
        was_recovering=request.recover,
        recovered=recovered,
        data=start.data,
    )


def send_tail(connection: Connection, tail: list[Delivered]) -> None:
    """What came between the reading and the reply, as pushes right behind it."""
    if tail:
        frames = [connection.codec.publication(one.channel, one.offset, one.data) for one in tail]
        connection.write(connection.codec.join(frames))
        lane = Lane.CHAT if tail[0].channel.startswith("chat:") else Lane.STAGE
        DELIVERIES.labels(lane.value).inc(len(tail))


def unsubscribe(hub: Hub, connection: Connection, channel: str) -> None:
    """The session has answered already."""
    hub.leave(connection, channel)


async def read_history(hub: Hub, connection: Connection, request: HistoryRequest) -> HistoryResult:
    """What is kept of a channel that the caller may have."""
    kind, name = _parse(request.channel)
    await _admit_to_read(hub, connection.caller, kind, name)
    since = request.since
    ahead = since.offset if since is not None and not request.reverse else 0
    publications, top = await _read_history(hub.engines, kind, request.channel, ahead)
    if since is not None and since.epoch and since.epoch != top.epoch:
        raise AppError(codes.UNRECOVERABLE_POSITION, "the stream has begun anew since then")
    if request.reverse:
        publications = [one for one in reversed(publications) if since is None or one.offset < since.offset]
    if request.limit >= 0:
        publications = publications[: request.limit]
    return HistoryResult(publications=_publications(publications), epoch=top.epoch, offset=top.offset)


async def read_presence(hub: Hub, connection: Connection, channel: str) -> PresenceStatsResult:
    """How many, never who."""
    kind, room_id = _parse(channel)
    if kind not in {Kind.ROOM, Kind.CHAT}:
        raise AppError(codes.NOT_AVAILABLE, "counts are there for room:<id> and chat:<id>")
    await admit(hub.engines, connection.caller, kind, room_id)
    viewers = await presence.viewers(hub.engines, room_id)
    return PresenceStatsResult(num_clients=viewers, num_users=viewers)


async def _admit_to_read(hub: Hub, caller: Caller, kind: Kind, name: str) -> None:
    if kind is not Kind.USER:
        await admit(hub.engines, caller, kind, name)
    elif not may_have(caller, kind, name):
        raise AppError(codes.PERMISSION_DENIED, "this is another viewer's own channel")


def _parse(channel: str) -> tuple[Kind, str]:
    parsed = parse_channel(channel)
    if parsed is None:
        raise AppError(codes.UNKNOWN_CHANNEL, "no such channel: room:<id>, chat:<id> and staff:<id> are there")
    return parsed


def _publications(publications: list[Delivered]) -> list[Publication]:
    return [Publication(data=msgspec.Raw(one.data), offset=one.offset) for one in publications]
