"""All connections of one node: rooms and viewers' own channels, what arrives for them, their clocks, and the end.

    hub = Hub(engines)       # at the composition root, as `app.state.hub`
    await hub.start()        # before the first connection
    await hub.drain()        # stop accepting, tell every viewer to go elsewhere, over `drain_s`; the endpoint answers 503 from then on
    await hub.stop()         # what is left is closed; returns when no task of the gateway is left

Holds no truth: whatever is here can be lost and is read again from the engines. It does not decide who may do what (`subscribing`,
`calling`), and writes to no socket (`connection`).
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import structlog
from redis.exceptions import RedisError

from app.core.errors import AppError
from app.core.metrics import CONNECTIONS, DELIVERIES, SUBSCRIPTIONS, write_at_once, write_figures, write_late
from app.domains.chat import bans
from app.gateway.admission import Admission
from app.gateway.attendance import Attendance
from app.gateway.bus import Bus
from app.gateway.channel import Taken
from app.gateway.clocks import Clocks
from app.gateway.connection import Connection, Transport, limits_of
from app.gateway.cutoff import WATCH_S, CutOff
from app.gateway.fanout import Fanout
from app.gateway.healing import Healing
from app.gateway.method_rates import MethodRates
from app.gateway.room import Feed, Room, UserFeed
from app.gateway.sampling import DELETION
from app.protocol import codes
from app.protocol.channels import USER_BUCKETS, Kind, Lane, parse_channel
from app.protocol.codec import Codec
from app.protocol.codes import CloseCode
from app.protocol.session import Session
from app.storage.streams import Delivered, parse_runs, push_channel
from app.storage.work import Engines

TICK_S = 1.0
DRAIN_SLICE_S = 0.1
STOP_S_MAX = 5.0
OPEN_AGAIN_S = 0.5

_stage_deliveries = DELIVERIES.labels(Lane.STAGE.value)

log = structlog.get_logger()


class Hub:
    def __init__(self, engines: Engines) -> None:
        self.engines = engines
        self.settings = engines.settings
        self.node_id = engines.runtime.new_short_id()
        self.is_draining = False
        self.connections: set[Connection] = set()
        self.rooms: dict[str, Room] = {}
        self.users: dict[str, UserFeed] = {}
        self.method_rates = MethodRates(engines.settings.method_rates_factor)
        self.clocks = Clocks()
        self._watch = self.clocks.watch
        self._limits = limits_of(engines.settings)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._own_delivered = 0  # of viewers' own channels, since the last tick
        self._told: dict[Connection, None] = {}  # connections whose session has something of their own channel to say
        self._is_empty: asyncio.Event | None = None  # while `stop` waits for it

    # --- life -----------------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Does not wait for the engines: a node that starts before them serves when they are there."""
        self._loop = asyncio.get_running_loop()
        write_late()
        self.fanout = Fanout(self.settings, self.engines.runtime, self.spawn)
        self.healing = Healing(self)
        self.attendance = Attendance(self.engines, self.node_id)
        self.cutoff = CutOff(self)
        self.admission = Admission(
            self.settings, now_ms=self.now_ms(), rng=self.engines.runtime.rng, is_cut_off=lambda: self.cutoff.is_too_long
        )
        self.bus = Bus(
            self.engines.fanout.line,
            silence_s=self.settings.bus_silence_s,
            on_push=self._on_push,
            on_control=self._on_control,
            on_return=self._on_return,
        )
        self._loops = [
            asyncio.create_task(self.bus.run()),
            asyncio.create_task(self._every(TICK_S, self._tick)),
            asyncio.create_task(self._every(self.attendance.step_s, self._write_presence)),
            asyncio.create_task(self._every(WATCH_S, self.cutoff.watch)),
            asyncio.create_task(self._every(TICK_S, self._close_idle)),
            asyncio.create_task(self.healing.check_positions()),
        ]
        for bucket in range(USER_BUCKETS):
            self.spawn(self._open_bucket(f"u{bucket}"))

    async def _open_bucket(self, tag: str) -> None:
        while not self.is_draining:
            try:
                await self.bus.open(push_channel(tag))
                return
            except AppError:
                await asyncio.sleep(OPEN_AGAIN_S)  # the engine is away

    async def drain(self) -> None:
        """Closes everybody with 3001, spread over `drain_s`, so that the next node is not stormed."""
        self.is_draining = True
        waiting = list(self.connections)
        self.engines.runtime.rng.shuffle(waiting)
        slices = max(1, int(self.settings.drain_s / DRAIN_SLICE_S))
        size = -(-len(waiting) // slices)
        for start in range(0, len(waiting), max(1, size)):
            for connection in waiting[start : start + size]:
                connection.drain(self.now_ms())
            await asyncio.sleep(DRAIN_SLICE_S * self.engines.runtime.rng.uniform(0.5, 1.5))
        await self._until_empty()

    async def _until_empty(self) -> None:
        """Commands under way are answered first; their connections close with the next ticks."""
        deadline = self._loop.time() + STOP_S_MAX
        while any(connection.is_open for connection in self.connections) and self._loop.time() < deadline:
            await asyncio.sleep(0.05)
            await self._tick()

    async def stop(self) -> None:
        self.is_draining = True
        for connection in list(self.connections):
            connection.close(codes.SHUTDOWN)
        await self._until_gone()
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        write_at_once()
        await self.attendance.withdraw(list(self.rooms.values()))
        await self.healing.stop()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=STOP_S_MAX)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for room_id in list(self.rooms):
            self.fanout.forget(room_id)

    async def _until_gone(self) -> None:
        """The sockets themselves: nobody else waits for those that were handed over. Each has a deadline of its own; this is the net."""
        if self.connections:
            self._is_empty = asyncio.Event()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_empty.wait(), self.settings.close_grace_s + TICK_S)
        self.abort()

    def abort(self) -> None:
        """Drops every socket at once, with what waits for it."""
        for connection in list(self.connections):
            connection.transport.abort()

    @property
    def is_hearing(self) -> bool:
        """Started, and in touch with the other nodes."""
        return bool(self._loops) and self.bus.is_connected

    def now_ms(self) -> float:
        """The clock of sessions: the event loop's, which never runs backwards."""
        return self._loop.time() * 1000

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs something apart, kept from the garbage collector and awaited by `stop`. It handles its own failures."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for the task has it too

    # --- connections ----------------------------------------------------------------------------------------------------------------

    def connect(self, codec: Codec, transport: Transport) -> Connection:
        """A socket was accepted. `disconnect` when it is gone."""
        share = self.engines.runtime.rng.uniform(0.05, 1.0)
        session = Session(codec, self._limits, now_ms=self.now_ms(), first_ping_share=share)
        connection_id = self.engines.runtime.token_bytes(12).hex()  # 0.5 µs; an id sorted by time takes 6, and nothing sorts these
        connection = Connection(
            connection_id=connection_id, session=session, codec=codec, transport=transport, settings=self.settings, watch=self._watch
        )
        self.clocks.watch(connection)
        self.connections.add(connection)
        return connection

    def disconnect(self, connection: Connection) -> None:
        connection.session.lose()
        self.clocks.forget(connection)
        self.connections.discard(connection)
        if self._is_empty is not None and not self.connections:
            self._is_empty.set()
        for member in connection.members:
            member.home.leave_all(connection)
        feed = self.users.get(connection.caller.id)
        if feed is not None:
            feed.leave(connection)
            self._drop_if_idle(feed)

    # --- rooms and viewers ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def room(self, room_id: str) -> Generator[Room]:
        """A room that stays for as long as the block runs."""
        room = self.rooms.get(room_id)
        if room is None:
            room = self.rooms[room_id] = Room(room_id, self.spawn)
        room.pending += 1
        try:
            yield room
        finally:
            room.pending -= 1

    @contextmanager
    def user(self, viewer_id: str) -> Generator[UserFeed]:
        feed = self.users.get(viewer_id)
        if feed is None:
            feed = self.users[viewer_id] = UserFeed(viewer_id, self.spawn)
        feed.pending += 1
        try:
            yield feed
        finally:
            feed.pending -= 1
            feed.settle()
            self._drop_if_idle(feed)

    def _drop_if_idle(self, feed: UserFeed) -> None:
        if not feed.connections and not feed.pending and self.users.get(feed.viewer_id) is feed:
            del self.users[feed.viewer_id]

    def feed_of(self, channel: str) -> Feed | None:
        parsed = parse_channel(channel)
        if parsed is None:
            return None
        kind, name = parsed
        if kind is Kind.USER:
            return self.users.get(name)
        room = self.rooms.get(name)
        return room.feeds[kind] if room else None

    async def _close_idle(self) -> None:
        """A room is let go a while after its last viewer, so that a page reload costs no new subscription."""
        for room in [room for room in self.rooms.values() if room.is_idle]:
            await self.attendance.record(room)
            if room.is_idle:
                del self.rooms[room.id]
                self.fanout.forget(room.id)
                await self.bus.shut(push_channel(room.id))

    # --- from the bus ---------------------------------------------------------------------------------------------------------------

    def _on_push(self, message: bytes) -> None:
        for channel, publications in parse_runs(message):
            feed = self.feed_of(channel)
            if feed is not None:
                for publication in publications:
                    self.take(feed, publication)

    def _on_return(self) -> None:
        """The bus is back: whatever came over it meanwhile is lost."""
        self.healing.heal_all()
        self.cutoff.on_return()

    def take(self, feed: Feed, publication: Delivered) -> None:
        taken = feed.channel.take(publication)
        if taken is Taken.OTHER_LIFE:
            self.give_up(feed)
            taken = feed.channel.take(publication)
        if taken is Taken.NEXT or taken is Taken.READING:  # a set of them would be hashed in Python each time
            self.deliver(feed, publication)
        elif taken is Taken.GAP:
            self.healing.heal(feed)

    def deliver(self, feed: Feed, publication: Delivered) -> None:
        if isinstance(feed, UserFeed):
            self._deliver_to_user(feed, publication)
            feed.settle()
        else:
            parsed = parse_channel(publication.channel)
            assert parsed is not None, "a feed has a channel of ours"
            room = self.rooms[parsed[1]]
            if parsed[0] is Kind.ROOM and DELETION in publication.data:
                room.feeds[Kind.CHAT].forget_reads()  # the line may be in what those who come back share
            self.fanout.put(room, parsed[0], publication)

    def _deliver_to_user(self, feed: UserFeed, publication: Delivered) -> None:
        """With whatever else leaves for its connections in this turn of the loop: a batch of holds brings a viewer several, and the write
        costs more than all the rest."""
        for connection in feed.connections:
            if not connection.is_open or (publication.offset and publication.offset <= connection.own_after):
                continue
            connection.session.put(connection.codec.publication(publication.channel, publication.offset, publication.data))
            if not self._told:
                self._loop.call_soon(self._write_own)
            self._told[connection] = None
            self._own_delivered += 1

    def _write_own(self) -> None:
        told, self._told = self._told, {}
        for connection in told:
            if not connection.is_open:
                continue
            try:
                connection.flush()
            except (OSError, RuntimeError) as failure:  # a socket that is just ending
                log.debug("client gone", error=type(failure).__name__)

    def give_up(self, feed: Feed, code: CloseCode | None = None) -> None:
        """The channel's life is over, or a part of it is lost: subscribers start afresh. The own channel cannot be taken away alone.

        With a close code the connections are closed instead.
        """
        channel = feed.channel
        channel.restart()
        feed.forget_reads()
        if isinstance(feed, UserFeed):
            connections, feed.connections = feed.connections, ()
            for connection in connections:
                connection.close(code or codes.INSUFFICIENT_STATE)
            return
        room = self.rooms.get(channel.name.partition(":")[2])
        if room is None:
            return
        room.drop(channel.kind)
        for connection in room.subscribers(channel.kind):
            if code is not None:
                connection.close(code)
            else:
                self.unsubscribe(connection, channel.name, codes.UNSUBSCRIBED_INSUFFICIENT_STATE, "insufficient state")

    def unsubscribe(self, connection: Connection, channel: str, code: int, reason: str) -> None:
        """Takes a channel of a room away from a client, and tells it."""
        self.leave(connection, channel)
        connection.session.push_unsubscribe(channel, code, reason)
        connection.flush()

    def leave(self, connection: Connection, channel: str) -> None:
        parsed = parse_channel(channel)
        if parsed is not None and parsed[0] is not Kind.USER and parsed[1] in self.rooms:
            self.rooms[parsed[1]].leave(connection, parsed[0])

    def _on_control(self, raw: bytes) -> None:
        """From any process: `{"do": "disconnect" | "unsubscribe", "user": ..., "room": optional, "code": optional}`,

        and `{"do": "recount", "room": ...}`: a new session counts those who are there already.
        """
        try:
            message = msgspec.json.decode(raw, type=dict[str, str])
        except msgspec.DecodeError:
            log.warning("control message that is none of ours")
            return
        room = message.get("room", "")
        if message.get("do") == "recount":
            if room in self.rooms:
                self.attendance.recount(self.rooms[room])
            return
        if room:
            bans.forget(self.engines, room)
        feed = self.users.get(message.get("user", ""))
        for connection in list(feed.connections) if feed is not None else ():
            if message.get("do") == "disconnect" and (not room or connection.is_in(room)):
                connection.close(_CLOSES.get(message.get("code", ""), codes.FORCE_DISCONNECT))
            elif message.get("do") == "unsubscribe" and room:
                for kind in (Kind.ROOM, Kind.CHAT, Kind.STAFF):
                    self.unsubscribe(connection, f"{kind}:{room}", codes.UNSUBSCRIBED_BY_SERVER, "unsubscribed by the server")

    # --- clocks ---------------------------------------------------------------------------------------------------------------------

    async def _every(self, seconds: float, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await step()
            except (RedisError, OSError) as failure:
                log.warning("gateway step put off", step=step.__name__, error=type(failure).__name__)
            except Exception:  # a clock that stops would leave every viewer without pings
                log.exception("gateway step failed", step=step.__name__)

    async def _tick(self) -> None:
        CONNECTIONS.set(len(self.connections))  # here and not with each one that comes: a figure costs microseconds to write
        SUBSCRIPTIONS.set(sum(room.subscriptions for room in self.rooms.values()))
        _stage_deliveries.inc(self._own_delivered)
        self._own_delivered = 0
        write_figures()
        due = self.clocks.take_due(self.now_ms())
        for start in range(0, len(due), self.settings.sweep_slice):
            now_ms = self.now_ms()
            for connection in due[start : start + self.settings.sweep_slice]:
                try:
                    connection.tick(now_ms)
                except Exception:  # the others must not go without pings for one that fails
                    log.exception("tick failed", connection=connection.id)
                    self.clocks.watch(connection)
            await asyncio.sleep(0)

    async def _write_presence(self) -> None:
        await self.attendance.write(list(self.rooms.values()))


_CLOSES = {str(code.number): code for code in codes.CLOSES}
