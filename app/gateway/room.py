"""A room on this node: its channels, who is in it, and what waits for the next sweep.

Invariants
- A member has, for each channel of the room, the offset after which publications are for it. So a late comer never gets again what its
  subscribe reply told, and members need no note of what each was sent: a sweep carries one window to all of them.
- Members that get the same bytes are in one group and are written to without a question. Apart from the groups are those for whom each
  window must be looked at: newcomers, until all that they know already has passed; the paused; the closed; authors of a hidden line.
  Only the beginning of a sweep takes a member into a group (`divide`), anything may take it out at any time.

An idle viewer pays for what is here: no containers of its own where one reference does.
"""

from collections.abc import Iterator
from sys import intern

from app.gateway.channel import Channel
from app.gateway.connection import Connection, Pack
from app.gateway.shared_reads import SharedReads, Spawn
from app.gateway.window import ABSENT, Window
from app.protocol.channels import Kind
from app.protocol.codec import Codec

NOT_YET = 2**64  # after every offset that a viewer's own channel can have; it carries nothing without one
KINDS = (Kind.ROOM, Kind.CHAT, Kind.STAFF)


class Feed:
    """A channel and the reads that its subscribers share."""

    __slots__ = ("_reads", "_spawn", "channel")

    def __init__(self, kind: Kind, name: str, spawn: Spawn) -> None:
        self.channel = Channel(kind, intern(name))
        self._spawn = spawn
        self._reads: SharedReads | None = None

    @property
    def reads(self) -> SharedReads:
        if self._reads is None:
            self._reads = SharedReads(self._spawn)
        return self._reads

    def forget_reads(self) -> None:
        """The channel has moved on."""
        if self._reads is not None:
            self._reads.forget()


class UserFeed(Feed):
    """A viewer's own channel, with the connections that have it; each knows the offset after which it does."""

    __slots__ = ("connections", "pending", "viewer_id")

    def __init__(self, viewer_id: str, spawn: Spawn) -> None:
        super().__init__(Kind.USER, f"user:{viewer_id}", spawn)
        self.viewer_id = viewer_id
        self.connections: tuple[Connection, ...] = ()
        self.pending = 0  # connects under way

    def expect(self, connection: Connection) -> None:
        """A connect under way: what ends this viewer's connections must find it, and nothing is delivered to it yet."""
        self.enter(connection, NOT_YET)

    def enter(self, connection: Connection, after: int) -> None:
        connection.own_after = after
        if connection not in self.connections:
            self.connections += (connection,)

    def leave(self, connection: Connection) -> None:
        self.connections = tuple(one for one in self.connections if one is not connection)

    def settle(self) -> None:
        """When nobody is coming in, nothing is kept for those who are: there are as many of these as viewers."""
        if not self.pending:
            self._reads = None
            self.channel.trim()


class Member:
    """One connection in one room. `room`, `chat` and `staff` are the offsets after which it is to be sent, or ABSENT."""

    __slots__ = ("chat", "connection", "group", "home", "room", "staff", "twin", "write")

    def __init__(self, connection: Connection, home: "Room") -> None:
        self.connection = connection
        self.write = connection.write_packed
        self.home = home
        self.group: Group | None = None
        self.room = ABSENT
        self.chat = ABSENT
        self.staff = ABSENT
        self.twin: Member | None = None  # the same viewer's next connection

    @property
    def viewer_id(self) -> str:
        return self.connection.caller.id

    @property
    def is_idle(self) -> bool:
        return self.room == self.chat == self.staff == ABSENT


class Group:
    """Members with the same codec, packing and channels: what one gets, all get."""

    __slots__ = ("chat", "codec", "members", "pack", "room", "staff")

    def __init__(self, codec: Codec, pack: Pack, has: tuple[bool, ...]) -> None:
        self.codec = codec
        self.pack = pack
        self.members: set[Member] = set()
        self.room, self.chat, self.staff = (0 if one else ABSENT for one in has)  # after every offset that a window can begin with


_GroupKey = tuple[str, Pack, bool, bool, bool]
Part = tuple[Group | None, list[Member]]


