"""Decisions of orders from values alone."""

import pytest
from msgspec.structs import replace

from app.domains.inventory.rules import Hold, HoldState, RoomBooks, Stock, find_faults
from app.domains.orders.rules import (
    OrderFacts,
    OrderState,
    RefundRefusal,
    Remedy,
    decide_pay,
    decide_refund,
    find_order_differences,
    newest_state,
    short_name,
    sign,
    signature_fits,
    state_of_hold,
)


@pytest.mark.parametrize(("name", "short"), [("Lin", "L**"), ("林小雨", "林**"), ("", "***")])
def test_short_name(name: str, short: str) -> None:
    assert short_name(name) == short


def test_a_signature_is_for_one_body_and_one_time() -> None:
    header = sign(b"secret", 1000, b"body")
    assert header == "t=1000,v1=" + header[10:]
    assert len(header) == 10 + 64

    def fits(header: str, body: bytes = b"body", now_s: int = 1000) -> bool:
        return signature_fits(b"secret", header, body, now_s=now_s, tolerance_s=300)

    assert [fits(header), fits(header, now_s=1300), fits(header, now_s=700)] == [True, True, True]
    assert [fits(header, now_s=1301), fits(header, now_s=699), fits(header, b"bodY")] == [False, False, False]
    wrong = ["", "t=1000", header[:-1], header + "0", header.replace("t=1000", "t=1001"), "t=٣," + header[7:], "t=" + "9" * 40 + ",v1="]
    assert [fits(other) for other in wrong] == [False] * len(wrong)


@pytest.mark.parametrize(
    ("hold", "overdue", "state"),
    [
        (HoldState.HELD, False, None),
        (HoldState.RELEASED, False, None),
        (HoldState.EXPIRED, False, None),
        (HoldState.ORDERED, False, OrderState.PLACED),
        (HoldState.ORDERED, True, OrderState.EXPIRED),
        (HoldState.SOLD, False, OrderState.PAID),
        (HoldState.CANCELLED, False, OrderState.CANCELLED),
        (HoldState.LAPSED, True, OrderState.EXPIRED),
    ],
)
def test_what_a_hold_says_of_its_order(hold: HoldState, overdue: bool, state: OrderState | None) -> None:
    assert state_of_hold(hold, overdue=overdue) is state


def test_the_engine_is_ahead_only_until_paid() -> None:
    assert newest_state(OrderState.PLACED, OrderState.PAID) is OrderState.PAID
    assert newest_state(OrderState.EXPIRED, OrderState.PAID) is OrderState.PAID
    assert newest_state(OrderState.SHIPPED, OrderState.PAID) is OrderState.SHIPPED
    assert newest_state(OrderState.PLACED, None) is OrderState.PLACED


def test_every_state_has_a_word_for_pay() -> None:
    words = {state: decide_pay(state).value for state in OrderState}
    assert words == {
        "placed": "pending",
        "paid": "paid",
        "shipped": "paid",
        "delivered": "paid",
        "cancelled": "cancelled",
        "expired": "expired",
        "refunded": "refunded",
    }


@pytest.mark.parametrize(
    ("state", "paid", "refunded", "asked", "units_left", "units", "refusal"),
    [
        (OrderState.PLACED, 100, 0, 999, 1, 9, RefundRefusal.NOT_PAID),
        (OrderState.REFUNDED, 100, 100, 1, 1, 0, RefundRefusal.NOT_PAID),
        (OrderState.PAID, 0, 0, 0, 1, 0, RefundRefusal.NOT_PAID),
        (OrderState.PAID, 100, 40, 61, 1, 9, RefundRefusal.TOO_MUCH),
        (OrderState.PAID, 100, 40, 60, 1, 2, RefundRefusal.TOO_MANY_UNITS),
        (OrderState.SHIPPED, 100, 40, 60, 1, 1, None),
    ],
)
def test_refund_refusals_in_order(
    state: OrderState, paid: int, refunded: int, asked: int, units_left: int, units: int, refusal: RefundRefusal | None
) -> None:
    decided = decide_refund(state, paid_minor=paid, refunded_minor=refunded, asked_minor=asked, units_left=units_left, units=units)
    assert decided is refusal


