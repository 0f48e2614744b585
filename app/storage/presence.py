"""How many are in a room, over all nodes. The fan-out role.

Each node writes its own count about once a second with a time of expiry; what a dead node wrote counts no longer after `presence_ttl_s`.
Unique viewers of a session are a HyperLogLog (error 0.8 %, 12 KiB a room). Nobody's presence is kept by name.
"""

from collections.abc import Sequence
from typing import cast

from app.storage.work import Engines

UNIQUE_TTL_S = 48 * 3600  # a show and the evening after it; the report has taken the figure by then


async def record(engines: Engines, room_id: str, node_id: str, count: int, new_viewer_ids: Sequence[str]) -> None:
    """This node has `count` viewers in the room now; `new_viewer_ids` came since the last call."""
    ttl_s = engines.settings.presence_ttl_s
    expires_ms = engines.runtime.now_ms() + ttl_s * 1000
    async with engines.fanout.pipeline(transaction=True) as pipeline:
        if count:
            pipeline.hset(_nodes_key(room_id), node_id, f"{count}:{expires_ms}")
            pipeline.expire(_nodes_key(room_id), ttl_s)
        else:
            pipeline.hdel(_nodes_key(room_id), node_id)
        if new_viewer_ids:
            pipeline.pfadd(_unique_key(room_id), *new_viewer_ids)
            pipeline.expire(_unique_key(room_id), UNIQUE_TTL_S)
        await pipeline.execute()


async def viewers(engines: Engines, room_id: str) -> int:
    """Viewers in the room now, summed over the nodes that are alive. A viewer on two nodes counts twice."""
    nodes = cast("dict[bytes, bytes]", await engines.fanout.hgetall(_nodes_key(room_id)))
    now_ms = engines.runtime.now_ms()
    counts = {node: entry.partition(b":") for node, entry in nodes.items()}
    dead = [node for node, (_, _, expires_ms) in counts.items() if int(expires_ms) <= now_ms]
    if dead:
        await engines.fanout.hdel(_nodes_key(room_id), *dead)
    return sum(int(count) for node, (count, _, _) in counts.items() if node not in dead)


async def unique_viewers(engines: Engines, room_id: str) -> int:
    """Different viewers since the last reset, estimated."""
    return int(await engines.fanout.pfcount(_unique_key(room_id)))


async def reset_unique(engines: Engines, room_id: str) -> None:
    """A new session counts anew, beginning with those who are in the room: every node is asked to name them again."""
    await engines.fanout.delete(_unique_key(room_id))
    await engines.streams.control({"do": "recount", "room": room_id})


def _nodes_key(room_id: str) -> str:
    return f"{{{room_id}}}:presence"


def _unique_key(room_id: str) -> str:
    return f"{{{room_id}}}:unique"
