"""Broken lines and engines of a test's own."""

from collections.abc import AsyncGenerator, Iterator

import pytest
from sqlalchemy import text

from app.composition import build_registry
from app.core.settings import Settings
from app.storage.redis import command_client
from app.storage.work import Engines
from tests.faults.lines import Line
from tests.faults.show import Show
from tests.support.builders import open_room
from tests.support.faulty_proxy import faulty_proxy
from tests.support.runtime import TestRuntime
from tests.support.servers import Servers, running_servers
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
    with running_servers(appendfsync="always", durable=True, schema=True) as servers:
        settings = Settings(
            environment="development", redis_url=servers.valkey.url, database_url=servers.postgres.url, data_dir=servers.data_dir
        )
        engines = Engines.connect(settings, runtime, build_registry())
        yield engines, servers
        await engines.close()


@pytest.fixture(scope="package")
def show_servers() -> Iterator[Servers]:
    with running_servers(appendfsync="always", durable=True, schema=True) as servers:
        yield servers


@pytest.fixture
async def show(show_servers: Servers, runtime: TestRuntime) -> AsyncGenerator[Show]:
    servers = show_servers
    settings = Settings(
        environment="development", redis_url=servers.valkey.url, database_url=servers.postgres.url, data_dir=servers.data_dir
    )
    engines = Engines.connect(settings, runtime, build_registry())
    await engines.sales.flushall()
    async with engines.sql.begin() as session:
        await session.execute(text("select clean_tables()"))
    room = await open_room(engines, offers=[("Tea", 500, 20), ("Cups", 900, 5)])
    yield Show(engines, servers, room, Shelf(engines, room.room_id, room.session_id))
    await engines.close()
