"""Channels with history on a real engine: offsets, epochs, once, transience, and what the nodes are sent."""

import asyncio

import pytest

from app.storage import presence
from app.storage.redis import blocking_client
from app.storage.streams import Delivered, Position, Publication, Streams, parse_push, push_channel
from app.storage.work import Engines
from tests.support.runtime import TestRuntime


@pytest.fixture
def streams(engines: Engines) -> Streams:
    return engines.streams


async def test_offsets_count_from_one_and_history_gives_what_came_after(streams: Streams) -> None:
    assert [await streams.publish("room:r", b"%d" % n) for n in (1, 2, 3)] == [1, 2, 3]
    everything, top = await streams.history("room:r")
    assert everything == [Delivered("room:r", n, top.epoch, b"%d" % n) for n in (1, 2, 3)]
    assert top.offset == 3
    assert (await streams.history("room:r", since_offset=1, limit=1))[0] == everything[1:2]
    assert (await streams.history("room:r", since_offset=3))[0] == []
    assert await streams.last("room:r", 2) == (everything[1:], top)


async def test_a_channel_without_a_life_gets_one_when_it_is_looked_at(streams: Streams) -> None:
    before = await streams.position("room:r")
    assert before.offset == 0
    assert before.epoch
    await streams.publish("room:r", b"1")
    assert await streams.position("room:r") == Position(before.epoch, 1)


async def test_channels_of_a_room_have_offsets_of_their_own(streams: Streams) -> None:
    await streams.publish("room:r", b"1")
    assert await streams.publish("chat:r", b"1") == 1
    assert await streams.publish("room:r", b"2") == 2


async def test_history_keeps_the_newest(engines: Engines, streams: Streams) -> None:
    kept = engines.settings.stage_history_events_max
    for start in range(0, kept + 20, 100):
        await streams.publish_all([Publication("room:r", b"1") for _ in range(min(100, kept + 20 - start))])
    publications, top = await streams.history("room:r")
    assert [one.offset for one in publications] == list(range(21, kept + 21))
    assert top.offset == kept + 20
    await streams.publish_all([Publication("chat:r", b"1") for _ in range(60)])
    assert len((await streams.history("chat:r"))[0]) == engines.settings.chat_history_messages_max


async def test_a_reading_has_no_offset_and_leaves_no_trace(streams: Streams) -> None:
    await streams.publish("room:r", b"1")
    assert await streams.publish("room:r", b"pulse", transient=True) == 0
    assert await streams.publish("room:r", b"2") == 2
    assert [one.data for one in (await streams.history("room:r"))[0]] == [b"1", b"2"]


async def test_once_publishes_once_and_tells_the_first_offset(streams: Streams) -> None:
    assert await streams.publish("room:r", b"1", once="a1") == 1
    assert await streams.publish("room:r", b"2") == 2
    assert await streams.publish("room:r", b"1", once="a1") == 1
    assert await streams.publish("room:r", b"3") == 3


async def test_nodes_get_one_message_a_call_in_the_order_of_offsets(engines: Engines, streams: Streams) -> None:
    client = blocking_client(engines.settings.redis_url)
    async with client.pubsub() as pubsub:
        await pubsub.ssubscribe(push_channel("r"))
        assert await pubsub.get_message(timeout=5) is not None
        await streams.publish("room:r", b"0", once="x")
        await streams.publish_all(
            [
                Publication("room:r", '{"t":"早\\n"}'.encode()),
                Publication("chat:r", b"1"),
                Publication("room:r", b"0", once="x"),  # not sent again
                Publication("room:r", b"2", transient=True),
            ]
        )
        first = await pubsub.get_message(timeout=5)
        second = await pubsub.get_message(timeout=5)
        assert await pubsub.get_message(timeout=0.05) is None
    await client.aclose()
    epochs = {channel: (await streams.position(channel)).epoch for channel in ("room:r", "chat:r")}
    assert [parse_push(message["data"]) for message in (first, second)] == [
        [Delivered("room:r", 1, epochs["room:r"], b"0")],
        [
            Delivered("room:r", 2, epochs["room:r"], '{"t":"早\\n"}'.encode()),
            Delivered("chat:r", 1, epochs["chat:r"], b"1"),
            Delivered("room:r", 0, epochs["room:r"], b"2"),
        ],
    ]


