"""The running product on a real socket (the whole web process with all domains, on the event loop that it has in production), and the SDKs.

One command beside the product's own hangs until the test lets it go; everything else is what a viewer meets.
"""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
import uvicorn
import uvloop

from app.composition import DOMAINS
from app.core.caller import Caller
from app.core.registry import Command, Domain, Registry
from app.domains.accounts.service import make_token
from app.gateway.connection import Connection
from app.gateway.door import door
from app.gateway.endpoint import frame_bytes_max
from app.gateway.hub import Hub
from app.main import create_app
from app.protocol.commands import Done, Empty
from app.serve import Server
from app.storage.work import Engines
from tests.sdk.viewers import SPEAKERS, NodeProcess, PythonViewer, Speaker, Viewer
from tests.support.builders import OpenRoom, open_room
from tests.support.runtime import TestRuntime
from tests.support.waiting import wait_until


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/sdk/" in item.path.as_posix():
            item.add_marker(pytest.mark.slow)


class Gate:
    """Holds `test.hold` up."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.waiting = 0


@pytest.fixture
async def gate() -> AsyncGenerator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


@pytest.fixture
def registry(gate: Gate) -> Registry:
    async def hold(engines: Engines, caller: Caller, request: Empty) -> Done:
        gate.waiting += 1
        await gate.opened.wait()
        return Done()

    command = Command("test.hold", Empty, Done, hold, "room.watch", "hangs")
    return Registry.of((*DOMAINS, Domain("test", commands=(command,))))


class Product:
    """A web process, but for the process."""

    def __init__(self, hub: Hub, server: Server, task: asyncio.Task[None], port: int) -> None:
        self.hub = hub
        self.server = server
        self.task = task
        self.port = port

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}/connection/websocket"

    @property
    def connections(self) -> list[Connection]:
        return list(self.hub.connections)

    async def stop(self) -> None:
        """Says where it hangs when it does."""
        self.server.should_exit = True
        done, _ = await asyncio.wait([self.task], timeout=STOP_S_MAX)
        if not done:
            self.task.print_stack()
            pytest.fail(f"the web process did not stop within {STOP_S_MAX} s")
        self.task.result()


STOP_S_MAX = 30
StartProduct = Callable[..., Awaitable[Product]]


@pytest.fixture
async def start_product(engines: Engines) -> AsyncGenerator[StartProduct]:
    """Starts web processes: `settings` to change, `listening` to share one address with another."""
    async with AsyncExitStack() as stack:

        async def start(*, listening: socket.socket | None = None, **settings: Any) -> Product:
            changed = engines.settings.model_copy(update={"drain_s": 0.01} | settings)
            mine = Engines(changed, engines.runtime, engines.registry, engines.sql, engines.sales, engines.fanout, engines.streams)
            product = await _start(mine, listening or socket.create_server(("127.0.0.1", 0)))
            stack.push_async_callback(product.stop)
            return product

        yield start


async def _start(engines: Engines, listening: socket.socket) -> Product:
    app = create_app(engines=engines)
    hub = app.state.hub
    config = uvicorn.Config(
        app,
        http=door(hub),
        ws="websockets-sansio",
        ws_max_size=frame_bytes_max(engines.settings),
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
    )
    server = Server(config, app)
    port = listening.getsockname()[1]
    task = asyncio.create_task(server._serve([listening]))
    await wait_until(lambda: server.started and hub.bus.is_connected and not hub._tasks)
    return Product(hub, server, task, port)


@pytest.fixture
async def product(start_product: StartProduct) -> Product:
    return await start_product()


@pytest.fixture
async def room(engines: Engines) -> OpenRoom:
    return await open_room(engines)


@pytest.fixture
def token(engines: Engines, runtime: TestRuntime) -> Any:
    def make(subject: str = "ann", *, ttl_s: int | None = None, roles: tuple[str, ...] = ()) -> str:
        return make_token(engines.settings, subject=subject, name=subject.title(), ttl_s=ttl_s, now_ms=runtime.now_ms(), roles=roles)

    return make


@pytest.fixture(params=SPEAKERS, ids=lambda speaker: speaker.id)
def speaker(request: pytest.FixtureRequest) -> Speaker:
    return request.param


MakeViewer = Callable[..., Awaitable[Viewer]]
MakeAnyViewer = Callable[..., Awaitable[Viewer]]


@pytest.fixture
async def any_viewer() -> AsyncGenerator[MakeAnyViewer]:
    """Makes viewers of whatever SDK, and lets them leave at the end."""
    node = NodeProcess()
    made: list[Viewer] = []

    async def make(speaker: Speaker, product: Product, token: str, *, tokens: tuple[str, ...] = ()) -> Viewer:
        if speaker.sdk == "python":
            viewer: Viewer = PythonViewer(product.ws, codec=speaker.codec, token=token, tokens=tokens)
        else:
            viewer = await node.make(url=product.ws, codec=speaker.codec, token=token, tokens=tokens, timeout=5000)
        made.append(viewer)
        return viewer

    yield make
    for one in made:
        await one.disconnect()
    await node.close()


@pytest.fixture
def viewer(any_viewer: MakeAnyViewer, speaker: Speaker) -> MakeViewer:
    """Of the SDK whose turn it is."""
    return partial(any_viewer, speaker)


async def publish(engines: Engines, channel: str, *numbers: int) -> None:
    for number in numbers:
        await engines.streams.publish(channel, json.dumps({"type": "test.counted", "n": number}).encode())
