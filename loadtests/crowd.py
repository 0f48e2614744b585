"""An efficient crowd for benchmarks: thousands of raw websocket viewers in one process, doing as little as can be done with a frame.

Frames are not decoded but counted by their marks; one viewer in `SAMPLE_EVERY` looks for send times (`t=<ns>;`) to measure latency.
"""

import asyncio
import base64
import os
import re
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

SAMPLE_EVERY = 20
_SENT_AT = re.compile(rb"t=(\d+);")


@dataclass(slots=True)
class Count:
    deliveries: int = 0
    latencies_ms: list[float] = field(default_factory=list[float])

    def reset(self) -> None:
        self.deliveries = 0
        self.latencies_ms.clear()


def client_frame(payload: bytes) -> bytes:
    """A masked text frame. The mask is zero: allowed, and free."""
    size = len(payload)
    head = struct.pack("!BB", 0x81, 0x80 | size) if size < 126 else struct.pack("!BBH", 0x81, 0x80 | 126, size)
    return head + bytes(4) + payload


class RawViewer(asyncio.Protocol):
    """Upgrades, sends its greetings, then counts `mark` in whatever arrives. Answers the empty ping."""

    def __init__(self, *, path: str, greetings: list[bytes], mark: bytes, count: Count, sampled: bool, replies: int) -> None:
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
        self._greetings = greetings
        self._mark = mark
        self._count = count
        self._sampled = sampled
        self._replies_left = replies
        self._upgraded = False
        self._tail = b""
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_frame: Callable[[bytes], None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def send(self, payload: bytes) -> None:
        assert self._transport is not None
        self._transport.write(client_frame(payload))

    def data_received(self, data: bytes) -> None:
        if not self._upgraded:
            if not data.startswith(b"HTTP/1.1 101"):
                self._fail(data[:80].decode(errors="replace"))
                return
            self._upgraded = True
            for greeting in self._greetings:
                self.send(greeting)
            if not self._replies_left:
                self.ready.set_result(None)
            return
        if self._replies_left:
            self._replies_left -= data.count(b'"id":')
            if self._replies_left <= 0 and not self.ready.done():
                self._replies_left = 0
                self.ready.set_result(None)
        seen = self._tail + data
        self._count.deliveries += seen.count(self._mark)
        self._tail = seen[1 - len(self._mark) :]  # a mark may lie across two reads; the tail is too short to hold a whole one
        if self._sampled:
            now_ns = time.time_ns()
            self._count.latencies_ms.extend((now_ns - int(sent)) / 1e6 for sent in _SENT_AT.findall(data))
        if data[-2:] == b"{}":
            self.send(b"{}")
        if self.on_frame is not None:
            self.on_frame(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"connection lost: {exc}")

    def _fail(self, reason: str) -> None:
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(reason))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def gather_crowd(
    *, port: int, path: str, size: int, greetings: Callable[[int], list[bytes]], mark: bytes, count: Count
) -> list[RawViewer]:
    """Connects `size` viewers, fifty at a time, and waits until each has its replies."""
    loop = asyncio.get_running_loop()
    crowd: list[RawViewer] = []
    for start in range(0, size, 50):
        wave: list[RawViewer] = []
        for number in range(start, min(start + 50, size)):
            hello = greetings(number)
            viewer = RawViewer(
                path=path,
                greetings=hello,
                mark=mark,
                count=count,
                sampled=number % SAMPLE_EVERY == 0,
                replies=sum(b'"id"' in g for g in hello),
            )
            await loop.create_connection(lambda viewer=viewer: viewer, "127.0.0.1", port)
            wave.append(viewer)
        await asyncio.wait_for(asyncio.gather(*(viewer.ready for viewer in wave)), 30)
        crowd += wave
    return crowd
