"""Every SDK, in JSON and in Protobuf, through what a viewer does: connect, watch, act, leave a channel, read back, stay signed in."""

import asyncio
from typing import Any

import pytest

from app.protocol import codes
from app.protocol.channels import Kind
from app.storage.work import Engines
from tests.sdk.conftest import Gate, MakeAnyViewer, MakeViewer, Product, StartProduct, publish
from tests.sdk.viewers import SPEAKERS, Refused
from tests.support.builders import OpenRoom
from tests.support.runtime import TestRuntime
from tests.support.waiting import wait_until


async def test_watches_a_show_and_gets_all_in_order(
    product: Product, engines: Engines, room: OpenRoom, token: Any, viewer: MakeViewer
) -> None:
    """Trap 6: SDKs neither sort nor remove duplicates. The subscribe reply is first, then everything after it, once and in order."""
    channel = f"room:{room.room_id}"
    talking = asyncio.create_task(publish(engines, channel, *range(30)))  # the room does not wait for her
    ann = await viewer(product, token("ann"))
    await ann.subscribe(channel)  # before connect: sent right behind it
    await ann.connect()
    told = await ann.subscribed(channel)
    await talking
    await publish(engines, channel, *range(30, 60))
    await publish(engines, "user:ann", 7)
    top = (await engines.streams.position(channel)).offset
    await wait_until(lambda: ann.offsets(channel)[-1:] == [top] and ann.offsets("user:ann"))
    assert told["recoverable"]
    assert told["data"]["room"]["title"] == "Spring tea from Longwu"
    assert ann.names(channel)[0] == "subscribed"
    assert ann.offsets(channel) == list(range(told["offset"] + 1, top + 1))
    assert ann.of("publication", channel)[-1][1] == {"type": "test.counted", "n": 59}
    assert [(offset, data["n"]) for offset, data in ann.of("publication", "user:ann")] == [(1, 7)]


async def test_acts_and_sees_what_others_do(product: Product, room: OpenRoom, token: Any, viewer: MakeViewer) -> None:
    """Outcomes are replies, not errors; a refusal that was expected is one too."""
    chat = f"chat:{room.room_id}"
    ann, bob = await viewer(product, token("ann")), await viewer(product, token("bob"))
    for one in (ann, bob):
        await one.subscribe(chat)
        await one.connect()
        await one.subscribed(chat)
    said = await ann.rpc("chat.send", {"room": room.room_id, "text": "早上好 ☕", "key": "k1"})
    assert said["outcome"] == "sent"
    again = await ann.rpc("chat.send", {"room": room.room_id, "text": "早上好 ☕", "key": "k1"})
    assert again["message"] == said["message"]
    await wait_until(lambda: ann.offsets(chat) and bob.offsets(chat))
    for one in (ann, bob):
        assert [(event["type"], event["message"]["text"]) for _, event in one.of("publication", chat)] == [("chat.sent", "早上好 ☕")]
    held = await bob.rpc("inventory.reserve", {"offer": room.offer_ids[0], "quantity": 10, "key": "k2"})
    assert (held["outcome"], held["quantity"]) == ("held", 10)
    late = await ann.rpc("inventory.reserve", {"offer": room.offer_ids[0], "quantity": 1, "key": "k3"})
    assert late["outcome"] == "exhausted"


async def test_errors_that_are_not_worth_another_try(product: Product, room: OpenRoom, token: Any, viewer: MakeViewer) -> None:
    ann = await viewer(product, token("ann"))
    await ann.connect()
    for method, data, code in [
        ("chat.nothing", {}, 104),
        ("chat.mute", {"room": room.room_id, "viewer": "bob", "seconds": 60, "reason": "r", "key": "k"}, 103),
        ("chat.send", {"room": room.room_id, "text": 5, "key": "k"}, 107),
        ("chat.send", {"room": room.room_id, "txet": "x", "key": "k"}, 107),
        ("chat.send", {}, 107),
    ]:
        with pytest.raises(Refused) as refusal:
            await ann.rpc(method, data)
        assert (method, refusal.value.code, refusal.value.temporary) == (method, code, False)
    assert await ann.state() == "connected"


async def test_an_error_that_passes(start_product: StartProduct, room: OpenRoom, token: Any, viewer: MakeViewer) -> None:
    product = await start_product(commands_per_s_max=2)  # twice that at once
    ann = await viewer(product, token("ann"))
    await ann.connect()
    likes = [ann.rpc("room.like", {"room": room.room_id, "count": 1}) for _ in range(8)]
    answers = await asyncio.gather(*likes, return_exceptions=True)
    refused = [one for one in answers if isinstance(one, Refused)]
    assert {(one.code, one.temporary) for one in refused} == {(111, True)}
    assert {one["outcome"] for one in answers if isinstance(one, dict)} == {"done"}
    assert await ann.state() == "connected"


