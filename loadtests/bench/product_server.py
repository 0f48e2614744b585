"""Jishi itself, by `jishi up --no-demo --web 1`: its web process on the server's core, engines and worker on the crowd's."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import jwt
import psutil

from app.composition import build_registry
from app.core.runtime import Runtime, at_text
from app.core.settings import Settings
from app.domains.inventory import service as inventory
from app.protocol.channels import room_channel
from app.protocol.events import NoticePinned, encode_event
from app.storage.work import Engines
from loadtests.bench.crowds import Trouble
from loadtests.bench.machine import CROWD_CORE, SERVER_CORE, on_core, pin
from loadtests.bench.servers import Server
from loadtests.product import Product, running_product

# What protects the product from such a crowd. Sampling of chat is lifted apart, by those who measure without it.
LIFTED = {
    "JISHI_CHAT_PER_VIEWER_PER_10_S": "100000",
    "JISHI_COMMANDS_PER_S_MAX": "100000",
    "JISHI_METHOD_RATES_FACTOR": "100000",
    "JISHI_CONNECTIONS_MAX": "60000",
    "JISHI_DRAIN_S": "0.5",
}
NO_SAMPLING = {"JISHI_CHAT_SHOWN_PER_S": "100000"}
ALL_JOINS = {"JISHI_JOINS_PER_S": "100000"}
PAD = "x" * 90


@dataclass(slots=True)
class ProductServer:
    product: Product
    place: dict[str, Any]
    server: Server
    last_offset: int = field(default=0)

    @property
    def room(self) -> str:
        return self.place["room"]

    @property
    def redis_url(self) -> str:
        found: dict[str, str] = json.loads((self.product.data_dir / "run.json").read_text())
        return found["redis_url"]

    @property
    def on_sale(self) -> str:
        """An offer with all the stock that was asked for."""
        return str(self.place["offers"][0]["id"])

    @asynccontextmanager
    async def engines(self) -> AsyncGenerator[Engines]:
        """The product's own, for what is done to it beside its viewers."""
        found = json.loads((self.product.data_dir / "run.json").read_text())
        settings = Settings(redis_url=found["redis_url"], database_url=found["database_url"], data_dir=self.product.data_dir)
        engines = Engines.connect(settings, Runtime(), build_registry())
        try:
            yield engines
        finally:
            await engines.close()

    async def sell_out(self) -> str:
        """An offer of which nothing is left."""
        offer_id = str(self.place["offers"][1]["id"])
        async with self.engines() as engines:
            await inventory.reserve(engines, viewer_id="bench-first", offer_id=offer_id, quantity=1, key="last")
        return offer_id

    @asynccontextmanager
    async def stage_events(self, per_s: float) -> AsyncGenerator[None]:
        """Notices of the host, published into the room's stage channel as the worker does, each with a stamp, while the block runs."""
        async with self.engines() as engines:
            saying = asyncio.create_task(self._say(engines, per_s))
            try:
                yield
            finally:
                saying.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await saying

    async def _say(self, engines: Engines, per_s: float) -> None:
        began, number = time.monotonic(), 0
        while True:
            number += 1
            await asyncio.sleep(max(0.0, began + number / per_s - time.monotonic()))
            now_ns = time.time_ns()
            event = NoticePinned(at=at_text(now_ns // 1_000_000), text=f"t={now_ns};{PAD}")
            self.last_offset = await asyncio.shield(engines.streams.publish(room_channel(self.room), encode_event(event)))


def make_greetings(room: str, secret: str, count: int, *, subscribes: bool = True) -> Iterator[str]:
    """What each viewer sends first: connect with a token of its own, and two subscribes, pipelined in one frame."""
    for number in range(count):
        token = jwt.encode({"sub": f"bench-{number}", "exp": int(time.time()) + 3600}, secret, algorithm="HS256")
        commands: list[dict[str, object]] = [{"id": 1, "connect": {"token": token}}]
        if subscribes:
            commands.append({"id": 2, "subscribe": {"channel": f"room:{room}", "recover": False}})
            commands.append({"id": 3, "subscribe": {"channel": f"chat:{room}"}})
        yield "\t".join(json.dumps(command, separators=(",", ":")) for command in commands)


def chat_text(room: str, mark: str = "t") -> str:
    """The command that a viewer says something by. Another mark than `t` leaves it uncounted."""
    data = {"room": room, "text": f"{mark}=%T;{PAD}", "key": "k%N"}
    return json.dumps({"rpc": {"method": "chat.send", "data": data}}, separators=(",", ":")).replace("{", '{"id":%N,', 1)


@asynccontextmanager
async def running_jishi(environment: dict[str, str] | None = None, *, offers: int = 100) -> AsyncGenerator[ProductServer]:
    with contextlib.ExitStack() as stack:
        with on_core(CROWD_CORE):
            try:
                product = stack.enter_context(running_product(web=1, environment=LIFTED | (environment or {})))
                place = product.open_room("Bench", [f"Tea:100:{offers}", "Honey:100:1"])
            except SystemExit as ended:
                raise Trouble(f"the product did not start: {ended}") from None
        pid = _web_pid(product)
        pin(pid, SERVER_CORE)
        room, secret = place["room"], product.secret
        server = Server(
            "jishi",
            pid,
            int(product.url.rpartition(":")[2]),
            path="/connection/websocket",
            text=chat_text(room),
            stage=f"room:{room}",
            greetings=lambda count: make_greetings(room, secret, count),
        )
        yield ProductServer(product, place, server)


def _web_pid(product: Product) -> int:
    """The one web process below `jishi up`."""
    serving = [child for child in psutil.Process(product.pid).children(recursive=True) if "serve" in child.cmdline()]
    if len(serving) != 1:
        raise Trouble(f"the product has {len(serving)} web processes instead of one")
    return int(serving[0].pid)
