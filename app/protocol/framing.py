"""The frames of RFC 6455 as a server sees them: bytes come in, messages and control frames come out. No input or output, no clock.

    payload = read_single(data)                 # one whole small frame, as nearly every read brings: the payload, no object made
    if payload is None:
        frames = Frames(message_bytes_max)      # lives while a message is under way, then is dropped: an idle connection has none
        for event in frames.receive(data): ...
        frames.is_idle                          # nothing half-read is left

The caller's obligations: answer `Ping` by `pack_pong`, `Closing` by `pack_close` of the same code, `Broken` by `pack_close` of its code;
after either of the two last nothing that comes in counts any more, and the parser says nothing more.

Invariants: a client's frame is masked (section 5.1); reserved bits and opcodes, control frames that are long or in parts, and a new message
inside another are code 1002; text that is not UTF-8, also when only a part of it is here, and a close reason that is not, are 1007 (8.1);
a message above `message_bytes_max` is 1009 as soon as its head says so, before its bytes are kept; a flood of tiny frames is 1008. No
extension is spoken, so no reserved bit has a meaning. Lengths in more bytes than needed are taken, as all servers in use take them.

Unmasking is the C function of the `websockets` library. Its parser is not used: a masked text frame of 120 bytes costs it 7.8 µs (a
generator and a frame object), `Frames` 3.0 µs and `read_single` 0.8 µs, in turns; and its state lives as long as the connection.
"""

from codecs import getincrementaldecoder
from typing import NamedTuple

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform for which the library has no compiled part
    from websockets.utils import apply_mask

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
FIN = 0x80
RESERVED_BITS = 0x70
MASKED = 0x80
CONTROL_BYTES_MAX = 125
FRAMES_PER_READ_MAX = 8192  # 256 KiB, the loop's largest read, in frames of 32 bytes: 12 ms to read. 43,000 empty ones would take 70
REASON_BYTES_MAX = CONTROL_BYTES_MAX - 2

NORMAL, PROTOCOL_ERROR, INVALID_DATA, POLICY, TOO_BIG = 1000, 1002, 1007, 1008, 1009
_CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})  # that may stand in a frame (7.4)

_FINAL_TEXT, _FINAL_BINARY = FIN | TEXT, FIN | BINARY
_new_decoder = getincrementaldecoder("utf-8")


class Message(NamedTuple):
    """Whole; text has been checked to be UTF-8."""

    payload: bytes
    is_text: bool


class Ping(NamedTuple):
    payload: bytes


class Closing(NamedTuple):
    """The client closes. The code is to be sent back: 1000 where the client gave none."""

    code: int


class Broken(NamedTuple):
    """The client does not keep to the protocol: the connection is failed with this code."""

    code: int
    reason: str


Event = Message | Ping | Closing | Broken


# --- to the client ------------------------------------------------------------------------------------------------------------------


def pack_frame(payload: bytes, is_text: bool) -> bytes:
    """A whole message as one frame; a server's frames are not masked."""
    return _pack(_FINAL_TEXT if is_text else _FINAL_BINARY, payload)


def pack_pong(payload: bytes) -> bytes:
    return _pack(FIN | PONG, payload)


def pack_close(code: int, reason: str = "") -> bytes:
    """The reason is cut where it does not fit, between characters."""
    words = reason.encode()
    if len(words) > REASON_BYTES_MAX:
        words = words[:REASON_BYTES_MAX].decode(errors="ignore").encode()
    return _pack(FIN | CLOSE, code.to_bytes(2, "big") + words)


def _pack(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126, size >> 8, size & 255)) + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


# --- from the client ----------------------------------------------------------------------------------------------------------------


def read_single(data: bytes) -> bytes | None:
    """The payload, when `data` is exactly one whole data frame below 64 KiB with nothing to object to; else None: `Frames` decides."""
    if len(data) < 6 or data[0] & 0xFC != FIN or not data[0] & 3:
        return None
    first, size = data[0], data[1] - MASKED
    if first == FIN | 3 or size < 0:
        return None
    start = 6
    if size >= 126:
        if size == 127 or len(data) < 8:
            return None
        size, start = data[2] << 8 | data[3], 8
    if len(data) != start + size:
        return None
    payload = apply_mask(data[start:], data[start - 4 : start])
    if first == _FINAL_TEXT and not payload.isascii() and not _is_utf8(payload):
        return None
    return payload


def is_text_frame(data: bytes) -> bool:
    """Of what `read_single` has read."""
    return data[0] == _FINAL_TEXT


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Head(NamedTuple):
    is_final: bool
    opcode: int
    size: int
    mask: bytes
    length: int  # of the head itself


