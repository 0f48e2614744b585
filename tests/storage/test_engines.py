"""The fixtures give empty, real engines to every test."""

import asyncio

import pytest

from app.storage.intake import forget_room, list_rooms, register_room
from app.storage.redis import CONNECTIONS_MAX
from app.storage.tables import DeadLetter
from app.storage.work import Engines
from tests.support.runtime import TestRuntime


@pytest.mark.parametrize("turn", [1, 2, 3])
async def test_engines_are_empty_for_every_test(engines: Engines, runtime: TestRuntime, turn: int) -> None:
    assert engines.runtime is runtime
    assert await engines.sales.dbsize() == 0
    await engines.sales.set("left", "behind")
    async with engines.sql.begin() as session:
        letter = DeadLetter(source="test", room_id="room", type="x", payload=b"", error="", at=runtime.now())
        session.add(letter)
        await session.flush()
        assert letter.id == 1, "identities start again"


async def test_every_engine_answers(engines: Engines) -> None:
    assert await engines.check() == {"sales": "ok", "fan-out": "ok", "sql": "ok"}


async def test_a_read_only_view_refuses_to_write(engines: Engines, runtime: TestRuntime) -> None:
    with pytest.raises(Exception, match="read-only transaction"):
        async with engines.sql.read() as session:
            session.add(DeadLetter(source="test", room_id="room", type="x", payload=b"", error="", at=runtime.now()))
            await session.flush()


async def test_more_calls_than_connections_wait_for_each_other(engines: Engines) -> None:
    assert await asyncio.gather(*(engines.sales.ping() for _ in range(CONNECTIONS_MAX * 4))) == [True] * CONNECTIONS_MAX * 4


async def test_a_room_that_somebody_has_a_claim_on_stays_on_the_list(engines: Engines) -> None:
    await register_room(engines, "room", for_ms=7_200_000)
    await register_room(engines, "room")
    assert await engines.sales.pttl("{room}:claim") > 7_000_000, "a shorter claim does not cut a longer one"
    await forget_room(engines, "room")
    assert await list_rooms(engines) == ["room"]
    await engines.sales.delete("{room}:claim")
    await forget_room(engines, "room")
    assert await list_rooms(engines) == []
