"""A gateway of its own: a small domain, real engines, and nodes on real sockets. Time of sockets is real, time of tokens stands still."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
import uvicorn
import uvloop
from fastapi import FastAPI
from msgspec import Meta

from app.core.caller import Caller
from app.core.errors import AppError
from app.core.registry import Command, Domain, Registry
from app.core.settings import Settings
from app.domains.accounts.endpoints import DOMAIN as ACCOUNTS
from app.domains.accounts.service import make_token
from app.gateway import endpoint
from app.gateway.door import door
from app.gateway.hub import Hub
from app.protocol.codes import BANNED, UNKNOWN_CHANNEL
from app.protocol.commands import Reply, Request
from app.serve import Server
from app.storage.work import Engines
from tests.support.certificates import Certificates, make_certificates
from tests.support.runtime import TestRuntime
from tests.support.waiting import wait_until

SHELLS = ("socket", "asgi")
ON_UVLOOP = {"test_handover.py", "test_upgrade.py", "test_autobahn.py"}


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    """What hangs on the loop's transports is tested on the loop of the product; the rest on Python's own, so that it hangs on neither."""
    return {"uvloop": uvloop.new_event_loop} if item.path.name in ON_UVLOOP else {"asyncio": asyncio.new_event_loop}


class Echo(Request, frozen=True):
    text: Annotated[str, Meta(max_length=20)]


class Echoed(Reply, frozen=True):
    outcome: str
    text: str
    by: str


@dataclass
class Stage:
    """What the test domain does is decided here by the test."""

    snapshot: dict[str, Any] = field(default_factory=dict[str, Any])
    snapshots_built: int = 0
    gate: asyncio.Event | None = None  # a snapshot and a slow call wait for it
    banned: set[str] = field(default_factory=set[str])
    failure: Exception | None = None


@pytest.fixture
def stage() -> Stage:
    return Stage(snapshot={"title": "tea"})


@pytest.fixture
def registry(stage: Stage) -> Registry:
    async def part(engines: Engines, room_id: str) -> Any:
        stage.snapshots_built += 1
        if stage.gate is not None:
            await stage.gate.wait()
        return dict(stage.snapshot)

    async def admit(engines: Engines, caller: Caller, room_id: str) -> None:
        if room_id == "nowhere":
            raise AppError(UNKNOWN_CHANNEL, "no such room")
        if caller.id in stage.banned:
            raise AppError(BANNED)

    async def echo(engines: Engines, caller: Caller, request: Echo) -> Echoed:
        if request.text == "slow" and stage.gate is not None:
            await stage.gate.wait()
        if stage.failure is not None:
            raise stage.failure
        return Echoed(outcome="echoed", text=request.text, by=caller.id)

    rights = {"room.watch": "watch a room", "staff.watch": "see the team's channel"}
    command = Command("test.echo", Echo, Echoed, echo, "room.watch", "echo")
    staff_command = Command("test.secret", Echo, Echoed, echo, "staff.watch", "echo")
    test = Domain("test", rights=rights, commands=(command, staff_command), snapshot={"test": part}, admission=(admit,))
    return Registry.of((ACCOUNTS, test))


@dataclass
class Node:
    """One gateway process, but for the process."""

    hub: Hub
    server: Server
    task: asyncio.Task[None]
    port: int

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}/connection/websocket"

    async def stop(self) -> None:
        self.server.should_exit = True
        await self.task
        await self.hub.stop()


async def start_node(engines: Engines, settings: Settings | None = None, shell: str = "socket", **options: Any) -> Node:
    """`options` are the server's own."""
    app = FastAPI()
    app.state.engines = engines
    hub = app.state.hub = Hub(engines if settings is None else with_settings(engines, settings))
    app.include_router(endpoint.router)
    await hub.start()
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        http=door(hub) if shell == "socket" else "httptools",
        ws="websockets-sansio",
        ws_max_size=endpoint.frame_bytes_max(hub.settings),
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        lifespan="off",
        log_config=None,
        access_log=False,
        **options,
    )
    server = Server(config, app)
    task = asyncio.create_task(server._serve())
    await wait_until(lambda: server.started and hub.bus.is_connected)
    port = server.servers[0].sockets[0].getsockname()[1]
    return Node(hub, server, task, port)


def with_settings(engines: Engines, settings: Settings) -> Engines:
    """The same engines seen by a node with other settings."""
    return Engines(settings, engines.runtime, engines.registry, engines.sql, engines.sales, engines.fanout, engines.streams)


class Nodes:
    def __init__(self, engines: Engines, stack: AsyncExitStack, shell: str = "socket") -> None:
        self._engines = engines
        self._stack = stack
        self._shell = shell

    async def start(self, **settings: Any) -> Node:
        changed = self._engines.settings.model_copy(update=settings) if settings else None
        node = await start_node(self._engines, changed, self._shell)
        self._stack.push_async_callback(node.stop)
        return node


@pytest.fixture
def shell() -> str:
    """What carries the sessions: "socket" (handed over) or "asgi". A module that concerns both parametrizes it: `SHELLS`."""
    return "socket"


@pytest.fixture
async def nodes(engines: Engines, shell: str) -> AsyncGenerator[Nodes]:
    async with AsyncExitStack() as stack:
        yield Nodes(engines, stack, shell)


@pytest.fixture
async def node(nodes: Nodes) -> Node:
    return await nodes.start()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def token(settings: Settings, runtime: TestRuntime) -> Any:
    def make(subject: str = "ann", *, ttl_s: int | None = None, roles: tuple[str, ...] = (), rooms: list[str] | None = None) -> str:
        return make_token(settings, subject=subject, name=subject.title(), ttl_s=ttl_s, now_ms=runtime.now_ms(), roles=roles, rooms=rooms)

    return make
