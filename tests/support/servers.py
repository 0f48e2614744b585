"""Real engines for tests: one pair a pytest worker, or a pair of a test's own that it may kill and start again."""

import asyncio
import atexit
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from app.storage.embedded import Postgres, Valkey
from app.storage.migrate import migrate
from app.storage.sql import async_url

# Empties the tables that hold anything; truncating all of them would cost more than most tests.
CLEAN_FUNCTION = """
create or replace function clean_tables() returns void language plpgsql as $$
declare name text; found boolean; full_tables text[] := '{}';
begin
  for name in select format('%I', tablename) from pg_tables where schemaname = 'public' and tablename <> 'alembic_version' loop
    execute format('select exists (select from %s)', name) into found;
    if found then full_tables := full_tables || name; end if;
  end loop;
  if full_tables <> '{}' then execute 'truncate ' || array_to_string(full_tables, ', ') || ' restart identity cascade'; end if;
  -- of tables that a test emptied by itself
  for name in select format('%I', sequencename) from pg_sequences where schemaname = 'public' and last_value is not null loop
    execute format('alter sequence %s restart', name);
  end loop;
end $$
"""


@dataclass(frozen=True, slots=True)
class Servers:
    valkey: Valkey
    postgres: Postgres
    data_dir: Path


@contextmanager
def running_servers(*, appendfsync: str = "everysec", durable: bool = False, schema: bool = False) -> Iterator[Servers]:
    """Not durable against a power cut by default; a killed process loses nothing either way, since the kernel has its writes.

    With `schema` the tables are there: a copy of what the migrations made once in this process.
    """
    data_dir = Path(tempfile.mkdtemp(prefix="jishi-test-"))
    servers = Servers(Valkey(data_dir, appendfsync=appendfsync), Postgres(data_dir, durable=durable), data_dir)
    if schema:
        subprocess.run(["cp", "-a", _migrated(), servers.postgres.pgdata], check=True)
    try:
        servers.valkey.start()
        servers.postgres.start()
        yield servers
    finally:
        servers.valkey.stop()
        servers.postgres.stop()
        shutil.rmtree(data_dir)
        shutil.rmtree(servers.postgres.socket_dir, ignore_errors=True)


@cache
def _migrated() -> Path:
    """The data directory of a PostgreSQL that has the schema, and was stopped."""
    data_dir = Path(tempfile.mkdtemp(prefix="jishi-test-"))
    postgres = Postgres(data_dir, durable=False)
    atexit.register(shutil.rmtree, data_dir, ignore_errors=True)
    atexit.register(shutil.rmtree, postgres.socket_dir, ignore_errors=True)
    postgres.start()
    try:
        run_apart(make_schema(postgres.url))
    finally:
        postgres.stop()
    return postgres.pgdata


def run_apart(work: Coroutine[Any, Any, None]) -> None:
    """Runs to its end in a thread and a loop of its own, so that the loop of the test is not touched."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work)
        except BaseException as failure:  # handed over to the calling thread
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


async def make_schema(database_url: str) -> None:
    """By the migrations, as an operator's database gets it."""
    await asyncio.to_thread(migrate, database_url)  # Alembic's environment runs a loop of its own
    engine = create_async_engine(async_url(database_url))
    try:
        async with engine.begin() as connection:
            await connection.execute(text(CLEAN_FUNCTION))
    finally:
        await engine.dispose()
