"""What becomes of viewers while this node is cut off from the engine, and after.

For `bus_lost_s_max` they stay: most outages are shorter, and what they missed follows when the engine is back. New subscribes get a
temporary error, and `/readyz` says not ready. Longer than that, the node cannot tell its own partition from an outage of the engine; it
sends its viewers away with 3011 in jittered slices over `drain_s` and refuses newcomers before the upgrade, so that SDKs find a node that
hears. It stops at once when the engine is heard again. Of a cluster one shard may be lost alone: then this is about those in its rooms.

Control messages are pub/sub and may be lost with the line. So after its return every membership is looked at again (is the viewer banned
by now?), at most `rechecks_per_s`, and everybody is counted again.
"""

import asyncio
from typing import TYPE_CHECKING

import structlog

from app.core.errors import AppError
from app.gateway.connection import Connection
from app.protocol import codes
from app.protocol.channels import Kind, parse_channel
from app.storage.streams import push_channel

if TYPE_CHECKING:
    from app.gateway.hub import Hub

WATCH_S = 0.5
SLICE_S = 0.1
ATTEMPTS_MAX = 20
PAUSE_S = 1.0

log = structlog.get_logger()


class CutOff:
    def __init__(self, hub: "Hub") -> None:
        self._hub = hub
        self._recheck: asyncio.Task[None] | None = None

    @property
    def is_too_long(self) -> bool:
        """Nothing at all is heard."""
        return self._is_beyond(self._hub.bus.lost_s)

    def _is_beyond(self, lost_s: float) -> bool:
        return lost_s > self._hub.settings.bus_lost_s_max > 0

    async def watch(self) -> None:
        """One step of the hub's clock."""
        if self._hub.is_draining or not self._is_beyond(self._hub.bus.lost_longest_s):
            return
        waiting = [connection for connection in self._hub.connections if self._is_cut_off(connection)]
        if waiting:
            log.warning("cut off from an engine: viewers are sent to other nodes", viewers=len(waiting))
            await self._send_away(waiting)

    def _is_cut_off(self, connection: Connection) -> bool:
        """It hears nothing, or nothing of a room that it is in."""
        lost_s_of = self._hub.bus.lost_s_of
        return self.is_too_long or any(self._is_beyond(lost_s_of(push_channel(room_id))) for room_id in _rooms_of(connection))

    async def _send_away(self, waiting: list[Connection]) -> None:
        rng = self._hub.engines.runtime.rng
        rng.shuffle(waiting)
        size = max(1, -(-len(waiting) // max(1, int(self._hub.settings.drain_s / SLICE_S))))
        for start in range(0, len(waiting), size):
            slice_ = [connection for connection in waiting[start : start + size] if self._is_cut_off(connection)]
            if not slice_:
                return
            for connection in slice_:
                connection.close(codes.FORCE_RECONNECT)
            await asyncio.sleep(SLICE_S * rng.uniform(0.5, 1.5))

    # --- after the return -----------------------------------------------------------------------------------------------------------

    def on_return(self) -> None:
        for room in self._hub.rooms.values():
            self._hub.attendance.recount(room)
        if self._recheck is not None:
            self._recheck.cancel()  # from the beginning: what it has looked at may have changed during the new cut
        self._recheck = self._hub.spawn(self.recheck())

    async def recheck(self) -> None:
        """Closes with 3507 who may no longer be where they are."""
        memberships = [(connection, room_id) for connection in list(self._hub.connections) for room_id in _rooms_of(connection)]
        size = max(1, int(self._hub.settings.rechecks_per_s * SLICE_S))
        for start in range(0, len(memberships), size):
            await asyncio.gather(*[self._check(*membership) for membership in memberships[start : start + size]])
            await asyncio.sleep(SLICE_S)

    async def _check(self, connection: Connection, room_id: str) -> None:
        for _ in range(ATTEMPTS_MAX):
            if not connection.is_open or not self._hub.is_hearing:  # cut off again: from the beginning when it is back
                return
            try:
                for check in self._hub.engines.registry.admission:
                    await check(self._hub.engines, connection.caller, room_id)
                return
            except AppError as refusal:
                if not refusal.code.temporary:
                    connection.close(codes.CLOSE_PERMISSION_DENIED)
                    return
            except Exception as failure:  # an engine is away again, or worse: neither may let a banned viewer stay
                log.warning("membership not looked at yet", room=room_id, error=type(failure).__name__)
            await asyncio.sleep(PAUSE_S)
        connection.close(codes.INSUFFICIENT_STATE)  # comes again, and is admitted anew


def _rooms_of(connection: Connection) -> set[str]:
    """Also those it is only coming into."""
    parsed = [parse_channel(channel) for channel in connection.session.channels]
    return {one[1] for one in parsed if one is not None and one[0] is not Kind.USER}
