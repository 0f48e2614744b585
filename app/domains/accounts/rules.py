"""Who may do what: roles, the rights they give, and how the claims of a token become a caller. Pure.

Invariants
- Whoever has a token has the viewer's rights everywhere, unless all roles it names are read-only.
- A role without a room holds everywhere; `role@room` holds in that room alone. A role that is not known here gives nothing.
- Nobody hands out, changes or removes a grant whose rights he does not have himself in that room.

What it does not do: check a signature (service.py), or say in which room a command happens (the handlers do).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from app.core.caller import ANYWHERE, Caller

VIEWER_RIGHTS = frozenset(
    {
        "room.watch",
        "chat.send",
        "inventory.reserve",
        "order.place",
        "draw.enter",
        "envelope.grab",
        "wallet.view",
    }
)
HOST_RIGHTS = VIEWER_RIGHTS | {
    "session.run",
    "offer.edit",
    "product.edit",
    "chat.moderate",
    "draw.run",
    "envelope.run",
    "order.view",
    "order.fulfil",
    "report.view",
    "staff.watch",
    "wallet.room",
}
ALL_RIGHTS = HOST_RIGHTS | {"wallet.deposit", "staff.manage", "key.manage", "webhook.manage", "audit.view", "room.create"}

ROLES: Mapping[str, frozenset[str]] = {
    "host": HOST_RIGHTS,
    "moderator": VIEWER_RIGHTS | {"chat.moderate", "staff.watch"},
    "planner": VIEWER_RIGHTS | {"session.run", "offer.edit", "product.edit", "report.view", "staff.watch"},
    "operator": ALL_RIGHTS,
    "supervisor": frozenset({"room.watch", "order.view", "report.view", "audit.view", "staff.watch", "wallet.room"}),
}
READ_ONLY_ROLES = frozenset({"supervisor"})  # who supervises takes no part: no chat, no purchase, no draw

OPERATOR = "operator"
GUEST_PREFIX = "guest-"
STAFF_PREFIX = "staff-"
API_KEY_PREFIX = "key-"

SUBJECT_CHARS_MAX = 64
NAME_CHARS_MAX = 80
AVATAR_CHARS_MAX = 500
ROLES_MAX = 64
ROOMS_MAX = 256
LEVEL_MAX = 1000
STANDINGS_MAX = 1000  # sets of grants that are kept ready

_NO_ROLES: frozenset[str] = frozenset()

# Subjects become parts of channel names, of engine keys and of ledger accounts: no colon, brace, space or slash.
_SUBJECT = re.compile(r"[A-Za-z0-9._@|+=~-]{1,64}", re.ASCII)
_ROOM = re.compile(r"[A-Za-z0-9_]{1,64}", re.ASCII)
_KINDS = frozenset({"viewer", "guest", "staff"})

Grant = tuple[str, str | None]  # role, room; None: everywhere


class BadClaims(ValueError):
    """The claims of a token do not say who is calling. The text names the claim."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller and the time its token is good for, in seconds since 1970."""

    caller: Caller
    not_before_s: float


def identity_of(claims: Mapping[str, Any], *, guest_rights: Collection[str]) -> Identity:
    """The caller that verified claims describe. Raises BadClaims; unknown claims and unknown roles are ignored."""
    subject = claims.get("sub")
    if not isinstance(subject, str) or not is_subject(subject):
        raise BadClaims("`sub` must be 1 to 64 characters of A-Z a-z 0-9 . _ @ | + = ~ -")
    info = _dict(claims.get("info"))
    grants = _grants(claims.get("roles"))
    kind = _kind(claims.get("kind"), subject, grants)
    expires = _seconds(claims, "exp")
    caller = Caller(
        id=subject,
        name=_text(info.get("name"), NAME_CHARS_MAX) or subject,
        kind=kind,
        grants=_guest_grants(tuple(guest_rights)) if kind == "guest" else _granted(tuple(grants)),
        rooms=_rooms(claims.get("rooms")),
        roles=_NO_ROLES if kind == "guest" else _role_texts(tuple(grants)),
        avatar=_text(info.get("avatar"), AVATAR_CHARS_MAX),
        level=_level(info.get("level")),
        expires_at_s=None if expires is None else int(expires),
        issued_at_s=int(_seconds(claims, "iat") or 0) if subject.startswith(STAFF_PREFIX) else 0,
    )
    return Identity(caller, _seconds(claims, "nbf") or 0.0)


def is_subject(text: str) -> bool:
    return _SUBJECT.fullmatch(text) is not None


