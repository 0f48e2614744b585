"""Subscribe, recover, read history: who may have a channel, and from which state on.

The order is what makes it right. First the node takes part in the room's channel; then position, history or snapshot are read, the position
before the snapshot; then, without a pause, the reply goes out, what arrived meanwhile follows it, and the client joins the sweeps. So
nothing falls between the snapshot and the first publication, and nothing comes twice.

What is read is shared, and so are the bytes that are made of it (start.py): a node that has followed a room since its last reading answers
from memory, and one that has not reads once for all who come.
"""

import asyncio
from collections.abc import Sequence

import msgspec

from app.core.caller import Caller
from app.core.errors import AppError
from app.core.metrics import DELIVERIES, RECOVERIES
from app.domains.chat.service import without_deleted
from app.domains.rooms.service import snapshot
from app.gateway.connection import Connection
from app.gateway.hub import Hub
from app.gateway.recovery import recover
from app.gateway.room import Feed, Room
from app.gateway.start import Backlog, Start, publications_of, recovery_of_copy, start_of_copy
from app.protocol import codes
from app.protocol.channels import LANE_OF, Kind, Lane, parse_channel
from app.protocol.messages import HistoryRequest, HistoryResult, PresenceStatsResult, SubscribeRequest
from app.storage import presence
from app.storage.streams import Delivered, Position, push_channel
from app.storage.work import Engines

RIGHT_OF = {Kind.ROOM: "room.watch", Kind.CHAT: "room.watch", Kind.STAFF: "staff.watch"}

ATTEMPTS_MAX = 3

_encoder = msgspec.json.Encoder()
_deliveries = {lane: DELIVERIES.labels(lane.value) for lane in Lane}
_recovered_whole = RECOVERIES.labels("whole")
_recovered_afresh = RECOVERIES.labels("afresh")


async def subscribe(hub: Hub, connection: Connection, command_id: int, request: SubscribeRequest) -> None:
    """Raises AppError; the caller answers with it."""
    kind, room_id = _parse(request.channel)
    check_right(connection.caller, kind, room_id)
    await admit(hub.engines, connection.caller, room_id)
    with hub.room(room_id) as room:
        await hub.bus.open(push_channel(room_id))
        start = await read_start(hub, room.feeds[kind], request)
        check_right(connection.caller, kind, room_id)  # a refresh may have narrowed it meanwhile
        _answer(connection, command_id, request, room, start)
        connection.flush()


def subscribe_at_hand(hub: Hub, connection: Connection, command_id: int, request: SubscribeRequest) -> bool:
    """The same without a wait, for whoever has been admitted to the room; False when something must be read for it.

    Raises AppError. Nothing is flushed: the answers to one frame leave together, before whatever may come for the channel.
    """
    kind, room_id = _parse(request.channel)
    check_right(connection.caller, kind, room_id)
    room = hub.rooms.get(room_id)
    if room is None or not hub.bus.is_open(push_channel(room_id)):
        return False
    start = _start_at_hand(hub, room.feeds[kind], request)
    if start is None:
        return False
    _answer(connection, command_id, request, room, start)
    return True


def _answer(connection: Connection, command_id: int, request: SubscribeRequest, room: Room, start: Start) -> None:
    """The reply, what came since the reading, and into the sweeps: without a pause."""
    kind, _ = _parse(request.channel)
    channel = room.feeds[kind].channel
    if not connection.session.reply_subscribed(command_id, start.encoded(connection.codec, is_recovering=request.recover)):
        return
    tail = start.tail(channel)
    assert tail is not None, "settled"
    if tail:
        connection.flush()
        connection.write(start.tail_frame(connection.codec))
        _deliveries[LANE_OF[kind]].inc(len(tail))
    room.enter(connection, kind, tail[-1].offset if tail else start.top.offset)
    if request.recover:
        count_recovery(start)


