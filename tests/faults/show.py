"""A show in a product of its own, whose engines may be killed, restarted, emptied, or replaced by a replica."""

import json
import shutil
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.composition import build_registry
from app.core.errors import AppError
from app.domains.inventory import renewal
from app.domains.inventory import service as inventory
from app.domains.orders import payments, reconciliation, sandbox
from app.domains.orders.tables import SandboxCharge
from app.protocol.order_commands import OrderPay
from app.storage.embedded import Valkey
from app.storage.intake import take_in_room
from app.storage.work import Engines
from tests.support.auditor.stock import audit_stock
from tests.support.builders import OpenRoom
from tests.support.runtime import TestRuntime
from tests.support.servers import Servers
from tests.support.shelf import Shelf


class TcpValkey(Valkey):
    """Replication needs a port: of loopback alone, and free a moment ago."""

    port = 0

    def command(self) -> list[str]:
        return [*super().command(), "--port", str(self.port), "--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0"]


@contextmanager
def a_free_port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield port


@dataclass(slots=True)
class Show:
    """A room on air in a product of its own, whose engines may be killed."""

    engines: Engines
    servers: Servers
    room: OpenRoom
    shelf: Shelf
    acknowledged: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def offer(self) -> str:
        return self.room.offer_ids[0]

    async def order(self, number: int) -> str:
        order = await self.shelf.order(self.offer, viewer=f"v{number}", key=f"k{number}")
        self.acknowledged[order] = "ordered"
        return order

    async def hold(self, number: int) -> str:
        hold = (await self.shelf.reserve(self.offer, viewer=f"v{number}", key=f"k{number}")).hold
        assert hold
        return hold

    async def pay(self, order: str, viewer: str) -> str:
        attempt = await payments.pay(self.engines, viewer_id=viewer, request=OrderPay(order=order, key="m"))
        return await self.notify(attempt.payment or "")

    async def notify(self, payment: str) -> str:
        async with self.engines.sql.read() as session:
            charge = await session.get(SandboxCharge, payment)
        assert charge
        body, header = sandbox.sandbox_notice(self.engines.settings, charge, now_ms=self.engines.runtime.now_ms())
        return await payments.receive_webhook(self.engines, "sandbox", {"Jishi-Signature": header}, body)

    async def work(self) -> None:
        """What the worker's loops do, once each."""
        await renewal.recall_rooms(self.engines)
        await inventory.expire_sales(self.engines)
        await renewal.renew_rooms(self.engines)
        while await take_in_room(self.engines, self.room.room_id):
            pass

    async def stock(self) -> tuple[int, int, int, int]:
        stock = (await inventory.read_stock(self.engines, self.room.room_id))[self.offer]
        return stock.available, stock.held, stock.ordered, stock.sold

    async def told(self, channel: str, *types: str) -> list[dict[str, Any]]:
        rows, _ = await self.engines.streams.history(channel)
        return [event for row in rows if (event := json.loads(row.data))["type"] in types]

    async def audit(self) -> list[str]:
        return await audit_stock(self.engines, [self.room.room_id]) + await reconciliation.reconcile(self.engines)


async def raises(command: Callable[[], Awaitable[object]]) -> str:
    with pytest.raises(AppError) as failure:
        await command()
    return failure.value.code.word


def restart(servers: Servers, *, empty: bool = False) -> None:
    """In this thread: an engine dies with the thread that started it."""
    servers.valkey.kill()
    if empty:
        shutil.rmtree(servers.data_dir / "valkey")
    servers.valkey.start()


@contextmanager
def master_and_replica(show: Show) -> Iterator[tuple[TcpValkey, TcpValkey]]:
    with a_free_port() as port:
        master = TcpValkey(show.servers.data_dir / "master")
        replica = TcpValkey(show.servers.data_dir / "replica")
        master.port = port
    with a_free_port() as port:
        replica.port = port
    master.start()
    replica.start()
    try:
        yield master, replica
    finally:
        for engine in (master, replica):
            engine.stop()
            shutil.rmtree(engine.data_dir, ignore_errors=True)


def connected(show: Show, runtime: TestRuntime, url: str, **settings: int) -> Engines:
    return Engines.connect(show.engines.settings.model_copy(update={"redis_url": url, **settings}), runtime, build_registry())
