"""The benchmark's crowd in Python, for machines without a C compiler: the same program as native/crowd.c, slower.

`python -m loadtests.crowd PORT PATH GREETINGS STAGE_CHANNEL`; commands on stdin, answers on stdout, both described at the head of
native/crowd.c. Frames are not decoded but searched. Where it cannot keep up its latencies say more about itself than about the server: each
answer tells by `busy` how much of a core it used.
"""

import asyncio
import json
import random
import re
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import count, islice
from pathlib import Path
from typing import Any, TextIO, cast

import uvloop

SAMPLE_EVERY = 31
PER_ADDRESS = 10_000
LATE_S = 5.0
VIEWERS_MAX = 60_000
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455's own example: nobody here checks the answer to it
_STAMP = re.compile(rb"t=(\d{16,});")
_OFFSET = re.compile(rb'"offset":(\d+)')
_LAST_OFFSET = re.compile(rb'"offset":(\d+)\}+$')
_EPOCH = re.compile(rb'"epoch":"([^"]+)"')
_ERROR = re.compile(rb'"error":\{"code":(\d+)')


def client_frame(payload: bytes, opcode: int = 1) -> bytes:
    size = len(payload)
    head = struct.pack("!BB", 0x80 | opcode, 0x80 | size) if size < 126 else struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    mask = random.randbytes(4)
    spread = (mask * (size // 4 + 1))[:size]
    return head + mask + (int.from_bytes(payload, "big") ^ int.from_bytes(spread, "big")).to_bytes(size, "big")


class Crowd:
    """All viewers, and what they have counted since the last command began."""

    def __init__(self, port: int, path: str, greetings: list[bytes], stage: str) -> None:
        self.port = port
        self.request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
        self.stage_opening = b'{"push":{"channel":"%b"' % stage.encode() if stage != "-" else b""
        self.viewers: list[Viewer] = []
        self.numbers = count(1001)
        self.loop_text, self.loop_mark = "", b""
        self.on_the_way = asyncio.Semaphore()
        self._greetings = iter(greetings)
        self._gaps = self._repeated = 0
        self._all_there = asyncio.Event()
        self.reset()

    def reset(self) -> None:
        self.deliveries = self.refused = self.recovered = self.afresh = self.accepted = self.lost = 0
        self.errors: Counter[str] = Counter()
        self.samples_ms: list[float] = []
        self._wanted = 0

    @property
    def ready(self) -> int:
        return sum(viewer.is_ready for viewer in self.viewers)

    def hear(self, viewer: "Viewer", payload: bytes) -> None:
        for sent in _STAMP.findall(payload):
            self.deliveries += 1
            if self.deliveries % SAMPLE_EVERY == 0:
                self.samples_ms.append((time.time_ns() - int(sent)) / 1e6)
            if self.deliveries == self._wanted:
                self._all_there.set()
        for message in payload.split(b"\n"):
            if message == b"{}":
                viewer.put(b"{}")
            elif message.startswith(b'{"id":'):
                viewer.take_reply(message)
            elif self.stage_opening and message.startswith(self.stage_opening) and (offset := _LAST_OFFSET.search(message)):
                self.step_to(viewer, int(offset[1]))

    def step_to(self, viewer: "Viewer", offset: int) -> None:
        if offset <= viewer.offset:
            self._repeated += 1
            return
        self._gaps += offset != viewer.offset + 1
        viewer.offset = offset

    def fill(self, text: str) -> bytes:
        return text.replace("%T", str(time.time_ns())).replace("%N", str(next(self.numbers))).encode()

    # --- the commands -------------------------------------------------------------------------------------------------------------

    async def run(self, line: str) -> dict[str, Any]:
        verb, _, rest = line.partition(" ")
        commands = {"open": self._open, "speak": self._speak, "loop": self._loop, "storm": self._storm}
        if verb in commands:
            self.reset()
            began, began_cpu_s = time.monotonic(), time.process_time()
            counted = await commands[verb](rest)
            elapsed_s = time.monotonic() - began
            return counted | self._counted(elapsed_s, (time.process_time() - began_cpu_s) / elapsed_s)
        return {"stage": self._stage, "close": self._close}.get(verb, lambda: {"unknown": True})()

    def _counted(self, elapsed_s: float, busy: float) -> dict[str, Any]:
        ordered = sorted(self.samples_ms) or [0.0]
        return {
            "seconds": round(elapsed_s, 4),
            "busy": round(busy, 3),
            "samples": len(self.samples_ms),
            "ready": self.ready,
            "lost": self.lost,
            "refused": self.refused,
            "p50_ms": round(ordered[len(ordered) // 2], 3),
            "p99_ms": round(ordered[int(len(ordered) * 0.99)], 3),
            "max_ms": round(ordered[-1], 3),
            "errors": dict(self.errors),
        }

    async def _open(self, rest: str) -> dict[str, Any]:
        number, at_once, seconds_max = rest.split()
        for greeting in islice(self._greetings, int(number)):
            self.viewers.append(Viewer(self, len(self.viewers), greeting))
        await self._gather(int(at_once), float(seconds_max), lambda: 0.0)
        return {}

    async def _storm(self, rest: str) -> dict[str, Any]:
        spread_s, seconds_max = map(float, rest.split())
        for viewer in self.viewers:
            viewer.hang_up()
        await self._gather(len(self.viewers), seconds_max, lambda: random.random() * spread_s)
        return {"recovered": self.recovered, "afresh": self.afresh}

    async def _gather(self, at_once: int, seconds_max: float, pause_s: Callable[[], float]) -> None:
        self.on_the_way = asyncio.Semaphore(at_once)
        coming = [asyncio.create_task(viewer.come(pause_s())) for viewer in self.viewers if not viewer.is_ready]
        if coming:
            _, late = await asyncio.wait(coming, timeout=seconds_max)
            for task in late:
                task.cancel()

    async def _speak(self, rest: str) -> dict[str, Any]:
        rate, seconds, grace_s, text = rest.split(" ", 3)
        due, began, ready, behind_s = round(float(rate) * float(seconds)), time.monotonic(), self.ready, 0.0
        for sent in range(due):
            pause_s = began + sent / float(rate) - time.monotonic()
            behind_s = max(behind_s, -pause_s)
            await asyncio.sleep(max(0.0, pause_s))
            self.viewers[sent * 7919 % len(self.viewers)].put(self.fill(text))
        end = began + float(seconds)
        await asyncio.sleep(max(0.0, end - time.monotonic()))
        self._wanted = due * ready
        if self.deliveries < self._wanted:
            self._all_there = asyncio.Event()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._all_there.wait(), float(grace_s))
        return {"sent": due, "deliveries": self.deliveries, "wanted": due * ready, "behind_ms": round(behind_s * 1000, 1)}

    async def _loop(self, rest: str) -> dict[str, Any]:
        seconds, mark, self.loop_text = rest.split(" ", 2)
        self.loop_mark = mark.encode()
        for viewer in self.viewers:
            viewer.ask()
        await asyncio.sleep(float(seconds))
        self.loop_text = ""
        return {"accepted": self.accepted}

    def _stage(self) -> dict[str, Any]:
        offsets = [viewer.offset for viewer in self.viewers] or [0]
        counted = {"gaps": self._gaps, "duplicates": self._repeated, "ready": self.ready}
        return {"lowest": min(offsets), "highest": max(offsets), **counted}

    def _close(self) -> dict[str, Any]:
        for viewer in self.viewers:
            viewer.hang_up()
        self.viewers.clear()
        return {}


class Viewer(asyncio.Protocol):
    """One connection after another of one viewer; what it knows of the stage channel outlives them."""

    def __init__(self, crowd: Crowd, number: int, greeting: bytes) -> None:
        self._crowd = crowd
        self._greeting = greeting
        self._address = f"127.0.0.{2 + number // PER_ADDRESS}"
        self._transport: asyncio.Transport | None = None
        self._arrived: asyncio.Future[str] | None = None  # the kind of error, or nothing
        self._pause_s = 1.0
        self._is_upgraded = False
        self._replies_left = 0
        self._rest = b""
        self._greeted_s = self._asked_s = 0.0
        self.is_ready = False
        self.offset = 0
        self._epoch = b""

    async def come(self, pause_s: float) -> None:
        """Dials until it is in; pauses as it is told, and a little differently from its neighbours."""
        await asyncio.sleep(pause_s)
        async with self._crowd.on_the_way:
            while not self.is_ready:
                error = await self._dial()
                if error:
                    self._crowd.errors[error] += 1
                    self.hang_up()
                    await asyncio.sleep(self._pause_s + random.random())

    async def _dial(self) -> str:
        loop = asyncio.get_running_loop()
        self._arrived = loop.create_future()
        self._is_upgraded, self._rest, self._pause_s, dialled_s = False, b"", 1.0, time.monotonic()
        try:
            await loop.create_connection(lambda: self, "127.0.0.1", self._crowd.port, local_addr=(self._address, 0))
        except OSError:
            return "refused"
        error = await self._arrived
        if not error:
            if self._greeting and time.monotonic() - self._greeted_s > LATE_S:
                self._crowd.errors["late"] += 1
            self._crowd.samples_ms.append((time.monotonic() - dialled_s) * 1000)
        return error

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are, without saying so
        self._transport.write(self._crowd.request)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("lost" if self.is_ready else "reset")

    def data_received(self, data: bytes) -> None:
        self._rest += data
        if not self._is_upgraded and b"\r\n\r\n" in self._rest:
            self._take_upgrade()
        while self._is_upgraded and self._take_frame():
            pass

    def _take_upgrade(self) -> None:
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        if head[9:12] != b"101":
            pause = re.search(rb"(?i)retry-after: *(\d+)", head)
            self._pause_s = float(pause[1]) if pause else 1.0
            self._end(head[9:12].decode())
            return
        self._is_upgraded = True
        self._greeted_s = time.monotonic()
        commands = self._greeting.split(b"\t") if self._greeting else []
        self._replies_left = len(commands)
        if not commands:
            self._arrive()
            return
        since = b'"recover":true,"epoch":"%b","offset":%d' % (self._epoch, self.offset)
        self.put(b"\n".join(command.replace(b'"recover":false', since) if self._epoch else command for command in commands))

    def _take_frame(self) -> bool:
        """Continuations count as frames of their own: no server here fragments."""
        rest = self._rest
        length, head = rest[1] & 127 if len(rest) > 1 else 0, 2
        if length >= 126:
            head = 4 if length == 126 else 10
            length = int.from_bytes(rest[2:head], "big")
        if len(rest) < head + length or len(rest) < 2:
            return False
        payload, self._rest = rest[head : head + length], rest[head + length :]
        if rest[0] & 15 <= 2:
            self._crowd.hear(self, payload)
        elif rest[0] & 15 == 9:
            self.put(payload, 10)
        elif rest[0] & 15 == 8:
            self._end(f"closed_{int.from_bytes(payload[:2], 'big') if len(payload) > 1 else 1005}")
        return self._is_upgraded

    def take_reply(self, message: bytes) -> None:
        crowd = self._crowd
        wrong = _ERROR.search(message)
        crowd.refused += wrong is not None
        if wrong and not self.is_ready:
            self._end(f"reply_{wrong[1].decode()}")
            return
        if wrong:
            crowd.errors[f"reply_{wrong[1].decode()}"] += 1
        if not self.is_ready:
            if crowd.stage_opening and message.startswith(b'{"id":2,'):
                self._take_subscribe(message)
            self._replies_left -= 1
            if not self._replies_left:
                self._arrive()
        elif crowd.loop_text:
            crowd.samples_ms.append((time.monotonic() - self._asked_s) * 1000)
            if crowd.loop_mark in message:
                crowd.accepted += 1
            else:
                crowd.refused += wrong is None
            self.ask()

    def _take_subscribe(self, message: bytes) -> None:
        if epoch := _EPOCH.search(message):
            self._epoch = epoch[1]
        offsets = [int(offset) for offset in _OFFSET.findall(message)]
        if b'"recovered":true' not in message:
            self._crowd.afresh += b'"was_recovering":true' in message
            self.offset = offsets[0] if offsets else 0
            return
        self._crowd.recovered += 1
        if self.offset in offsets:
            offsets.remove(self.offset)  # the result names the request's offset once
        for offset in offsets:
            self._crowd.step_to(self, offset)

    def ask(self) -> None:
        self._asked_s = time.monotonic()
        self.put(self._crowd.fill(self._crowd.loop_text))

    def put(self, payload: bytes, opcode: int = 1) -> None:
        if self._transport is not None:
            self._transport.write(client_frame(payload, opcode))

    def _arrive(self) -> None:
        self.is_ready = True
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result("")

    def _end(self, error: str) -> None:
        was_ready = self.is_ready
        self.hang_up()
        if was_ready:
            self._crowd.lost += 1
            self._crowd.errors[error] += 1
        elif self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(error)

    def hang_up(self) -> None:
        transport, self._transport = self._transport, None
        self.is_ready = self._is_upgraded = False
        if transport is not None:
            transport.set_protocol(asyncio.Protocol())  # what still comes of this connection is none of the next one's
            at_once = struct.pack("ii", 1, 0)  # a reset: no port is left waiting, and the server sees a line that was cut
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            transport.abort()


async def serve_commands(crowd: Crowd, commands: TextIO) -> None:
    """Until stdin ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), commands)
    while line := (await reader.readline()).decode().rstrip("\n"):
        print(json.dumps(await crowd.run(line)), flush=True)


async def main(port: str, path: str, greetings: list[bytes], stage: str) -> None:
    await serve_commands(Crowd(int(port), path, greetings, stage), sys.stdin)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes().splitlines() + [b""] * VIEWERS_MAX, sys.argv[4]))
