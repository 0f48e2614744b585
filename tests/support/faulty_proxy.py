"""Stands between a client and an engine, and breaks the line in the way it is told to.

`cut_request`: what the client sends never arrives. `cut_reply`: it arrives and is done, the answer is lost. Both close the connection,
again and again until `heal`. A client library that retries by itself is thus tested with its retries. `hold`: requests are kept until
`heal` and arrive then, whoever may have given up meanwhile. `trickle`: they arrive byte by byte.

A `Line` carries both directions on their own, as pub/sub needs it, and can go deaf: connections stand, new ones are taken, and nothing
comes through until `heal`; then what was on its way arrives, as after a real partition.
"""

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path


class FaultyProxy:
    def __init__(self, upstream: Path, path: Path) -> None:
        self.mode = "pass"
        self.cuts = 0
        self.cuts_max = 0  # then it heals by itself; 0: never
        self.only = b""  # break only requests that contain this
        self._upstream = upstream
        self._path = path
        self._tasks: set[asyncio.Task[None]] = set()
        self._healed = asyncio.Event()

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    def heal(self) -> None:
        self.mode = "pass"
        self._healed.set()

    def hold(self) -> None:
        self.mode = "hold"
        self._healed.clear()

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with suppress(OSError, asyncio.CancelledError), closing(writer):
            engine_reader, engine_writer = await asyncio.open_unix_connection(str(self._upstream))
            with closing(engine_writer):
                answers = asyncio.create_task(_carry_all(engine_reader, writer))
                try:
                    last = await self._carry_requests(reader, engine_writer)
                finally:
                    answers.cancel()
                    await asyncio.gather(answers, return_exceptions=True)
                if last:
                    engine_writer.write(last)
                    engine_writer.write_eof()
                    await engine_reader.read()  # the engine does what it has, and then closes

    async def _carry_requests(self, reader: asyncio.StreamReader, engine: asyncio.StreamWriter) -> bytes:
        """Until the client goes, or a request is one to break. Returns what is still to be done, with nobody to hear the answer."""
        while data := await reader.read(1 << 20):
            broken = self.mode != "pass" and self.only.lower() in data.lower()
            if not broken:
                engine.write(data)
                await engine.drain()
                continue
            self.cuts += 1
            if self.mode in {"hold", "trickle"}:
                await self._send_late(data, engine)
                continue
            is_reply_lost = self.mode == "cut_reply"
            if self.cuts == self.cuts_max:
                self.heal()
            return data if is_reply_lost else b""
        return b""

    async def _send_late(self, data: bytes, engine: asyncio.StreamWriter) -> None:
        if self.mode == "hold":
            await self._healed.wait()
            engine.write(data)
        else:
            for number in range(len(data)):
                engine.write(data[number : number + 1])
                await asyncio.sleep(0)  # the engine may read in between
        await engine.drain()


async def _carry_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 20):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def faulty_proxy(upstream: Path) -> AsyncGenerator[FaultyProxy]:
    """A proxy in front of a unix socket."""
    with tempfile.TemporaryDirectory(prefix="jishi-proxy-") as directory:
        path = Path(directory) / "engine.sock"
        proxy = FaultyProxy(upstream, path)
        server = await asyncio.start_unix_server(proxy.serve, str(path))
        try:
            yield proxy
        finally:
            server.close()
            await proxy.close()


class Line:
    def __init__(self, upstream: Path, path: Path) -> None:
        self._upstream = upstream
        self._path = path
        self._hears = asyncio.Event()
        self._hears.set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    def deafen(self) -> None:
        self._hears.clear()

    def heal(self) -> None:
        self._hears.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with suppress(OSError, asyncio.CancelledError), closing(writer):
            engine_reader, engine_writer = await asyncio.open_unix_connection(str(self._upstream))
            with closing(engine_writer):
                ways = [asyncio.create_task(self._carry(reader, engine_writer)), asyncio.create_task(self._carry(engine_reader, writer))]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self._hears.wait()
            writer.write(data)
            await writer.drain()

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def deaf_line(upstream: Path) -> AsyncGenerator[Line]:
    """In front of a unix socket."""
    with tempfile.TemporaryDirectory(prefix="jishi-line-") as directory:
        path = Path(directory) / "engine.sock"
        line = Line(upstream, path)
        server = await asyncio.start_unix_server(line.serve, str(path))
        try:
            yield line
        finally:
            line.heal()
            server.close()
            await line.close()
