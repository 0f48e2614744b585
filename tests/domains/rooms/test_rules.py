"""The life cycle as an exact table, the checklists, the pin, the run-of-show, the pace of likes."""

from datetime import UTC, datetime

import pytest

from app.domains.rooms.rules import (
    LIKES_BURST,
    LIKES_PER_S,
    LikeBudget,
    Readiness,
    SessionState,
    ShelfOffer,
    Step,
    checklist,
    missing,
    next_cue,
    next_state,
    next_step,
    spend_likes,
    why_not,
    why_not_pinned,
)

# state       schedule     go_live  interrupt      resume  end      archive
TABLE = """
draft        scheduled    live     -              -       ended    -
scheduled    scheduled    live     -              -       ended    -
live         -            -        interrupted    -       ended    -
interrupted  -            -        -              live    ended    -
ended        -            -        -              -       -        archived
archived     -            -        -              -       -        -
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]
CELLS = [(row[0], step, None if cell == "-" else cell) for row in ROWS for step, cell in zip(Step, row[1:], strict=True)]


def test_the_table_names_every_state() -> None:
    assert [row[0] for row in ROWS] == list(SessionState)


@pytest.mark.parametrize(("state", "step", "after"), CELLS)
def test_life_cycle(state: str, step: Step, after: str | None) -> None:
    assert next_state(state, step) == after


def test_it_never_goes_back() -> None:
    order = ["draft", "scheduled", "live", "interrupted", "ended", "archived"]
    for state, step, after in CELLS:
        if after is not None and step is not Step.RESUME:
            assert order.index(after) >= order.index(state)


def test_a_refused_step_says_which_state_it_needs() -> None:
    assert why_not("ended", Step.GO_LIVE) == "the session is ended; go live needs it to be draft or scheduled"


TEA = ShelfOffer("Tea", "listed", 1990, 10, 0)
READY = {"state": "draft", "title": "Tea hills", "host": "Mei", "starts_at": None, "shelf": [TEA], "on_air_elsewhere": False}


def words(step: Step, **changes: object) -> list[str]:
    return [item.word for item in missing(checklist(step, Readiness(**(READY | changes))))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "in_the_way"),
    [
        ({}, []),
        ({"state": "live"}, ["state"]),
        ({"title": "  "}, ["title"]),
        ({"host": ""}, ["host"]),
        ({"shelf": []}, ["shelf"]),
        ({"shelf": [ShelfOffer("Tea", "withdrawn", 1990, 10, 0)]}, ["shelf"]),
        ({"shelf": [ShelfOffer("Tea", "paused", 1990, 10, 0)]}, ["shelf"]),
        ({"shelf": [TEA, ShelfOffer("Honey", "listed", 0, 10, 0)]}, ["terms"]),
        ({"shelf": [TEA, ShelfOffer("Honey", "listed", 100, 0, 0)]}, ["terms"]),
        ({"shelf": [TEA, ShelfOffer("Honey", "listed", 100, 5, 5)]}, ["terms"]),
        ({"shelf": [TEA, ShelfOffer("Honey", "paused", 0, 0, 0)]}, []),
        ({"on_air_elsewhere": True}, ["alone"]),
        ({"state": "ended", "title": "", "host": "", "shelf": [], "on_air_elsewhere": True}, ["state", "title", "host", "shelf", "alone"]),
    ],
)
def test_what_going_live_needs(changes: dict[str, object], in_the_way: list[str]) -> None:
    assert words(Step.GO_LIVE, **changes) == in_the_way


def test_an_item_says_what_to_do() -> None:
    items = checklist(Step.GO_LIVE, Readiness(**(READY | {"shelf": [TEA, ShelfOffer("Honey", "listed", 0, 1, 0)]})))  # type: ignore[arg-type]
    assert [(item.word, item.ok, item.text) for item in items] == [
        ("state", True, "the session is draft"),
        ("title", True, "the session has a title"),
        ("host", True, "Mei hosts"),
        ("shelf", True, "2 offers on the shelf"),
        ("terms", False, "set price and stock of: Honey"),
        ("alone", True, "no other session of the room is on air"),
    ]


def test_an_empty_shelf_can_be_accepted_and_nothing_else() -> None:
    items = checklist(Step.GO_LIVE, Readiness(**(READY | {"shelf": [], "host": ""})))  # type: ignore[arg-type]
    assert [item.word for item in missing(items, empty_shelf_accepted=True)] == ["host"]


def test_scheduling_needs_a_start() -> None:
    assert words(Step.SCHEDULE) == ["starts_at"]
    assert words(Step.SCHEDULE, starts_at=datetime(2026, 4, 3, tzinfo=UTC), host="", shelf=[]) == []


@pytest.mark.parametrize(
    ("state", "step"),
    [("draft", "go_live"), ("scheduled", "go_live"), ("live", "end"), ("interrupted", "resume"), ("ended", "archive"), ("archived", None)],
)
def test_what_comes_next(state: str, step: str | None) -> None:
    assert next_step(state) == step
    if step is not None:
        assert next_state(state, Step(step)) is not None


@pytest.mark.parametrize(
    ("offer_session", "offer_state", "on_air", "problem"),
    [
        ("s1", "listed", "s1", ""),
        ("s1", "listed", None, "no session of this room is on air"),
        ("s2", "listed", "s1", "this offer stands on the shelf of another session"),
        ("s1", "paused", "s1", "this offer is paused; only a listed offer can be pinned"),
        ("s1", "withdrawn", "s1", "this offer is withdrawn; only a listed offer can be pinned"),
    ],
)
def test_pin(offer_session: str, offer_state: str, on_air: str | None, problem: str) -> None:
    assert why_not_pinned(offer_session=offer_session, offer_state=offer_state, session_on_air=on_air) == problem


def test_next_cue() -> None:
    assert next_cue([]) is None
    assert next_cue(["done", "now", "waiting", "waiting"]) == 2
    assert next_cue(["waiting", "now"]) == 0  # one was put in before
    assert next_cue(["done", "now"]) is None


def test_likes_are_a_token_bucket() -> None:
    budget, wait_ms = spend_likes(None, 50, 1000)
    assert (budget, wait_ms) == (LikeBudget(LIKES_BURST - 50, 1000), 0)
    budget, wait_ms = spend_likes(budget, 50, 1000)
    assert (budget.tokens, wait_ms) == (0, 0)
    refused, wait_ms = spend_likes(budget, 10, 1000)
    assert (refused.tokens, wait_ms) == (0, 10 * 1000 // LIKES_PER_S + 1)
    budget, waits = spend_likes(refused, 10, 1000 + wait_ms)
    assert waits == 0
    budget, _ = spend_likes(budget, 1, 10**9)
    assert budget.tokens == LIKES_BURST - 1  # it never holds more than the burst
