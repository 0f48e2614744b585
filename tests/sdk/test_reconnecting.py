"""Every SDK, in JSON and in Protobuf, through what ends a connection: who comes back, with what, and who does not."""

import asyncio
import socket
from typing import Any

from app.domains.accounts.tokens import FETCH_GAP_MS
from app.protocol import codes
from app.storage.work import Engines
from tests.domains.accounts.key_server import private_key, public_entry, publishing, signed
from tests.sdk.conftest import MakeViewer, Product, StartProduct, publish
from tests.sdk.viewers import Viewer
from tests.support.builders import OpenRoom
from tests.support.runtime import TestRuntime
from tests.support.waiting import wait_until

RECONNECT = [code for code in codes.CLOSES if code.reconnect]
FINAL = [code for code in codes.CLOSES if not code.reconnect]


async def watching(make: MakeViewer, product: Product, token: str, channel: str) -> tuple[Viewer, int]:
    """A viewer in a channel, and the offset after which it is told."""
    ann = await make(product, token)
    await ann.subscribe(channel)
    await ann.connect()
    told = await ann.subscribed(channel)
    return ann, told["offset"]


async def test_what_was_missed_in_a_cut_is_recovered(
    product: Product, engines: Engines, room: OpenRoom, token: Any, viewer: MakeViewer
) -> None:
    """Trap 10: the own channel is in the reconnect's reply too; an SDK takes its absence for the end of it."""
    channel = f"room:{room.room_id}"
    ann, start = await watching(viewer, product, token("ann"), channel)
    await publish(engines, channel, 1, 2)
    await publish(engines, "user:ann", 1)
    await wait_until(lambda: len(ann.offsets(channel)) == 2 and ann.offsets("user:ann") == [1])
    for connection in product.connections:
        connection.transport.abort()  # no close frame, no push
    await publish(engines, channel, 3, 4)
    await publish(engines, "user:ann", 2)
    told = await ann.subscribed(channel, 2)
    await publish(engines, channel, 5)
    await wait_until(lambda: len(ann.offsets(channel)) == 5 and len(ann.offsets("user:ann")) == 2)
    assert ann.offsets(channel) == [start + n for n in range(1, 6)]
    assert [data["n"] for _, data in ann.of("publication", channel)] == [1, 2, 3, 4, 5]
    assert ann.offsets("user:ann") == [1, 2]
    assert (told["was_recovering"], told["recovered"]) == (True, True)
    assert ann.of("subscribed", "user:ann")[-1]["recovered"]
    assert ann.of("unsubscribed", "user:ann") == []


async def test_after_more_than_is_kept_it_starts_from_a_fresh_snapshot(
    start_product: StartProduct, engines: Engines, room: OpenRoom, token: Any, viewer: MakeViewer
) -> None:
    """Whole or not at all: a fresh snapshot, and only what came after it."""
    engines.settings.stage_history_events_max = 5
    product = await start_product()
    channel = f"room:{room.room_id}"
    ann, start = await watching(viewer, product, token("ann"), channel)
    product.hub.is_draining = True  # keeps her out
    for connection in product.connections:
        connection.close(codes.SLOW)
    await publish(engines, channel, *range(1, 11))
    product.hub.is_draining = False
    told = await ann.subscribed(channel, 2)
    assert (told["was_recovering"], told["recovered"]) == (True, False)
    assert told["data"]["room"]["title"] == "Spring tea from Longwu"
    await publish(engines, channel, 11)
    await wait_until(lambda: ann.offsets(channel)[-1:] == [start + 11])
    assert ann.offsets(channel) == list(range(told["offset"] + 1, start + 12))  # the snapshot stands at the offset that it says


async def test_a_stream_that_began_anew_is_not_taken_for_the_old_one(
    product: Product, engines: Engines, room: OpenRoom, token: Any, viewer: MakeViewer
) -> None:
    """Trap 11: with the old epoch, whoever comes back would go on across a gap that nobody sees."""
    channel = f"room:{room.room_id}"
    ann, _ = await watching(viewer, product, token("ann"), channel)
    before = ann.of("subscribed", channel)[0]["epoch"]
    await publish(engines, channel, 1, 2, 3)
    await wait_until(lambda: len(ann.offsets(channel)) == 3)
    product.hub.is_draining = True
    for connection in product.connections:
        connection.close(codes.SHUTDOWN)
    await wait_until(lambda: not product.connections)
    await engines.fanout.flushall()
    await publish(engines, channel, 1, 2)
    product.hub.is_draining = False
    told = await ann.subscribed(channel, 2)
    assert (told["was_recovering"], told["recovered"], told["offset"]) == (True, False, 2)
    assert told["epoch"] != before
    await publish(engines, channel, 3)
    await wait_until(lambda: ann.offsets(channel)[-1] == 3)
    assert len(ann.offsets(channel)) == 4