class Room:
    def __init__(self, room_id: str, spawn: Spawn) -> None:
        self.id = room_id
        self.feeds = {kind: Feed(kind, f"{kind}:{room_id}", spawn) for kind in KINDS}
        self.groups: dict[_GroupKey, Group] = {}
        self.apart: set[Member] = set()
        self.window = Window()
        self.sweeping: Window | None = None
        self.viewers: dict[str, Member] = {}  # the head of each viewer's connections here
        self.new_viewers: set[str] = set()  # since presence was last written
        self.subscriptions = 0  # of channels
        self.pending = 0  # subscribes under way keep the room open
        self.presence_count = 0  # as last written
        self.presence_at = 0.0

    @property
    def is_idle(self) -> bool:
        return not self.viewers and not self.pending

    @property
    def members(self) -> list[Member]:
        return [*self.apart, *(member for group in self.groups.values() for member in group.members)]

    # --- coming and going -----------------------------------------------------------------------------------------------------------

    def enter(self, connection: Connection, kind: Kind, after: int) -> None:
        member = connection.member_of(self.id)
        if member is None:
            member = Member(connection, self)
            connection.members += (member,)
            member.twin = self.viewers.get(member.viewer_id)
            self.viewers[member.viewer_id] = member
            self.new_viewers.add(member.viewer_id)
        if getattr(member, kind.value) == ABSENT:
            self.subscriptions += 1
        setattr(member, kind.value, after)
        self.set_apart(member)

    def leave(self, connection: Connection, kind: Kind) -> None:
        member = connection.member_of(self.id)
        if member is None or getattr(member, kind.value) == ABSENT:
            return
        self.subscriptions -= 1
        setattr(member, kind.value, ABSENT)
        self.set_apart(member)
        if member.is_idle:
            self._remove(member)

    def leave_all(self, connection: Connection) -> None:
        for kind in KINDS:
            self.leave(connection, kind)

    def subscribers(self, kind: Kind) -> list[Connection]:
        return [member.connection for member in self.members if getattr(member, kind.value) != ABSENT]

    def drop(self, kind: Kind) -> None:
        self.window.drop(kind)
        if self.sweeping is not None:
            self.sweeping.drop(kind)

    def _remove(self, member: Member) -> None:
        self.apart.discard(member)
        connection = member.connection
        connection.members = tuple(one for one in connection.members if one is not member)
        others = [one for one in self.members_of(member.viewer_id) if one is not member]
        if not others:
            del self.viewers[member.viewer_id]
            return
        self.viewers[member.viewer_id] = others[0]
        for one, twin in zip(others, (*others[1:], None), strict=True):
            one.twin = twin

    def members_of(self, viewer_id: str) -> Iterator[Member]:
        member = self.viewers.get(viewer_id)
        while member is not None:
            yield member
            member = member.twin

    # --- who gets what --------------------------------------------------------------------------------------------------------------

    def set_apart(self, member: Member) -> None:
        """From now on each window is looked at for this member, the rest of one that is being swept too."""
        if member.group is not None:
            member.group.members.discard(member)
            member.group = None
        self.apart.add(member)

    def divide(self, window: Window) -> list[Part]:
        """All members: by groups, and those apart. Afterwards whoever has nothing of its own any more is in a group."""
        for author in window.authors:
            for member in self.members_of(author):
                self.set_apart(member)
        parts: list[Part] = [(group, list(group.members)) for group in self.groups.values() if group.members]
        if self.apart:
            parts.append((None, list(self.apart)))
            tops = [max(self.feeds[kind].channel.top or 0, window.last_offset(kind)) for kind in KINDS]
            remaining: set[Member] = set()  # a new one: a set that once was large stays large
            for member in self.apart:
                if _is_ordinary(member, tops):
                    self._take_into_group(member)
                else:
                    remaining.add(member)
            self.apart = remaining
        return parts

    def _take_into_group(self, member: Member) -> None:
        connection = member.connection
        has = (member.room != ABSENT, member.chat != ABSENT, member.staff != ABSENT)
        pack = connection.transport.pack
        key = (connection.codec.name, pack, *has)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(connection.codec, pack, has)
        group.members.add(member)
        member.group = group


def _is_ordinary(member: Member, tops: list[int]) -> bool:
    """Whether every publication that can still come is for it, and nothing keeps it from taking it."""
    if member.connection.is_slow or not member.connection.is_open:
        return False
    room, chat, staff = tops
    return member.room <= room and member.chat <= chat and member.staff <= staff
