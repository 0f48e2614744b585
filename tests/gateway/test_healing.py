"""What a node does when it may have missed something: gaps, a lost bus, an engine that was killed, a stream that began anew."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from app.core.registry import Registry
from app.core.settings import Settings
from app.domains.chat.store import hide_message
from app.protocol.channels import user_bucket
from app.storage.embedded import Valkey
from app.storage.streams import Delivered, Streams
from app.storage.work import Engines
from tests.gateway.conftest import Node, Nodes
from tests.support.clients import RawClient, raw_client
from tests.support.runtime import TestRuntime
from tests.support.waiting import wait_until


def offsets(client: RawClient, channel: str) -> list[int]:
    return [one.get("offset", 0) for one in client.publications(channel)]


async def quietly(engines: Engines, channel: str) -> None:
    """Publishes without telling the nodes, as when pub/sub lost a message."""
    tag = channel.partition(":")[2]
    meta, stream = f"{{{tag}}}:meta:{channel}", f"{{{tag}}}:stream:{channel}"
    offset = await engines.fanout.hincrby(meta, "offset", 1)
    await engines.fanout.xadd(stream, {"d": b"{}"}, id=f"0-{offset}")


async def test_a_gap_on_the_bus_is_healed_from_history(node: Node, engines: Engines, token: Any) -> None:
    async with raw_client(node.http, token()) as client:
        await client.subscribe("room:r1")
        await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: offsets(client, "room:r1") == [1])
        await quietly(engines, "room:r1")
        await quietly(engines, "room:r1")
        await engines.streams.publish("room:r1", b"{}")
        await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: len(offsets(client, "room:r1")) == 5)
        assert offsets(client, "room:r1") == [1, 2, 3, 4, 5]


async def test_a_history_that_cannot_be_read_starts_viewers_afresh(node: Node, engines: Engines, token: Any) -> None:
    """The healing ended in the midst of it, and the channel stayed silent: what came was held for a healing that never came."""
    async with raw_client(node.http, token()) as client:
        await client.subscribe("chat:r1")
        await hide_message(engines, "r1", "r1-1")
        await quietly(engines, "chat:r1")  # no event of ours; it is looked into, since something was deleted
        await engines.streams.publish("chat:r1", b"{}")
        await wait_until(lambda: client.pushes)
        assert client.pushes[0]["unsubscribe"]["code"] == 2500
        await client.subscribe("chat:r1")
        await engines.streams.publish("chat:r1", b"{}")
        await wait_until(lambda: offsets(client, "chat:r1") == [3])


async def test_a_gap_that_history_no_longer_has_starts_viewers_afresh(node: Node, engines: Engines, token: Any) -> None:
    async with raw_client(node.http, token()) as client:
        await client.subscribe("room:r1")
        await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: offsets(client, "room:r1") == [1])
        await quietly(engines, "room:r1")
        await engines.fanout.delete("{r1}:stream:room:r1")
        await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: len(client.pushes) == 2)
        assert client.pushes[1] == {"channel": "room:r1", "unsubscribe": {"code": 2500, "reason": "insufficient state"}}
        again = await client.subscribe("room:r1", recover=True, offset=1, epoch="x")
        assert (again.get("recovered", False), again["offset"]) == (False, 3)
        await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: offsets(client, "room:r1") == [1, 4])


async def test_a_stream_that_began_anew_starts_viewers_afresh(node: Node, engines: Engines, token: Any) -> None:
    async with raw_client(node.http, token()) as client:
        await client.subscribe("room:r1")
        for _ in range(3):
            await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: offsets(client, "room:r1") == [1, 2, 3])
        await engines.fanout.delete("{r1}:meta:room:r1")
        await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: len(client.pushes) == 4)
        assert client.pushes[3]["unsubscribe"]["code"] == 2500
        again = await client.subscribe("room:r1")
        assert again["offset"] == 1
        await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: offsets(client, "room:r1") == [1, 2, 3, 2])


async def test_whoever_subscribes_first_to_a_new_life_tells_the_node(node: Node, engines: Engines, token: Any) -> None:
    """The engine was emptied, the bus did not notice, and nobody has published since."""
    async with raw_client(node.http, token("ann")) as ann, raw_client(node.http, token("bob")) as bob:
        await ann.subscribe("room:r1")
        await engines.fanout.delete("{r1}:meta:room:r1")
        node.hub.rooms["r1"].feeds["room"].reads.forget()  # type: ignore[index]
        await bob.subscribe("room:r1")
        await wait_until(lambda: ann.pushes)
        assert ann.pushes[0]["unsubscribe"]["code"] == 2500
        await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: offsets(bob, "room:r1") == [1])


@pytest.mark.parametrize("kept", [True, False])
async def test_a_position_check_finds_what_nobody_noticed(node: Node, engines: Engines, token: Any, kept: bool) -> None:
    async with raw_client(node.http, token()) as client:
        await client.subscribe("room:r1")
        await quietly(engines, "room:r1")
        if not kept:
            await engines.fanout.delete("{r1}:stream:room:r1")
        feed = node.hub.feed_of("room:r1")
        assert feed is not None
        await node.hub.healing.check_position(feed)
        if kept:
            await wait_until(lambda: offsets(client, "room:r1") == [1])
        else:
            await wait_until(lambda: client.pushes)
            assert client.pushes[0]["disconnect"]["code"] == 3010


async def set_back(engines: Engines, channel: str, offset: int) -> None:
    """As an engine that came back without its last second: an older top of the same life."""
    tag = channel.partition(":")[2]
    await engines.fanout.hset(f"{{{tag}}}:meta:{channel}", "offset", str(offset))
    await engines.fanout.delete(f"{{{tag}}}:stream:{channel}")


@pytest.mark.parametrize("noticed_by", ["the bus", "the check"])
async def test_a_stream_that_was_set_back_starts_viewers_afresh(node: Node, engines: Engines, token: Any, noticed_by: str) -> None:
    """New events got the offsets of the lost ones, and the node took them for repetitions: nobody saw them."""
    async with raw_client(node.http, token()) as client:
        await client.subscribe("room:r1")
        for _ in range(3):
            await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: offsets(client, "room:r1") == [1, 2, 3])
        await set_back(engines, "room:r1", 1)
        if noticed_by == "the bus":
            await engines.fanout.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await wait_until(lambda: len(client.pushes) == 4)
            assert client.pushes[3]["unsubscribe"]["code"] == 2500
            assert (await client.subscribe("room:r1", recover=True, offset=3, epoch="x"))["offset"] == 1
            await engines.streams.publish("room:r1", b"{}")
            await wait_until(lambda: offsets(client, "room:r1") == [1, 2, 3, 2])
        else:
            feed = node.hub.feed_of("room:r1")
            assert feed is not None
            await node.hub.healing.check_position(feed)
            await wait_until(lambda: len(client.pushes) == 4)
            assert client.pushes[3]["disconnect"]["code"] == 3010


async def test_a_channel_given_up_during_the_check_of_another_goes_on(
    node: Node, engines: Engines, token: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many are checked in one trip and healed in turn. One that was given up meanwhile was marked as healing by nobody."""
    async with raw_client(node.http, token()) as client:
        for room in ("r1", "r2"):
            await client.subscribe(f"room:{room}")
            await quietly(engines, f"room:{room}")
        feeds = [feed for room in ("r1", "r2") if (feed := node.hub.feed_of(f"room:{room}"))]
        history = Streams.history

        async def given_up(streams: Streams, channel: str, **options: Any) -> Any:
            if channel == "room:r1":
                node.hub.give_up(feeds[1])
            return await history(streams, channel, **options)

        monkeypatch.setattr(Streams, "history", given_up)
        await node.hub.healing.check_position(*feeds)
        await wait_until(lambda: any("unsubscribe" in push for push in client.pushes))
        assert (await client.subscribe("room:r2"))["offset"] == 1
        await engines.streams.publish("room:r2", b"{}")
        await wait_until(lambda: offsets(client, "room:r2") == [2])


