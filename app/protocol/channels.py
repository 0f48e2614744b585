"""Channel names, lanes, and what each kind of channel keeps.

| channel     | lane  | history                 | who may subscribe                          |
| room:<id>   | stage | last events, in order   | any viewer admitted to the room            |
| chat:<id>   | chat  | last lines              | the same                                   |
| user:<id>   | stage | last events, in order   | nobody: the server subscribes the viewer   |
| staff:<id>  | stage | last events, in order   | the right `staff.watch` in the room        |

The pulse travels in `room:<id>` without an offset: it is a reading, not an event.
"""

from enum import StrEnum
from zlib import crc32

USER_BUCKETS = 16  # user channels share this many pub/sub channels, so that a node needs no subscription a viewer


class Lane(StrEnum):
    STAGE = "stage"
    CHAT = "chat"
    PULSE = "pulse"


class Kind(StrEnum):
    ROOM = "room"
    CHAT = "chat"
    USER = "user"
    STAFF = "staff"


_KINDS = {kind.value: kind for kind in Kind}  # a look-up: every publication asks
LANE_OF: dict[Kind, Lane] = {Kind.ROOM: Lane.STAGE, Kind.CHAT: Lane.CHAT, Kind.USER: Lane.STAGE, Kind.STAFF: Lane.STAGE}


def room_channel(room_id: str) -> str:
    return f"room:{room_id}"


def chat_channel(room_id: str) -> str:
    return f"chat:{room_id}"


def user_channel(viewer_id: str) -> str:
    return f"user:{viewer_id}"


def staff_channel(room_id: str) -> str:
    return f"staff:{room_id}"


def parse_channel(channel: str) -> tuple[Kind, str] | None:
    """`"room:42"` is `(Kind.ROOM, "42")`; None for a name that is no channel of ours."""
    kind, colon, name = channel.partition(":")
    known = _KINDS.get(kind)
    return (known, name) if known and colon and name else None


def hash_tag(channel: str) -> str:
    """The shard that a channel lives on: its room, or the bucket of its viewer."""
    parsed = parse_channel(channel)
    assert parsed is not None, channel
    kind, name = parsed
    return user_bucket(name) if kind is Kind.USER else name


def user_bucket(viewer_id: str) -> str:
    return f"u{crc32(viewer_id.encode()) % USER_BUCKETS}"