def parse_grant(text: str) -> Grant | None:
    """`"host@42"` is `("host", "42")`, `"operator"` is `("operator", None)`; None for a role or room that cannot be."""
    role, at, room_id = text.partition("@")
    if role not in ROLES or (at and _ROOM.fullmatch(room_id) is None):
        return None
    return role, room_id if at else None


def grant_text(grant: Grant) -> str:
    role, room_id = grant
    return role if room_id is None else f"{role}@{room_id}"


def rights_of(grants: Iterable[Grant]) -> dict[str, frozenset[str]]:
    """Right -> rooms. Adds the viewer's rights everywhere unless there are roles and all of them are read-only."""
    granted = list(grants)
    rooms: dict[str, set[str]] = {}
    if not granted or any(role not in READ_ONLY_ROLES for role, _ in granted):
        rooms = {right: {ANYWHERE} for right in VIEWER_RIGHTS}
    for role, room_id in granted:
        for right in ROLES[role]:
            rooms.setdefault(right, set()).add(ANYWHERE if room_id is None else room_id)
    return {right: frozenset(scope) for right, scope in rooms.items()}


def missing_right(caller: Caller, grants: Iterable[Grant]) -> str | None:
    """A right in these grants that the caller lacks in their room, as text for the refusal; None when all may be handed out."""
    for role, room_id in grants:
        for right in sorted(ROLES[role]):
            if not caller.may(right, room_id or ANYWHERE):
                return f"{right} in room {room_id}" if room_id else f"{right} everywhere"
    return None


def leaves_no_operator(remaining: int, grants_before: Iterable[Grant], grants_after: Iterable[Grant]) -> bool:
    """Whether a change takes the last operator away. `remaining` counts the other people who are operators everywhere."""
    whole: Grant = (OPERATOR, None)
    return remaining == 0 and whole in set(grants_before) and whole not in set(grants_after)


def _rooms_of_rights(grants: dict[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Callers compare often: a scope that holds everywhere needs no list of rooms beside it."""
    everywhere = frozenset({ANYWHERE})
    return {right: everywhere if ANYWHERE in scope else scope for right, scope in grants.items()}


# One object for all callers of the same standing: a web process keeps a caller for each of its viewers.


@lru_cache(maxsize=STANDINGS_MAX)
def _granted(grants: tuple[Grant, ...]) -> dict[str, frozenset[str]]:
    return _rooms_of_rights(rights_of(grants))


@lru_cache(maxsize=STANDINGS_MAX)
def _guest_grants(rights: tuple[str, ...]) -> dict[str, frozenset[str]]:
    return _rooms_of_rights({right: frozenset({ANYWHERE}) for right in rights})


@lru_cache(maxsize=STANDINGS_MAX)
def _role_texts(grants: tuple[Grant, ...]) -> frozenset[str]:
    return frozenset(grant_text(grant) for grant in grants)


def _grants(claim: Any) -> list[Grant]:
    if claim is None:
        return []
    if not isinstance(claim, list) or len(claim) > ROLES_MAX or not all(isinstance(role, str) for role in claim):
        raise BadClaims(f"`roles` must be a list of at most {ROLES_MAX} texts such as `host@room`")
    return [grant for grant in (parse_grant(role) for role in claim) if grant is not None]


def _rooms(claim: Any) -> frozenset[str] | None:
    if claim is None:
        return None
    if not isinstance(claim, list) or len(claim) > ROOMS_MAX or not all(isinstance(room, str) and _ROOM.fullmatch(room) for room in claim):
        raise BadClaims(f"`rooms` must be a list of at most {ROOMS_MAX} room ids")
    return frozenset(claim)


def _kind(claim: Any, subject: str, grants: list[Grant]) -> str:
    """A guest's subject cannot be made a viewer or a member of the team by other claims."""
    if subject.startswith(GUEST_PREFIX):
        return "guest"
    if claim is not None and claim not in _KINDS:
        raise BadClaims("`kind` must be viewer, guest or staff")
    return "staff" if grants and claim is None else str(claim or "viewer")


def _seconds(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 10**11:
        raise BadClaims(f"`{name}` must be seconds since 1970")
    return float(value)


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any, chars_max: int) -> str:
    if not isinstance(value, str):
        return ""
    return "".join(char for char in value if char.isprintable())[:chars_max].strip()


def _level(value: Any) -> int:
    return min(max(value, 0), LEVEL_MAX) if isinstance(value, int) and not isinstance(value, bool) else 0
