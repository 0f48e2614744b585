"""How many are in a room, over all nodes. The fan-out role.

Each node writes its own count about once a second with a deadline by the engine's clock; what a dead node wrote counts no longer after
`presence_ttl_s`, and a node that ends takes its counts back itself. The count is of different viewers on each node, summed: somebody
with two tabs on one node is one, somebody with a phone on one node and a laptop on another is two. Making that exact would mean naming
every viewer to the engine every second; unique viewers of a session are a HyperLogLog instead (error 0.8 %, 12 KiB a room), which knows
nodes not at all. Nobody's presence is kept by name.
"""

from collections.abc import Sequence
from pathlib import Path

from app.storage.redis import Script
from app.storage.work import Engines

UNIQUE_TTL_S = 48 * 3600  # a show and the evening after it; the report has taken the figure by then

_record_script = Script(Path(__file__).with_name("presence.lua"))
_viewers_script = Script(Path(__file__).with_name("viewers.lua"))


async def record(engines: Engines, room_id: str, node_id: str, count: int, new_viewer_ids: Sequence[str]) -> None:
    """This node has `count` viewers in the room now; `new_viewer_ids` came since the last call."""
    keys = [_nodes_key(room_id), _unique_key(room_id)]
    arguments = [engines.runtime.script_now_ms(), node_id, count, engines.settings.presence_ttl_s, UNIQUE_TTL_S, *new_viewer_ids]
    await _record_script(engines.fanout, keys, arguments)


async def viewers(engines: Engines, room_id: str) -> int:
    """Viewers in the room now, summed over the nodes that are alive."""
    return int(await _viewers_script(engines.fanout, [_nodes_key(room_id)], [engines.runtime.script_now_ms()]))


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
