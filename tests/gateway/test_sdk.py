"""Rooms on real nodes as an SDK sees them: several nodes, late comers, staff, counts. How SDKs fare with the protocol is in tests/sdk/."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from centrifuge import (
    CentrifugeError,
    Client,
    ClientEventHandler,
    ReplyError,
    SubscriptionEventHandler,
)

from app.storage import presence
from app.storage.streams import push_channel
from app.storage.work import Engines
from tests.gateway.conftest import Node, Nodes, Stage
from tests.support.waiting import wait_until


class Log(ClientEventHandler, SubscriptionEventHandler):
    """Everything that the SDK told the application, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    async def on_connected(self, ctx: Any) -> None:
        self.events.append(("connected", ctx.client))

    async def on_connecting(self, ctx: Any) -> None:
        self.events.append(("connecting", ctx.code))

    async def on_disconnected(self, ctx: Any) -> None:
        self.events.append(("disconnected", ctx.code))

    async def on_error(self, ctx: Any) -> None:
        self.events.append(("error", ctx.error))

    async def on_subscribed(self, ctx: Any) -> None:
        self.events.append(("subscribed", ctx))

    async def on_unsubscribed(self, ctx: Any) -> None:
        self.events.append(("unsubscribed", ctx.code))

    async def on_publication(self, ctx: Any) -> None:
        self.events.append(("publication", (ctx.pub.offset, ctx.pub.data)))

    def of(self, name: str) -> list[Any]:
        return [value for kind, value in self.events if kind == name]

    @property
    def offsets(self) -> list[int]:
        return [offset for offset, _ in self.of("publication")]


class Viewer:
    def __init__(self, node: Node, token: str, **options: Any) -> None:
        self.log = Log()
        self.client = Client(
            node.ws, events=self.log, token=token, proxy=None, min_reconnect_delay=0.01, max_reconnect_delay=0.1, **options
        )

    async def subscribe(self, channel: str) -> tuple[Any, Log]:
        log = Log()
        subscription = self.client.new_subscription(channel, events=log, min_resubscribe_delay=0.01, max_resubscribe_delay=0.1)
        await subscription.subscribe()
        return subscription, log


@pytest.fixture
async def viewer() -> AsyncGenerator[Callable[..., Viewer]]:
    async with AsyncExitStack() as stack:

        def make(node: Node, token: str, **options: Any) -> Viewer:
            one = Viewer(node, token, **options)
            stack.push_async_callback(_leave, one)
            return one

        yield make


async def _leave(one: Viewer) -> None:
    await one.client.disconnect()
    await wait_until(lambda: not [task for task in asyncio.all_tasks() if "centrifuge" in str(task.get_coro())])


async def publish(engines: Engines, channel: str, *numbers: int) -> None:
    for number in numbers:
        await engines.streams.publish(channel, json.dumps({"n": number}).encode())


async def test_what_nobody_foresaw_is_a_temporary_error_100(node: Node, stage: Stage, token: Any, viewer: Any) -> None:
    stage.failure = RuntimeError("a bug")
    ann = viewer(node, token("ann"))
    await ann.client.connect()
    with pytest.raises(ReplyError) as refusal:
        await ann.client.rpc("test.echo", {"text": "x"})
    assert (refusal.value.code, refusal.value.temporary) == (100, True)
    assert "bug" not in refusal.value.message


async def test_two_nodes_share_a_room(nodes: Nodes, engines: Engines, token: Any, viewer: Any) -> None:
    first, second = await nodes.start(), await nodes.start()
    logs = []
    for node, name in ((first, "ann"), (second, "bob")):
        one = viewer(node, token(name))
        await one.client.connect()
        subscription, log = await one.subscribe("room:r1")
        await subscription.ready(5)
        logs.append(log)
    await asyncio.gather(*[engines.streams.publish("room:r1", b'{"n":1}') for _ in range(200)])
    await wait_until(lambda: all(len(log.offsets) == 200 for log in logs))
    assert logs[0].offsets == logs[1].offsets == list(range(1, 201))


