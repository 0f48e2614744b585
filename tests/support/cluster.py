"""A cluster of the embedded engine: three shards, each a primary with a replica, on ports of loopback alone."""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from redis.asyncio import Redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import RedisError

from app.storage.embedded import Valkey
from loadtests.product import free_port
from tests.support.servers import run_apart
from tests.support.waiting import wait_until

SHARDS = 3
NODE_TIMEOUT_MS = 1500  # until the others take a silent engine for dead: its replica takes over about a second later
LIMIT_S = 30


class ClusterValkey(Valkey):
    """Shares the rules of the embedded engine, and listens on a port besides its socket: those of a cluster know each other by ports."""

    def __init__(self, data_dir: Path, *, appendfsync: str) -> None:
        super().__init__(data_dir, appendfsync=appendfsync)
        self.port, self.bus_port = free_port(), free_port()

    def command(self) -> list[str]:
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "cluster-enabled": "yes",
            "cluster-port": str(self.bus_port),
            "cluster-node-timeout": str(NODE_TIMEOUT_MS),
            "cluster-require-full-coverage": "no",
            "cluster-replica-validity-factor": "0",
            "repl-diskless-sync-delay": "0",
        }
        return [*super().command(), *(word for name, value in options.items() for word in (f"--{name}", value))]

    @property
    def client(self) -> Redis:
        return Redis(port=self.port, single_connection_client=True)


@dataclass(slots=True)
class Cluster:
    engines: list[ClusterValkey]  # first the primaries of the start, then their replicas in the same order

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{engine.port}" for engine in self.engines[:SHARDS])

    async def holder_of(self, room_id: str) -> int:
        """The number of the engine that serves a room now, as those say that run."""
        slot = key_slot(room_id.encode())
        for engine in self.engines:
            if not engine.is_running:
                continue
            async with engine.client as client:
                for first, last, (_, port, *_), *_ in await client.execute_command("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return next(number for number, one in enumerate(self.engines) if one.port == port)
        raise AssertionError(f"nobody holds {room_id}")

    async def wait_for_another(self, room_id: str, lost: int) -> int:
        async def is_taken_over() -> bool:
            return await self.holder_of(room_id) != lost

        await wait_until(is_taken_over, within_s=LIMIT_S)
        return await self.holder_of(room_id)

    def rooms(self) -> list[str]:
        """A made-up room id for each shard of the start."""
        return [
            next(name for name in map("room{}".format, range(1000)) if first <= key_slot(name.encode()) < end) for first, end in _ranges()
        ]


def _ranges() -> list[tuple[int, int]]:
    """The slots of each shard: first, end."""
    return list(pairwise(REDIS_CLUSTER_HASH_SLOTS * number // SHARDS for number in range(SHARDS + 1)))


@contextmanager
def running_cluster(*, appendfsync: str = "everysec") -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="jishi-test-"))
    cluster = Cluster([ClusterValkey(folder / f"engine{number}", appendfsync=appendfsync) for number in range(SHARDS * 2)])
    try:
        for engine in cluster.engines:
            engine.start()
        run_apart(_join(cluster))
        yield cluster
    finally:
        for engine in cluster.engines:
            engine.stop()
            shutil.rmtree(engine.socket_path.parent, ignore_errors=True)
        shutil.rmtree(folder)


async def _join(cluster: Cluster) -> None:
    clients = [engine.client for engine in cluster.engines]
    try:
        for engine in cluster.engines[1:]:
            await clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", engine.port, engine.bus_port)
        for client, (first, end) in zip(clients, _ranges(), strict=False):
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        names = [(await client.execute_command("CLUSTER", "MYID")).decode() for client in clients]
        for client, primary in zip(clients[SHARDS:], names, strict=False):
            await wait_until(lambda client=client, primary=primary: _follows(client, primary), within_s=LIMIT_S)
        for client in clients:
            await wait_until(lambda client=client: _is_whole(client), within_s=LIMIT_S)
    finally:
        await asyncio.gather(*[client.aclose() for client in clients])


async def _follows(client: Redis, primary: str) -> bool:
    """Refused until it has heard of the primary."""
    try:
        await client.execute_command("CLUSTER", "REPLICATE", primary)
    except RedisError:
        return False
    return True


async def _is_whole(client: Redis) -> bool:
    role = await client.role()
    is_linked = role[0] == b"master" or role[3] == b"connected"
    slots = await client.execute_command("CLUSTER", "SLOTS")
    return is_linked and len(slots) == SHARDS and all(len(shard) == 4 for shard in slots)
