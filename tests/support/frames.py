"""A websocket client that may do anything: frames made by hand, and what comes back read frame by frame. No library in between."""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from websockets.frames import apply_mask  # pyright: ignore[reportPrivateImportUsage]  # the library's own import of its C function

FIN = 0x80
TEXT, BINARY, CLOSE, PING, PONG = FIN | 1, FIN | 2, FIN | 8, FIN | 9, FIN | 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # for KEY: both are RFC 6455's own example
MASK = b"\x9a\x0f\x5c\xe1"
READ_BYTES = 64 * 1024


def masked(first: int, payload: bytes) -> bytes:
    """A client's frame; `first` is its first byte: FIN and opcode, or what a test wants there."""
    size = len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65536:
        head = bytes((first, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0xFF)) + size.to_bytes(8, "big")
    return head + MASK + apply_mask(payload, MASK)


def handshake(port: int, path: str, **changed: str | None) -> bytes:
    """The request; a field's name with `_` for `-`, None leaves it out."""
    fields: Mapping[str, str | None] = {
        "Host": f"127.0.0.1:{port}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
    } | {name.replace("_", "-"): value for name, value in changed.items()}
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class RawSocket:
    """Bytes in both directions. `async with` drops the connection at its end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.head = b""

    @classmethod
    async def connect(cls, port: int, *, tls: ssl.SSLContext | None = None) -> Self:
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls, limit=READ_BYTES))

    @classmethod
    async def upgraded(
        cls, port: int, *, path: str = "/connection/websocket", behind: bytes = b"", tls: ssl.SSLContext | None = None
    ) -> Self:
        client = await cls.connect(port, tls=tls)
        client.send(handshake(port, path) + behind)
        await client.read_head()
        assert client.head.startswith(b"HTTP/1.1 101 "), client.head
        return client

    async def read_head(self) -> bytes:
        self.head = await self.reader.readuntil(b"\r\n\r\n")
        return self.head

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def frame(self) -> tuple[int, bytes]:
        """The server's next: first byte and payload."""
        first, size = await self.reader.readexactly(2)
        assert size < 128, "a server's frames are not masked"
        if size == 126:
            size = int.from_bytes(await self.reader.readexactly(2), "big")
        elif size == 127:
            size = int.from_bytes(await self.reader.readexactly(8), "big")
        return first, await self.reader.readexactly(size)

    async def close_code(self) -> int:
        """Of the close frame that must come next."""
        first, payload = await self.frame()
        assert first == CLOSE, (first, payload)
        return int.from_bytes(payload[:2], "big")

    async def at_end(self) -> bool:
        """The server's end of the stream, with nothing before it."""
        return await self.reader.read(1) == b""

    def abort(self) -> None:
        self.writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()
        with suppress(OSError):  # reset by the server first
            await self.writer.wait_closed()
