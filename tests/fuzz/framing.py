"""The parser of frames: the same events however the bytes are cut, never an exception, never more kept than a message, and the same
messages and close codes as the sans-IO parser of the `websockets` library.

The two differ only where the RFC leaves it open, or where an input breaks two rules at once and each names the first that it meets:
- ours fails a frame by its first two bytes, the library a whole frame: a wrong head of a frame that is also too long is 1002 to ours and
  1009 to the library; a close frame with a wrong code and a reason that is not UTF-8 is 1002 and 1007;
- lengths in more bytes than needed are taken by both, but in control frames not by ours (5.5: they have at most 125 bytes);
- a length of 2**63 and above is 1002 to ours (5.2: the highest bit is 0), too big to the library;
- how many frames one read may hold is ours alone (1008); no input made here has so many;
- a close inside a message that has not ended: ours says goodbye, the library 1002.
"""

import logging
import random
from codecs import getincrementaldecoder
from typing import Any, NamedTuple

from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from app.protocol.framing import Broken, Closing, Event, Frames, Message, Ping, read_single
from tests.fuzz.target import Target
from tests.support.corpus import seeds
from tests.support.corpus.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, client_frame, close_payload
from tests.support.corpus.mutations import in_chunks, mutate

LIMIT_BYTES = 70_000  # above what `read_single` takes, as the gateway's own limit is
HEAD_BYTES_MAX = 14
CLAIM_BYTES_MAX = 2**40  # a longer frame is too big to the library as soon as its head is read
OPEN_END, MID_FRAME = 0, -1  # the library fails nothing; the second: and waits for more than a message may have
KEPT_BYTES_MAX = HEAD_BYTES_MAX + 125  # of what is not looked at yet: a head, or a control frame

_quiet = logging.getLogger("tests.fuzz.quiet")
_quiet.setLevel(logging.CRITICAL)


class Stream(NamedTuple):
    """Bytes, how a socket cuts them, and the most a message may have."""

    raw: bytes
    chunks: list[bytes]
    limit_bytes: int = LIMIT_BYTES


def check_stream(stream: Stream) -> None:
    whole = events_of([stream.raw], stream.limit_bytes, fast=False)
    assert events_of(stream.chunks, stream.limit_bytes, fast=False) == whole, "cut otherwise, read otherwise"
    if stream.limit_bytes == LIMIT_BYTES:
        assert events_of(stream.chunks, stream.limit_bytes, fast=True) == whole, "the short way reads otherwise"
        assert events_of([stream.raw], stream.limit_bytes, fast=True) == whole, "the short way reads otherwise"
    _check_events(whole, stream.limit_bytes)
    library = _ask_library(stream.raw, stream.limit_bytes)
    if library.code == 1009 and not library.is_filled_up:  # ours reads a head to its end, the mask, before it judges the length
        whole = events_of([stream.raw + bytes(4)], stream.limit_bytes, fast=False)
    _compare(whole, library)


def events_of(chunks: list[bytes], limit_bytes: int, *, fast: bool) -> list[Event]:
    """As the gateway's socket goes about it: the short way while nothing is under way, and the parser only for as long as it is needed."""
    events: list[Event] = []
    frames: Frames | None = None
    for chunk in chunks:
        if fast and frames is None:
            payload = read_single(chunk)
            if payload is not None:
                events.append(Message(payload, chunk[0] & 15 == TEXT))
                continue
        frames = frames or Frames(limit_bytes)
        events += frames.receive(chunk)
        _check_bounds(frames, limit_bytes)
        if frames.is_idle:
            frames = None
    return events


def _check_bounds(frames: Any, limit_bytes: int) -> None:
    assert len(frames._buffer) <= KEPT_BYTES_MAX, f"keeps {len(frames._buffer)} bytes that it has not looked at"
    assert frames._message is None or len(frames._message) <= limit_bytes, "keeps more than a message may have"


