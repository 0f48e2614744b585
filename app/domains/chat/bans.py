"""Who may not come into a room, as a process knows it. Part of the chat service.

Every join and every command about a room asks this, so the answer is at hand: a room's banned viewers are read once for all who ask, and
believed for `AGE_MS_MAX`. That delays no ban. Whoever is banned is closed by a control message to every node, which makes the node forget
what it believed (`forget`); so a viewer who came in before the message is closed by it, and one who comes after it is looked up anew. A
node that missed the message looks at its members again once it hears the engine (gateway/healing.py), and believes nothing for longer than
a second.

Rooms with more than `AT_HAND_MAX` sanctions are asked about each viewer: all of them would be megabytes a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from app.domains.chat import store
from app.storage.work import Engines

AGE_MS_MAX = 1000
AT_HAND_MAX = 1000
ROOMS_MAX = 1000


class _Known(NamedTuple):
    read_at_ms: float
    banned: frozenset[str]


@dataclass(slots=True)
class _AtHand:
    rooms: dict[str, _Known] = field(default_factory=dict[str, _Known])
    forgotten: int = 0  # how often; a reading that was under way meanwhile may be older than the ban, and is not kept


async def is_banned(engines: Engines, room_id: str, viewer_id: str) -> bool | None:
    """None when the engine does not know the room."""
    known = _at_hand(engines).rooms.get(room_id)
    if known is not None and engines.runtime.monotonic_ms() - known.read_at_ms < AGE_MS_MAX:
        return viewer_id in known.banned
    return await engines.group_commit("ban", _look_up).submit(room_id, viewer_id, viewer=viewer_id)


def forget(engines: Engines, room_id: str) -> None:
    """Somebody was banned, or is no longer."""
    at_hand = _at_hand(engines)
    at_hand.rooms.pop(room_id, None)
    at_hand.forgotten += 1


def _at_hand(engines: Engines) -> _AtHand:
    at_hand: _AtHand | None = engines.local.get("chat.bans")
    if at_hand is None:  # not `setdefault`, which would make one with every command
        at_hand = engines.local["chat.bans"] = _AtHand()
    return at_hand


async def _look_up(engines: Engines, room_id: str, viewer_ids: Sequence[str]) -> list[bool | None]:
    at_hand = _at_hand(engines)
    now_ms, forgotten = engines.runtime.monotonic_ms(), at_hand.forgotten
    if await store.count_state(engines, room_id) > AT_HAND_MAX:
        return await store.look_up_bans(engines, room_id, viewer_ids)
    banned = await store.list_banned(engines, room_id)
    if banned is None:
        return [None] * len(viewer_ids)
    if at_hand.forgotten == forgotten:
        at_hand.rooms.pop(room_id, None)
        while len(at_hand.rooms) >= ROOMS_MAX:
            del at_hand.rooms[next(iter(at_hand.rooms))]
        at_hand.rooms[room_id] = _Known(now_ms, banned)
    return [viewer_id in banned for viewer_id in viewer_ids]
