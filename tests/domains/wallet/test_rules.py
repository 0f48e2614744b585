"""The ledger's decisions as tables: every word, and the order in which it is decided."""

import pytest

from app.core.money import AMOUNT_MINOR_MAX
from app.domains.wallet.rules import (
    Funds,
    Movement,
    ResolveOutcome,
    TransferOutcome,
    TransferState,
    accounts_of,
    check_movement,
    decide_movements,
    decide_post,
    decide_void,
)


def movement(transfer_id: str = "t1", amount_minor: int = 30, *, pending: bool = False, to: str = "viewer:b") -> Movement:
    return Movement(
        transfer_id=transfer_id,
        from_account="viewer:a",
        to_account=to,
        amount_minor=amount_minor,
        currency="CNY",
        kind="test",
        pending=pending,
    )


DONE, REPEATED, NO_FUNDS, CONFLICT = (
    TransferOutcome.DONE,
    TransferOutcome.REPEATED,
    TransferOutcome.INSUFFICIENT_FUNDS,
    TransferOutcome.CONFLICT,
)


@pytest.mark.parametrize(
    ("asked", "funds", "existing", "outcomes"),
    [
        ([movement()], Funds(30), {}, [DONE]),
        ([movement()], Funds(29), {}, [NO_FUNDS]),
        ([movement()], Funds(30, 1), {}, [NO_FUNDS]),
        ([movement()], Funds(31, 1), {}, [DONE]),
        ([movement()], Funds(0, 0, may_go_negative=True), {}, [DONE]),
        ([movement()], Funds(0), {"t1": movement()}, [REPEATED]),  # the id is looked at before the funds
        ([movement()], Funds(30), {"t1": movement(amount_minor=31)}, [CONFLICT]),
        ([movement()], Funds(30), {"t1": movement(pending=True)}, [CONFLICT]),
        ([movement("t1", 20), movement("t2", 20), movement("t3", 10)], Funds(30), {}, [DONE, NO_FUNDS, DONE]),
        ([movement("t1", 20, pending=True), movement("t2", 20)], Funds(30), {}, [DONE, NO_FUNDS]),
        ([movement(), movement()], Funds(30), {}, [DONE, REPEATED]),
        ([movement(), movement(to="viewer:c")], Funds(60), {}, [DONE, CONFLICT]),
    ],
)
def test_movements(asked: list[Movement], funds: Funds, existing: dict[str, Movement], outcomes: list[TransferOutcome]) -> None:
    decision = decide_movements(asked, {("viewer:a", "CNY"): funds}, existing)
    assert decision.outcomes == outcomes
    assert sum(decision.balance_changes.values()) == 0
    assert len(decision.done) == outcomes.count(DONE)


def test_money_that_came_in_can_go_out_in_the_same_list() -> None:
    there = movement("t1")
    back = Movement(transfer_id="t2", from_account="viewer:b", to_account="viewer:a", amount_minor=30, currency="CNY", kind="test")
    assert decide_movements([there, back], {("viewer:a", "CNY"): Funds(30)}, {}).outcomes == [DONE, DONE]
    assert decide_movements([back, there], {("viewer:a", "CNY"): Funds(30)}, {}).outcomes == [NO_FUNDS, DONE]


@pytest.mark.parametrize(
    ("state", "posted", "asked", "was_pending", "outcome"),
    [
        (TransferState.PENDING, 0, 10, True, ResolveOutcome.DONE),
        (TransferState.PENDING, 0, 1, True, ResolveOutcome.DONE),
        (TransferState.PENDING, 0, 0, True, ResolveOutcome.CONFLICT),
        (TransferState.PENDING, 0, 11, True, ResolveOutcome.CONFLICT),
        (TransferState.POSTED, 7, 7, True, ResolveOutcome.REPEATED),
        (TransferState.POSTED, 7, 8, True, ResolveOutcome.CONFLICT),
        (TransferState.POSTED, 10, 10, False, ResolveOutcome.CONFLICT),  # it was never pending
        (TransferState.VOIDED, 0, 10, True, ResolveOutcome.ALREADY_VOIDED),
    ],
)
def test_posting(state: TransferState, posted: int, asked: int, was_pending: bool, outcome: ResolveOutcome) -> None:
    assert decide_post(state, 10, posted, asked, was_pending=was_pending) is outcome


def test_voiding() -> None:
    assert [decide_void(state) for state in TransferState] == [
        ResolveOutcome.ALREADY_POSTED,
        ResolveOutcome.DONE,
        ResolveOutcome.REPEATED,
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        movement(amount_minor=0),
        movement(amount_minor=-1),
        movement(amount_minor=AMOUNT_MINOR_MAX + 1),
        movement(to="viewer:a"),
        movement(to="b"),
        movement(to="viewer:"),
    ],
)
def test_a_movement_that_nobody_may_ask_for(wrong: Movement) -> None:
    with pytest.raises(ValueError, match="transfer t1"):
        check_movement(wrong)


def test_accounts_are_locked_in_one_order() -> None:
    assert accounts_of([movement(to="room:1"), movement(to="envelope:1")]) == [
        ("envelope:1", "CNY"),
        ("room:1", "CNY"),
        ("viewer:a", "CNY"),
    ]
