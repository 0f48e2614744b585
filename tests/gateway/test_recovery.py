"""Recovery and the node's copy of a channel, as pure functions and values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.gateway.channel import Channel, Taken
from app.gateway.recovery import merge, recover
from app.protocol.channels import Kind
from app.storage.streams import Delivered, Position


def pub(offset: int, epoch: str = "e") -> Delivered:
    return Delivered("room:1", offset, epoch, b"{}")


def pubs(*offsets: int) -> list[Delivered]:
    return [pub(offset) for offset in offsets]


@pytest.mark.parametrize(
    ("history", "buffered", "after", "expected"),
    [
        ((), (), 5, []),
        ((6, 7), (), 5, [6, 7]),
        ((6, 7), (7, 8), 5, [6, 7, 8]),
        ((), (8, 6, 7), 5, [6, 7, 8]),
        ((6,), (0, 7, 0), 5, [6, 7]),  # readings
        ((3, 4, 5), (), 5, []),
        ((7,), (), 5, None),
        ((6,), (8,), 5, None),
        ((), (7,), 5, None),
    ],
)
def test_merge(history: tuple[int, ...], buffered: tuple[int, ...], after: int, expected: list[int] | None) -> None:
    merged = merge(pubs(*history), pubs(*buffered), after)
    assert (None if merged is None else [one.offset for one in merged]) == expected


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.randoms())
def test_merge_is_whole_or_nothing(after: int, top: int, history_top: int, kept: int, rng: object) -> None:
    """History cut at both ends and a buffer that overlaps it: the result is every offset after `after`, or None."""
    top = max(top, after)
    history_top = min(max(history_top, after), top)
    history = [pub(offset) for offset in range(max(after + 1, history_top - kept + 1), history_top + 1)]
    buffered = [pub(offset) for offset in range(max(1, history_top - 3), top + 1)]
    rng.shuffle(buffered)  # type: ignore[attr-defined]
    merged = merge(history, buffered, after)
    whole = {one.offset for one in (*history, *buffered)} >= set(range(after + 1, top + 1))
    assert (merged is not None) == whole
    if merged is not None:
        assert [one.offset for one in merged] == list(range(after + 1, top + 1))


@pytest.mark.parametrize(
    ("since", "history", "top", "expected"),
    [
        (("e", 5), (), 5, []),
        (("e", 5), (6, 7), 7, [6, 7]),
        (("e", 5), (7,), 7, None),  # trimmed
        (("e", 5), (), 7, None),  # expired
        (("e", 5), (6,), 7, None),
        (("f", 5), (6, 7), 7, None),  # another life
        (("", 0), (1, 2), 2, None),
        (("e", 9), (), 7, None),  # from the future: another life with the same name cannot be
        (("e", 0), (), 0, []),
    ],
)
def test_recover(since: tuple[str, int], history: tuple[int, ...], top: int, expected: list[int] | None) -> None:
    missed = recover(Position(*since), pubs(*history), Position("e", top))
    assert (None if missed is None else [one.offset for one in missed]) == expected


def channel_at(offset: int) -> Channel:
    channel = Channel(Kind.ROOM, "room:1")
    channel.anchor(Position("e", offset))
    return channel


@pytest.mark.parametrize(
    ("publication", "taken", "top"),
    [
        (pub(6), Taken.NEXT, 6),
        (pub(5), Taken.REPEATED, 5),
        (pub(1), Taken.REPEATED, 5),
        (pub(0), Taken.READING, 5),
        (pub(7), Taken.GAP, 5),
        (pub(6, "f"), Taken.OTHER_LIFE, 5),
    ],
)
def test_a_channel_takes_only_what_is_next(publication: Delivered, taken: Taken, top: int) -> None:
    channel = channel_at(5)
    assert channel.take(publication) is taken
    assert channel.top == top


def test_a_channel_without_position_begins_with_what_comes() -> None:
    channel = Channel(Kind.ROOM, "room:1")
    assert channel.take(pub(7)) is Taken.NEXT
    channel.anchor(Position("e", 6))  # read before it came, answered after
    assert (channel.epoch, channel.top) == ("e", 7)
    assert channel.after(6) == pubs(7)


def test_a_gap_is_healed_by_history_and_what_was_held() -> None:
    channel = channel_at(5)
    assert [channel.take(one) for one in pubs(8, 9)] == [Taken.GAP, Taken.HELD]
    assert channel.heal(pubs(6, 7, 8), Position("e", 8)) == pubs(6, 7, 8, 9)
    assert channel.top == 9
    assert channel.take(pub(10)) is Taken.NEXT
    assert channel.after(5) == pubs(6, 7, 8, 9, 10)


@pytest.mark.parametrize(
    ("history", "position"),
    [
        (pubs(7, 8), Position("e", 8)),  # 6 is gone
        (pubs(6), Position("e", 6)),  # 7 is missing before what is held
        ([], Position("f", 0)),
    ],
)
def test_a_gap_that_cannot_be_healed_whole(history: list[Delivered], position: Position) -> None:
    channel = channel_at(5)
    channel.take(pub(8))
    assert channel.heal(history, position) is None
    channel.restart(position)
    assert (channel.top, channel.is_healing, channel.held) == (position.offset, False, [])


def test_what_came_after_is_whole_or_nothing() -> None:
    channel = channel_at(0)
    for offset in range(1, 1_001):
        channel.take(pub(offset))
    assert channel.after(998) == pubs(999, 1_000)
    assert channel.after(1_000) == channel.after(2_000) == []
    assert channel.after(1) is None  # more than is kept


@pytest.mark.parametrize(
    ("history", "came", "whole"),
    [
        ((1, 2, 3, 4, 5), (), (1, 2, 3, 4, 5)),
        ((3, 4, 5), (6, 7), (3, 4, 5, 6, 7)),
        ((3, 4, 5, 6, 7), (6, 7), (3, 4, 5, 6, 7)),  # read after they came
        ((3, 5), (6,), (6,)),  # with a hole, nothing is taken
        ((3, 4), (6,), (6,)),
        ((), (6,), (6,)),
    ],
)
def test_a_channel_learns_what_was_said_before_it_was_here(history: tuple[int, ...], came: tuple[int, ...], whole: tuple[int, ...]) -> None:
    channel = channel_at(5)
    for publication in pubs(*came):
        channel.take(publication)
    channel.prime(pubs(*history))
    assert channel.after(whole[0] - 1) == pubs(*whole)
    assert channel.after(whole[0] - 2) is None


def test_a_channel_learns_nothing_of_another_life_or_over_a_gap() -> None:
    channel = channel_at(5)
    channel.prime([pub(4, "f"), pub(5, "f")])
    assert channel.after(3) is None
    channel.take(pub(8))
    channel.prime(pubs(4, 5))
    assert channel.after(3) is None
    assert channel.heal(pubs(6, 7, 8), Position("e", 8)) == pubs(6, 7, 8)
