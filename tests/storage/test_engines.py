"""The fixtures give empty, real engines to every test."""

import pytest
from redis.exceptions import ResponseError

from app.storage.intake import forget_room, list_rooms, register_room
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


async def test_a_pipeline_brings_each_answer_as_its_own_command_would(engines: Engines) -> None:
    async with engines.sales.pipeline(transaction=True) as pipeline:
        pipeline.hset("{a}:h", mapping={"x": 1})
        pipeline.hgetall("{a}:h")
        pipeline.zadd("{a}:z", {"m": 1.5})
        pipeline.zrange("{a}:z", 0, -1, withscores=True)
        assert await pipeline.execute() == [1, {b"x": b"1"}, 1, [(b"m", 1.5)]]
    async with engines.sales.pipeline(transaction=False) as pipeline:
        pipeline.get("{a}:none").incr("{a}:h").get("{b}:none")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await pipeline.execute()
        pipeline.get("{a}:none").incr("{a}:h").exists("{a}:h")
        none, failure, one = await pipeline.execute(raise_on_error=False)
        assert (none, type(failure), one) == (None, ResponseError, 1)
        assert await pipeline.execute() == []


async def test_one_bad_command_undoes_its_transaction(engines: Engines) -> None:
    async with engines.sales.pipeline(transaction=True) as pipeline:
        pipeline.set("{a}:n", 1).execute_command("NOSUCH", "{a}:n")
        with pytest.raises(ResponseError):
            await pipeline.execute()
    assert await engines.sales.get("{a}:n") is None


async def test_a_room_that_somebody_has_a_claim_on_stays_on_the_list(engines: Engines) -> None:
    await register_room(engines, "room", for_ms=7_200_000)
    await register_room(engines, "room")
    assert await engines.sales.pttl("{room}:claim") > 7_000_000, "a shorter claim does not cut a longer one"
    await forget_room(engines, "room")
    assert await list_rooms(engines) == ["room"]
    await engines.sales.delete("{room}:claim")
    await forget_room(engines, "room")
    assert await list_rooms(engines) == []
