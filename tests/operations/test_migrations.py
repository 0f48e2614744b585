"""The migrations make exactly the tables that the code declares, can be taken back, and may be started by several at once."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import create_async_engine

import app.composition  # noqa: F401 - makes every table known
from app.storage.migrate import has_migrations, migrate, migration_config
from app.storage.sql import Table, async_url
from tests.support.servers import run_apart, running_servers

pytestmark = pytest.mark.slow


@pytest.fixture
def empty_database() -> Iterator[str]:
    with running_servers() as pair:
        yield pair.postgres.url


def look(database_url: str) -> tuple[list[object], set[str]]:
    """What differs from the metadata, and which tables there are."""
    seen: list[tuple[list[object], set[str]]] = []

    def compare(connection: Connection) -> None:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        seen.append((list(compare_metadata(context, Table.metadata)), set(inspect(connection).get_table_names())))

    async def connect() -> None:
        engine = create_async_engine(async_url(database_url))
        async with engine.connect() as connection:
            await connection.run_sync(compare)
        await engine.dispose()

    run_apart(connect())
    return seen[0]


def test_from_nothing_to_the_newest_version_gives_the_declared_tables(empty_database: str) -> None:
    assert has_migrations()
    migrate(empty_database)
    differences, tables = look(empty_database)
    assert differences == []
    assert tables == set(Table.metadata.tables) | {"alembic_version"}


def test_up_down_up(empty_database: str) -> None:
    assert has_migrations()
    migrate(empty_database)
    command.downgrade(migration_config(empty_database), "base")
    assert look(empty_database)[1] == {"alembic_version"}
    migrate(empty_database)
    assert look(empty_database)[0] == []


def test_a_second_run_changes_nothing(empty_database: str) -> None:
    migrate(empty_database)
    before = look(empty_database)
    migrate(empty_database)
    assert look(empty_database) == before


def test_several_at_once_wait_for_each_other(empty_database: str) -> None:
    code = "import sys; from app.storage.migrate import migrate; migrate(sys.argv[1])"
    runs = [subprocess.Popen([sys.executable, "-c", code, empty_database], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], "\n".join(errors)
    assert look(empty_database)[0] == []


def test_versions_are_named_by_their_day_and_guard_their_locks() -> None:
    folder = migration_config("").get_main_option("script_location")
    assert folder is not None
    versions = sorted(Path(folder, "versions").glob("*.py"))
    assert versions
    for version in versions:
        assert re.fullmatch(r"\d{4}_\d\d_\d\d_\d{4}_[a-z0-9_]+\.py", version.name), version.name
        assert version.read_text().count("set local lock_timeout") == 2, version.name
