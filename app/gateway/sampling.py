"""Which chat lines are shown when a room says more than people can read. Pure, but for the generator that it is given.

The rule, as viewers may know it (docs/sampling.md):
- A room shows `chat_shown_per_s` lines a second (20). What is not used is kept for one second, so a room that was quiet may show as many
  again at once. While no more is said than that, everything is shown.
- Above it, each window (`sweep_ms`) shows what is left of the allowance, chosen uniformly at random among the lines of that window: neither
  the first, nor the fastest, nor the loudest have an edge.
- Lines of the team are always shown, and so is all that is no viewer's line (purchase notices, deletions). They use up the allowance, but
  never wait for it. Everybody sees every line of their own.
- Each node draws for its own viewers. What it tells them in the pulse are its own figures: `said`, the lines of the room since the last
  pulse, and `shown`, how many of them it showed to all. A viewer's own hidden lines come on top.
- Nothing is lost: history and the moderators' record have every line.
"""

import random
from collections.abc import Sequence

import msgspec

from app.storage.streams import Delivered

DELETION = b'"type":"chat.deleted"'  # in an event as it is encoded: the others need no decoding


class Line(msgspec.Struct):
    """What must be known of a chat line to leave it out."""

    viewer: str = ""
    role: str = ""
    id: str = ""


class _Event(msgspec.Struct):
    type: str = ""
    message: Line | None = None


class _Deletion(msgspec.Struct):
    message: str = ""


_decoder = msgspec.json.Decoder(_Event)
_deletion_decoder = msgspec.json.Decoder(_Deletion)


def read_line(data: bytes) -> Line | None:
    """None for what is no line of chat; that is always shown."""
    try:
        event = _decoder.decode(data)
    except msgspec.DecodeError:
        return None
    return event.message if event.type == "chat.sent" and event.message is not None and event.message.viewer else None


def read_deletion(data: bytes) -> str:
    """The id of the line that this event takes back; empty for other events."""
    try:
        return _deletion_decoder.decode(data).message if DELETION in data else ""
    except msgspec.DecodeError:
        return ""


def hidden_lines(lines: Sequence[Line | None], allowance: int, rng: random.Random) -> set[int]:
    """Indexes of the lines that only their authors see."""
    ordinary = [index for index, line in enumerate(lines) if line is not None and not line.role]
    left = max(0, allowance - (len(lines) - len(ordinary)))
    if len(ordinary) <= left:
        return set()
    return set(ordinary) - set(rng.sample(ordinary, left))


class Figures(msgspec.Struct):
    """Lines since the last pulse, as one node counts them."""

    said: int = 0
    shown: int = 0

    def add(self, *, said: int, shown: int) -> None:
        self.said += said
        self.shown += shown


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()


def tell_figures(publication: Delivered, figures: Figures) -> Delivered:
    """The pulse with what this node showed. A reading without these two stays as it is."""
    try:
        fields = _fields.decode(publication.data)
    except msgspec.DecodeError:
        return publication
    if not {"said", "shown"} <= fields.keys():
        return publication
    fields |= {"said": msgspec.Raw(b"%d" % figures.said), "shown": msgspec.Raw(b"%d" % figures.shown)}
    return publication._replace(data=_encoder.encode(fields))
