"""What a room's channels brought since its last sweep, and the parcels made of it: packed once for all who get the same.

Invariants
- A parcel has the stage first, then readings, then chat.
- A member gets of a channel what comes after its own offset there, in order; of the lines that sampling hides, only its own.
- A room without an event costs nothing here: a window is made by a room's first publication after a sweep, parcels by the sweep.

It does not know when to sweep, nor who can take what.
"""

from typing import TYPE_CHECKING

from app.gateway.connection import Pack
from app.gateway.sampling import Line, read_deletion, read_line
from app.protocol.channels import Kind
from app.protocol.codec import Codec
from app.storage.streams import Delivered

if TYPE_CHECKING:
    from app.gateway.room import Group, Member

ABSENT = -1  # the member does not have the channel


class Entry:
    """A publication on its way out, framed once a codec."""

    __slots__ = ("_frames", "line", "publication")

    def __init__(self, publication: Delivered) -> None:
        self.publication = publication
        self.line: Line | None = None  # of chat that is not shown to all: its author still sees it
        self._frames: dict[str, bytes] = {}

    def frame(self, codec: Codec) -> bytes:
        frame = self._frames.get(codec.name)
        if frame is None:
            channel, offset, _, data = self.publication
            frame = self._frames[codec.name] = codec.publication(channel, offset, data)
        return frame


class Parcel:
    """What one group of members is sent in one write; `packed` is empty when there is nothing for them."""

    __slots__ = ("chat", "hidden", "packed", "pulse", "stage")

    def __init__(self, codec: Codec, pack: Pack, entries: tuple[list[Entry], list[Entry], list[Entry]], *, hidden: int) -> None:
        stage, pulse, chat = entries
        frames = [entry.frame(codec) for entry in (*stage, *pulse, *chat)]
        self.packed = pack(codec.join(frames), codec.is_text) if frames else b""
        self.stage = len(stage)
        self.pulse = len(pulse)
        self.chat = len(chat)
        self.hidden = hidden  # chat lines left out by sampling


_Key = tuple[str, Pack, int, int, int, bool, bool, str]


class Window:
    __slots__ = ("_parcels", "authors", "chat", "figures", "pulse", "room", "staff")

    def __init__(self) -> None:
        self.room: list[Entry] = []
        self.staff: list[Entry] = []
        self.chat: list[Entry] = []
        self.pulse: Entry | None = None
        self.figures: Entry | None = None  # the team's own reading
        self.authors: set[str] = set()  # of hidden lines
        self._parcels: dict[_Key, Parcel] = {}

    @property
    def is_empty(self) -> bool:
        return not (self.room or self.staff or self.chat or self.pulse or self.figures)

    @property
    def has_stage(self) -> bool:
        return bool(self.room or self.staff)

    def add(self, kind: Kind, entry: Entry) -> None:
        if entry.publication.offset:
            self._entries(kind).append(entry)
        elif kind is Kind.STAFF:
            self.figures = entry  # for the team alone; only the newest matters
        else:
            self.pulse = entry  # only the newest matters

    def drop(self, kind: Kind) -> None:
        """The channel's life is over: its publications mean nothing to whoever subscribes from now on."""
        self._entries(kind).clear()
        self._parcels.clear()

    def take_back(self) -> None:
        """A line that was said and deleted within this window is not carried: its deletion is of the stage, and would come before it."""
        deleted = {read_deletion(entry.publication.data) for entry in self.room} - {""}
        if deleted:
            lines = [read_line(entry.publication.data) for entry in self.chat]
            self.chat = [entry for entry, line in zip(self.chat, lines, strict=True) if line is None or line.id not in deleted]

    def last_offset(self, kind: Kind) -> int:
        entries = self._entries(kind)
        return entries[-1].publication.offset if entries else 0

    def _entries(self, kind: Kind) -> list[Entry]:
        return {Kind.ROOM: self.room, Kind.STAFF: self.staff, Kind.CHAT: self.chat}[kind]

    def parcel_of_group(self, group: "Group") -> Parcel:
        """For those who get all that their channels brought, and none of what is hidden."""
        starts = (_start(self.room, group.room), _start(self.staff, group.staff), _start(self.chat, group.chat))
        readings = (self.pulse is not None and group.room != ABSENT, self.figures is not None and group.staff != ABSENT)
        return self._parcel(group.codec, group.pack, starts, readings, "")

    def parcel(self, member: "Member", *, is_slow: bool) -> Parcel:
        """For one who may have come in meanwhile, takes little, or wrote what is hidden."""
        connection = member.connection
        author = member.viewer_id if member.viewer_id in self.authors else ""
        starts = (_start(self.room, member.room), _start(self.staff, member.staff), ABSENT if is_slow else _start(self.chat, member.chat))
        readings = (
            not is_slow and self.pulse is not None and member.room != ABSENT,
            not is_slow and self.figures is not None and member.staff != ABSENT,
        )
        return self._parcel(connection.codec, connection.transport.pack, starts, readings, author)

    def _parcel(self, codec: Codec, pack: Pack, starts: tuple[int, int, int], readings: tuple[bool, bool], author: str) -> Parcel:
        key = (codec.name, pack, *starts, *readings, author)
        parcel = self._parcels.get(key)
        if parcel is None:
            room, staff, chat = starts
            stage = _after(self.room, room) + _after(self.staff, staff)
            pulse = [reading for reading, wanted in zip((self.pulse, self.figures), readings, strict=True) if wanted and reading]
            lines = _after(self.chat, chat)
            seen = [entry for entry in lines if entry.line is None or entry.line.viewer == author]
            parcel = self._parcels[key] = Parcel(codec, pack, (stage, pulse, seen), hidden=len(lines) - len(seen))
        return parcel

    def shed_by(self, member: "Member") -> tuple[int, int]:
        """Chat lines and readings that a slow member goes without."""
        readings = (self.pulse is not None and member.room != ABSENT) + (self.figures is not None and member.staff != ABSENT)
        return len(_after(self.chat, member.chat)), readings


def _start(entries: list[Entry], after: int) -> int:
    """The same number for all members that get the same entries; ABSENT when there are none for them."""
    if after == ABSENT or not entries or entries[-1].publication.offset <= after:
        return ABSENT
    return max(after, entries[0].publication.offset - 1)


def _after(entries: list[Entry], after: int) -> list[Entry]:
    return [] if after == ABSENT else [entry for entry in entries if entry.publication.offset > after]
