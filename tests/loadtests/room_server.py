"""A websocket server that says exactly what a test has written down, to see whether the crowd counts it."""

import asyncio
import struct
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

UPGRADE = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes([0x80 | opcode, size]) + payload
    return (struct.pack("!BBH", 0x80 | opcode, 126, size) if size < 65_536 else struct.pack("!BBQ", 0x80 | opcode, 127, size)) + payload


@dataclass(slots=True)
class RoomServer:
    """`answer(visit, message)`: the raw bytes that go to the client for what it sent; `visit` counts connections from 0. By default
    every message goes back to all. `refusals`: HTTP answers for the first connections. `heard`: frames by visit, (opcode, payload)."""

    answer: "Callable[[int, bytes], bytes] | None" = None
    refusals: list[bytes] = field(default_factory=list[bytes])
    heard: dict[int, list[tuple[int, bytes]]] = field(default_factory=lambda: defaultdict(list))
    writers: set[asyncio.StreamWriter] = field(default_factory=set[asyncio.StreamWriter])
    visits: int = 0
    port: int = 0

    def broadcast(self, raw: bytes) -> None:
        for writer in self.writers:
            writer.write(raw)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            if self.refusals:
                writer.write(self.refusals.pop())
                return
            visit, self.visits = self.visits, self.visits + 1
            writer.write(UPGRADE)
            self.writers.add(writer)
            while True:
                opcode, payload = await _read_frame(reader)
                self.heard[visit].append((opcode, payload))
                if opcode != TEXT:
                    continue
                if self.answer is None:
                    self.broadcast(frame(payload))
                else:
                    writer.write(self.answer(visit, payload))
        except (asyncio.IncompleteReadError, OSError):
            pass  # it hung up
        finally:
            self.writers.discard(writer)
            writer.close()


async def _read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readexactly(2)
    assert head[1] & 128, "a client masks what it sends"
    size = head[1] & 127
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2), "big")
    mask = await reader.readexactly(4)
    payload = await reader.readexactly(size)
    return head[0] & 15, bytes(byte ^ mask[index & 3] for index, byte in enumerate(payload))


@asynccontextmanager
async def running_room_server(room: RoomServer) -> AsyncGenerator[RoomServer]:
    server = await asyncio.start_server(room.serve, "127.0.0.1", 0)
    room.port = server.sockets[0].getsockname()[1]
    try:
        yield room
    finally:
        server.close()
        for writer in list(room.writers):
            writer.transport.abort()
        await server.wait_closed()
