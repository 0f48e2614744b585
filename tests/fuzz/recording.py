"""Writes tests/support/corpus/recorded.txt anew: what real SDKs send, as it comes over the wire, heads and masks and all.

    python -m tests.fuzz.recording       # after `make sdk`, and when an SDK has a new version

A relay stands between each SDK and a node, and keeps what goes to the node.
"""

import asyncio
from contextlib import suppress
from pathlib import Path

import uvloop

from app.composition import build_registry
from app.core.settings import Settings
from app.storage.work import Engines
from tests.fuzz.sockets import Run, a_run
from tests.sdk.viewers import SPEAKERS, NodeProcess, PythonViewer, Refused, Speaker, Viewer
from tests.support.corpus import seeds
from tests.support.runtime import TestRuntime
from tests.support.servers import make_schema, run_apart, running_servers
from tests.support.waiting import wait_until

FILE = Path(seeds.HERE) / "recorded.txt"
HEADER = "# What SDKs sent, byte by byte: heads, and behind them masked frames of a viewer's life. Written by tests/fuzz/recording.py.\n"


class Relay:
    """To a node, for one client at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.heard = bytearray()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        node_reader, node_writer = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(self._pass_on(reader, node_writer, keep=True), self._pass_on(node_reader, writer, keep=False))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, keep: bool) -> None:
        try:
            while data := await reader.read(1 << 16):
                if keep:
                    self.heard += data
                writer.write(data)
        except OSError:
            pass  # the other side has gone: that is the end of what there is to hear
        finally:
            writer.close()


async def live(viewer: Viewer, room_id: str) -> None:
    """All that an SDK can say, in the order of a visit."""
    await viewer.connect()
    await viewer.connected()
    room, chat = f"room:{room_id}", f"chat:{room_id}"
    await viewer.subscribe(room)
    await viewer.subscribe(chat)
    await viewer.subscribed(room)
    await viewer.subscribed(chat)
    await viewer.rpc("chat.send", {"room": room_id, "text": "早上好 🍵", "key": "recorded"})
    with suppress(Refused):  # what was sent is what is wanted
        await viewer.rpc("no.such", {"quote": '"\\'})
    await viewer.history(chat, 10)
    await viewer.count(room)
    await asyncio.sleep(1.5)  # a ping of the node, and the SDK's pong
    await viewer.unsubscribe(chat)
    await viewer.disconnect()


async def record(run: Run, javascript: NodeProcess, speaker: Speaker) -> dict[str, bytes]:
    relay = Relay(run.node.port)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/connection/websocket"
    token = run.planner.connect["connect"]["token"]
    try:
        viewer: Viewer
        if speaker.sdk == "python":
            viewer = PythonViewer(url, codec=speaker.codec, token=token, tokens=[])
        else:
            viewer = await javascript.make(url=url, codec=speaker.codec, token=token, tokens=[], timeout=5_000)
        await live(viewer, next(iter(run.node.hub.rooms)))
        await wait_until(lambda: len(run.node.hub.connections) == 1, what="the SDK has gone")
    finally:
        server.close()
    head, end, stream = bytes(relay.heard).partition(b"\r\n\r\n")
    return {f"head {speaker.id}": head + end, f"stream {speaker.id}": stream}


async def main(settings: Settings) -> None:
    engines = Engines.connect(settings, TestRuntime(), build_registry())
    javascript = NodeProcess()
    try:
        async with a_run(engines) as (run, _):
            found: dict[str, bytes] = {}
            for speaker in SPEAKERS:
                found |= await record(run, javascript, speaker)
        FILE.write_text(HEADER + "".join(f"{name} = {raw!r}\n" for name, raw in found.items()))
    finally:
        await javascript.close()
        await engines.close()


if __name__ == "__main__":
    with running_servers() as servers:
        run_apart(make_schema(servers.postgres.url))
        uvloop.run(
            main(
                Settings(
                    environment="development",
                    redis_url=servers.valkey.url,
                    database_url=servers.postgres.url,
                    data_dir=servers.data_dir,
                    drain_s=0.2,
                )
            )
        )
