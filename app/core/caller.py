"""Who is calling, and what they may do. Knows no role: rights and scopes are plain words, given by `accounts`."""

from dataclasses import dataclass, field

ANYWHERE = "*"


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller of a command or route.

    `grants` maps a right to the rooms it holds in; the room `*` stands for all. `rooms`, when set, narrows everything to these rooms.
    """

    id: str
    name: str
    kind: str  # "viewer", "guest", "staff", "api_key", "system"
    grants: dict[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    rooms: frozenset[str] | None = None
    roles: frozenset[str] = frozenset()
    avatar: str = ""
    level: int = 0
    expires_at_s: int | None = None
    issued_at_s: int = 0  # of a member of the team, whose sign-ins can be ended

    def may(self, right: str, room_id: str = ANYWHERE) -> bool:
        """Whether the right holds in the room; with no room, whether it holds everywhere."""
        if self.rooms is not None and room_id not in self.rooms:
            return False
        scope = self.grants.get(right)
        return scope is not None and (ANYWHERE in scope or room_id in scope)

    def may_somewhere(self, right: str) -> bool:
        """Whether the right holds in any room: the first, cheap check before the room is known."""
        return right in self.grants

    def rooms_with(self, right: str) -> frozenset[str] | None:
        """The rooms that a listing may show for this right; None means all of them."""
        scope = self.grants.get(right, frozenset())
        if ANYWHERE in scope:
            return self.rooms
        return scope if self.rooms is None else scope & self.rooms

    @property
    def is_staff(self) -> bool:
        return bool(self.roles)


NOBODY = Caller(id="", name="", kind="nobody")
