"""The sweep: carries what a room's channels brought to its members, in one write each.

An idle room's first event leaves at once. Under load a sweep begins when the window since the last one has passed (`stage_sweep_ms` with
something of the stage, `sweep_ms` with chat alone) and takes all that came meanwhile: batches size themselves and the queue does not
grow. A large room is walked in slices of `sweep_slice`, so that commands are not kept waiting. One sweep of a room at a time: order holds.

A write costs nearly the same for one line as for ten, so a room whose chat sweeps would take more than `sweep_share_max` of a core gets
longer windows, up to `sweep_ms_max`. A reading (the pulse) opens no sweep by itself for `pulse_wait_ms`: in a room where something
happens it travels with that, at no cost, and a phone's radio wakes once less a second. Measured: with 2,000 viewers and 10 lines a second
the pulse was 9 % of the node's CPU; with 1,000 viewers and 100 lines a second windows of 75 ms take a third off the writes of 50 ms ones.

A group of members that get the same bytes is walked with one call each: the bytes are made once, figures are multiplied, and whoever left
the group between two slices is looked at singly, like all who are apart. A window that could fill a send buffer is carried singly to all.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter

import structlog

from app.core.metrics import DELIVERIES, SHED
from app.core.runtime import Runtime
from app.core.settings import Settings
from app.gateway.room import Group, Member, Part, Room
from app.gateway.sampling import Figures, hidden_lines, read_line, tell_figures
from app.gateway.shared_reads import Spawn
from app.gateway.window import Entry, Parcel, Window
from app.protocol.buckets import Bucket
from app.protocol.channels import Kind, Lane
from app.storage.streams import Delivered

_deliveries = {lane: DELIVERIES.labels(lane.value) for lane in Lane}
_sampled = SHED.labels(Lane.CHAT.value, "sampled")
_chat_slow = SHED.labels(Lane.CHAT.value, "slow")
_pulse_slow = SHED.labels(Lane.PULSE.value, "slow")

log = structlog.get_logger()


@dataclass(slots=True)
class _Pace:
    """When a room was swept, when it is next, and what of its chat was shown since the last pulse."""

    allowance: Bucket
    figures: Figures = field(default_factory=Figures)
    swept_at: float = -1.0
    sweep_s: float = 0.0  # what the last sweeps took, in a room of more than one slice
    due: float = 0.0
    timer: asyncio.TimerHandle | None = None
    is_sweeping: bool = False


@dataclass(slots=True)
class _Tally:
    """Counted in plain integers, handed to the metrics once a slice."""

    stage: int = 0
    chat: int = 0
    pulse: int = 0
    hidden: int = 0
    chat_slow: int = 0
    pulse_slow: int = 0

    def add(self, parcel: Parcel, times: int) -> None:
        self.stage += parcel.stage * times
        self.chat += parcel.chat * times
        self.pulse += parcel.pulse * times
        self.hidden += parcel.hidden * times


class Fanout:
    def __init__(self, settings: Settings, runtime: Runtime, spawn: Spawn) -> None:
        self._settings = settings
        self._rng = runtime.rng
        self._spawn = spawn
        self._paces: dict[str, _Pace] = {}
        self._loop = asyncio.get_running_loop()

    def put(self, room: Room, kind: Kind, publication: Delivered) -> None:
        """Queues a publication for the room's members, and sees to it that a sweep comes."""
        room.window.add(kind, Entry(publication))
        self._schedule(room)

    def forget(self, room_id: str) -> None:
        """The room is no longer on this node."""
        pace = self._paces.pop(room_id, None)
        if pace is not None and pace.timer is not None:
            pace.timer.cancel()

    def _pace(self, room: Room) -> _Pace:
        pace = self._paces.get(room.id)
        if pace is None:
            rate = self._settings.chat_shown_per_s
            pace = self._paces[room.id] = _Pace(Bucket(per_s=rate, burst=rate, now_ms=self._loop.time() * 1000))
        return pace

    def _schedule(self, room: Room) -> None:
        pace = self._pace(room)
        if pace.is_sweeping:
            return  # it looks again at its end
        due = self._due(room.window, pace)
        if pace.timer is not None:
            if pace.due <= due:
                return
            pace.timer.cancel()
        pace.due = due  # kept here: a handle of uvloop does not always know its time
        pace.timer = self._loop.call_at(due, self._begin, room, pace)

    def _due(self, window: Window, pace: _Pace) -> float:
        now, settings = self._loop.time(), self._settings
        if window.has_stage:
            return max(now, pace.swept_at + settings.stage_sweep_ms / 1000)
        if window.chat:
            window_s = max(settings.sweep_ms / 1000, min(settings.sweep_ms_max / 1000, pace.sweep_s / settings.sweep_share_max))
            return max(now, pace.swept_at + window_s)
        return now + settings.pulse_wait_ms / 1000

    def _begin(self, room: Room, pace: _Pace) -> None:
        pace.timer = None
        pace.swept_at = self._loop.time()
        window, room.window = room.window, Window()
        if window.is_empty:
            return
        if window.pulse is not None:
            window.pulse = Entry(tell_figures(window.pulse.publication, pace.figures))
            pace.figures = Figures()
        if window.chat and window.room:
            window.take_back()
        if window.chat:
            self._sample(window, pace)
        parts = room.divide(window)
        if sum(len(members) for _, members in parts) <= self._settings.sweep_slice:
            pace.sweep_s = 0.0
            for group, members in parts:
                self._carry(window, group, members)
            return
        pace.is_sweeping = True
        room.sweeping = window
        self._spawn(self._sweep(room, pace, window, parts))

    async def _sweep(self, room: Room, pace: _Pace, window: Window, parts: list[Part]) -> None:
        took_s = 0.0
        try:
            for group, members in _slices(parts, self._settings.sweep_slice):
                began = perf_counter()  # the loop's own clock stands still within a turn
                self._carry(window, group, members)
                took_s += perf_counter() - began
                await asyncio.sleep(0)
        finally:
            pace.sweep_s = (pace.sweep_s + took_s) / 2
            pace.is_sweeping = False
            room.sweeping = None
        if not room.window.is_empty:
            self._schedule(room)

    def _sample(self, window: Window, pace: _Pace) -> None:
        """Hides from all but their authors what the room says above `chat_shown_per_s`. Lines are only read when it comes to that."""
        now_ms = self._loop.time() * 1000
        pace.figures.add(said=len(window.chat), shown=len(window.chat))
        if pace.allowance.take(now_ms, len(window.chat)):
            return
        lines = [read_line(entry.publication.data) for entry in window.chat]
        allowance = int(pace.allowance.level(now_ms))
        pace.allowance.take(now_ms, allowance)
        hidden = hidden_lines(lines, allowance, self._rng)
        pace.figures.add(said=0, shown=-len(hidden))
        for index in hidden:
            line = window.chat[index].line = lines[index]
            assert line is not None, "only lines are hidden"
            window.authors.add(line.viewer)

    def _carry(self, window: Window, group: Group | None, members: list[Member]) -> None:
        tally = _Tally()
        if group is None:
            apart = members
        else:
            parcel = window.parcel_of_group(group)  # asked for each slice: a channel may have been dropped in between
            apart = members if len(parcel.packed) > self._settings.send_buffer_shed_bytes else _carry_to_group(group, parcel, members)
            tally.add(parcel, len(members) - len(apart))
        for member in apart:
            _carry_to(window, member, tally)
        _count(tally)


