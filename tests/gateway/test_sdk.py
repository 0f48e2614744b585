"""The real centrifuge-python against real nodes on real sockets: a client that we did not write decides whether we speak its protocol."""

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
    ClientState,
    ReplyError,
    SubscriptionEventHandler,
    SubscriptionState,
)

from app.protocol import codes
from app.protocol.channels import Kind
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


async def test_connect_subscribe_pipelined_push_and_call(node: Node, engines: Engines, token: Any, viewer: Any) -> None:
    ann = viewer(node, token("ann"))
    room, log = await ann.subscribe("room:r1")  # before connect: sent right behind it
    await ann.client.connect()
    await room.ready(5)
    assert [ctx.channel for ctx in ann.log.of("subscribed")] == ["user:ann"]
    [subscribed] = log.of("subscribed")
    assert subscribed.data == {"test": {"title": "tea"}}
    assert subscribed.recoverable
    await publish(engines, "room:r1", *range(50))
    await publish(engines, "user:ann", 7)
    await wait_until(lambda: len(log.offsets) == 50 and ann.log.offsets)
    assert log.of("publication") == [(number + 1, {"n": number}) for number in range(50)]
    assert ann.log.of("publication") == [(1, {"n": 7})]
    result = await ann.client.rpc("test.echo", {"text": "早"})
    assert result.data == {"outcome": "echoed", "text": "早", "by": "ann"}


@pytest.mark.parametrize(
    ("method", "data", "code"),
    [
        ("test.nothing", {}, 104),
        ("test.secret", {"text": "x"}, 103),
        ("test.echo", {"text": 5}, 107),
        ("test.echo", {"text": "x" * 21}, 107),
        ("test.echo", {"txet": "x"}, 107),
        ("test.echo", {}, 107),
    ],
)
async def test_calls_refused(node: Node, token: Any, viewer: Any, *, method: str, data: Any, code: int) -> None:
    ann = viewer(node, token("ann"))
    await ann.client.connect()
    with pytest.raises(ReplyError) as refusal:
        await ann.client.rpc(method, data)
    assert refusal.value.code == code


async def test_what_nobody_foresaw_is_a_temporary_error_100(node: Node, stage: Stage, token: Any, viewer: Any) -> None:
    stage.failure = RuntimeError("a bug")
    ann = viewer(node, token("ann"))
    await ann.client.connect()
    with pytest.raises(ReplyError) as refusal:
        await ann.client.rpc("test.echo", {"text": "x"})
    assert (refusal.value.code, refusal.value.temporary) == (100, True)
    assert "bug" not in refusal.value.message


async def test_recovers_what_it_missed_in_a_cut(node: Node, engines: Engines, token: Any, viewer: Any) -> None:
    ann = viewer(node, token("ann"))
    await ann.client.connect()
    room, log = await ann.subscribe("room:r1")
    await room.ready(5)
    await publish(engines, "room:r1", 1, 2)
    await publish(engines, "user:ann", 1)
    await wait_until(lambda: log.offsets == [1, 2] and ann.log.offsets == [1])
    for connection in list(node.hub.connections):
        connection.close(codes.FORCE_RECONNECT)
    await publish(engines, "room:r1", 3, 4)
    await publish(engines, "user:ann", 2)
    await wait_until(lambda: len(log.offsets) == 4 and len(ann.log.offsets) == 2)
    await publish(engines, "room:r1", 5)
    await wait_until(lambda: len(log.offsets) == 5)
    assert log.offsets == [1, 2, 3, 4, 5]
    assert ann.log.offsets == [1, 2]
    again = log.of("subscribed")[-1]
    assert (again.was_recovering, again.recovered) == (True, True)
    assert ann.log.of("subscribed")[-1].recovered


async def test_after_more_than_is_kept_it_starts_from_a_fresh_snapshot(
    nodes: Nodes, engines: Engines, stage: Stage, token: Any, viewer: Any
) -> None:
    engines.settings.stage_history_events_max = 5
    node = await nodes.start()
    ann = viewer(node, token("ann"))
    await ann.client.connect()
    room, log = await ann.subscribe("room:r1")
    await room.ready(5)
    await publish(engines, "room:r1", 1)
    await wait_until(lambda: log.offsets == [1])
    stage.snapshot = {"title": "honey"}
    node.hub.is_draining = True  # keeps her out
    for connection in list(node.hub.connections):
        connection.close(codes.FORCE_RECONNECT)
    await publish(engines, "room:r1", *range(2, 10))
    node.hub.rooms["r1"].feeds[Kind.ROOM].forget_reads()  # as after two seconds: until then its first snapshot is shared
    node.hub.is_draining = False
    await wait_until(lambda: len(log.of("subscribed")) == 2)
    again = log.of("subscribed")[-1]
    assert (again.was_recovering, again.recovered, again.data) == (True, False, {"test": {"title": "honey"}})
    await publish(engines, "room:r1", 10)
    await wait_until(lambda: len(log.offsets) == 2)
    assert log.offsets == [1, 10]