async def test_nothing_is_lost_or_doubled_by_those_who_join_under_load(node: Node, engines: Engines, token: Any, viewer: Any) -> None:
    """The first offset that each late comer gets is the one after its snapshot, and from there on all come once."""
    stop = asyncio.Event()

    async def talk() -> None:
        while not stop.is_set():
            await engines.streams.publish("room:r1", b'{"n":1}')
            await asyncio.sleep(0.001)

    talking = asyncio.create_task(talk())
    logs = []
    for number in range(12):
        one = viewer(node, token(f"v{number}"))
        await one.client.connect()
        subscription, log = await one.subscribe("room:r1")
        await subscription.ready(5)
        logs.append(log)
    stop.set()
    await talking
    await engines.streams.publish("room:r1", b'{"n":2}')  # something comes for the one who came last, too
    last = (await engines.streams.position("room:r1")).offset
    await wait_until(lambda: all(log.offsets and log.offsets[-1] == last for log in logs))
    for log in logs:
        start = log.of("subscribed")[0].stream_position.offset
        assert log.offsets == list(range(start + 1, last + 1))


async def test_the_teams_channel_is_for_the_team(node: Node, engines: Engines, token: Any, viewer: Any) -> None:
    host = viewer(node, token("host", roles=("host@r1",)))
    await host.client.connect()
    subscription, log = await host.subscribe("staff:r1")
    await subscription.ready(5)
    await publish(engines, "staff:r1", 1)
    await wait_until(lambda: log.offsets == [1])


async def test_history_and_presence(node: Node, engines: Engines, token: Any, viewer: Any) -> None:
    ann = viewer(node, token("ann"))
    await ann.client.connect()
    room, _ = await ann.subscribe("room:r1")
    await room.ready(5)
    await publish(engines, "room:r1", 1, 2, 3)
    history = await room.history(limit=2)
    assert [one.offset for one in history.publications] == [1, 2]
    assert history.offset == 3
    newest = await room.history(limit=1, reverse=True)
    assert [one.offset for one in newest.publications] == [3]
    assert (await room.history(limit=0)).publications == []
    await wait_until(lambda: node.hub.rooms["r1"].presence_count == 1)
    stats = await room.presence_stats()
    assert (stats.num_clients, stats.num_users) == (1, 1)
    with pytest.raises(CentrifugeError):
        await room.presence()
    with pytest.raises(ReplyError) as refusal:
        await room.publish({"text": "x"})
    assert refusal.value.code == 103


async def test_a_new_session_counts_the_viewers_who_are_there_already(node: Node, engines: Engines, token: Any, viewer: Any) -> None:
    """A crowd that came before the show once vanished from its unique viewers: the reset forgot it and nobody named it again."""
    ann = viewer(node, token("ann"))
    await ann.client.connect()
    room, _ = await ann.subscribe("room:r1")
    await room.ready(5)
    await wait_until(lambda: presence.unique_viewers(engines, "r1"))
    await presence.reset_unique(engines, "r1")
    assert await wait_until(lambda: presence.unique_viewers(engines, "r1")) == 1


async def listeners(engines: Engines) -> int:
    return dict(await engines.fanout.pubsub_shardnumsub(push_channel("r1")))[push_channel("r1").encode()]


async def test_a_room_is_one_subscription_a_node_while_somebody_is_there(node: Node, engines: Engines, token: Any, viewer: Any) -> None:
    people = [viewer(node, token(name)) for name in ("ann", "bob")]
    for one in people:
        await one.client.connect()
        subscription, _ = await one.subscribe("room:r1")
        await subscription.ready(5)
    assert await listeners(engines) == 1
    for one in people:
        await one.client.disconnect()
    await wait_until(lambda: "r1" not in node.hub.rooms)

    async def nobody_listens() -> bool:
        return await listeners(engines) == 0

    await wait_until(nobody_listens)
