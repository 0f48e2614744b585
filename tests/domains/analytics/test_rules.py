"""Ratios, minutes, the funnel: decided from values alone."""

from datetime import UTC, datetime, timedelta

import pytest

from app.domains.analytics import rules
from app.domains.analytics.rules import MinuteFigures, OfferFigures, Summary

NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def minute(offset: int, **figures: int) -> MinuteFigures:
    return MinuteFigures(at=NOON + timedelta(minutes=offset), **figures)


@pytest.mark.parametrize(("part", "whole", "expected"), [(0, 0, 0.0), (1, 0, 0.0), (1, 3, 0.3333), (3, 2, 1.5)])
def test_ratio(part: int, whole: int, expected: float) -> None:
    assert rules.ratio(part, whole) == expected


@pytest.mark.parametrize(("total", "count", "expected"), [(0, 0, 0), (10, 4, 3), (9, 4, 2), (5970, 2, 2985)])
def test_average_rounds_half_up(total: int, count: int, expected: int) -> None:
    assert rules.average(total, count) == expected


def test_funnel_is_per_unique_viewer() -> None:
    summary = Summary(unique_viewers=200, chatters=50, holds=40, orders=30, paid_orders=20)
    assert [(step.step, step.count, step.of_viewers) for step in rules.funnel(summary)] == [
        ("viewers", 200, 1.0),
        ("chatters", 50, 0.25),
        ("holds", 40, 0.2),
        ("orders", 30, 0.15),
        ("paid", 20, 0.1),
    ]


def test_top_offers_are_those_that_sold() -> None:
    gmv = {"a": 5, "b": 0, "c": 9, "d": 5}
    assert rules.top_offers(OfferFigures(offer=name, name=name, gmv_minor=amount) for name, amount in gmv.items()) == ["c", "a", "d"]


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        ([], None),
        ([minute(0, viewers=5), minute(1, viewers=9)], 1),
        ([minute(0, viewers=5), minute(1, viewers=9), minute(2, gmv_minor=1)], 2),
        ([minute(0, gmv_minor=7, viewers=1), minute(1, gmv_minor=7, viewers=1)], 0),
    ],
)
def test_peak_minute(minutes: list[MinuteFigures], expected: int | None) -> None:
    assert rules.peak_minute(minutes) == (None if expected is None else minutes[expected])


def test_every_minute_of_the_show_is_there_and_late_payments_after_it() -> None:
    late = NOON + timedelta(minutes=30)
    known = {NOON + timedelta(minutes=1): minute(1, messages=3), late: minute(30, gmv_minor=100)}
    filled = rules.fill_minutes(known, start=NOON + timedelta(seconds=59), end=NOON + timedelta(minutes=2, seconds=1))
    assert filled == [minute(0), minute(1, messages=3), minute(2), minute(30, gmv_minor=100)]


def test_minutes_are_bounded() -> None:
    assert len(rules.fill_minutes({}, start=NOON, end=NOON + timedelta(days=9))) == rules.MINUTES_MAX


def test_a_show_that_never_began_has_no_minutes() -> None:
    assert rules.fill_minutes({}, start=None, end=NOON) == []
