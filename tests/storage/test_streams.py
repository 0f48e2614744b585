"""Channels with history on a real engine: offsets, epochs, once, transience, and what the nodes are sent."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from app.core.errors import AppError
from app.protocol.codes import INTERNAL
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
    client = blocking_client(engines.fanout.line.options)
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


# --- chat gathers, and one channel's trouble is its own ---------------------------------------------------------------------------------


async def bus_messages(engines: Engines, tag: str, do: Awaitable[Any]) -> list[list[Delivered]]:
    """What nodes are sent while something is done, message by message."""
    client = blocking_client(engines.fanout.line.options)
    async with client.pubsub() as pubsub:
        await pubsub.ssubscribe(push_channel(tag), push_channel("end"))
        assert [await pubsub.get_message(timeout=5) for _ in range(2)]
        await do
        await engines.fanout.execute_command("SPUBLISH", push_channel("end"), b"")
        messages = []
        while (message := await pubsub.get_message(timeout=5))["channel"] != push_channel("end").encode():
            messages.append(parse_push(message["data"]))
    await client.aclose()
    return messages


async def test_chat_travels_in_batches_and_the_stage_at_once(engines: Engines, runtime: TestRuntime) -> None:
    streams = Streams(engines.fanout, engines.settings.model_copy(update={"chat_gather_ms": 60_000, "group_commit_batch_max": 50}), runtime)

    async def talk() -> None:
        assert await streams.publish("chat:r", b"0") == 1  # a quiet room's line leaves at once
        lines = [asyncio.create_task(streams.publish("chat:r", b"%d" % number)) for number in range(1, 51)]
        assert await streams.publish("room:r", b"stage") == 1  # though the window is open
        assert await asyncio.gather(*lines) == list(range(2, 52))

    messages = await bus_messages(engines, "r", talk())
    assert sorted(len(message) for message in messages) == [1, 1, 50]
    chat = [one for message in messages for one in message if one.channel == "chat:r"]
    assert [(one.offset, one.data) for one in chat] == [(number + 1, b"%d" % number) for number in range(51)]


async def test_a_channel_whose_keys_hold_something_else_fails_alone(engines: Engines, streams: Streams) -> None:
    """The script raised in the midst of its work, and the others' publications were kept but never sent."""
    await engines.fanout.set("{r}:stream:room:r", b"no stream")
    mixed = [Publication("staff:r", b"1", once="a"), Publication("room:r", b"2", once="b"), Publication("staff:r", b"3")]
    with pytest.raises(AppError) as failure:
        await streams.publish_all(mixed)
    assert failure.value.code is INTERNAL
    assert [one.data for one in (await streams.history("staff:r"))[0]] == [b"1", b"3"]
    await engines.fanout.delete("{r}:stream:room:r")
    await streams.publish_all(mixed[:2])  # again: what was done is not done twice, what was not is done
    assert [one.data for one in (await streams.history("staff:r"))[0]] == [b"1", b"3"]
    assert [one.data for one in (await streams.history("room:r"))[0]] == [b"2"]


@pytest.mark.parametrize("publication", [Publication("chat:r", b"1\n2"), Publication("chat:r\n", b"1"), Publication("chat:\ud800", b"1")])
async def test_what_would_break_the_message_is_refused_before_it_joins_others(streams: Streams, publication: Publication) -> None:
    good = asyncio.create_task(streams.publish("chat:r", b"1"))
    with pytest.raises(ValueError, match=r"newline|surrogates"):
        await streams.publish(publication.channel, publication.data)
    assert await good == 1


async def test_once_holds_within_a_batch_too_and_for_readings(streams: Streams) -> None:
    twice = [Publication("room:r", b"1", once="a"), Publication("room:r", b"1", once="a"), Publication("room:r", b"2")]
    assert await streams._run_batch("r", twice) == [1, 1, 2]
    reading = Publication("room:r", b"3", once="b", transient=True)
    assert await streams._run_batch("r", [reading, reading]) == [0, 0]


async def test_what_shares_a_once_is_made_whole_and_only_once(engines: Engines, streams: Streams) -> None:
    """Also where it is longer than a call usually is: a second call would have found the key and left the rest out."""
    count = engines.settings.group_commit_batch_max + 40
    kinds = ("room", "staff")
    others = [Publication("room:r", b"before"), Publication("room:r", b"alone", once="alone", is_shared=True)]
    shared = [Publication(f"{kinds[number % 2]}:r", b"%d" % number, once="entry", is_shared=True) for number in range(count)]
    messages = await bus_messages(engines, "r", streams.publish_all([*others, *shared]))
    assert [one.data for message in messages for one in message] == [one.data for one in [*others, *shared]]
    assert len([key async for key in engines.fanout.scan_iter("{r}:once:*")]) == 2
    after = [Publication("room:r", b"new", once="next", is_shared=True), Publication("staff:r", b"too", once="next", is_shared=True)]
    [again] = await bus_messages(engines, "r", streams.publish_all([*others[1:], *shared, *after]))
    assert [one.data for one in again] == [b"new", b"too"]


async def test_who_shares_a_once_with_a_broken_channel_is_heard_all_the_same(engines: Engines, streams: Streams) -> None:
    await engines.fanout.set("{r}:stream:room:r", b"no stream")
    shared = [Publication(f"{kind}:r", b"1", once="entry", is_shared=True) for kind in ("room", "staff")]
    for _ in range(2):
        with pytest.raises(AppError):
            await streams.publish_all(shared)
    assert [one.data for one in (await streams.history("staff:r"))[0]] == [b"1"]


async def test_a_batch_longer_than_the_history_leaves_its_end(engines: Engines, streams: Streams) -> None:
    kept = engines.settings.chat_history_messages_max
    await streams.publish("chat:r", b"0")
    offsets = await streams._run_batch("r", [Publication("chat:r", b"%d" % number) for number in range(1, kept + 30)])
    assert offsets == list(range(2, kept + 31))
    publications, top = await streams.history("chat:r")
    assert [one.offset for one in publications] == list(range(31, kept + 31))
    assert top.offset == kept + 30


async def test_channels_that_take_turns_keep_their_order(engines: Engines, streams: Streams) -> None:
    turns = [Publication(f"{kind}:r", b"%d" % number) for number in range(3) for kind in ("room", "staff")]
    [message] = await bus_messages(engines, "r", streams.publish_all(turns))
    assert [(one.channel, one.offset, one.data) for one in message] == [
        (f"{kind}:r", number + 1, b"%d" % number) for number in range(3) for kind in ("room", "staff")
    ]


def test_a_message_that_was_cut_short_is_no_message() -> None:
    with pytest.raises(ValueError, match="cut short"):
        parse_push(b"room:r\nepoch\n1\n2\n{}")


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
