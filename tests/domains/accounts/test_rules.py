"""Roles, rights and claims, as tables."""

from typing import Any

import pytest

from app.core.caller import ANYWHERE, Caller
from app.core.registry import Registry
from app.domains.accounts import rules

GUEST_RIGHTS = ("room.watch", "chat.send")


def identity(**claims: Any) -> Caller:
    return rules.identity_of(claims, guest_rights=GUEST_RIGHTS).caller


def test_every_right_a_domain_declares_belongs_to_the_operator_and_no_other_exists(registry: Registry) -> None:
    assert set(registry.rights) == rules.ALL_RIGHTS
    assert {command.right for command in registry.commands.values()} <= rules.ALL_RIGHTS


@pytest.mark.parametrize(
    ("roles", "right", "room", "allowed"),
    [
        ([], "chat.send", "a", True),
        ([], "chat.moderate", "a", False),
        (["host@a"], "session.run", "a", True),
        (["host@a"], "session.run", "b", False),
        (["host@a"], "session.run", ANYWHERE, False),
        (["host@a"], "chat.send", "b", True),
        (["host"], "session.run", "b", True),
        (["host"], "wallet.deposit", "b", False),
        (["moderator@a"], "chat.moderate", "a", True),
        (["moderator@a"], "session.run", "a", False),
        (["planner@a"], "offer.edit", "a", True),
        (["planner@a"], "order.view", "a", False),
        (["operator"], "staff.manage", ANYWHERE, True),
        (["operator@a"], "staff.manage", "a", True),
        (["operator@a"], "staff.manage", ANYWHERE, False),
        (["supervisor"], "order.view", "a", True),
        (["supervisor"], "chat.send", "a", False),
        (["supervisor"], "inventory.reserve", "a", False),
        (["supervisor@a"], "audit.view", "b", False),
        (["supervisor", "moderator@a"], "chat.send", "b", True),
        (["emperor", "host@", "host@a b", "@a"], "session.run", "a", False),
        (["host@a", "moderator@b"], "chat.moderate", "b", True),
        (["host@a", "moderator@b"], "offer.edit", "b", False),
    ],
)
def test_what_roles_allow(roles: list[str], right: str, room: str, allowed: bool) -> None:
    assert identity(sub="anna", roles=roles).may(right, room) is allowed


def test_the_rooms_of_a_token_narrow_every_right() -> None:
    caller = identity(sub="anna", roles=["operator"], rooms=["a"])
    assert caller.may("staff.manage", "a")
    assert not caller.may("staff.manage", "b")
    assert not caller.may("staff.manage")
    assert caller.rooms_with("order.view") == frozenset({"a"})


def test_no_claim_makes_a_guest_more_than_a_guest() -> None:
    caller = identity(sub="guest-x", roles=["operator"], kind="staff")
    assert caller.kind == "guest"
    assert caller.roles == frozenset()
    assert set(caller.grants) == set(GUEST_RIGHTS)


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"sub": ""},
        {"sub": 7},
        {"sub": "a" * 65},
        {"sub": "a:b"},
        {"sub": "a{b}"},
        {"sub": "a b"},
        {"sub": "a\n"},
        {"sub": "娜"},
        {"sub": "anna", "roles": "operator"},
        {"sub": "anna", "roles": [1]},
        {"sub": "anna", "roles": ["host@a"] * 65},
        {"sub": "anna", "rooms": "a"},
        {"sub": "anna", "rooms": ["*"]},
        {"sub": "anna", "rooms": ["{a}"]},
        {"sub": "anna", "exp": "soon"},
        {"sub": "anna", "exp": True},
        {"sub": "anna", "exp": -1},
        {"sub": "anna", "exp": float("nan")},
        {"sub": "anna", "nbf": 10**12},
        {"sub": "anna", "kind": "system"},
    ],
)
def test_claims_that_say_nothing_sure_are_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(rules.BadClaims):
        identity(**claims)


@pytest.mark.parametrize("subject", ["a", "a" * 64, "anna@example.org", "auth0|5f7c8ec7c33c6c004bbafe82", "A-1_b.c+d=e~f"])
def test_subjects_that_backends_use_are_taken(subject: str) -> None:
    assert identity(sub=subject).id == subject


def test_info_is_shown_but_never_trusted() -> None:
    caller = identity(sub="anna", info={"name": "An\u202ena\n" + "x" * 200, "avatar": 7, "level": 10**9})
    assert caller.name == "Anna" + "x" * (rules.NAME_CHARS_MAX - 4)
    assert caller.avatar == ""
    assert caller.level == rules.LEVEL_MAX
    assert identity(sub="anna", info="Anna").name == "anna"


def test_nobody_grants_what_he_does_not_have() -> None:
    host = identity(sub="anna", roles=["host@a"])
    assert rules.missing_right(host, [("moderator", "a")]) is None
    assert rules.missing_right(host, [("moderator", "b")]) == "chat.moderate in room b"
    assert rules.missing_right(host, [("operator", "a")]) == "audit.view in room a"
    assert rules.missing_right(identity(sub="lin", roles=["operator"]), [("operator", None), ("supervisor", "b")]) is None


@pytest.mark.parametrize(
    ("others", "before", "after", "last"),
    [
        (0, [("operator", None)], [], True),
        (0, [("operator", None)], [("operator", "a")], True),
        (0, [("operator", None)], [("host", None), ("operator", None)], False),
        (1, [("operator", None)], [], False),
        (0, [("host", None)], [], False),
    ],
)
def test_the_last_operator_stays(others: int, before: list[rules.Grant], after: list[rules.Grant], last: bool) -> None:
    assert rules.leaves_no_operator(others, before, after) is last