def count_recovery(start: Start) -> None:
    (_recovered_afresh if start.missed is None else _recovered_whole).inc()


def check_right(caller: Caller, kind: Kind, name: str) -> None:
    """Raises AppError unless this caller may have this channel, as far as rights say."""
    if not may_have(caller, kind, name):
        raise AppError(codes.PERMISSION_DENIED, f"this channel needs the right `{RIGHT_OF.get(kind, 'none')}` in the room")


async def admit(engines: Engines, caller: Caller, room_id: str) -> None:
    """Raises AppError unless the domains let this caller into the room."""
    for check in engines.registry.admission:
        await check(engines, caller, room_id)


def may_have(caller: Caller, kind: Kind, name: str) -> bool:
    return caller.id == name if kind is Kind.USER else caller.may(RIGHT_OF[kind], name)


# --- from where on ------------------------------------------------------------------------------------------------------------------


def _start_at_hand(hub: Hub, feed: Feed, request: SubscribeRequest) -> Start | None:
    """From what this node has: its copy of the channel, or a snapshot that was read a moment ago."""
    channel = feed.channel
    if request.recover:
        return _recovery_at_hand(hub, feed, Position(request.epoch, request.offset))
    if channel.kind is not Kind.ROOM:
        return start_of_copy(channel, feed.reads.kept)
    start = feed.reads.at_hand("snapshot", lambda: _read_snapshot(hub.engines, channel.name))
    if start is None or channel.top is None or channel.epoch != start.top.epoch or start.tail(channel) is None:
        return None
    return start


def _recovery_at_hand(hub: Hub, feed: Feed, since: Position) -> Start | None:
    feed.reads.let_go_later()
    return recovery_of_copy(feed.channel, feed.reads.kept, since, hub.settings.stage_history_events_max)


async def read_start(hub: Hub, feed: Feed, request: SubscribeRequest) -> Start:
    """Settled: the node's copy of the channel and what was read belong together, and the tail is whole. No pause from here to the reply."""
    last: Start | None = None
    for attempt in range(ATTEMPTS_MAX):
        start = await _read_start(hub, feed, request, last)
        is_of_other_life = feed.channel.top is not None and feed.channel.epoch != start.top.epoch
        if (attempt or not is_of_other_life) and _settle(hub, feed, start):  # a shared reading may be the older of the two
            return start
        last = start
    raise AppError(codes.SERVICE_UNAVAILABLE, "the room moves on too fast; try again", retry_after_ms=1000)


async def _read_start(hub: Hub, feed: Feed, request: SubscribeRequest, last: Start | None) -> Start:
    """`last` will not do."""
    channel = feed.channel
    if request.recover:
        start = await _recover(hub, feed, Position(request.epoch, request.offset), last)
        if start is not None:
            return start
    if channel.kind is Kind.ROOM:
        return await feed.reads.get("snapshot", lambda: _read_snapshot(hub.engines, channel.name), instead_of=last)
    start = start_of_copy(channel, feed.reads.kept)
    return Start(await ask_position(hub.engines, channel.name)) if start is None or start is last else start


def _settle(hub: Hub, feed: Feed, start: Start) -> bool:
    """Brings the node's copy and what was read together; whether what came after the reading is all there."""
    channel = feed.channel
    channel.anchor(start.top)
    if channel.epoch != start.top.epoch:  # the stream began anew, and the bus has not told us yet
        hub.give_up(feed)
        channel.restart(start.top)
    return start.tail(channel) is not None


async def _recover(hub: Hub, feed: Feed, since: Position, last: Start | None) -> Start | None:
    """From the node's copy, or by one read of the whole history for all who come back, wherever to."""
    start = _recovery_at_hand(hub, feed, since)
    if start is not None and start is not last:
        return start
    backlog = await feed.reads.get("history", lambda: _read_backlog(hub.engines, feed))
    # Read before this client's last publication was made, which it saw on another node; or outrun by what came since.
    if backlog.is_behind(since) or (last is not None and backlog.start(since) is last):
        backlog = await feed.reads.get("history", lambda: _read_backlog(hub.engines, feed), instead_of=backlog)
    return backlog.start(since)


