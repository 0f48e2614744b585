"""Tells the engine how many viewers each room has on this node, and takes it back when the node ends.

A count is written when it has changed, and again well before it lapses; so a node that dies vanishes from the sum within
`presence_ttl_s`, and one that drains counts down as its viewers go. Who counts as a viewer, and over what: storage/presence.py.
"""

import asyncio
from collections.abc import Collection, Iterable

import structlog
from redis.exceptions import RedisError

from app.gateway.room import Room
from app.storage import presence
from app.storage.work import Engines

STEP_S_MAX = 1.0
RENEW_S_MAX = 5.0
WITHDRAW_S_MAX = 2.0
AT_ONCE = 32

log = structlog.get_logger()


class Attendance:
    def __init__(self, engines: Engines, node_id: str) -> None:
        self._engines = engines
        self._node_id = node_id
        self._now = asyncio.get_running_loop().time
        self.step_s = min(STEP_S_MAX, engines.settings.presence_ttl_s / 3)
        self._renew_s = min(RENEW_S_MAX, engines.settings.presence_ttl_s / 3)

    async def write(self, rooms: Iterable[Room]) -> None:
        """Raises what the engine raised; the rest is written with the next step."""
        for room in rooms:
            count = len(room.viewers)
            is_due = self._now() - room.presence_at >= self._renew_s
            if room.new_viewers or count != room.presence_count or (count and is_due):
                await self.record(room)

    async def record(self, room: Room) -> None:
        count, new = len(room.viewers), room.new_viewers
        if not count and not room.presence_count and not new:
            return
        room.new_viewers = set()
        try:
            await presence.record(self._engines, room.id, self._node_id, count, sorted(new))
        except (RedisError, OSError):
            room.new_viewers |= new
            raise
        room.presence_count, room.presence_at = count, self._now()

    def recount(self, room: Room) -> None:
        """Names all who are there once more: a session began anew, or a call to do so may have been lost. Again does no harm."""
        room.new_viewers |= set(room.viewers)

    async def withdraw(self, rooms: Collection[Room]) -> None:
        """The node ends: nobody is on it any more. Where the engine does not answer, the counts lapse by themselves."""
        counted = [room for room in rooms if room.presence_count]
        try:
            async with asyncio.timeout(WITHDRAW_S_MAX):
                for start in range(0, len(counted), AT_ONCE):
                    some = counted[start : start + AT_ONCE]
                    await asyncio.gather(*[presence.record(self._engines, room.id, self._node_id, 0, ()) for room in some])
        except (RedisError, OSError) as failure:
            log.warning("counts left to lapse", error=type(failure).__name__)
            return
        for room in counted:
            room.presence_count = 0