def _slices(parts: list[Part], size: int) -> Iterator[Part]:
    for group, members in parts:
        for start in range(0, len(members), size):
            yield group, members[start : start + size]


def _carry_to_group(group: Group, parcel: Parcel, members: list[Member]) -> list[Member]:
    """Returns those who are no longer in it. This loop is what a delivery costs."""
    packed = parcel.packed
    if not packed:
        return []
    moved: list[Member] = []
    walk = iter(members)
    while True:
        try:
            for member in walk:
                if member.group is group:
                    member.write(packed)
                else:
                    moved.append(member)
        except (OSError, RuntimeError) as failure:  # a socket that is just ending: the walk goes on behind it
            log.debug("client gone in a sweep", error=type(failure).__name__)
        else:
            return moved


def _carry_to(window: Window, member: Member, tally: _Tally) -> None:
    connection = member.connection
    if not connection.is_open:
        return
    is_slow = connection.is_slow
    parcel = window.parcel(member, is_slow=is_slow)
    if is_slow:
        chat, pulse = window.shed_by(member)
        tally.chat_slow += chat
        tally.pulse_slow += pulse
    tally.add(parcel, 1)
    if parcel.packed:
        try:
            connection.send(parcel.packed)
        except (OSError, RuntimeError) as failure:  # as above
            log.debug("client gone in a sweep", error=type(failure).__name__)


def _count(tally: _Tally) -> None:
    """Most sweeps carry one lane; a counter that several processes share costs microseconds even for nothing."""
    for counter, count in (
        (_deliveries[Lane.STAGE], tally.stage),
        (_deliveries[Lane.CHAT], tally.chat),
        (_deliveries[Lane.PULSE], tally.pulse),
        (_sampled, tally.hidden),
        (_chat_slow, tally.chat_slow),
        (_pulse_slow, tally.pulse_slow),
    ):
        if count:
            counter.inc(count)
