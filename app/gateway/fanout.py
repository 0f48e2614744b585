"""The sweep: carries what a room's channels brought to its members, in one write each.

An idle room's first event leaves at once. Under load a sweep begins when the window since the last one has passed (`stage_sweep_ms` with
something of the stage, `sweep_ms` with chat alone) and takes all that came meanwhile: batches size themselves and the queue does not
grow. A large room is walked in slices of `sweep_slice`, so that commands are not kept waiting. One sweep of a room at a time: order holds.
"""

import asyncio
from dataclasses import dataclass

from app.core.metrics import DELIVERIES, SHED
from app.core.runtime import Runtime
from app.core.settings import Settings
from app.gateway.room import Entry, Member, Room, Window
from app.gateway.sampling import hidden_lines, read_line
from app.gateway.shared_reads import Spawn
from app.protocol.buckets import Bucket
from app.protocol.channels import Kind, Lane
from app.storage.streams import Delivered

_deliveries = {lane: DELIVERIES.labels(lane.value) for lane in Lane}
_sampled = SHED.labels(Lane.CHAT.value, "sampled")
_chat_slow = SHED.labels(Lane.CHAT.value, "slow")
_pulse_slow = SHED.labels(Lane.PULSE.value, "slow")


@dataclass(slots=True)
class _Pace:
    """When a room was swept, and when it is next."""

    shown: Bucket
    swept_at: float = -1.0
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
        window_ms = self._settings.stage_sweep_ms if room.window.has_stage else self._settings.sweep_ms
        due = max(self._loop.time(), pace.swept_at + window_ms / 1000)
        if pace.timer is not None:
            if pace.due <= due:
                return
            pace.timer.cancel()
        pace.due = due  # kept here: a handle of uvloop does not always know its time
        pace.timer = self._loop.call_at(due, self._begin, room, pace)

    def _begin(self, room: Room, pace: _Pace) -> None:
        pace.timer = None
        pace.swept_at = self._loop.time()
        window, room.window = room.window, Window()
        if window.is_empty:
            return
        self._sample(window, pace.shown)
        members = list(room.members.values())
        if len(members) <= self._settings.sweep_slice:
            _carry(window, members)
            return
        pace.is_sweeping = True
        room.sweeping = window
        self._spawn(self._sweep(room, pace, window, members))

    async def _sweep(self, room: Room, pace: _Pace, window: Window, members: list[Member]) -> None:
        for start in range(0, len(members), self._settings.sweep_slice):
            _carry(window, members[start : start + self._settings.sweep_slice])
            await asyncio.sleep(0)
        pace.is_sweeping = False
        room.sweeping = None
        if not room.window.is_empty:
            self._schedule(room)

    def _sample(self, window: Window, shown: Bucket) -> None:
        """Hides from all but their authors what the room says above `chat_shown_per_s`. Lines are only read when it comes to that."""
        now_ms = self._loop.time() * 1000
        if shown.take(now_ms, len(window.chat)):
            return
        lines = [read_line(entry.publication.data) for entry in window.chat]
        allowance = int(shown.level(now_ms))
        shown.take(now_ms, allowance)
        for index in hidden_lines(lines, allowance, self._rng):
            line = window.chat[index].line = lines[index]
            assert line is not None, "only lines are hidden"
            window.authors.add(line.viewer)


def _carry(window: Window, members: list[Member]) -> None:
    tally = _Tally()
    for member in members:
        if member.connection.is_open:
            _carry_to(window, member, tally)
    _count(tally)


def _carry_to(window: Window, member: Member, tally: _Tally) -> None:
    is_slow = member.connection.is_slow
    parcel = window.parcel(member, is_slow=is_slow)
    if is_slow:
        chat, pulse = window.shed_by(member)
        tally.chat_slow += chat
        tally.pulse_slow += pulse
    tally.hidden += parcel.hidden
    if parcel.data:
        tally.stage += parcel.stage
        tally.chat += parcel.chat
        tally.pulse += parcel.pulse
        member.connection.write(parcel.data)


def _count(tally: _Tally) -> None:
    _deliveries[Lane.STAGE].inc(tally.stage)
    _deliveries[Lane.CHAT].inc(tally.chat)
    _deliveries[Lane.PULSE].inc(tally.pulse)
    _sampled.inc(tally.hidden)
    _chat_slow.inc(tally.chat_slow)
    _pulse_slow.inc(tally.pulse_slow)
