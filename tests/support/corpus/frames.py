"""Websocket frames as clients write them, right ones and wrong ones: every part of a head can be made to lie.

Built from section 5.2 of RFC 6455 alone, so that the parser under test has no part in it.
"""

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MASK = b"\x37\xfa\x21\x3d"


def client_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    mask: bytes | None = MASK,
    claimed: int | None = None,
    width: int | None = None,
) -> bytes:
    """`claimed`: another length than the payload has. `width`: 0, 2 or 8 bytes for it, whatever it needs. No mask: as no client may."""
    size = len(payload) if claimed is None else claimed
    if width is None:
        width = 0 if size < 126 else 2 if size < 65536 else 8
    marker = size & 0x7F if width == 0 else 126 if width == 2 else 127
    head = bytes(((0x80 if fin else 0) | reserved << 4 | opcode, (0 if mask is None else 0x80) | marker))
    head += (size % (1 << 8 * width)).to_bytes(width, "big") if width else b""
    return head + payload if mask is None else head + mask + masked(payload, mask)


def masked(payload: bytes, mask: bytes) -> bytes:
    """Masking and unmasking are the same (5.3)."""
    if not payload:
        return b""
    key = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(len(payload), "big")


def close_payload(code: int, reason: bytes = b"") -> bytes:
    return code.to_bytes(2, "big") + reason


def server_frames(raw: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """What a server sent, as (opcode, payload), and what is left of a frame that did not come whole. Servers do not mask, and ours sends
    no message in parts."""
    frames: list[tuple[int, bytes]] = []
    position = 0
    while len(raw) - position >= 2:
        first, size = raw[position], raw[position + 1]
        assert first & 0xF0 == 0x80, f"whole, without reserved bits: {first:#x}"
        assert size < 0x80, "a server masks nothing"
        start = position + 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size, start = int.from_bytes(raw[start : start + width], "big"), start + width
        if len(raw) < start + size:
            break
        frames.append((first & 15, raw[start : start + size]))
        position = start + size
    return frames, raw[position:]