def _check_events(events: list[Event], limit_bytes: int) -> None:
    for number, event in enumerate(events):
        match event:
            case Message(payload, is_text):
                assert len(payload) <= limit_bytes
                assert not is_text or payload.decode() is not None
            case Ping(payload):
                assert len(payload) <= 125
            case Closing(code):
                assert code in range(1000, 5000) and code not in {1004, 1005, 1006, 1015}, code
                assert number == len(events) - 1, "nothing counts after it"
            case Broken(code, reason):
                assert code in {1002, 1007, 1009} and reason
                assert number == len(events) - 1, "nothing counts after it"


# --- the library ---------------------------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What the library reads, and the code with which it fails the connection. `OPEN_END`: with none; `MID_FRAME`: and waits for more."""

    events: list[Event]
    code: int
    is_filled_up: bool  # the last frame was not whole: what comes of it is of bytes that nobody sent


def _ask_library(raw: bytes, limit_bytes: int) -> Verdict:
    """The library judges whole frames, ours what there is: so the last frame is filled up until the library has something to say.

    The limit is kept here, since the library counts control frames between the parts of a message against it too.
    """
    library = ServerProtocol(state=OPEN, max_size=CLAIM_BYTES_MAX, logger=_quiet)
    reading = _Reading(limit_bytes)
    library.receive_data(raw)
    events = reading.take(library.events_received())
    is_short = library.parser_exc is None and not reading.is_over and _is_mid_frame(library)
    if is_short:
        events += reading.take(_fill_up(library, limit_bytes))
    if reading.code:
        return Verdict(events, reading.code, is_short)
    if library.parser_exc is not None and library.close_sent is not None:
        return Verdict(events, int(library.close_sent.code), is_short)
    return Verdict(events, MID_FRAME if not reading.is_over and _is_mid_frame(library) else OPEN_END, is_short)


def _is_mid_frame(library: ServerProtocol) -> bool:
    waits_in = getattr(library.parser, "gi_yieldfrom", None)
    return waits_in is not None and waits_in.__qualname__ != "StreamReader.at_eof"


def _fill_up(library: ServerProtocol, limit_bytes: int) -> list[Any]:
    """Ends the frame with zeros, which are at most as many as a message may have. That frame alone."""
    for size in (*[1] * HEAD_BYTES_MAX, limit_bytes):
        if library.parser_exc is None and _is_mid_frame(library):
            library.receive_data(bytes(size))
    return library.events_received()[:1]


class _Reading:
    """Puts the library's frames together to messages and checks text, which it leaves to its caller."""

    def __init__(self, limit_bytes: int) -> None:
        self.code = 0
        self.is_over = False
        self._limit_bytes = limit_bytes
        self._parts = b""
        self._is_text = False
        self._decoder = getincrementaldecoder("utf-8")()

    def take(self, frames: list[Any]) -> list[Event]:
        events: list[Event] = []
        for frame in frames:
            if not self.is_over and isinstance(frame, Frame):
                self._take_frame(frame, events)
        return events

    def _take_frame(self, frame: Frame, events: list[Event]) -> None:
        data = bytes(frame.data)
        match frame.opcode:
            case Opcode.PING:
                events.append(Ping(data))
            case Opcode.CLOSE:
                events.append(Closing(int.from_bytes(data[:2], "big") if data else 1000))
                self.is_over = True
            case Opcode.TEXT | Opcode.BINARY | Opcode.CONT:
                self._take_data(frame.opcode, data, frame.fin, events)
            case _:
                pass

    def _take_data(self, opcode: Opcode, data: bytes, fin: bool, events: list[Event]) -> None:
        if opcode is not Opcode.CONT:
            self._parts, self._is_text = b"", opcode is Opcode.TEXT
            self._decoder.reset()
        self._parts += data
        if len(self._parts) > self._limit_bytes:
            self.code, self.is_over = 1009, True
            return
        try:
            if self._is_text:
                self._decoder.decode(data, fin)
        except UnicodeDecodeError:
            self.code, self.is_over = 1007, True
            return
        if fin:
            events.append(Message(self._parts, self._is_text))


