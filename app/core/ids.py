"""Ids that carry their room.

A room is the unit of consistency and of sharding, so whoever holds the id of an offer, hold, order, draw or envelope must be able
to reach the room's shard without asking a database first. Such an id is `<room>-<tail>`; the room's own id holds no dash.
Ids are names, not secrets: rights are always checked by viewer and room.
"""

import hashlib

ID_LENGTH_MAX = 64


def scoped_id(room_id: str, tail: str) -> str:
    return f"{room_id}-{tail}"


def room_of(scoped: str) -> str:
    """The room of a scoped id; an empty string when the text is no scoped id."""
    room_id, dash, tail = scoped.partition("-")
    return room_id if dash and tail and len(scoped) <= ID_LENGTH_MAX else ""


def derived_tail(*parts: str) -> str:
    """A tail of 20 characters that is the same for the same parts: an id derived from (viewer, key) is its own idempotency record."""
    raw_parts = [part.encode() for part in parts]
    sized = b"".join([len(raw).to_bytes(4, "big") + raw for raw in raw_parts])
    return hashlib.blake2b(sized, digest_size=10).hexdigest()
