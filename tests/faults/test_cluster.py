"""A cluster loses an engine in the middle of a sale: its replica takes over, the promises hold, and the rooms of the other shards go on."""

import asyncio
import json
import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import text

from app.composition import build_registry
from app.core.runtime import Runtime
from app.core.settings import Settings
from app.demo.__main__ import Signer
from app.demo.team import Team
from app.domains.inventory import service as inventory
from app.domains.orders import service as orders
from app.protocol.channels import user_channel
from app.storage.intake import list_rooms, outbox_key
from app.storage.work import Engines
from loadtests.product import running_product
from tests.faults.show import Show
from tests.support.auditor.stock import audit_stock
from tests.support.builders import open_room
from tests.support.clients import RawClient, raw_client
from tests.support.cluster import SHARDS, Cluster, running_cluster
from tests.support.runtime import TestRuntime
from tests.support.servers import Servers
from tests.support.shelf import Shelf
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

STOCK = 60
ROOMS_MAX = 40  # made at random until each shard has one


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    with running_cluster(appendfsync="always") as cluster:
        yield cluster


@pytest.fixture
async def show(own_cluster: Cluster, servers: Servers, runtime: TestRuntime) -> AsyncGenerator[Show]:
    settings = Settings(environment="development", redis_url=own_cluster.url, database_url=servers.postgres.url, data_dir=servers.data_dir)
    engines = Engines.connect(settings, runtime, build_registry())
    async with engines.sql.begin() as session:
        await session.execute(text("select clean_tables()"))
    room = await open_room(engines, offers=[("Tea", 500, 20)])
    yield Show(engines, servers, room, Shelf(engines, room.room_id, room.session_id))
    await engines.close()


async def test_a_replica_that_lagged_takes_over_a_shard(show: Show, own_cluster: Cluster) -> None:
    """What it lacks is void and told, what SQL has stands, nothing is sold twice; by the same engines, without a word from anybody."""
    lost = await own_cluster.holder_of(show.room.room_id)
    replica = own_cluster.engines[(lost + SHARDS) % (2 * SHARDS)]
    survives, ordered = await show.hold(1), await show.order(2)
    assert await show.engines.sales.line.call_together([("HLEN", show.room.room_id), ("WAIT", 1, 10_000)], show.room.room_id) == [0, 1]

    assert replica.process is not None
    replica.process.send_signal(signal.SIGSTOP)
    async with own_cluster.engines[lost].client as primary:
        await primary.execute_command("CLIENT", "KILL", "TYPE", "REPLICA")  # what comes now is the tail that the replica lacks
    fresh, gone = await show.order(3), await show.hold(4)
    await show.work()
    own_cluster.engines[lost].kill()
    replica.process.send_signal(signal.SIGCONT)
    await own_cluster.wait_for_another(show.room.room_id, lost)

    assert (await show.shelf.reserve(show.offer, viewer="v9", key="k9")).outcome == "frozen"
    await show.work()
    assert await show.stock() == (17, 1, 2, 0)
    assert await show.audit() == []
    states = {order: (await orders.find_order(show.engines, order)).state for order in (ordered, fresh)}  # type: ignore[union-attr]
    assert states == {ordered: "placed", fresh: "placed"}
    assert [(event["hold"], event["outcome"]) for event in await show.told(user_channel("v4"), "hold.ended")] == [(gone, "void")]
    assert await show.hold(1) == survives
    left = [await show.shelf.reserve(show.offer, viewer=f"w{number}", key="all") for number in range(20)]
    assert [answer.outcome for answer in left] == ["held"] * 17 + ["exhausted"] * 3
    await show.work()
    assert await show.audit() == []


@dataclass(slots=True)
class Sale:
    """One room's offer, and what its viewers were told."""

    room: str
    offer: str
    client: RawClient
    held: dict[str, str] = field(default_factory=dict[str, str])  # key -> hold, as acknowledged
    is_over: bool = False

    def told(self) -> list[str]:
        """Types of the events on the room's stage."""
        return [publication["data"]["type"] for publication in self.client.publications(f"room:{self.room}")]

    async def sell(self) -> None:
        """One tap after the other, each with the same key until it has a final answer, until nothing is left."""
        number = 0
        while not self.is_over:
            key = f"k{number}"
            answer = await self._ask("inventory.reserve", {"offer": self.offer, "quantity": 1, "key": key})
            match answer.get("outcome"):
                case "held":
                    self.held[key] = answer["hold"]
                    number += 1
                case "exhausted":
                    self.is_over = True
                case _:  # frozen, or no final answer
                    await asyncio.sleep(0.05)

    async def _ask(self, method: str, data: dict[str, Any]) -> dict[str, Any]:
        reply = await self.client.command(rpc={"method": method, "data": data})
        if "error" in reply:
            assert reply["error"]["temporary"], reply
            return {}
        return reply["rpc"]["data"]


