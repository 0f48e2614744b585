"""The traps of real SDKs that are seen on the wire alone, in both codecs. docs/sdk-conformance.md says which test stands for which trap."""

import asyncio
import contextlib
import json
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.protocol import codes
from app.storage.work import Engines
from tests.sdk.conftest import Product, StartProduct, publish
from tests.sdk.raw import CODECS, RawClient, raw_client
from tests.support.builders import OpenRoom
from tests.support.waiting import wait_until

pytestmark = pytest.mark.parametrize("codec", CODECS)


async def welcome(client: RawClient, token: str) -> dict[str, Any]:
    return (await client.ask(id=1, connect={"token": token}))["connect"]


def test_close_reasons_are_plain_words(codec: str) -> None:
    """Trap 1: with an empty reason, or one that is JSON, centrifuge-js takes a final code for a reason to come back."""
    assert codec
    for code in codes.CLOSES:
        assert 0 < len(code.reason.encode()) <= 123
        with pytest.raises(json.JSONDecodeError):
            json.loads(code.reason)


@pytest.mark.parametrize("code", [codes.SHUTDOWN, codes.FORCE_DISCONNECT], ids=lambda code: str(code.number))
async def test_a_close_is_pushed_first(product: Product, token: Any, codec: str, code: codes.CloseCode) -> None:
    """Trap 2: proxies lose close codes."""
    async with raw_client(product.ws, codec) as client:
        await welcome(client, token())
        [connection] = product.connections
        connection.close(code)
        messages, closed = await client.rest()
        told = {"code": code.number, "reason": code.reason} | ({"reconnect": True} if code.reconnect else {})
        assert messages == [{"push": {"disconnect": told}}]
        assert closed == (code.number, code.reason)


async def test_pings_come_although_data_flows(
    start_product: StartProduct, engines: Engines, room: OpenRoom, token: Any, codec: str
) -> None:
    """Trap 3: some SDKs restart their timer only on a ping, and one cannot have an interval of 0."""
    product = await start_product(ping_interval_s=1, pong_timeout_s=10)
    async with raw_client(product.ws, codec) as client:
        assert (await welcome(client, token()))["ping"] == 1
        await client.ask(id=2, subscribe={"channel": f"room:{room.room_id}"})

        async def talk() -> None:
            while True:
                await publish(engines, f"room:{room.room_id}", 1)

        talking = asyncio.create_task(talk())
        seen = []
        while seen.count("ping") < 2:
            message = await client.receive()
            seen.append("ping" if message == {} else "data")
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
        first = seen.index("ping")
        assert "data" in seen[first : seen.index("ping", first + 1)]


async def test_who_does_not_answer_pings_is_let_go(start_product: StartProduct, token: Any, codec: str) -> None:
    product = await start_product(ping_interval_s=1, pong_timeout_s=1)
    async with raw_client(product.ws, codec) as client:
        assert (await welcome(client, token()))["pong"] is True
        messages, closed = await client.rest()
        assert messages[0] == {}
        assert closed == (codes.NO_PONG.number, codes.NO_PONG.reason)


async def test_an_empty_result_is_there(product: Product, room: OpenRoom, token: Any, codec: str) -> None:
    """Trap 5, to the byte."""
    async with raw_client(product.ws, codec) as client:
        await welcome(client, token())
        await client.ask(id=2, subscribe={"channel": f"chat:{room.room_id}"})
        await client.send({"id": 3, "unsubscribe": {"channel": f"chat:{room.room_id}"}}, {"id": 4, "ping": {}})
        frame = await client.connection.recv()
        expected = {"json": '{"id":3,"unsubscribe":{}}\n{"id":4,"ping":{}}', "protobuf": bytes.fromhex("0408033a00 0408046200")}
        assert frame == expected[codec]