async def test_a_command_that_hangs_is_answered_in_time(product: Product, gate: Gate, token: Any, any_viewer: MakeAnyViewer) -> None:
    """Trap 4: an SDK that waits 5 s in vain drops the whole connection. All at once, since it does take that long."""
    viewers = [await any_viewer(speaker, product, token(speaker.id)) for speaker in SPEAKERS]
    for one in viewers:
        await one.connect()
        await one.connected()
    answers = await asyncio.gather(*[one.rpc("test.hold", {}) for one in viewers], return_exceptions=True)
    assert gate.waiting == len(SPEAKERS)
    gate.opened.set()
    assert [(one.code, one.temporary) for one in answers if isinstance(one, Refused)] == [(100, True)] * len(SPEAKERS)
    assert [len(one.of("connecting")) for one in viewers] == [1] * len(SPEAKERS)
    assert [await one.state() for one in viewers] == ["connected"] * len(SPEAKERS)


async def test_channels_that_are_refused(product: Product, room: OpenRoom, token: Any, viewer: MakeViewer) -> None:
    """By an error that is not temporary: the SDK does not subscribe again, and stays connected."""
    ann = await viewer(product, token("ann"))
    await ann.connect()
    wanted = {"room:nowhere": 102, f"staff:{room.room_id}": 103, "user:bob": 103, "lobby:1": 102}
    for channel in wanted:
        await ann.subscribe(channel)
    await wait_until(lambda: all(ann.of("unsubscribed", channel) for channel in wanted))
    assert {channel: ann.of("unsubscribed", channel) for channel in wanted} == {channel: [code] for channel, code in wanted.items()}
    assert await ann.state() == "connected"


async def test_a_message_beyond_the_limit_is_refused_by_a_reply(product: Product, room: OpenRoom, token: Any, viewer: MakeViewer) -> None:
    """Trap 12: 1009 would be final for some SDKs and retried for ever by others."""
    ann = await viewer(product, token("ann"))
    await ann.connect()
    with pytest.raises(Refused) as refusal:
        await ann.rpc("chat.send", {"room": room.room_id, "text": "x" * 70_000, "key": "k"})
    assert (refusal.value.code, refusal.value.temporary) == (106, False)
    assert (await ann.rpc("chat.send", {"room": room.room_id, "text": "x", "key": "k"}))["outcome"] == "sent"
    assert len(ann.of("connecting")) == 1


async def test_reads_back_and_counts(product: Product, engines: Engines, room: OpenRoom, token: Any, viewer: MakeViewer) -> None:
    channel = f"room:{room.room_id}"
    ann = await viewer(product, token("ann"))
    await ann.subscribe(channel)
    await ann.connect()
    told = await ann.subscribed(channel)
    await publish(engines, channel, 1, 2, 3)
    top = told["offset"] + 3
    await wait_until(lambda: len(ann.offsets(channel)) == 3)
    assert await ann.history(channel, 0) == {"offset": top, "offsets": []}
    whole = await ann.history(channel, -1)
    assert whole["offsets"][-3:] == [top - 2, top - 1, top]
    assert (await ann.history(channel, 2))["offsets"] == whole["offsets"][:2]
    await wait_until(lambda: product.hub.rooms[room.room_id].presence_count == 1)
    assert await ann.count(channel) == [1, 1]


async def test_leaves_a_channel_and_comes_back(product: Product, engines: Engines, room: OpenRoom, token: Any, viewer: MakeViewer) -> None:
    """Trap 5: the result of an unsubscribe is empty, and must be there all the same, or the SDK waits for it until it gives up."""
    channel = f"room:{room.room_id}"
    ann = await viewer(product, token("ann"))
    await ann.subscribe(channel)
    await ann.connect()
    told = await ann.subscribed(channel)
    await ann.unsubscribe(channel)
    await wait_until(lambda: not product.hub.rooms[room.room_id].members)
    await publish(engines, channel, 1)
    await ann.subscribe(channel)
    await ann.subscribed(channel, 2)
    await publish(engines, channel, 2)
    await wait_until(lambda: len(ann.offsets(channel)) >= 1 and ann.offsets(channel)[-1] == told["offset"] + 2)
    assert ann.offsets(channel)[-1] == told["offset"] + 2
    assert len(ann.offsets(channel)) == len(set(ann.offsets(channel)))
    assert len(ann.of("connecting")) == 1