class Frames:
    """The reader for all that is not a single whole frame: parts, several frames in a read, half frames, control frames, errors."""

    __slots__ = ("_buffer", "_decoder", "_final", "_is_over", "_is_text", "_mask", "_message", "_remaining", "message_bytes_max")

    def __init__(self, message_bytes_max: int) -> None:
        self.message_bytes_max = message_bytes_max
        self._buffer = bytearray()  # not looked at yet: less than a head, or than a control frame
        self._message: bytearray | None = None  # of a message under way, unmasked
        self._is_text = False
        self._decoder = _new_decoder()
        self._remaining = 0  # bytes of the data frame under way
        self._final = False
        self._mask = b""
        self._is_over = False

    @property
    def is_idle(self) -> bool:
        return not self._buffer and self._message is None and not self._is_over

    def receive(self, data: bytes) -> list[Event]:
        """What is complete by now, in order. `Closing` and `Broken` are the last there ever is."""
        events: list[Event] = []
        if self._is_over:
            return events
        self._buffer += data
        frames = 0
        while not self._is_over and self._step(events):
            frames += 1
            if frames > 2 * FRAMES_PER_READ_MAX:  # a frame is up to two steps: its head, its payload
                self._fail(events, POLICY, "too many frames")
        if self._is_over:
            self._buffer.clear()
            self._message = None
        return events

    def _step(self, events: list[Event]) -> bool:
        """Takes the next frame, or more of the one under way. False: more bytes are needed."""
        if self._remaining:
            return self._take_payload(events)
        head = self._read_head(events)
        if head is None:
            return False
        if head.opcode >= CLOSE:
            return self._take_control(head, events)
        return self._begin_data(head, events)

    def _fail(self, events: list[Event], code: int, reason: str) -> None:
        self._is_over = True
        events.append(Broken(code, reason))

    # --- heads (5.2) ----------------------------------------------------------------------------------------------------------------

    def _read_head(self, events: list[Event]) -> _Head | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        complaint = self._complaint(first, second)
        if complaint:
            self._fail(events, PROTOCOL_ERROR, complaint)
            return None
        size, length = second & 127, 6
        if size >= 126:
            width = 2 if size == 126 else 8
            if len(buffer) < 2 + width:
                return None
            size, length = int.from_bytes(buffer[2 : 2 + width], "big"), 6 + width
            if size >> 63:
                self._fail(events, PROTOCOL_ERROR, "length out of range")
                return None
        if len(buffer) < length:
            return None
        return _Head(bool(first & FIN), first & 15, size, bytes(buffer[length - 4 : length]), length)

    def _complaint(self, first: int, second: int) -> str:
        """What is wrong with a frame, as far as its first two bytes tell."""
        opcode = first & 15
        if first & RESERVED_BITS:
            return "reserved bit set"
        if opcode not in {CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG}:
            return "reserved opcode"
        if not second & MASKED:
            return "frame not masked"
        if opcode >= CLOSE:
            if not first & FIN:
                return "control frame in parts"
            return "control frame too long" if second & 127 > CONTROL_BYTES_MAX else ""
        if opcode == CONTINUATION and self._message is None:
            return "nothing to continue"
        return "message inside another" if opcode != CONTINUATION and self._message is not None else ""

    # --- data frames ----------------------------------------------------------------------------------------------------------------

    def _begin_data(self, head: _Head, events: list[Event]) -> bool:
        message = self._message
        if head.size + (0 if message is None else len(message)) > self.message_bytes_max:
            self._fail(events, TOO_BIG, "message too big")
            return False
        del self._buffer[: head.length]
        if message is None:
            self._message = bytearray()
            self._is_text = head.opcode == TEXT
        self._final, self._mask, self._remaining = head.is_final, head.mask, head.size
        return bool(head.size) or self._end_frame(events)

    def _take_payload(self, events: list[Event]) -> bool:
        """Unmasks what is here of a frame. Text is checked at once, so that a client that sends rubbish slowly is told early (8.1)."""
        assert self._message is not None, "a payload belongs to a message"
        part = bytes(self._buffer[: self._remaining])
        if not part:
            return False
        del self._buffer[: len(part)]
        self._remaining -= len(part)
        plain = apply_mask(part, self._mask)
        turn = len(part) & 3  # the mask goes on where it stopped
        self._mask = self._mask[turn:] + self._mask[:turn]
        if self._is_text and not self._is_text_so_far(plain, is_end=False):
            self._fail(events, INVALID_DATA, "text is not UTF-8")
            return False
        self._message += plain
        return not self._remaining and self._end_frame(events)

    def _end_frame(self, events: list[Event]) -> bool:
        assert self._message is not None, "a frame belongs to a message"
        if not self._final:
            return True
        if self._is_text and not self._is_text_so_far(b"", is_end=True):
            self._fail(events, INVALID_DATA, "text is not UTF-8")
            return False
        events.append(Message(bytes(self._message), self._is_text))
        self._message = None
        return True

    def _is_text_so_far(self, part: bytes, *, is_end: bool) -> bool:
        try:
            self._decoder.decode(part, is_end)
        except UnicodeDecodeError:
            return False
        return True

    # --- control frames (5.5) -------------------------------------------------------------------------------------------------------

    def _take_control(self, head: _Head, events: list[Event]) -> bool:
        end = head.length + head.size
        if len(self._buffer) < end:
            return False
        payload = apply_mask(bytes(self._buffer[head.length : end]), head.mask)
        del self._buffer[:end]
        if head.opcode == PING:
            events.append(Ping(payload))
        elif head.opcode == CLOSE:
            self._take_close(payload, events)
        return True

    def _take_close(self, payload: bytes, events: list[Event]) -> None:
        code = int.from_bytes(payload[:2], "big")
        if len(payload) == 1 or (payload and not (code in _CLOSE_CODES or 3000 <= code < 5000)):
            self._fail(events, PROTOCOL_ERROR, "no such close code")
        elif not _is_utf8(payload[2:]):
            self._fail(events, INVALID_DATA, "close reason is not UTF-8")
        else:
            self._is_over = True
            events.append(Closing(code if payload else NORMAL))
