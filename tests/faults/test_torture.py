"""The short version of `make torture`: a few thousand random operations while each kind of process is killed, then the books. And that
its tester notices what it is there to notice."""

import pytest

from loadtests.torture.book import Book, Purchase
from loadtests.torture.run import Plan, run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("up"), pytest.mark.timeout(300)]

HELD = {"outcome": "held", "hold": "r-1", "expires_at": "t", "price_minor": 5}


def test_what_was_acknowledged_is_there_after_the_death_of_every_process() -> None:
    said: list[str] = []
    plan = Plan(operations=1_000_000, seed=7, kill_every_s=1.2, seconds_max=6, viewers=30, rooms=2, hold_s=1, payment_s=2, say=said.append)
    verdict = run(plan)
    assert verdict.holds, said[-1]
    for role in ("postgres", "valkey", "web", "worker"):
        assert role in said[-1].split("kills")[1].splitlines()[0], said[-1]


def purchase_held() -> tuple[Book, Purchase]:
    book, purchase = Book(), Purchase("lin", "r-o", 1, "k")
    book.held(purchase, HELD)
    return book, purchase


def test_the_tester_notices_a_hold_that_was_made_again() -> None:
    book, purchase = purchase_held()
    book.held(purchase, HELD | {"repeated": True})
    assert (book.lost, book.duplicates) == ([], [])
    book.held(purchase, HELD)
    book.held(purchase, HELD | {"repeated": True, "expires_at": "later"})
    book.held(purchase, HELD | {"repeated": True, "hold": "r-2"})
    assert (len(book.lost), len(book.duplicates)) == (2, 1)


@pytest.mark.parametrize(
    ("answers", "is_possible"),
    [
        ([("order.place", "placed"), ("order.cancel", "cancelled"), ("order.get", "cancelled")], True),
        ([("order.place", "placed"), ("order.cancel", "cancelled"), ("order.get", "paid")], False),
        ([("order.place", "placed"), ("order.get", "expired"), ("order.get", "paid")], True),
        ([("order.place", "placed"), ("order.get", "paid"), ("order.cancel", "expired")], False),
        ([("inventory.release", "released"), ("order.place", "placed")], False),
        ([("inventory.release", "unknown")], False),
        ([("inventory.wait", "waiting")], False),
    ],
)
def test_the_tester_notices_an_answer_that_takes_back_another(answers: list[tuple[str, str]], is_possible: bool) -> None:
    book, purchase = purchase_held()
    for method, outcome in answers:
        book.says(purchase, method, outcome)
        if outcome == "placed":
            book.placed(purchase, {"amount_minor": 5, "pay_by": "t"})
    assert (book.lost == []) is is_possible