# (ours, the library's), where an input breaks two rules or the RFC leaves it open: see above.
MAY_DIFFER = {(1002, 1009), (1002, 1007), (1002, MID_FRAME), (1009, MID_FRAME)}


def _compare(ours: list[Event], library: Verdict) -> None:
    messages = list(ours)
    last = messages.pop() if messages and isinstance(messages[-1], Broken | Closing) else None
    more = library.events[len(messages) :]
    assert library.events[: len(messages)] == messages, "other messages"
    match last:
        case Broken(our_code, reason):
            is_wide_control = reason == "control frame too long" and library.code in {OPEN_END, MID_FRAME, 1002}
            agreed = our_code == library.code or (our_code, library.code) in MAY_DIFFER or is_wide_control
            assert agreed, f"{last} for ours, {library.code} for the library"
        case Closing():
            assert more == [last] or library.code == 1002, f"{last} for ours, {library.code} for the library"
        case _:
            assert len(more) <= library.is_filled_up, "messages that ours has not seen"
            assert library.is_filled_up or library.code == OPEN_END, f"nothing for ours, {library.code} for the library"


# --- the target ---------------------------------------------------------------------------------------------------------------------

_SEEDS = seeds.as_list(seeds.stream_seeds(seeds.Vocabulary()), 4_000)
_PAYLOADS = [
    "早上好 🍵".encode(),
    b"{}",
    b'{"id":1,"connect":{"token":"t"}}',
    b"\x02\x08\x01",
    b"",
    b"x" * 125,
    b"x" * 126,
    b"x" * 300,
    b"\xff\xfe",
]
_OPCODES = (TEXT, TEXT, BINARY, CONTINUATION, CONTINUATION, PING, PONG, CLOSE)


def _make(rng: random.Random) -> Stream:
    dice = rng.random()
    raw = mutate(rng, _SEEDS) if dice < 0.5 else b"".join(_odd_frame(rng) for _ in range(rng.randint(1, 8)))
    if dice > 0.8:
        raw = mutate(rng, [raw or b"\0"])
    return Stream(raw, in_chunks(rng, raw), rng.choice((LIMIT_BYTES, LIMIT_BYTES, LIMIT_BYTES, 200, 20)))


def _odd_frame(rng: random.Random) -> bytes:
    """Mostly right, so that streams get somewhere; any part of it may lie."""
    payload = rng.choice(_PAYLOADS)
    opcode = rng.choice(_OPCODES)
    if opcode == CLOSE and rng.random() < 0.8:
        payload = close_payload(rng.choice((1000, 1001, 1005, 1006, 3000, 4999, rng.randrange(65536))), payload[:123])
    odd = rng.random() < 0.15
    return client_frame(
        opcode if not odd else rng.randrange(16),
        payload,
        fin=rng.random() < 0.7 or opcode >= CLOSE,
        reserved=rng.choice((0, 0, 0, 1, 4, 7)) if odd else 0,
        mask=None if odd and rng.random() < 0.2 else rng.randbytes(4),
        claimed=max(0, len(payload) + rng.choice((-1, 1, 5, 100, 70_000))) if rng.random() < 0.05 else None,
        width=rng.choice((2, 8)) if rng.random() < 0.1 else None,
    )


def _corpus() -> list[Stream]:
    rng = random.Random(0)
    streams = list(seeds.stream_seeds(seeds.Vocabulary()).values())
    cut = [in_chunks(rng, raw) for raw in streams] + [[raw[at : at + 1] for at in range(len(raw))] for raw in streams if len(raw) < 2_000]
    return [Stream(b"".join(chunks), chunks, limit) for chunks in cut for limit in (LIMIT_BYTES, 100)]


FRAMING_TARGET = Target("framing", 0.2, _make, check_stream, _corpus)