async def test_one_shard_fails_over_in_the_middle_of_three_sales(own_cluster: Cluster) -> None:
    """Real processes, sockets and kill -9. Each answer waits for the replica, so that nothing acknowledged can be lost."""
    environment = {"REDIS_URL": own_cluster.url, "JISHI_REPLICAS_MIN": "1", "JISHI_METHOD_RATES_FACTOR": "100"}
    with running_product(web=2, environment=environment) as product:
        found = json.loads(await asyncio.to_thread((product.data_dir / "run.json").read_text))
        assert found["redis_url"] == own_cluster.url, "no engine of its own"
        books = Engines.connect(Settings(redis_url=found["redis_url"], database_url=found["database_url"]), Runtime(), build_registry())
        signer = Signer(Settings(token_secret=product.secret))
        operator = Team(product.url, signer.token("operator", "Operator", roles=("operator",)))
        async with AsyncExitStack() as stack:
            stack.push_async_callback(books.close)
            stack.push_async_callback(operator.close)
            sales: dict[int, Sale] = {}
            for number in range(ROOMS_MAX):
                room = (await operator.post("/rooms", {"title": f"Tea {number}", "host_name": "Mei"}))["id"]
                shard = await own_cluster.holder_of(room)
                if shard in sales:
                    continue
                session = (await operator.post(f"/rooms/{room}/sessions", {"title": "Tea"}))["id"]
                offer = await operator.post(f"/sessions/{session}/offers", {"name": "Tea", "price_minor": 900, "total": STOCK})
                await operator.post(f"/sessions/{session}/go-live")
                client = await stack.enter_async_context(raw_client(product.url, signer.token(f"viewer-{number}", "Lin")))
                await client.subscribe(f"room:{room}")
                sales[shard] = Sale(room, offer["id"], client)
                if len(sales) == SHARDS:
                    break
            assert len(sales) == SHARDS
            await _fail_over_amid(own_cluster, sales)

            rooms = [sale.room for sale in sales.values()]
            assert sorted(rooms) == await list_rooms(books)

            async def is_quiet() -> bool:
                return not any([await books.sales.xlen(outbox_key(room)) for room in rooms])

            await wait_until(is_quiet, within_s=30)
            for sale in sales.values():
                stock = (await inventory.read_stock(books, sale.room))[sale.offer]
                assert (stock.available, stock.held) == (0, STOCK), "as many holds as stock, of which none is lost"
                assert len(set(sale.held.values())) == STOCK == len(sale.held)
                standing = await inventory.read_holds(books, list(sale.held.values()))
                assert {hold.state for hold in standing.values()} == {"held"}
                assert len(standing) == STOCK
                await wait_until(lambda sale=sale: "offer.sold_out" in sale.told(), within_s=30)
            assert await audit_stock(books, rooms) == []
            frozen = [sale.told().count("sales.frozen") for sale in sales.values()]
            assert sorted(frozen) == [0, 0, 1], "told to those whom it concerns"


async def _fail_over_amid(cluster: Cluster, sales: dict[int, Sale]) -> None:
    """Kills the engine of one sale when each has sold a few. The others sell on until it is taken over, and then all sell out."""
    (lost, broken), *others = sales.items()
    selling = [asyncio.create_task(sale.sell()) for sale in sales.values()]
    await wait_until(lambda: all(len(sale.held) >= 3 for sale in sales.values()), within_s=30)
    cluster.engines[lost].kill()
    before = {shard: len(sale.held) for shard, sale in others}
    assert await cluster.holder_of(broken.room) == lost, "nobody has taken over yet"
    await wait_until(lambda: all(len(sale.held) >= min(STOCK, before[shard] + 5) for shard, sale in others), within_s=30)
    assert await cluster.holder_of(broken.room) == lost, "so the others did not wait for it"
    await cluster.wait_for_another(broken.room, lost)
    sold = len(broken.held)
    cluster.engines[lost].start()  # comes back as a replica: before that no answer has the copy that was asked for
    async with asyncio.timeout(60):
        await asyncio.gather(*selling)
    assert sold < STOCK