@pytest.mark.parametrize("code", [codes.FORCE_DISCONNECT, codes.CLOSE_PERMISSION_DENIED], ids=lambda code: str(code.number))
async def test_final_codes_are_final(node: Node, engines: Engines, token: Any, viewer: Any, code: codes.CloseCode) -> None:
    ann = viewer(node, token("ann"))
    await ann.client.connect()
    await engines.streams.control({"do": "disconnect", "user": "ann", "code": str(code.number)})
    await wait_until(lambda: ann.client.state == ClientState.DISCONNECTED)
    assert ann.log.of("disconnected") == [code.number]


@pytest.mark.parametrize("code", [codes.SHUTDOWN, codes.SLOW, codes.INSUFFICIENT_STATE], ids=lambda code: str(code.number))
async def test_reconnect_codes_bring_the_client_back(node: Node, token: Any, viewer: Any, code: codes.CloseCode) -> None:
    ann = viewer(node, token("ann"))
    await ann.client.connect()
    [connection] = node.hub.connections
    connection.close(code)
    await wait_until(lambda: len(ann.log.of("connected")) == 2)
    assert ann.log.of("disconnected") == []


@pytest.mark.parametrize(("bad_token", "code"), [("", 101), ("nonsense", 3500), ("a.b.c", 3500)])
async def test_connects_that_end_it(node: Node, viewer: Any, bad_token: str, code: int) -> None:
    ann = viewer(node, bad_token)
    await ann.client.connect()
    await wait_until(lambda: ann.client.state == ClientState.DISCONNECTED)
    assert ann.log.of("disconnected") == [code]


async def test_an_expired_token_makes_the_client_fetch_another(node: Node, runtime: Any, token: Any, viewer: Any) -> None:
    old = token("ann", ttl_s=10)
    runtime.advance(11_000)
    fresh = token("ann", ttl_s=3_600)

    async def get_token() -> str:
        return fresh

    ann = viewer(node, old, get_token=get_token)
    await ann.client.connect()
    await wait_until(lambda: ann.log.of("connected"))
    [connection] = node.hub.connections
    assert connection.caller.expires_at_s is not None


async def test_a_token_is_refreshed_before_it_ends(node: Node, runtime: Any, token: Any, viewer: Any) -> None:
    fetched: list[str] = []

    async def get_token() -> str:
        fetched.append(token("ann", ttl_s=3_600))
        return fetched[-1]

    ann = viewer(node, token("ann", ttl_s=1), get_token=get_token)
    await ann.client.connect()
    [connection] = node.hub.connections
    before = connection.caller.expires_at_s
    await wait_until(lambda: connection.caller.expires_at_s == before + 3_599)
    assert len(fetched) == 1
    assert connection.is_open


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


@pytest.mark.parametrize(("channel", "code"), [("room:nowhere", 102), ("staff:r1", 103), ("user:bob", 103), ("lobby:1", 102)])
async def test_subscribes_refused(node: Node, token: Any, viewer: Any, channel: str, code: int) -> None:
    ann = viewer(node, token("ann"))
    await ann.client.connect()
    subscription, log = await ann.subscribe(channel)
    await wait_until(lambda: subscription.state == SubscriptionState.UNSUBSCRIBED)
    assert log.of("unsubscribed") == [code]


async def test_the_teams_channel_is_for_the_team(node: Node, engines: Engines, token: Any, viewer: Any) -> None:
    host = viewer(node, token("host", roles=("host@r1",)))
    await host.client.connect()
    subscription, log = await host.subscribe("staff:r1")
    await subscription.ready(5)
    await publish(engines, "staff:r1", 1)
    await wait_until(lambda: log.offsets == [1])


async def test_unsubscribe_ends_it_and_subscribing_again_works(node: Node, engines: Engines, token: Any, viewer: Any) -> None:
    ann = viewer(node, token("ann"))
    await ann.client.connect()
    room, log = await ann.subscribe("room:r1")
    await room.ready(5)
    await room.unsubscribe()
    await wait_until(lambda: not node.hub.rooms["r1"].members)
    await publish(engines, "room:r1", 1)
    await room.subscribe()
    await room.ready(5)
    await publish(engines, "room:r1", 2)
    await wait_until(lambda: log.offsets == [1, 2])  # the SDK recovers across its own absence


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
    assert await listeners(engines) == 0
