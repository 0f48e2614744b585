"""Splits of envelopes: exact for every total and count, and the same in every position. The test that says so can tell: it finds the
effect of position in the widespread double-mean split."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.money import AMOUNT_MINOR_MAX
from app.domains.envelopes.rules import SHARES_MAX, Mode, decide_split, split, split_lucky

pytestmark = pytest.mark.slow

ENVELOPES = 20_000
TOTAL, COUNT = 200, 10
BINS = 8
CHI_SQUARE_CRITICAL = 105.99  # (10 - 1) * (8 - 1) = 63 degrees of freedom, p = 0.00055; Wilson and Hilferty's approximation


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_every_split_is_exact_and_every_share_at_least_one(data: st.DataObject) -> None:
    count = data.draw(st.one_of(st.integers(1, 12), st.integers(1, SHARES_MAX)))
    total = data.draw(
        st.one_of(
            st.just(count),
            st.integers(count, count + 5),
            st.integers(1, 99).map(lambda each: each * count),
            st.integers(count, AMOUNT_MINOR_MAX),
        )
    )
    mode = data.draw(st.sampled_from(Mode))
    if decide_split(mode, total, count) is not None:
        assert mode is Mode.EQUAL and total % count
        return
    shares = split(mode, total, count, random.Random(data.draw(st.integers(0, 2**32))))
    assert (len(shares), sum(shares)) == (count, total)
    assert min(shares) >= 1
    assert mode is Mode.LUCKY or set(shares) == {total // count}


@pytest.mark.parametrize(("total", "count"), [(0, 1), (1, 2), (5, 0), (-1, 1)])
def test_a_split_that_cannot_be_made_is_refused(total: int, count: int) -> None:
    with pytest.raises(ValueError, match="shares"):
        split_lucky(total, count, random.Random(1))


def test_every_composition_is_equally_likely() -> None:
    """10 = 3 positive parts in C(9, 2) = 36 ways; 36,000 splits, chi-square with 35 degrees of freedom."""
    rng = random.Random(20_260_501)
    seen = Counter(tuple(split_lucky(10, 3, rng)) for _ in range(36_000))
    assert len(seen) == 36
    assert sum((times - 1000) ** 2 / 1000 for times in seen.values()) < 66.6  # p = 0.001


def double_mean(total: int, count: int, rng: random.Random) -> list[int]:
    """What many systems do: each share is uniform up to twice the mean of what is left, decided as people grab."""
    shares: list[int] = []
    for left in range(count, 1, -1):
        share = rng.randint(1, max(1, 2 * total // left - 1))
        share = min(share, total - (left - 1))
        shares.append(share)
        total -= share
    return [*shares, total]


def position_effect(split_: Callable[[int, int, random.Random], list[int]], seed: int) -> float:
    """Chi-square of independence between position and size class. One share an envelope is looked at, in positions taken by turns:
    shares of one envelope depend on each other, shares of different ones do not."""
    rng = random.Random(seed)
    table = [[0] * BINS for _ in range(COUNT)]
    for envelope in range(ENVELOPES):
        position = envelope % COUNT
        share = split_(TOTAL, COUNT, rng)[position]
        table[position][min(BINS - 1, share * BINS // (2 * TOTAL // COUNT + 8))] += 1
    columns = [sum(row[bin_] for row in table) for bin_ in range(BINS)]
    return sum(
        (table[position][bin_] - columns[bin_] / COUNT) ** 2 / (columns[bin_] / COUNT)
        for position in range(COUNT)
        for bin_ in range(BINS)
        if columns[bin_]
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_position_is_better_than_another(seed: int) -> None:
    assert position_effect(split_lucky, seed) < CHI_SQUARE_CRITICAL


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_double_mean_split_is_found_out(seed: int) -> None:
    assert position_effect(double_mean, seed) > 2 * CHI_SQUARE_CRITICAL
