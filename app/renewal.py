"""A rolling restart: each web process in turn is followed by a new one on the same listening socket, and only then told to leave.

Both accept from the one socket while the old one still does, so nobody who knocks waits or is refused. A new process that does not get
ready changes nothing and ends the renewal, so that a broken new version never takes the product down. Driven by the supervisor's loop:
`look` never waits.
"""

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

READY_S_MAX = 120.0  # as long as the supervisor gives everything at the start
READY = b"1"

Process = subprocess.Popen[bytes]
Spawn = Callable[[int], Process]  # a web process that writes READY to this descriptor once it serves


@dataclass(slots=True)
class Place:
    """One listening socket's process. `take` is told who serves from now on, `buried` the id of the one that has ended."""

    name: str
    spawn: Spawn
    current: Callable[[], Process | None]
    take: Callable[[Process], None]
    buried: Callable[[int], None]
    stop_s: float


@dataclass(slots=True)
class Renewal:
    say: Callable[[str], None]
    _queue: deque[Place] = field(default_factory=deque[Place])
    _place: Place | None = None
    _process: Process | None = None  # the new one until it is ready, then the old one until it has ended
    _ready: int = -1  # where the new one says that it is
    _deadline: float = 0.0

    @property
    def is_under_way(self) -> bool:
        return self._place is not None or bool(self._queue)

    def begin(self, places: list[Place]) -> None:
        """All of them, one after the other. Asked again meanwhile: those still to come are enough."""
        if not self.is_under_way:
            self._queue.extend(places)

    def look(self) -> None:
        if self._place is None:
            if self._queue:
                self._start(self._queue.popleft())
        elif self._ready >= 0:
            self._await_ready(self._place)
        else:
            self._await_end(self._place)

    def _start(self, place: Place) -> None:
        self._ready, write = os.pipe()
        os.set_blocking(self._ready, False)
        try:
            self._process = place.spawn(write)
        except OSError as failure:
            self._give_up(f"{place.name} was not renewed: {failure}")
        else:
            self._place = place
            self._deadline = time.monotonic() + READY_S_MAX
        finally:
            os.close(write)

    def _await_ready(self, place: Place) -> None:
        process = self._process
        assert process is not None
        try:
            said = os.read(self._ready, 1)
        except BlockingIOError:
            if time.monotonic() > self._deadline:
                process.kill()
                self._give_up(f"{place.name} was not renewed: the new process is not ready after {READY_S_MAX:.0f} s")
            return
        if said != READY:  # it has ended, or is about to
            self._give_up(f"{place.name} was not renewed: the new process ended while starting")
            return
        self._close_ready()
        old = place.current()
        place.take(process)
        self._process = old
        self._deadline = time.monotonic() + place.stop_s
        if old is not None:
            old.send_signal(signal.SIGTERM)

    def _await_end(self, place: Place) -> None:
        old = self._process
        if old is not None and old.poll() is None:
            if time.monotonic() > self._deadline:
                old.kill()
            return
        if old is not None:
            place.buried(old.pid)
        self.say(f"{place.name} renewed")
        self._place = self._process = None

    def _give_up(self, reason: str) -> None:
        """What serves goes on to serve."""
        self._close_ready()
        self.end()
        self._place = None
        self._queue.clear()
        self.say(reason)

    def _close_ready(self) -> None:
        os.close(self._ready)
        self._ready = -1

    def end(self) -> Process | None:
        """Asks whoever is between two states to end, and returns it: the supervisor stops."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
        return process
