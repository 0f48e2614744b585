"""The bus at a cluster: an ear at each shard, and what it does when a slot moves away from one."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest
from redis.crc import key_slot

from app.core.runtime import Runtime
from app.core.settings import Settings
from app.gateway.bus import Bus
from app.storage.redis import Redis, command_client
from app.storage.streams import Streams, parse_push, push_channel
from tests.support.cluster import Cluster
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]


@dataclass
class Heard:
    pushes: list[str] = field(default_factory=list[str])
    controls: list[bytes] = field(default_factory=list[bytes])
    returns: int = 0

    def on_push(self, message: bytes) -> None:
        self.pushes += [one.data.decode() for one in parse_push(message)]

    def on_return(self) -> None:
        self.returns += 1


@pytest.fixture
async def client(cluster: Cluster) -> AsyncGenerator[Redis]:
    client = command_client(cluster.url)
    yield client
    await client.aclose()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
async def bus(client: Redis, heard: Heard) -> AsyncGenerator[Bus]:
    bus = Bus(client.line, silence_s=1, on_push=heard.on_push, on_control=heard.controls.append, on_return=heard.on_return)
    running = asyncio.create_task(bus.run())
    await wait_until(lambda: bus.is_connected)
    yield bus
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_rooms_of_all_shards_are_heard_as_long_as_wanted(bus: Bus, client: Redis, cluster: Cluster, heard: Heard) -> None:
    streams = Streams(client, Settings(), Runtime())
    rooms = cluster.rooms()
    await asyncio.gather(*[bus.open(push_channel(room)) for room in rooms])
    for room in rooms:
        await streams.publish(f"room:{room}", f'"{room}"'.encode())
    await streams.control({"do": "recount"})
    await wait_until(lambda: len(heard.pushes) == len(rooms) and len(heard.controls) == 1)
    assert sorted(heard.pushes) == sorted(f'"{room}"' for room in rooms)
    assert [bus.lost_s_of(push_channel(room)) for room in rooms] == [0.0] * 3

    await bus.shut(push_channel(rooms[0]))
    assert not bus.is_open(push_channel(rooms[0]))
    for room in rooms:
        await streams.publish(f"room:{room}", b'"again"')
    await wait_until(lambda: heard.pushes.count('"again"') == 2)


async def test_an_ear_follows_a_slot_that_moves(bus: Bus, client: Redis, cluster: Cluster, heard: Heard) -> None:
    """Whoever listened there may have missed something: the hub is told once it is heard again."""
    room = cluster.rooms()[1]
    channel, slot = push_channel(room), key_slot(room.encode())
    await bus.open(channel)
    engines = dict(await client.engines())
    source = engines.pop((await client.line.engine_of(room)).name)
    target = next(iter(engines.values()))
    names = {engine: (await engine.execute_command("CLUSTER", "MYID")).decode() for engine in (source, target)}
    await source.flushall()  # an empty slot moves at once
    for there in (target, source):
        returns = heard.returns
        back = source if there is target else target
        await there.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[back])
        await back.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[there])
        for engine in (there, back):
            await engine.execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[there])
        await wait_until(lambda returns=returns: heard.returns > returns and bus.is_open(channel))
        assert (await client.line.engine_of(room)).name == there.line.name
        await there.spublish(channel, b'room:x\nepoch\n0\n1\n"moved"')
        await wait_until(lambda: '"moved"' in heard.pushes)
        heard.pushes.clear()
