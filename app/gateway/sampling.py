"""Which chat lines are shown when a room says more than people can read. Pure, but for the generator that it is given.

Lines of the team are always shown, and everybody sees their own. Of the rest each window shows what its bucket holds, chosen uniformly
among that window's lines: neither the first, nor the fastest, nor the loudest have an edge.
"""

import random
from collections.abc import Sequence

import msgspec


class Line(msgspec.Struct):
    """What sampling must know of a chat line."""

    viewer: str = ""
    role: str = ""


class _Event(msgspec.Struct):
    type: str = ""
    message: Line | None = None


_decoder = msgspec.json.Decoder(_Event)


def read_line(data: bytes) -> Line | None:
    """None for what is no line of chat; that is always shown."""
    try:
        event = _decoder.decode(data)
    except msgspec.DecodeError:
        return None
    return event.message if event.type == "chat.sent" and event.message is not None and event.message.viewer else None


def hidden_lines(lines: Sequence[Line | None], allowance: int, rng: random.Random) -> set[int]:
    """Indexes of the lines that only their authors see."""
    ordinary = [index for index, line in enumerate(lines) if line is not None and not line.role]
    if len(ordinary) <= allowance:
        return set()
    return set(ordinary) - set(rng.sample(ordinary, allowance))
