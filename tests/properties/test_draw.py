"""Draws over many seeds: no winner twice, every entrant as likely as every other, and nothing that changes goes unnoticed."""

import hashlib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domains.lottery.rules import draw_places, entrants_root, randomness_of

pytestmark = pytest.mark.slow

BYTES_32 = st.binary(min_size=32, max_size=32)


@given(randomness=BYTES_32, entrants=st.integers(0, 5000), units=st.integers(1, 200))
@settings(max_examples=200, deadline=None)
def test_winners_are_distinct_entrants_and_as_many_as_can_be(randomness: bytes, entrants: int, units: int) -> None:
    places = draw_places(randomness, entrants, units)
    assert len(places) == len(set(places)) == min(units, entrants)
    assert all(0 <= place < entrants for place in places)
    assert draw_places(randomness, entrants, units + 1)[: len(places)] == places  # a further prize takes nothing from the others


@given(rules_hash=BYTES_32, root=BYTES_32, seed=BYTES_32, at=st.integers(0, 95), bit=st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_one_bit_of_any_input_is_other_randomness(rules_hash: bytes, root: bytes, seed: bytes, at: int, bit: int) -> None:
    whole = bytearray(rules_hash + root + seed)
    whole[at] ^= 1 << bit
    changed = bytes(whole)
    assert randomness_of(changed[:32], changed[32:64], changed[64:]) != randomness_of(rules_hash, root, seed)


@given(leaves=st.lists(st.binary(min_size=64, max_size=64), min_size=1, max_size=60, unique=True), data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_change_of_an_entrant_is_another_root(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    other = data.draw(st.binary(min_size=64, max_size=64).filter(lambda leaf: leaf not in leaves))
    root = entrants_root(leaves)
    assert entrants_root(leaves[:index] + leaves[index + 1 :]) != root
    assert entrants_root([*leaves[:index], other, *leaves[index + 1 :]]) != root
    assert entrants_root([*leaves, other]) != root
    assert entrants_root(data.draw(st.permutations(leaves))) == root


def test_entrants_win_equally_often() -> None:
    """30,000 draws of 3 among 30: each place wins 3,000 times but for chance. Chi-square, 29 degrees of freedom, p = 0.001: 58.3.

    Winners of one draw exclude each other, which lowers the statistic by the factor (30 - 3) / 29 and makes the bound the safer.
    """
    wins: Counter[int] = Counter()
    first: Counter[int] = Counter()
    for i in range(30_000):
        places = draw_places(hashlib.sha256(i.to_bytes(8, "big")).digest(), 30, 3)
        wins.update(places)
        first[places[0]] += 1
    assert sum((wins[place] - 3000) ** 2 / 3000 for place in range(30)) < 58.3
    assert sum((first[place] - 1000) ** 2 / 1000 for place in range(30)) < 58.3
