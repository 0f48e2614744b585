"""A room on this node: its channels, who is in it, and what waits for the next sweep.

A member has, for each channel of the room, the offset after which publications are for it. So a late comer never gets again what its
subscribe reply told, and members need no note of what each was sent: a sweep carries one window to all of them.
"""

from app.core.caller import Caller
from app.gateway.channel import Channel
from app.gateway.connection import Connection
from app.gateway.sampling import Line
from app.gateway.shared_reads import SharedReads, Spawn
from app.protocol.channels import Kind
from app.protocol.codec import Codec
from app.storage.streams import Delivered

ABSENT = -1  # the member does not have the channel


class Feed:
    """A channel and the reads that its subscribers share."""

    __slots__ = ("channel", "reads")

    def __init__(self, kind: Kind, name: str, spawn: Spawn) -> None:
        self.channel = Channel(kind, name)
        self.reads = SharedReads(spawn)


class UserFeed(Feed):
    """A viewer's own channel, with the connections that have it and the offset after which each does."""

    __slots__ = ("connections", "pending", "viewer_id")

    def __init__(self, viewer_id: str, spawn: Spawn) -> None:
        super().__init__(Kind.USER, f"user:{viewer_id}", spawn)
        self.viewer_id = viewer_id
        self.connections: dict[Connection, int] = {}
        self.pending = 0  # connects under way


class Member:
    """One connection in one room. `room`, `chat` and `staff` are the offsets after which it is to be sent, or ABSENT."""

    __slots__ = ("chat", "connection", "room", "staff", "viewer_id")

    def __init__(self, connection: Connection, caller: Caller) -> None:
        self.connection = connection
        self.viewer_id = caller.id
        self.room = ABSENT
        self.chat = ABSENT
        self.staff = ABSENT

    @property
    def is_idle(self) -> bool:
        return self.room == self.chat == self.staff == ABSENT


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
    """What one group of members is sent in one write."""

    __slots__ = ("chat", "data", "hidden", "pulse", "stage")

    def __init__(self, codec: Codec, stage: list[Entry], pulse: list[Entry], chat: list[Entry], *, hidden: int) -> None:
        self.data = codec.join([entry.frame(codec) for entry in (*stage, *pulse, *chat)])
        self.stage = len(stage)
        self.pulse = len(pulse)
        self.chat = len(chat)
        self.hidden = hidden  # chat lines left out by sampling


class Window:
    """What a room's channels brought since the last sweep. Parcels are composed once for all members that are to get the same."""

    __slots__ = ("_parcels", "authors", "chat", "figures", "pulse", "room", "staff")

    def __init__(self) -> None:
        self.room: list[Entry] = []
        self.staff: list[Entry] = []
        self.chat: list[Entry] = []
        self.pulse: Entry | None = None
        self.figures: Entry | None = None  # the team's own reading
        self.authors: set[str] = set()  # of hidden lines
        self._parcels: dict[tuple[str, int, int, int, str, bool, bool], Parcel] = {}

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

    def _entries(self, kind: Kind) -> list[Entry]:
        return {Kind.ROOM: self.room, Kind.STAFF: self.staff, Kind.CHAT: self.chat}[kind]

    def parcel(self, member: Member, *, is_slow: bool) -> Parcel:
        codec = member.connection.codec
        author = member.viewer_id if member.viewer_id in self.authors else ""
        room, staff, chat = _start(self.room, member.room), _start(self.staff, member.staff), _start(self.chat, member.chat)
        pulse = self.pulse if member.room != ABSENT else None
        figures = self.figures if member.staff != ABSENT else None
        if is_slow:
            chat, pulse, figures = ABSENT, None, None
        key = (codec.name, room, staff, chat, author, pulse is None, figures is None)
        parcel = self._parcels.get(key)
        if parcel is None:
            stage = _after(self.room, room) + _after(self.staff, staff)
            parcel = self._parcels[key] = self._compose(codec, stage, [pulse, figures], _after(self.chat, chat), author)
        return parcel

    @staticmethod
    def _compose(codec: Codec, stage: list[Entry], readings: list[Entry | None], lines: list[Entry], author: str) -> Parcel:
        """Stage before the pulse, the pulse before chat."""
        pulse = [reading for reading in readings if reading is not None]
        seen = [entry for entry in lines if entry.line is None or entry.line.viewer == author]
        return Parcel(codec, stage, pulse, seen, hidden=len(lines) - len(seen))

    def shed_by(self, member: Member) -> tuple[int, int]:
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


class Room:
    def __init__(self, room_id: str, spawn: Spawn) -> None:
        self.id = room_id
        self.feeds = {kind: Feed(kind, f"{kind}:{room_id}", spawn) for kind in (Kind.ROOM, Kind.CHAT, Kind.STAFF)}
        self.members: dict[Connection, Member] = {}
        self.window = Window()
        self.sweeping: Window | None = None
        self.viewers: dict[str, int] = {}  # viewer -> connections
        self.new_viewers: set[str] = set()  # since presence was last written
        self.pending = 0  # subscribes under way keep the room open
        self.presence_count = 0  # as last written
        self.presence_at = 0.0

    @property
    def is_idle(self) -> bool:
        return not self.members and not self.pending

    def enter(self, connection: Connection, kind: Kind, after: int) -> None:
        member = self.members.get(connection)
        if member is None:
            member = self.members[connection] = connection.members[self.id] = Member(connection, connection.caller)
            self.viewers[member.viewer_id] = self.viewers.get(member.viewer_id, 0) + 1
            self.new_viewers.add(member.viewer_id)
        setattr(member, kind.value, after)

    def leave(self, connection: Connection, kind: Kind) -> bool:
        """False when it was not there."""
        member = self.members.get(connection)
        if member is None or getattr(member, kind.value) == ABSENT:
            return False
        setattr(member, kind.value, ABSENT)
        if member.is_idle:
            self._remove(member)
        return True

    def leave_all(self, connection: Connection) -> int:
        """How many channels the connection had."""
        return sum(self.leave(connection, kind) for kind in self.feeds)

    def subscribers(self, kind: Kind) -> list[Connection]:
        return [connection for connection, member in self.members.items() if getattr(member, kind.value) != ABSENT]

    def drop(self, kind: Kind) -> None:
        self.window.drop(kind)
        if self.sweeping is not None:
            self.sweeping.drop(kind)

    def _remove(self, member: Member) -> None:
        del self.members[member.connection]
        member.connection.members.pop(self.id, None)
        self.viewers[member.viewer_id] -= 1
        if not self.viewers[member.viewer_id]:
            del self.viewers[member.viewer_id]