async def test_a_pipelined_subscribe_is_answered_before_its_channel_speaks(
    product: Product, engines: Engines, room: OpenRoom, token: Any, codec: str
) -> None:
    """Trap 6, as it stands on the wire: connect reply, subscribe reply, then publications one by one."""
    channel = f"room:{room.room_id}"
    talking = asyncio.create_task(publish(engines, channel, *range(50)))
    async with raw_client(product.ws, codec) as client:
        await client.send({"id": 1, "connect": {"token": token()}}, {"id": 2, "subscribe": {"channel": channel}})
        assert "connect" in await client.receive()
        told = (await client.receive())["subscribe"]
        await talking
        await publish(engines, channel, 50)
        offset = told.get("offset", 0)
        top = (await engines.streams.position(channel)).offset
        while offset < top:
            push = (await client.receive())["push"]
            if offset_of := push["pub"].get("offset"):  # a reading has none
                assert (push["channel"], offset_of) == (channel, offset + 1)
                offset += 1


async def test_what_follows_a_failed_connect_is_ignored(product: Product, room: OpenRoom, token: Any, codec: str) -> None:
    """Trap 7: one error reply, not a word to the rest, and the same connection gets no second try."""
    async with raw_client(product.ws, codec) as client:
        await client.send({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": f"room:{room.room_id}"}}, {"id": 3, "ping": {}})
        assert (await client.receive())["error"]["code"] == 101
        await client.send({"id": 4, "connect": {"token": token()}})
        [connection] = product.connections
        assert not connection.caller.id
        await (await client.connection.ping())  # all before it has been taken
        connection.close(codes.SHUTDOWN)
        messages, _ = await client.rest()
        assert [list(message["push"]) for message in messages] == [["disconnect"]]


async def test_a_command_before_connect_ends_it(product: Product, codec: str) -> None:
    """Trap 7."""
    for command in ({"id": 1, "ping": {}}, {"id": 1, "subscribe": {"channel": "room:r"}}, {}):
        async with raw_client(product.ws, codec) as client:
            await client.send(command)
            _, closed = await client.rest()
            assert closed == (codes.CLOSE_BAD_REQUEST.number, codes.CLOSE_BAD_REQUEST.reason)


async def test_overload_is_said_before_the_upgrade(start_product: StartProduct, token: Any, codec: str) -> None:
    """Trap 8: 503 with a pause to wait, never a connect error that is final."""
    product = await start_product(joins_per_s=1)
    async with raw_client(product.ws, codec) as client:
        await welcome(client, token())
        with pytest.raises(InvalidStatus) as refusal:
            async with raw_client(product.ws, codec):
                pass
        assert refusal.value.response.status_code == 503
        assert 1 <= int(refusal.value.response.headers["Retry-After"]) <= 10


async def test_expiry_is_told_where_the_token_has_it(product: Product, token: Any, codec: str) -> None:
    """Trap 9."""
    async with raw_client(product.ws, codec) as client:
        endless = await welcome(client, token())
        assert "expires" not in endless
        assert "ttl" not in endless
    async with raw_client(product.ws, codec) as client:
        bounded = await welcome(client, token(ttl_s=300))
        assert (bounded["expires"], bounded["ttl"]) == (True, 300)


async def test_the_own_channel_is_in_every_connect_reply(product: Product, engines: Engines, token: Any, codec: str) -> None:
    """Trap 10."""
    await publish(engines, "user:ann", 1)
    async with raw_client(product.ws, codec) as client:
        own = (await welcome(client, token("ann")))["subs"]["user:ann"]
        assert (own["recoverable"], own["offset"]) == (True, 1)
    await publish(engines, "user:ann", 2)
    async with raw_client(product.ws, codec) as client:
        position = {"recover": True, "epoch": own["epoch"], "offset": 1}
        reply = await client.ask(id=1, connect={"token": token("ann"), "subs": {"user:ann": position}})
        again = reply["connect"]["subs"]["user:ann"]
        assert again["recovered"]
        assert [one["offset"] for one in again["publications"]] == [2]


async def test_a_position_that_never_was_is_not_recovered(
    product: Product, engines: Engines, room: OpenRoom, token: Any, codec: str
) -> None:
    """Trap 11. Offsets are 64 bits without a sign on the wire; one above 2**63 once closed the connection for good (3501)."""
    channel = f"room:{room.room_id}"
    async with raw_client(product.ws, codec) as client:
        await welcome(client, token())
        epoch = (await engines.streams.position(channel)).epoch
        for offset in (2**32, 2**53, 2**63, 2**64 - 1):
            position = {"epoch": epoch, "offset": offset}
            for name in (channel, f"chat:{room.room_id}"):
                told = (await client.ask(id=2, subscribe={"channel": name, "recover": True, **position}))["subscribe"]
                assert told["was_recovering"] is True
                assert "recovered" not in told
                assert told.get("offset", 0) < 100
                assert "unsubscribe" in await client.ask(id=3, unsubscribe={"channel": name})
            history = await client.ask(id=4, history={"channel": channel, "limit": -1, "since": position})
            assert history["history"].get("publications", []) == []


async def test_a_message_beyond_the_limit_gets_a_reply(product: Product, room: OpenRoom, token: Any, codec: str) -> None:
    """Trap 12."""
    async with raw_client(product.ws, codec) as client:
        await welcome(client, token())
        reply = await client.ask(id=2, rpc={"method": "chat.send", "data": {"text": "x" * 70_000}})
        assert (reply["id"], reply["error"]["code"]) == (2, codes.LIMIT_EXCEEDED.number)
        assert (await client.ask(id=3, ping={}))["id"] == 3


# --- bytes that are none of the protocol's ------------------------------------------------------------------------------------------


async def test_bytes_that_are_no_message_end_it(product: Product, token: Any, codec: str) -> None:
    bad: dict[str, list[str | bytes]] = {
        "json": ["{", "[]", '{"id":-1}', '{"id":1,"rpc":"x"}', "\n\n", b"\xff", "[" * 10_000],
        "protobuf": [b"", b"\x05", b"\x02\x08\x80", b"\x02\x2b\x2c", b"\xff" * 11, b"\x04\x2a\x02\x0a\x05", '{"id":1,"ping":{}}'],
    }
    for frame in bad[codec]:
        async with raw_client(product.ws, codec) as client:
            await welcome(client, token())
            await client.connection.send(frame)
            messages, closed = await client.rest()
            assert (frame, closed) == (frame, (codes.CLOSE_BAD_REQUEST.number, codes.CLOSE_BAD_REQUEST.reason))
            assert messages[-1]["push"]["disconnect"]["code"] == codes.CLOSE_BAD_REQUEST.number
    await wait_until(lambda: not product.connections)


@pytest.mark.parametrize("query", ["format=protobuf", "cf_protocol=protobuf", ""])
async def test_the_address_may_ask_for_protobuf(product: Product, token: Any, codec: str, query: str) -> None:
    """Where a client cannot offer subprotocols. An offer, where there is one, counts more."""
    async with connect(f"{product.ws}?{query}", proxy=None, compression=None) as connection:
        client = RawClient(connection, "protobuf" if query else "json")
        assert connection.subprotocol is None
        assert (await welcome(client, token()))["node"] == product.hub.node_id
    async with raw_client(f"{product.ws}?{query}", codec) as client:
        assert (await welcome(client, token()))["node"] == product.hub.node_id


async def test_viewers_of_both_codecs_get_one_broadcast(product: Product, engines: Engines, room: OpenRoom, token: Any, codec: str) -> None:
    """It is framed once for each, around the same bytes."""
    channel = f"room:{room.room_id}"
    data = '{"type":"test.said","text":"早上好 \\"茶\\"  \\u2028"}'.encode()
    async with raw_client(product.ws, codec) as client, raw_client(product.ws, CODECS[CODECS.index(codec) - 1]) as other:
        for one in (client, other):
            await welcome(one, token(one.codec))
            await one.ask(id=2, subscribe={"channel": channel})
        offset = await engines.streams.publish(channel, data)
        frames = {one.codec: await one.connection.recv() for one in (client, other)}
        for one in (client, other):
            with contextlib.suppress(ConnectionClosed):
                await one.connection.close()
    assert frames["json"] == f'{{"push":{{"channel":"{channel}","pub":{{"data":{data.decode()},"offset":{offset}}}}}}}'
    assert data in frames["protobuf"]
