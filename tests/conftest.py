"""Real engines for every test: one valkey-server and one PostgreSQL a pytest worker, emptied before each test that uses them."""

import os
from collections.abc import AsyncGenerator, Iterator

import httpx2
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis
from sqlalchemy import text

from app.core.registry import Registry
from app.core.settings import Settings
from app.storage.sql import Sql
from app.storage.work import Engines
from tests.support.cluster import Cluster, running_cluster
from tests.support.leaks import assert_no_stray_tasks
from tests.support.parsing import steady_parsing
from tests.support.runtime import TestRuntime
from tests.support.servers import Servers, make_schema, run_apart, running_servers
from tests.support.waiting import wait_until

steady_parsing()


@pytest.hookimpl(trylast=True)  # after the packages have marked theirs, and the order was mixed
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: else one worker may begin the longest of all when the others have nothing left to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def _plain_environment() -> None:
    """The settings of whoever runs the tests must not decide what they find."""
    for name in list(os.environ):
        if name.startswith("JISHI_") or name in {"REDIS_URL", "FANOUT_REDIS_URL", "DATABASE_URL"}:
            del os.environ[name]


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The worker's pair of engines, with the schema. A test that kills an engine makes its own by `running_servers()`."""
    with running_servers() as pair:
        run_apart(make_schema(pair.postgres.url))
        yield pair


@pytest.fixture(scope="session")
def sql(servers: Servers) -> Sql:
    """For all tests, since it keeps the statements that it has compiled: compiling them anew took a third of a test. Closing it ends its
    connections alone, so each test has new ones, on its own loop."""
    return Sql(servers.postgres.url)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One for all tests that stop none of its engines: they are of the xdist group "cluster"."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def settings(servers: Servers) -> Settings:
    return Settings(
        environment="development",
        redis_url=servers.valkey.url,
        database_url=servers.postgres.url,
        data_dir=servers.data_dir,
        drain_s=0.2,
    )


@pytest.fixture
def runtime() -> TestRuntime:
    return TestRuntime()


@pytest.fixture
def registry() -> Registry:
    from app.composition import build_registry  # noqa: PLC0415 - a domain that cannot be imported fails the tests that need it, not all

    return build_registry()


@pytest.fixture
async def engines(settings: Settings, runtime: TestRuntime, registry: Registry, sql: Sql) -> AsyncGenerator[Engines]:
    """Both engines empty, all domains registered, time standing still."""
    engines = Engines.connect(settings, runtime, registry)
    engines.sql = sql
    await empty(engines.sales, engines)
    yield engines
    await engines.close()
    await assert_no_stray_tasks()


async def empty(client: Redis, engines: Engines) -> None:
    for _, engine in await client.engines():
        await engine.flushall()
        await engine.script_flush()
    async with engines.sql.begin() as session:
        await session.execute(text("select clean_tables()"))


@pytest.fixture
async def app(engines: Engines) -> AsyncGenerator[FastAPI]:
    """The web process on the test's engines, started."""
    from app.main import create_app  # noqa: PLC0415 - as above

    app = create_app(engines=engines)
    async with app.router.lifespan_context(app):
        # The node is still subscribing: stopped in the midst of that, it would wait for confirmations that no longer come.
        await wait_until(lambda: not app.state.hub._tasks, what="the gateway has its channels")
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncGenerator[httpx2.AsyncClient]:
    """Speaks HTTP to the web process without a socket."""
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://testserver") as client:
        yield client
