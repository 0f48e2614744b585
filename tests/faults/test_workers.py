"""Many rooms over two worker processes: they share them, and when one is killed the other has its rooms within the lease."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from sqlalchemy import text

from app.storage.intake import outbox_key, register_room
from app.storage.work import Engines
from app.worker import WORKERS_KEY, lease_key
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

ROOMS = [f"room{number}" for number in range(24)]
LEASE_S = 2


@contextmanager
def worker_process(engines: Engines) -> Iterator["subprocess.Popen[bytes]"]:
    settings = engines.settings
    environment = {**os.environ, "REDIS_URL": settings.redis_url, "DATABASE_URL": settings.database_url}
    environment |= {"JISHI_ROOM_LEASE_S": str(LEASE_S), "JISHI_DATA_DIR": str(settings.data_dir), "JISHI_LOG_LEVEL": "error"}
    process = subprocess.Popen([sys.executable, "-m", "app.cli", "worker"], env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def owners(engines: Engines) -> set[bytes | None]:
    return set(await engines.sales.mget([lease_key(room) for room in ROOMS]))


async def append(engines: Engines) -> dict[str, str]:
    """One entry in every room; the last id of each."""
    return {
        room: (await engines.sales.xadd(outbox_key(room), {"t": "offer.restocked", "d": json.dumps({"offer": f"{room}-o1"})})).decode()
        for room in ROOMS
    }


async def marks(engines: Engines) -> dict[str, str]:
    async with engines.sql.read() as session:
        return {row.room_id: row.last_entry for row in await session.execute(text("select room_id, last_entry from intake_progress"))}


async def test_two_workers_share_the_rooms_and_one_inherits_all_from_a_killed_one(engines: Engines) -> None:
    for room in ROOMS:
        await register_room(engines, room)
    with ExitStack() as stack:
        first, _ = stack.enter_context(worker_process(engines)), stack.enter_context(worker_process(engines))

        async def both_have_rooms() -> bool:
            found = await owners(engines)
            return len(found) == 2 and None not in found

        await wait_until(both_have_rooms, within_s=40)
        last = await append(engines)
        await wait_until(lambda: _equal(engines, last))
        first.kill()
        first.wait()
        last = await append(engines)
        await wait_until(lambda: _equal(engines, last), what="every room is taken in again")

        async def one_has_them_all() -> bool:
            found = await owners(engines)
            return len(found) == 1 and None not in found and await engines.sales.zcard(WORKERS_KEY) == 1

        await wait_until(one_has_them_all)


async def _equal(engines: Engines, last: dict[str, str]) -> bool:
    return await marks(engines) == last