async def test_a_position_check_of_a_quiet_channel_does_nothing(node: Node, engines: Engines, token: Any) -> None:
    async with raw_client(node.http, token()) as client:
        await client.subscribe("room:r1")
        await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: offsets(client, "room:r1") == [1])
        feed = node.hub.feed_of("room:r1")
        assert feed is not None
        await node.hub.healing.check_position(feed)
        assert not feed.channel.is_healing


async def test_positions_are_checked_by_themselves(nodes: Nodes, engines: Engines, token: Any) -> None:
    node = await nodes.start(position_check_s=1)
    async with raw_client(node.http, token()) as client:
        await client.subscribe("room:r1")
        await quietly(engines, "room:r1")
        await wait_until(lambda: offsets(client, "room:r1") == [1], within_s=30)


async def test_a_channel_that_cannot_be_read_hides_no_other_from_the_check(nodes: Nodes, engines: Engines, token: Any) -> None:
    """Positions are read many in one trip, and one failure fails the trip."""
    node = await nodes.start(position_check_s=1)
    async with raw_client(node.http, token("ann")) as client:
        await client.subscribe("room:r1")
        await engines.fanout.set(f"{{{user_bucket('ann')}}}:meta:user:ann", "no hash")
        await quietly(engines, "room:r1")
        await wait_until(lambda: offsets(client, "room:r1") == [1], within_s=30)


