"""Frames of a client, whole and in any pieces: RFC 6455 sections 5, 7.4 and 8.1."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from app.protocol import framing
from app.protocol.framing import Broken, Closing, Event, Frames, Message, Ping, pack_close, pack_frame, pack_pong, read_single
from tests.support.frames import FIN, masked

LIMIT = 100_000
FUZZ_INPUTS = 50_000  # a million take a few seconds more, with the same result


def read(data: bytes, *, limit: int = LIMIT) -> list[Event]:
    return Frames(limit).receive(data)


def read_by_bytes(data: bytes) -> list[Event]:
    frames = Frames(LIMIT)
    return [event for byte in data for event in frames.receive(bytes((byte,)))]


# --- out ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70_000])
@pytest.mark.parametrize("is_text", [True, False])
def test_frames_are_packed_as_the_library_packs_them(size: int, is_text: bool) -> None:
    payload = b"x" * size
    assert pack_frame(payload, is_text) == Frame(Opcode.TEXT if is_text else Opcode.BINARY, payload).serialize(mask=False)


def test_control_frames_are_packed_as_the_library_packs_them() -> None:
    assert pack_pong(b"hi") == Frame(Opcode.PONG, b"hi").serialize(mask=False)
    assert pack_close(3001, "shutdown") == Frame(Opcode.CLOSE, b"\x0b\xb9shutdown").serialize(mask=False)


def test_a_long_reason_is_cut_between_characters() -> None:
    assert pack_close(1000, "€" * 50) == b"\x88\x7d\x03\xe8" + ("€" * 41).encode()  # 123 bytes hold 41 of 3


# --- the fast path ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535])
def test_one_whole_frame_is_read_at_once(size: int) -> None:
    payload = b"y" * size
    assert read_single(masked(0x81, payload)) == payload
    assert read_single(masked(0x82, payload)) == payload


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x81",
        masked(0x81, b"ab")[:-1],
        masked(0x81, b"ab") + b"\x81",
        masked(0x81, b"ab") * 2,
        masked(0x01, b"ab"),
        masked(0x80, b"ab"),
        masked(0x83, b"ab"),
        masked(0xC1, b"ab"),
        masked(0x88, b""),
        masked(0x89, b"ab"),
        masked(0x81, b"\xff\xfe"),
        b"\x81\x02abcdef",
        b"\x81\xfe\x00",
        masked(0x82, b"z" * 65536),
        masked(0x82, b"z" * 300)[:-1],
    ],
)
def test_all_else_is_left_to_the_slow_path(data: bytes) -> None:
    assert read_single(data) is None


def test_both_paths_read_the_same() -> None:
    for payload in (b"", b"{}", "ü€😀".encode(), b"q" * 5_000):
        assert read(masked(0x81, payload)) == [Message(payload, True)]
        assert read_single(masked(0x81, payload)) == payload


# --- the slow path ------------------------------------------------------------------------------------------------------------------

GOOD: dict[str, tuple[bytes, Sequence[Event]]] = {
    "two in a read": (masked(0x81, b"a") + masked(0x82, b"b"), [Message(b"a", True), Message(b"b", False)]),
    "in parts": (masked(1, b"a") + masked(0, b"") + masked(FIN, b"b"), [Message(b"ab", True)]),
    "a character over two parts": (masked(1, b"\xe2\x82") + masked(FIN, b"\xac"), [Message("€".encode(), True)]),
    "a ping between parts": (masked(2, b"a") + masked(0x89, b"p") + masked(FIN, b"b"), [Ping(b"p"), Message(b"ab", False)]),
    "a pong is nothing": (masked(0x8A, b"p") + masked(0x82, b"b"), [Message(b"b", False)]),
    "the largest ping": (masked(0x89, b"p" * 125), [Ping(b"p" * 125)]),
    "an empty message": (masked(0x81, b""), [Message(b"", True)]),
    "16-bit length": (masked(0x82, b"v" * 4_000), [Message(b"v" * 4_000, False)]),
    "64-bit length": (masked(0x82, b"v" * 66_000), [Message(b"v" * 66_000, False)]),
    "a close without a code": (masked(0x88, b""), [Closing(1000)]),
    "a close with a reason": (masked(0x88, b"\x03\xe9bye"), [Closing(1001)]),
    "a close inside a message": (masked(1, b"a") + masked(0x88, b"\x0f\xa0"), [Closing(4000)]),
    "nothing counts behind a close": (masked(0x88, b"") + masked(0x81, b"a") + b"\xff\xff", [Closing(1000)]),
}


@pytest.mark.parametrize("name", GOOD)
def test_frames_are_read(name: str) -> None:
    data, expected = GOOD[name]
    assert read(data) == expected


@pytest.mark.parametrize("name", [name for name in GOOD if name != "64-bit length"])
def test_frames_are_read_byte_by_byte(name: str) -> None:
    data, expected = GOOD[name]
    assert read_by_bytes(data) == expected


BAD: dict[str, tuple[bytes, int]] = {
    "not masked": (b"\x81\x00", 1002),
    "reserved bit 1": (masked(0xC1, b""), 1002),
    "reserved bit 2": (masked(0xA1, b""), 1002),
    "reserved bit 3": (masked(0x91, b""), 1002),
    "reserved bit of a ping": (masked(0xC9, b""), 1002),
    **{f"opcode {opcode}": (masked(FIN | opcode, b""), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "a ping in parts": (masked(0x09, b""), 1002),
    "a close in parts": (masked(0x08, b""), 1002),
    "a long ping": (masked(0x89, b"p" * 126), 1002),
    "a long close": (masked(0x88, b"\x03\xe8" + b"r" * 124), 1002),
    "nothing to continue": (masked(FIN, b"a"), 1002),
    "a message inside another": (masked(1, b"a") + masked(0x81, b"b"), 1002),
    "a length above 2^63": (b"\x82\xff" + b"\xff" * 12, 1002),
    "half a close code": (masked(0x88, b"\x03"), 1002),
    **{
        f"close code {code}": (masked(0x88, code.to_bytes(2, "big")), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    "text that is none": (masked(0x81, b"\xce\xba\xed\xa0\x80"), 1007),
    "text cut in a character": (masked(0x81, b"\xe2\x82"), 1007),
    "text over parts that is none": (masked(1, b"\xe2") + masked(FIN, b"\x28\xa1"), 1007),
    "a close reason that is none": (masked(0x88, b"\x03\xe8\xff"), 1007),
    "too big": (masked(0x82, b"v" * (LIMIT + 1)), 1009),
    "too big in parts": (masked(2, b"v" * LIMIT) + masked(FIN, b"v"), 1009),
}


@pytest.mark.parametrize("name", BAD)
def test_what_breaks_the_rules_is_named_by_its_code(name: str) -> None:
    data, code = BAD[name]
    [event] = read(data)
    assert isinstance(event, Broken)
    assert event.code == code
    assert event.reason


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999])
def test_close_codes_that_may_be_sent(code: int) -> None:
    assert read(masked(0x88, code.to_bytes(2, "big") + b"bye")) == [Closing(code)]


def test_what_was_whole_before_an_error_counts() -> None:
    events = read(masked(0x81, b"a") + masked(0x89, b"p") + masked(0xC1, b"b") + masked(0x81, b"c"))
    assert events == [Message(b"a", True), Ping(b"p"), Broken(1002, "reserved bit set")]


def test_text_that_is_none_is_refused_before_its_end() -> None:
    """A client that sends rubbish slowly is told at the first wrong byte, not at the end of the frame or of the message (8.1)."""
    frames = Frames(LIMIT)
    data = masked(0x81, b"ok \xf4\x90" + b"x" * 100)
    assert frames.receive(data[:10]) == []
    assert frames.receive(data[10:11]) == [Broken(1007, "text is not UTF-8")]
    assert Frames(LIMIT).receive(masked(1, b"\xff")) == [Broken(1007, "text is not UTF-8")]


def test_too_big_is_told_by_the_head_alone() -> None:
    assert Frames(1000).receive(masked(0x82, b"v" * 1001)[:8]) == [Broken(1009, "message too big")]


@pytest.mark.parametrize("tiny", [masked(0x89, b""), masked(0x8A, b""), masked(0x82, b"")])
def test_a_flood_of_tiny_frames_in_one_read_ends_it(tiny: bytes) -> None:
    """Pings and empty fragments are no messages: the session, which limits those, never sees them."""
    assert read(tiny * 40_000)[-1] == Broken(1008, "too many frames")
    assert not [event for event in read(tiny * 5_000) if isinstance(event, Broken)]


def test_a_flood_of_empty_fragments_ends_it() -> None:
    assert read(masked(2, b"") + masked(0, b"") * 40_000) == [Broken(1008, "too many frames")]


def test_nothing_is_kept_between_messages() -> None:
    frames = Frames(LIMIT)
    data = masked(1, b"ab") + masked(FIN, b"cd")
    for byte in data[:-1]:
        frames.receive(bytes((byte,)))
        assert not frames.is_idle
    assert frames.receive(data[-1:]) == [Message(b"abcd", True)]
    assert frames.is_idle


def test_after_the_last_event_the_reader_is_deaf_and_stays_in_its_place() -> None:
    """Dropped as idle it would be replaced by a fresh one, which took the rest of a broken stream for frames."""
    frames = Frames(LIMIT)
    assert frames.receive(masked(0x88, b"")) == [Closing(1000)]
    assert not frames.is_idle
    assert frames.receive(masked(0x81, b"a")) == []


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[Event]]:
    data, events = b"", list[Event]()
    for _ in range(draw(st.integers(1, 5))):
        is_text = draw(st.booleans())
        payload = draw(st.text(max_size=80)).encode() if is_text else draw(st.binary(max_size=200))
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        for index, part in enumerate(parts):
            opcode = 0 if index else framing.TEXT if is_text else framing.BINARY
            data += masked((FIN if index == len(parts) - 1 else 0) | opcode, part)
            if draw(st.booleans()):
                data += masked(0x89, b"p")
                events.append(Ping(b"p"))
                if index == len(parts) - 1:
                    events.insert(-1, Message(payload, is_text))
            elif index == len(parts) - 1:
                events.append(Message(payload, is_text))
    return data, events


@settings(max_examples=150, deadline=None)
@given(streams(), st.randoms(use_true_random=False))
def test_any_stream_in_any_pieces_gives_the_same(stream: tuple[bytes, list[Event]], rng: random.Random) -> None:
    data, expected = stream
    frames, events = Frames(LIMIT), list[Event]()
    while data:
        size = rng.randint(1, len(data))
        events += frames.receive(data[:size])
        data = data[size:]
    assert events == expected
    assert frames.is_idle


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_are_read_or_refused(pieces: list[bytes]) -> None:
    frames = Frames(1000)
    for piece in pieces:
        read_single(piece)
        for event in frames.receive(piece):
            assert isinstance(event, Message | Ping | Closing | Broken)


def test_broken_streams_without_end_keep_nothing() -> None:
    """Mutations of good frames, in pieces; what the reader holds stays within a piece and one head with a control frame."""
    rng = random.Random(7)
    corpus = b"".join(data for data, _ in GOOD.values() if len(data) < 300)
    frames = Frames(1000)
    for _ in range(FUZZ_INPUTS):
        start = rng.randrange(len(corpus))
        data = bytearray(corpus[start : start + rng.randint(1, 40)])
        if rng.random() < 0.3:
            data[rng.randrange(len(data))] = rng.randrange(256)
        events = frames.receive(bytes(data))
        assert len(frames._buffer) <= len(data) + 14 + framing.CONTROL_BYTES_MAX
        assert len(frames._message or b"") <= 1000
        if events and isinstance(events[-1], Broken | Closing):
            frames = Frames(1000)
