"""A cluster as one line: who is asked, what happens when slots move, and that one shard's trouble is its own."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from redis.asyncio import Redis as AnyRedis
from redis.crc import key_slot
from redis.exceptions import ConnectionError as EngineConnectionError
from redis.exceptions import ResponseError

from app.core.runtime import Runtime
from app.core.settings import Settings
from app.storage.cluster import ClusterLine, is_cluster, places_of
from app.storage.durability import find_weaknesses
from app.storage.redis import Redis, Script, command_client
from app.storage.streams import Streams
from app.supervisor import SetupError, check_reachable
from tests.support.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]


@pytest.fixture
async def client(cluster: Cluster) -> AsyncGenerator[Redis]:
    client = command_client(cluster.url)
    for _, engine in await client.engines():
        await engine.flushall()
        await engine.script_flush()
    yield client
    await client.aclose()


def test_an_address_of_a_cluster_names_some_of_its_engines() -> None:
    assert is_cluster("rediss+cluster://one")
    assert not is_cluster("rediss://one")
    assert places_of("rediss+cluster://me:pw@one:7000, two?ssl_cert_reqs=none") == [
        "rediss://me:pw@one:7000?ssl_cert_reqs=none",
        "rediss://me:pw@two?ssl_cert_reqs=none",
    ]
    assert places_of("redis+cluster://one/") == ["redis://one/"]
    with pytest.raises(ValueError, match="names no engine"):
        places_of("redis+cluster://me:pw@")


def test_the_operator_hears_which_engines_do_not_answer(cluster: Cluster) -> None:
    check_reachable("REDIS_URL", f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster.engines[0].port}", 6379)
    with pytest.raises(SetupError, match=r"REDIS_URL: nothing answers at 127\.0\.0\.1 .*; nothing answers at 127\.0\.0\.1"):
        check_reachable("REDIS_URL", "redis+cluster://127.0.0.1:1,127.0.0.1:2", 6379)


async def test_each_command_goes_to_the_shard_of_its_key(client: Redis, cluster: Cluster) -> None:
    keys = [f"{{{room}}}:n" for room in cluster.rooms()]
    async with client.pipeline(transaction=False) as pipeline:
        for number, key in enumerate(keys * 3):
            pipeline.rpush(key, number)
        assert await pipeline.execute() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [await client.lrange(key, 0, -1) for key in keys] == [[b"0", b"3", b"6"], [b"1", b"4", b"7"], [b"2", b"5", b"8"]]
    assert [await engine.keys() for _, engine in await client.engines()] != [[], [], []]
    by_engine = {place: await engine.keys() for place, engine in await client.engines()}
    assert sorted(by_engine.values()) == sorted([key.encode()] for key in keys)
    assert all(by_engine[f"127.0.0.1:{engine.port}"] == [key.encode()] for engine, key in zip(cluster.engines, keys, strict=False))
    with pytest.raises(ValueError, match="names no key"):
        await client.dbsize()


async def test_a_transaction_is_of_one_shard(client: Redis, cluster: Cluster) -> None:
    here, there, _ = cluster.rooms()
    async with client.pipeline(transaction=True) as pipeline:
        pipeline.incr(f"{{{here}}}:n").incr(f"{{{here}}}:n").get(f"{{{here}}}:n")
        assert await pipeline.execute() == [1, 2, b"2"]
        pipeline.incr(f"{{{here}}}:n").incr(f"{{{there}}}:n")
        with pytest.raises(ResponseError):
            await pipeline.execute()
    assert await client.get(f"{{{here}}}:n") == b"2"


async def test_a_script_is_taught_to_each_shard(client: Redis, cluster: Cluster, tmp_path: Path) -> None:
    source = tmp_path / "add.lua"
    source.write_text("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    script = Script(source)
    calls = [([f"{{{room}}}:n"], [number]) for number, room in enumerate(cluster.rooms())]
    assert await script.call_all(client, calls) == [0, 1, 2]
    assert await script.call_all(client, calls) == [0, 2, 4]
    assert await script.call_replicated(client, *calls[2], replicas=1, wait_ms=2_000) == 6


async def _shard(client: Redis, room: str) -> tuple[AnyRedis, str, AnyRedis, str]:
    """The engine that holds the room, and another; each with its name in the cluster."""
    holder = (await client.line.engine_of(room)).name
    engines = dict(await client.engines())
    source = engines.pop(holder)
    target = next(iter(engines.values()))
    return source, await _own_name(source), target, await _own_name(target)


async def _own_name(engine: AnyRedis) -> str:
    return (await engine.execute_command("CLUSTER", "MYID")).decode()


async def test_a_slot_moves_under_way(client: Redis, cluster: Cluster) -> None:
    """First the key that has moved already is asked for where it is (ASK), then the whole slot (MOVED); nobody notices."""
    room = cluster.rooms()[0]
    slot, here, gone = key_slot(room.encode()), f"{{{room}}}:here", f"{{{room}}}:gone"
    await client.set(here, "1")
    await client.set(gone, "2")
    source, source_name, target, target_name = await _shard(client, room)
    host, port = target.line.name.split(":")  # type: ignore[attr-defined]  # our client
    await target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_name)
    await source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_name)
    await source.execute_command("MIGRATE", host, port, gone, 0, 1000)
    assert [await client.get(here), await client.get(gone)] == [b"1", b"2"]
    assert await client.line.call_each([("GET", here), ("GET", gone), ("GET", here)]) == [b"1", b"2", b"1"]
    with pytest.raises(ResponseError):  # what must be done together cannot be, in two places
        await client.line.call_together([("GET", here), ("GET", gone)])
    await source.execute_command("MIGRATE", host, port, here, 0, 1000)
    for engine in (target, source):
        await engine.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_name)
    assert await client.line.call_together([("GET", here), ("GET", gone)]) == [b"1", b"2"]
    assert (await client.line.engine_of(room)).name == f"{host}:{port}", "it is asked there at once from now on"

    await source.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", target_name)
    await target.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", source_name)
    await target.execute_command("MIGRATE", "127.0.0.1", source.line.name.split(":")[1], "", 0, 1000, "KEYS", here, gone)  # type: ignore[attr-defined]
    for engine in (source, target):
        await engine.execute_command("CLUSTER", "SETSLOT", slot, "NODE", source_name)
    assert await client.get(here) == b"1"


async def test_nobody_answers() -> None:
    line = ClusterLine("redis+cluster://127.0.0.1:1,127.0.0.1:2")
    with pytest.raises(EngineConnectionError):
        await line.call(("GET", "a"))
    assert [type(answer) for answer in await line.call_each([("GET", "a"), ("GET", "b")])] == [EngineConnectionError] * 2
    with pytest.raises(EngineConnectionError):
        await line.engines()
    await line.aclose()


async def test_the_streams_of_rooms_on_three_shards(client: Redis, cluster: Cluster) -> None:
    streams = Streams(client, Settings(), Runtime())
    channels = [f"room:{room}" for room in cluster.rooms()]
    for number in range(2):
        assert await asyncio.gather(*[streams.publish(channel, b"{}") for channel in channels]) == [number + 1] * 3
    assert [position.offset for position in await streams.positions(channels)] == [2, 2, 2]
    assert [(len(rows), top.offset) for rows, top in [await streams.history(channel) for channel in channels]] == [(2, 2)] * 3


async def test_one_shard_alone_is_not_the_product(cluster: Cluster) -> None:
    """An operator who names it as if it were the whole."""
    client = command_client(f"redis://127.0.0.1:{cluster.engines[0].port}")
    (*_, said) = await find_weaknesses(client)
    assert said.startswith("the sales engine has cluster-enabled yes, not no: rooms of the other shards cannot be reached")
    await client.aclose()


async def test_each_engine_says_what_is_weak_with_it(client: Redis) -> None:
    engines = await client.engines()
    place, first = engines[0]
    await first.config_set("appendfsync", "always")
    await first.config_set("cluster-require-full-coverage", "yes")
    try:
        found = await find_weaknesses(client)
    finally:
        await first.config_set("appendfsync", "everysec")
        await first.config_set("cluster-require-full-coverage", "no")
    power = "a power cut takes the last acknowledged holds and orders with it"
    others = "when one shard is away, the rooms of all others stop too"
    assert found == [
        f"the sales engine at {place} has cluster-require-full-coverage yes, not no: {others}",
        *(f"the sales engine at {other} has appendfsync everysec, not always: {power}" for other, _ in engines[1:]),
    ]