async def test_many_publishers_make_one_unbroken_line(streams: Streams) -> None:
    offsets = await asyncio.gather(*[streams.publish("room:r", b"%d" % n) for n in range(500)])
    assert sorted(offsets) == list(range(1, 501))
    publications, _ = await streams.history("room:r")
    by_offset = {offset: b"%d" % n for n, offset in enumerate(offsets)}
    assert all(by_offset[one.offset] == one.data for one in publications)


async def test_a_lost_meta_is_a_new_epoch_without_the_old_history(engines: Engines, streams: Streams) -> None:
    """Trap 11: else clients recover across a silent gap."""
    await streams.publish_all([Publication("room:r", b"1") for _ in range(3)])
    old = await streams.position("room:r")
    await engines.fanout.delete("{r}:meta:room:r")
    assert await streams.publish("room:r", b"4") == 1
    publications, top = await streams.history("room:r")
    assert top.epoch != old.epoch
    assert publications == [Delivered("room:r", 1, top.epoch, b"4")]


async def test_a_lost_meta_is_a_new_epoch_also_when_a_reader_comes_first(engines: Engines, streams: Streams) -> None:
    await streams.publish_all([Publication("room:r", b"1") for _ in range(3)])
    await engines.fanout.delete("{r}:meta:room:r")
    publications, top = await streams.history("room:r")
    assert (publications, top.offset) == ([], 0)
    assert await streams.publish("room:r", b"4") == 1
    assert [one.data for one in (await streams.history("room:r"))[0]] == [b"4"]


async def test_a_history_that_expired_is_recovered_from_not_at_all(engines: Engines, streams: Streams) -> None:
    await streams.publish_all([Publication("room:r", b"1") for _ in range(3)])
    await engines.fanout.delete("{r}:stream:room:r")
    publications, top = await streams.history("room:r", since_offset=1)
    assert (publications, top.offset) == ([], 3)
    assert await streams.publish("room:r", b"4") == 4


async def test_everything_of_a_channel_expires_some_day(engines: Engines, streams: Streams) -> None:
    await streams.publish("room:r", b"1", once="a")
    await streams.position("room:s")
    for key in await engines.fanout.keys("*"):
        assert await engines.fanout.ttl(key) > 0, key


# --- presence ------------------------------------------------------------------------------------------------------------------------


async def test_viewers_are_summed_over_the_nodes_that_live(engines: Engines, runtime: TestRuntime) -> None:
    await presence.record(engines, "r", "n1", 3, ["a", "b", "c"])
    runtime.advance(10_000)
    await presence.record(engines, "r", "n2", 2, ["c", "d"])
    assert await presence.viewers(engines, "r") == 5
    runtime.advance(5_000)
    assert await presence.viewers(engines, "r") == 2
    await presence.record(engines, "r", "n2", 0, [])
    assert await presence.viewers(engines, "r") == 0
    assert await presence.unique_viewers(engines, "r") == 4
    await presence.reset_unique(engines, "r")
    assert await presence.unique_viewers(engines, "r") == 0


async def test_positions_of_many_streams_in_one_trip(engines: Engines) -> None:
    """Several hash tags, one of them twice, on an engine that does not know the script yet."""
    streams = engines.streams
    await streams.publish("room:r", b"{}")
    await streams.publish("room:r", b"{}")
    await streams.publish("user:ann", b"{}")
    channels = ["room:r", "user:ann", "chat:r", "user:bob", "room:r"]
    found = await streams.positions(channels)
    assert [position.offset for position in found] == [2, 1, 0, 0, 2]
    assert found[0] == found[4]
    assert found == [await streams.position(channel) for channel in channels]