async def test_codes_that_bring_the_viewer_back(product: Product, engines: Engines, room: OpenRoom, token: Any, viewer: MakeViewer) -> None:
    channel = f"room:{room.room_id}"
    ann, start = await watching(viewer, product, token("ann"), channel)
    for times, code in enumerate(RECONNECT, start=1):
        [connection] = product.connections
        connection.close(code)
        await publish(engines, channel, times)
        await ann.subscribed(channel, times + 1)
        await wait_until(lambda expected=times: len(ann.offsets(channel)) == expected)
        await wait_until(lambda: len(product.connections) == 1)
    assert ann.offsets(channel) == [start + n for n in range(1, len(RECONNECT) + 1)]
    assert ann.ended == []


async def test_codes_that_are_final(product: Product, token: Any, viewer: MakeViewer) -> None:
    """Trap 1: centrifuge-js ignores a final code whose reason is empty or JSON; the reason arrives as it was given."""
    for code in FINAL:
        ann = await viewer(product, token("ann"))
        await ann.connect()
        await ann.connected()
        [connection] = product.connections
        connection.close(code)
        await wait_until(lambda one=ann: one.ended)
        assert [tuple(ended) for ended in ann.of("disconnected")] == [(code.number, code.reason)]
        await wait_until(lambda: not product.connections)


async def test_a_final_code_arrives_without_its_close_frame(product: Product, token: Any, viewer: MakeViewer) -> None:
    """Trap 2: proxies lose close codes, so a push says the same before it."""
    ann = await viewer(product, token("ann"))
    await ann.connect()
    await ann.connected()
    [connection] = product.connections
    connection.session.close(codes.FORCE_DISCONNECT)
    messages = connection.session.data_to_send()
    connection.session.close_code = None  # the close frame that is lost
    connection.write_packed(connection.transport.pack(connection.codec.join(messages), connection.codec.is_text))
    await wait_until(lambda: ann.ended)
    assert ann.ended == [codes.FORCE_DISCONNECT.number]


async def test_a_ban_is_final_at_once(product: Product, engines: Engines, room: OpenRoom, token: Any, viewer: MakeViewer) -> None:
    ann, _ = await watching(viewer, product, token("ann"), f"room:{room.room_id}")
    await engines.streams.control({"do": "disconnect", "user": "ann", "room": room.room_id, "code": "3507"})
    await wait_until(lambda: ann.ended)
    assert ann.ended == [3507]


async def test_a_connect_that_fails_takes_what_is_behind_it_along(product: Product, room: OpenRoom, token: Any, viewer: MakeViewer) -> None:
    """Trap 7: a subscribe is pipelined behind each; it is ignored quietly, and the connect's own refusal is what the SDK tells."""
    for bad, code in (("nonsense", 3500), ("a.b.c", 3500), ("", 101)):
        ann = await viewer(product, bad)
        await ann.subscribe(f"room:{room.room_id}")
        await ann.connect()
        await wait_until(lambda one=ann: one.ended)
        assert (bad, ann.ended) == (bad, [code])
        assert ann.of("connected") == []
        assert ann.of("unsubscribed", f"room:{room.room_id}") == []


async def test_who_is_turned_away_at_the_door_comes_again(product: Product, token: Any, viewer: MakeViewer) -> None:
    """Trap 8: an answer before the upgrade is never final, whatever it is; under load that is where we say no."""
    product.hub.is_draining = True
    ann = await viewer(product, token("ann"))
    await ann.connect()
    await wait_until(lambda: ann.of("error"))
    product.hub.is_draining = False
    await ann.connected()
    assert ann.ended == []


async def test_a_refusal_that_passes_is_temporary(start_product: StartProduct, runtime: TestRuntime, viewer: MakeViewer) -> None:
    """Trap 8: a connect error that is not temporary is final. Keys that are out of reach just now are no reason to leave for good."""
    async with publishing() as keys:
        await keys.stop()
        product = await start_product(jwks_url=keys.url)
        ann = await viewer(product, signed("ES256", {"sub": "ann"}, kid="one"))
        await ann.connect()
        await wait_until(lambda: ann.of("error"))
        keys.publish(public_entry(private_key("ES256"), kid="one"))
        await keys.start()
        runtime.advance(FETCH_GAP_MS)
        await ann.connected()
        assert ann.ended == []


async def test_a_drained_node_hands_its_viewers_to_another(
    start_product: StartProduct, engines: Engines, room: OpenRoom, token: Any, viewer: MakeViewer
) -> None:
    """3001, and on to a node at the same address: nothing of the stage is lost or doubled."""
    channel = f"room:{room.room_id}"
    with socket.create_server(("127.0.0.1", 0)) as address:
        first = await start_product(listening=address.dup())
        ann, start = await watching(viewer, first, token("ann"), channel)
        second = await start_product(listening=address.dup())
        await publish(engines, channel, 1)
        stopping = asyncio.create_task(first.stop())
        await publish(engines, channel, 2)
        await ann.subscribed(channel, 2)
        await publish(engines, channel, 3)
        await wait_until(lambda: len(ann.offsets(channel)) == 3)
        await stopping
        assert ann.offsets(channel) == [start + 1, start + 2, start + 3]
        assert [connection.caller.id for connection in second.connections] == ["ann"]
        assert ann.of("connecting")[1:] == [codes.SHUTDOWN.number]