async def _read_backlog(engines: Engines, feed: Feed) -> Backlog:
    channel = feed.channel
    history, top = await _read_history(engines, channel.kind, channel.name, 0)
    if channel.kind is not Kind.CHAT:
        channel.anchor(top)
        channel.prime(history)
    return Backlog(history, top)


async def _read_history(engines: Engines, kind: Kind, channel: str, since_offset: int) -> tuple[list[Delivered], Position]:
    publications, top = await engines.streams.history(channel, since_offset=since_offset)
    return (await without_deleted(engines, publications) if kind is Kind.CHAT else publications), top


async def _read_snapshot(engines: Engines, channel: str) -> Start:
    """The position first: an event that falls in between is then applied twice, which does no harm, and never missed."""
    room_id = channel.partition(":")[2]
    top = await ask_position(engines, channel)
    return Start(top, data=msgspec.Raw(_encoder.encode(await snapshot(engines, room_id))))


async def read_own_start(hub: Hub, feed: Feed, request: SubscribeRequest, top: Position) -> Start:
    """Of a viewer's own channel, which stands at `top`. Where nothing was missed, as nearly always, no history is read."""
    start = await _read_own_start(hub.engines, feed, request, top)
    if not _settle(hub, feed, start):
        raise AppError(codes.SERVICE_UNAVAILABLE, "the channel moves on too fast; try again", retry_after_ms=1000)
    return start


async def _read_own_start(engines: Engines, feed: Feed, request: SubscribeRequest, top: Position) -> Start:
    if not request.recover or request.epoch != top.epoch or request.offset > top.offset:
        return Start(top)
    if request.offset == top.offset:
        return Start(top, missed=(), since_offset=top.offset)
    history, top = await engines.streams.history(feed.channel.name, since_offset=request.offset)
    return Start(top, missed=recover(Position(request.epoch, request.offset), history, top), since_offset=request.offset)


def ask_position(engines: Engines, channel: str) -> "asyncio.Future[Position]":
    """Where the stream stands; all who ask at one moment ask in one trip."""
    return engines.group_commit("position", _read_positions).submit("", channel)


async def _read_positions(engines: Engines, _lane: str, channels: Sequence[str]) -> list[Position]:
    return await engines.streams.positions(channels)


# --- leaving and reading -------------------------------------------------------------------------------------------------------------


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
    return HistoryResult(publications=publications_of(publications), epoch=top.epoch, offset=top.offset)


async def read_presence(hub: Hub, connection: Connection, channel: str) -> PresenceStatsResult:
    """How many, never who."""
    kind, room_id = _parse(channel)
    if kind not in {Kind.ROOM, Kind.CHAT}:
        raise AppError(codes.NOT_AVAILABLE, "counts are there for room:<id> and chat:<id>")
    check_right(connection.caller, kind, room_id)
    await admit(hub.engines, connection.caller, room_id)
    viewers = await presence.viewers(hub.engines, room_id)
    return PresenceStatsResult(num_clients=viewers, num_users=viewers)


async def _admit_to_read(hub: Hub, caller: Caller, kind: Kind, name: str) -> None:
    if kind is not Kind.USER:
        check_right(caller, kind, name)
        await admit(hub.engines, caller, name)
    elif not may_have(caller, kind, name):
        raise AppError(codes.PERMISSION_DENIED, "this is another viewer's own channel")


def _parse(channel: str) -> tuple[Kind, str]:
    parsed = parse_channel(channel)
    if parsed is None:
        raise AppError(codes.UNKNOWN_CHANNEL, "no such channel: room:<id>, chat:<id> and staff:<id> are there")
    return parsed
