"""Any bytes at all, in any chunks, to the parser of frames: always the same events, and those of the `websockets` library."""

import random
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.protocol.framing import FRAMES_PER_READ_MAX, Broken, Frames, Message
from tests.fuzz.framing import FRAMING_TARGET, LIMIT_BYTES, Stream, check_stream, events_of
from tests.support.corpus.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, client_frame

pytestmark = pytest.mark.slow

INPUTS = 12_000
SEED = 20_251_122

payloads = st.one_of(st.binary(max_size=200), st.text(max_size=60).map(str.encode), st.sampled_from([126, 65_535, 65_536]).map(bytes))
frames = st.builds(
    client_frame,
    st.sampled_from((TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG)),
    payloads,
    fin=st.booleans(),
    reserved=st.sampled_from((0, 0, 0, 1)),
    mask=st.one_of(st.binary(min_size=4, max_size=4), st.none()),
    width=st.sampled_from((None, None, None, 2, 8)),
)


def test_whatever_is_made_of_the_corpus_is_read_alike() -> None:
    FRAMING_TARGET.run(SEED, INPUTS)


@given(parts=st.lists(frames, max_size=6), noise=st.binary(max_size=20), cuts=st.lists(st.integers(0, 400), max_size=8))
@settings(max_examples=300, deadline=None)
def test_chunks_do_not_matter(parts: list[bytes], noise: bytes, cuts: list[int]) -> None:
    raw = b"".join(parts) + noise
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    check_stream(Stream(raw, [raw[start:end] for start, end in pairwise(edges)]))


@given(raw=st.binary(max_size=100))
@settings(max_examples=300, deadline=None)
def test_noise_in_single_bytes(raw: bytes) -> None:
    check_stream(Stream(raw, [raw[at : at + 1] for at in range(len(raw))]))


def test_what_comes_behind_a_fault_is_not_kept() -> None:
    """A client that is told off and sends on must not fill memory while its close frame is on the way."""
    parser = Frames(LIMIT_BYTES)
    assert isinstance(parser.receive(client_frame(3, b"x"))[-1], Broken)
    noise = random.Random(SEED).randbytes(100_000)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(50):
        assert parser.receive(noise) == []
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 10_000


def test_a_message_of_endless_empty_parts_keeps_nothing() -> None:
    """As long as no single read holds a flood of them, which is refused."""
    empty = client_frame(CONTINUATION, fin=False)
    reads = [client_frame(TEXT, fin=False), *[empty * (FRAMES_PER_READ_MAX - 1)] * 5]
    parser = Frames(LIMIT_BYTES)
    for read in reads:
        assert parser.receive(read) == []
        assert not parser._buffer
        assert not parser._message
    assert events_of([*reads, client_frame(CONTINUATION, b"x")], LIMIT_BYTES, fast=True) == [Message(b"x", True)]
    [event] = parser.receive(empty * (3 * FRAMES_PER_READ_MAX))
    assert isinstance(event, Broken)
    assert event.code == 1008