async def test_a_lost_bus_connection_comes_back_without_a_gap(node: Node, engines: Engines, token: Any) -> None:
    async with raw_client(node.http, token()) as client:
        await client.subscribe("room:r1")
        await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: offsets(client, "room:r1") == [1])
        await engines.fanout.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        for _ in range(3):
            await engines.streams.publish("room:r1", b"{}")
            await engines.streams.publish("user:ann", b"{}")
        await wait_until(lambda: len(offsets(client, "room:r1")) == 4 and len(offsets(client, "user:ann")) == 3)
        await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: len(offsets(client, "room:r1")) == 5)
        assert offsets(client, "room:r1") == [1, 2, 3, 4, 5]
        assert offsets(client, "user:ann") == [1, 2, 3]


# --- an engine of its own, to be killed ----------------------------------------------------------------------------------------------


@pytest.fixture
async def mortal(settings: Settings, runtime: TestRuntime, registry: Registry) -> AsyncGenerator[tuple[Valkey, Engines]]:
    data_dir = Path(tempfile.mkdtemp(prefix="jishi-test-"))  # a socket's path must be short
    valkey = Valkey(data_dir, appendfsync="everysec")
    valkey.start()
    engines = Engines.connect(settings.model_copy(update={"redis_url": valkey.url}), runtime, registry)
    yield valkey, engines
    await engines.close()
    valkey.stop()
    shutil.rmtree(data_dir)


async def test_a_killed_engine_comes_back_and_viewers_go_on(mortal: tuple[Valkey, Engines], token: Any) -> None:
    valkey, engines = mortal
    async with AsyncExitStack() as stack:
        node = await Nodes(engines, stack).start()
        async with raw_client(node.http, token()) as client:
            await client.subscribe("room:r1")
            await engines.streams.publish("room:r1", b"{}")
            await wait_until(lambda: offsets(client, "room:r1") == [1])
            valkey.kill()
            refused = await client.command(subscribe={"channel": "room:r2"})
            assert refused["error"]["temporary"] is True
            await asyncio.to_thread(valkey.start)
            await engines.streams.publish("room:r1", b"{}")
            await wait_until(lambda: offsets(client, "room:r1") == [1, 2], within_s=10)
            assert "error" not in await client.command(subscribe={"channel": "room:r2"})
            assert not [push for push in client.pushes if "unsubscribe" in push]


async def test_an_engine_that_comes_back_empty_starts_everybody_afresh(mortal: tuple[Valkey, Engines], token: Any) -> None:
    _, engines = mortal
    async with AsyncExitStack() as stack:
        node = await Nodes(engines, stack).start()
        async with raw_client(node.http, token()) as client:
            await client.subscribe("room:r1")
            await engines.streams.publish("room:r1", b"{}")
            await wait_until(lambda: offsets(client, "room:r1") == [1])
            await engines.fanout.flushall()
            await engines.fanout.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await wait_until(lambda: len(client.pushes) >= 3)
            assert client.pushes[1]["unsubscribe"]["code"] == 2500
            assert client.pushes[2]["disconnect"]["code"] == 3010  # the own channel cannot be taken away alone


async def test_what_a_channel_takes_and_holds_while_it_heals(node: Node, engines: Engines, token: Any) -> None:
    async with raw_client(node.http, token()) as client:
        await client.subscribe("chat:r1")
        position = await engines.streams.position("chat:r1")
        feed = node.hub.feed_of("chat:r1")
        assert feed is not None
        for _ in range(3):
            await quietly(engines, "chat:r1")
        node.hub.take(feed, Delivered("chat:r1", 3, position.epoch, b"{}"))
        await wait_until(lambda: offsets(client, "chat:r1") == [1, 2, 3])
