"""When each connection is next to be looked at: pings, pongs, tokens that end, and whoever waits for something.

    clocks.watch(connection)         # after whatever may have changed what its session waits for; cheap when nothing has
    clocks.forget(connection)        # it is gone
    due = clocks.take_due(now_ms)    # about once a second: those to tick, each of which is then watched again

Invariants
- Every open connection sits in one slot of a second, at or before what its session waits for next: a look that comes early costs little,
  one that comes late breaks a rule. What moves to a later time leaves it where it is, so a refresh or an answered ping moves nothing.
- Those with a command under way, a send buffer that does not drain, or an orderly end before them are looked at every second instead.
So an idle viewer costs two looks a ping, where a tick each second cost twenty-five.
"""

from typing import TYPE_CHECKING

from app.protocol.session import NEVER_MS

if TYPE_CHECKING:
    from app.gateway.connection import Connection


class Slot:
    """The connections to look at in one second of the loop's clock."""

    __slots__ = ("connections", "second")

    def __init__(self, second: int) -> None:
        self.second = second
        self.connections: set[Connection] = set()


class Clocks:
    def __init__(self) -> None:
        self._slots: dict[int, Slot] = {}
        self._busy: set[Connection] = set()
        self._second: int | None = None  # the last one taken; it may fill again

    def watch(self, connection: "Connection") -> None:
        session = connection.session
        if session.is_busy or connection.paused_at_ms is not None:
            self._busy.add(connection)
        due_ms = session.due_ms
        if due_ms == NEVER_MS:
            return
        slot = connection.slot
        if slot is not None:
            if slot.second * 1000 <= due_ms:
                return
            slot.connections.discard(connection)
        self._put(connection, due_ms)

    def _put(self, connection: "Connection", due_ms: float) -> None:
        second = int(due_ms / 1000)
        if self._second is not None and second < self._second:
            second = self._second
        slot = self._slots.get(second)
        if slot is None:
            slot = self._slots[second] = Slot(second)
        slot.connections.add(connection)
        connection.slot = slot

    def forget(self, connection: "Connection") -> None:
        self._busy.discard(connection)
        if connection.slot is not None:
            connection.slot.connections.discard(connection)
            connection.slot = None

    def take_due(self, now_ms: float) -> "list[Connection]":
        """They are in no slot until they are watched again, which a tick sees to."""
        self._busy = {connection for connection in self._busy if connection.is_busy}
        due = set(self._busy)
        now_s = int(now_ms / 1000)
        for second in sorted(second for second in self._slots if second <= now_s):
            for connection in self._slots.pop(second).connections:
                connection.slot = None
                due.add(connection)
        self._second = now_s
        return list(due)
