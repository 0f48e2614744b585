"""Broken lines and engines of a test's own."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from app.composition import build_registry
from app.core.settings import Settings
from app.storage.redis import command_client
from app.storage.work import Engines
from tests.faults.lines import Line
from tests.support.faulty_proxy import faulty_proxy
from tests.support.runtime import TestRuntime
from tests.support.servers import Servers, make_schema, run_apart, running_servers
from tests.support.shelf import Shelf, open_shelf


@pytest.fixture
async def line(engines: Engines, servers: Servers, runtime: TestRuntime) -> AsyncGenerator[Line]:
    async with faulty_proxy(servers.valkey.socket_path) as proxy:
        broken = Engines(
            engines.settings, runtime, engines.registry, engines.sql, command_client(proxy.url), engines.fanout, engines.streams
        )
        await open_shelf(engines)
        yield Line(proxy, Shelf(broken), engines, runtime)
        await broken.sales.aclose()


@pytest.fixture
async def own(runtime: TestRuntime) -> AsyncGenerator[tuple[Engines, Servers]]:
    """A pair of engines that the test may kill; the engine of stock syncs every write before it answers, as in production."""
    with running_servers(appendfsync="always", durable=True) as servers:
        await asyncio.to_thread(run_apart, make_schema(servers.postgres.url))
        settings = Settings(
            environment="development", redis_url=servers.valkey.url, database_url=servers.postgres.url, data_dir=servers.data_dir
        )
        engines = Engines.connect(settings, runtime, build_registry())
        yield engines, servers
        await engines.close()