def hold(state: HoldState, quantity: int = 1, deadline: int = 0) -> Hold:
    return Hold(
        offer="r-o",
        session="r-s",
        viewer="v",
        quantity=quantity,
        state=state,
        price=1,
        version=1,
        currency="CNY",
        policy="",
        escrow=False,
        deadline=deadline,
        expires=deadline,
    )


def test_books_that_do_not_add_up_are_named() -> None:
    good = RoomBooks(
        offers={"r-o": Stock(total=3, available=1, held=1, ordered=0, sold=1)},
        holds={"r-h": hold(HoldState.HELD, deadline=5), "r-p": hold(HoldState.SOLD)},
        counts={"r-o|v": 2},
        deadlines={"r-h": 5},
    )
    assert find_faults("r", good) == []
    stock = Stock(total=3, available=2, held=1, ordered=0, sold=1)
    bad = RoomBooks(offers={"r-o": stock}, holds={"r-p": hold(HoldState.SOLD, 2)}, counts={}, deadlines={"r-x": 1})
    assert [fault.partition(":")[2].split(":")[0].strip() for fault in find_faults("r", bad)] == [
        "offer r-o",
        "offer r-o",
        "offer r-o",
        "hold r-x",
        "count r-o|v",
    ]


def test_orders_that_differ_from_their_holds_are_named() -> None:
    books = RoomBooks(
        offers={"r-o": Stock(total=9, available=9, held=0, ordered=0, sold=0)},
        holds={"r-a": hold(HoldState.SOLD), "r-b": hold(HoldState.ORDERED), "r-c": hold(HoldState.LAPSED)},
    )
    fine = {"r-a": facts(OrderState.SHIPPED), "r-b": facts(OrderState.PLACED), "r-c": facts(OrderState.EXPIRED)}
    assert find_order_differences("r", fine, {"r-o": 1}, books, ()) == []
    wrong = {
        "r-a": facts(OrderState.PLACED),
        "r-c": facts(OrderState.PAID),
        "r-d": facts(OrderState.PAID),
        "r-e": facts(OrderState.EXPIRED),
        "r-f": facts(OrderState.PLACED),
    }
    found = find_order_differences("r", wrong, {"r-o": 4}, books, {"r-f"})
    assert [(difference.text, difference.remedy) for difference in found] == [
        ("r: order r-a: placed in SQL, sold in the engine", Remedy.WRITE),
        ("r: order r-c: paid in SQL, lapsed in the engine", Remedy.REBUILD),
        ("r: order r-d: paid in SQL, the engine has no hold of it", Remedy.REBUILD),
        ("r: hold r-b: ordered, but there is no order in SQL", Remedy.WRITE),
        ("r: offer r-o: sold 4 in SQL, its orders say 2", Remedy.COUNT),
    ]


@pytest.mark.parametrize(
    ("asked", "had", "engine", "remedy"),
    [(2, 2, 2, None), (2, 1, 1, None), (2, 1, 2, None), (2, 2, 1, Remedy.REBUILD), (1, 1, 2, Remedy.NONE)],
)
def test_units_that_are_on_their_way_back_are_no_difference(asked: int, had: int, engine: int, remedy: Remedy | None) -> None:
    offers = {"r-o": Stock(total=9, available=9, held=0, ordered=0, sold=0)}
    books = RoomBooks(offers=offers, holds={"r-a": replace(hold(HoldState.SOLD, 3), returned=engine)})
    order = OrderFacts(offer="r-o", state=OrderState.PAID, quantity=3, returned=asked, restocked=had)
    found = find_order_differences("r", {"r-a": order}, {"r-o": 3 - asked}, books, ())
    assert [difference.remedy for difference in found] == ([remedy] if remedy else [])


def facts(state: OrderState) -> OrderFacts:
    return OrderFacts(offer="r-o", state=state, quantity=1, returned=0, restocked=0)