async def test_a_channel_that_is_taken_away_stays_away(
    product: Product, engines: Engines, room: OpenRoom, token: Any, viewer: MakeViewer
) -> None:
    """Below 2500."""
    channel = f"room:{room.room_id}"
    ann = await viewer(product, token("ann"))
    await ann.subscribe(channel)
    await ann.connect()
    await ann.subscribed(channel)
    await engines.streams.control({"do": "unsubscribe", "user": "ann", "room": room.room_id})
    await wait_until(lambda: ann.of("unsubscribed", channel))
    assert ann.of("unsubscribed", channel) == [codes.UNSUBSCRIBED_BY_SERVER]
    await publish(engines, "user:ann", 1)
    await wait_until(lambda: ann.offsets("user:ann") == [1])
    assert len(ann.of("subscribed", channel)) == 1
    assert not product.hub.rooms[room.room_id].members


async def test_a_channel_whose_state_is_insufficient_is_subscribed_again(
    product: Product, engines: Engines, room: OpenRoom, token: Any, viewer: MakeViewer
) -> None:
    """From 2500 on, by the SDK itself."""
    channel = f"room:{room.room_id}"
    ann = await viewer(product, token("ann"))
    await ann.subscribe(channel)
    await ann.connect()
    told = await ann.subscribed(channel)
    product.hub.give_up(product.hub.rooms[room.room_id].feeds[Kind.ROOM])
    await ann.subscribed(channel, 2)
    await publish(engines, channel, 1)
    await wait_until(lambda: ann.offsets(channel) == [told["offset"] + 1])
    assert ann.of("unsubscribed", channel) == []
    assert len(ann.of("connecting")) == 1


async def test_a_token_is_refreshed_when_it_ends(product: Product, token: Any, any_viewer: MakeAnyViewer) -> None:
    """All at once, since the second that it takes is a real one."""
    viewers = [
        await any_viewer(speaker, product, token(speaker.id, ttl_s=1), tokens=(token(speaker.id, ttl_s=3_600),)) for speaker in SPEAKERS
    ]
    for one in viewers:
        await one.connect()
        await one.connected()
    connections = {connection: connection.caller.expires_at_s for connection in product.connections}
    assert len(connections) == len(SPEAKERS)
    await wait_until(lambda: all(connection.caller.expires_at_s == (before or 0) + 3_599 for connection, before in connections.items()))
    await wait_until(lambda: all(one.of("token_fetched") for one in viewers))
    assert [len(one.of("token_fetched")) for one in viewers] == [1] * len(SPEAKERS)
    assert [len(one.of("connecting")) for one in viewers] == [1] * len(SPEAKERS)
    assert set(product.connections) == set(connections)


async def test_a_token_without_an_end_needs_no_other(product: Product, room: OpenRoom, token: Any, viewer: MakeViewer) -> None:
    """Trap 9: told that it expires, an SDK without a way to fetch another token leaves for good at once."""
    ann = await viewer(product, token("ann"))
    await ann.connect()
    await ann.connected()
    assert (await ann.rpc("room.like", {"room": room.room_id, "count": 1}))["outcome"] == "done"
    assert ann.ended == []
    assert await ann.state() == "connected"


async def test_an_expired_token_makes_the_sdk_fetch_another(product: Product, runtime: TestRuntime, token: Any, viewer: MakeViewer) -> None:
    old = token("ann", ttl_s=10)
    runtime.advance(11_000)
    ann = await viewer(product, old, tokens=(token("ann", ttl_s=3_600),))
    await ann.connect()
    await ann.connected()
    assert len(ann.of("token_fetched")) == 1
    assert ann.ended == []


async def test_pings_keep_a_quiet_viewer(start_product: StartProduct, token: Any, any_viewer: MakeAnyViewer) -> None:
    """Trap 3, seen by the SDKs: one that does not answer pings is closed 3012 a second after the first. All at once, as above."""
    product = await start_product(ping_interval_s=1, pong_timeout_s=1)
    viewers = [await any_viewer(speaker, product, token(speaker.id)) for speaker in SPEAKERS]
    for one in viewers:
        await one.connect()
        await one.connected()
    pinged = {connection: connection.session._ping_at_ms for connection in product.connections}
    await wait_until(lambda: all(connection.session._ping_at_ms >= at + 2_000 for connection, at in pinged.items()))
    assert set(product.connections) == set(pinged)
    assert [len(one.of("connecting")) for one in viewers] == [1] * len(SPEAKERS)
