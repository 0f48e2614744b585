"""What may stand on a shelf, at which price; how an offer's state may change."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from app.core.money import AMOUNT_MINOR_MAX
from app.domains.catalogue.rules import (
    STOCK_MAX,
    OfferState,
    OfferTerms,
    PriceDecision,
    decide_price_change,
    find_purchase,
    lowest_price,
    offer_may_become,
    problem_of_top_up,
    problems_of_terms,
)

NOW = datetime(2026, 4, 3, tzinfo=UTC)
SOUND = OfferTerms(
    name="Tea",
    currency="CNY",
    price_minor=1990,
    list_price_minor=2990,
    total=10,
    limit_per_viewer=2,
    limit_per_order=1,
    price_min_minor=1500,
    price_max_minor=2500,
    total_max=20,
    discount_percent_max=50,
    price_steps=({"at_ms": 1, "price_minor": 1500}, {"at_ms": 2, "price_minor": 2500}),
    opens_at=NOW,
    closes_at=NOW + timedelta(minutes=5),
    return_policy="no_reason_7_days",
    selling_policy="hold",
    keyword="春茶",
)


@pytest.mark.parametrize(
    ("new", "low", "high", "bind", "decision"),
    [
        (1990, 1500, 2500, True, PriceDecision.SAME),
        (1991, 1500, 2500, True, PriceDecision.CHANGE),
        (1500, 1500, 2500, True, PriceDecision.CHANGE),
        (1499, 1500, 2500, True, PriceDecision.OVER_LIMIT),
        (2500, 1500, 2500, True, PriceDecision.CHANGE),
        (2501, 1500, 2500, True, PriceDecision.OVER_LIMIT),
        (2501, 1500, 2500, False, PriceDecision.CHANGE),
        (0, None, 2500, True, PriceDecision.CHANGE),
        (AMOUNT_MINOR_MAX, 1500, None, True, PriceDecision.CHANGE),
        (AMOUNT_MINOR_MAX + 1, None, None, False, PriceDecision.INVALID),
        (-1, 1500, 2500, True, PriceDecision.INVALID),
        (1990, 2000, 2500, True, PriceDecision.SAME),  # what stands may stay, whatever the limits are now
    ],
)
def test_price_change(new: int, low: int | None, high: int | None, bind: bool, decision: PriceDecision) -> None:
    assert decide_price_change(new, price_minor=1990, price_min_minor=low, price_max_minor=high, limits_bind=bind) is decision


@pytest.mark.parametrize(
    ("list_price", "low", "discount", "lowest"),
    [
        (1999, None, None, None),
        (1999, 500, None, 500),
        (1999, None, 50, 1000),
        (1999, 1200, 50, 1200),
        (1999, 0, 100, 0),
        (1999, None, 0, 1999),
    ],
)
def test_the_lowest_price_that_is_delegated(list_price: int, low: int | None, discount: int | None, lowest: int | None) -> None:
    assert lowest_price(list_price, low, discount) == lowest


def test_offer_states() -> None:
    allowed = {(a.value, b.value) for a in OfferState for b in OfferState if offer_may_become(a, b)}
    assert allowed == {("listed", "paused"), ("listed", "withdrawn"), ("paused", "listed"), ("paused", "withdrawn")}


def test_sound_terms_have_no_problem() -> None:
    assert problems_of_terms(SOUND) == []
    open_ended = replace(
        SOUND,
        price_min_minor=None,
        price_max_minor=None,
        total_max=None,
        price_steps=(),
        opens_at=None,
        closes_at=None,
        limit_per_viewer=0,
        total=0,
    )
    assert problems_of_terms(open_ended) == []


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"name": "  "}, ["name"]),
        ({"name": "x" * 121}, ["name"]),
        ({"currency": "RMB"}, ["currency"]),
        ({"price_minor": -1, "price_min_minor": None, "discount_percent_max": None}, ["price_minor"]),
        ({"list_price_minor": 1989}, ["list_price_minor", "price_steps"]),
        ({"total": -1}, ["total"]),
        ({"total": STOCK_MAX + 1, "total_max": None}, ["total"]),
        ({"total": 21}, ["total"]),
        ({"discount_percent_max": 101}, ["discount_percent_max"]),
        ({"discount_percent_max": 33}, ["price_minor", "price_steps"]),
        ({"limit_per_viewer": 1000}, ["limit_per_viewer"]),
        ({"limit_per_order": 1000}, ["limit_per_order"]),
        ({"price_min_minor": 2600}, ["price_min_minor, price_max_minor", "price_minor", "price_steps"]),
        ({"price_max_minor": 1989}, ["price_minor", "price_steps"]),
        ({"price_steps": ({"at_ms": 1, "price_minor": 1499},)}, ["price_steps"]),
        ({"price_steps": ({"at_ms": 1, "price_minor": 2991},), "price_max_minor": None}, ["price_steps"]),
        ({"price_steps": ({"at_ms": 1, "price_minor": 1500}, {"at_ms": 1, "price_minor": 1600})}, ["price_steps"]),
        ({"price_steps": tuple({"at_ms": at, "price_minor": 1500} for at in range(21))}, ["price_steps"]),
        ({"keyword": "  "}, ["keyword"]),
        ({"keyword": "tea\u202e"}, ["keyword"]),
        ({"keyword": "x" * 21}, ["keyword"]),
        ({"keyword": "tea 2"}, ["keyword"]),
        ({"keyword": "tea+２"}, ["keyword"]),
        ({"closes_at": NOW}, ["closes_at"]),
        ({"return_policy": "never"}, ["return_policy"]),
        ({"selling_policy": "auction"}, ["selling_policy"]),
    ],
)
def test_problems_name_their_fields(changes: dict[str, object], names: list[str]) -> None:
    assert [problem.partition(":")[0] for problem in problems_of_terms(replace(SOUND, **changes))] == names  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "purchase"),
    [
        ("honey", ("o1", 1)),
        ("  Honey  2 ", ("o1", 2)),
        ("HONEY+2", ("o1", 2)),
        ("honey + 12", ("o1", 12)),
        ("ｈｏｎｅｙ＋２", ("o1", 2)),
        ("春茶", ("o2", 1)),
        ("春茶 3", ("o2", 3)),
        ("1", ("o3", 1)),
        ("1+1", ("o3", 1)),
        ("1 20", ("o3", 20)),
        ("honey2", None),
        ("honey 0", None),
        ("honey 1000", None),
        ("honey 2 please", None),
        ("I want honey", None),
        ("honey -1", None),
        ("honey\u00b2", None),
        ("", None),
        ("honey" + " " * 50 + "2", None),
    ],
)
def test_a_line_buys_when_all_of_it_is_a_keyword(line: str, purchase: tuple[str, int] | None) -> None:
    assert find_purchase(line, {"honey": "o1", "春茶": "o2", "1": "o3"}) == purchase


@pytest.mark.parametrize(
    ("add", "total", "ok"), [(1, 0, True), (0, 5, False), (-1, 5, False), (1, STOCK_MAX, False), (1, STOCK_MAX - 1, True)]
)
def test_top_up(add: int, total: int, ok: bool) -> None:
    assert (problem_of_top_up(add, total) == "") is ok
