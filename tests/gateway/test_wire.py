"""What goes over the socket and before it, as clients see it that hide nothing: refusals, closes, floods, slow readers."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.core.errors import AppError
from app.domains.chat.store import hide_message
from app.gateway import shared_reads
from app.protocol.codes import SERVICE_UNAVAILABLE
from app.protocol.commands import ChatLine
from app.protocol.events import ChatMessage, encode_event
from app.storage.streams import Publication, Streams
from app.storage.work import Engines
from tests.gateway.conftest import Node, Nodes, Stage
from tests.support.clients import RawClient, raw_client
from tests.support.waiting import wait_until


@asynccontextmanager
async def socket(node: Node, **options: Any) -> AsyncGenerator[ClientConnection]:
    async with connect(node.ws + options.pop("query", ""), proxy=None, compression=None, **options) as connection:
        yield connection


async def until_closed(connection: ClientConnection) -> tuple[list[dict[str, Any]], int, str]:
    """Everything that came, the close code, and its reason."""
    messages: list[dict[str, Any]] = []
    try:
        while True:
            messages += [json.loads(line) for line in str(await connection.recv()).split("\n")]
    except ConnectionClosed as end:
        assert end.rcvd is not None, "a close frame came"
        return messages, end.rcvd.code, end.rcvd.reason


def connect_command(token: str, command_id: int = 1, **fields: Any) -> str:
    return json.dumps({"id": command_id, "connect": {"token": token, **fields}})


# --- before the upgrade --------------------------------------------------------------------------------------------------------------


async def denied(node: Node, **options: Any) -> tuple[int, str | None, bytes | None]:
    with pytest.raises(InvalidStatus) as refusal:
        async with socket(node, **options):
            pass
    response = refusal.value.response
    return response.status_code, response.headers.get("Retry-After"), response.body


async def test_a_foreign_origin_is_refused(node: Node) -> None:
    assert await denied(node, origin="https://evil.example") == (403, None, b"origin")


async def test_the_own_origin_is_welcome(node: Node) -> None:
    async with socket(node, origin=node.http):
        pass


async def test_a_draining_node_answers_503_with_a_time_to_return(node: Node) -> None:
    node.hub.is_draining = True
    status, retry_after, body = await denied(node)
    assert (status, body) == (503, b"draining")
    assert 1 <= int(retry_after or 0) <= 10


async def test_a_full_node_answers_503(nodes: Nodes) -> None:
    node = await nodes.start(connections_max=1)
    async with socket(node):
        assert (await denied(node))[::2] == (503, b"connections")


async def test_joins_above_the_rate_answer_503(nodes: Nodes) -> None:
    node = await nodes.start(joins_per_s=1)
    async with socket(node):
        assert (await denied(node))[::2] == (503, b"joins")


@pytest.mark.parametrize(
    ("options", "subprotocol"),
    [
        ({}, None),
        ({"subprotocols": ["centrifuge-json"]}, "centrifuge-json"),
        ({"subprotocols": ["other", "centrifuge-json"]}, "centrifuge-json"),
        ({"query": "?format=json"}, None),
    ],
)
async def test_the_subprotocol_is_echoed_when_offered(node: Node, token: Any, options: Any, subprotocol: str | None) -> None:
    async with socket(node, **options) as connection:
        assert connection.subprotocol == subprotocol
        await connection.send(connect_command(token()))
        assert json.loads(await connection.recv())["connect"]["pong"] is True


@pytest.mark.parametrize("options", [{"query": "?format=cbor"}, {"subprotocols": ["centrifuge-cbor"]}])
async def test_a_codec_that_is_not_served_is_final(node: Node, options: Any) -> None:
    async with socket(node, **options) as connection:
        assert await until_closed(connection) == ([], 3508, "not available")


# --- in the session ------------------------------------------------------------------------------------------------------------------


async def test_what_the_own_channel_brings_at_once_leaves_in_one_write(node: Node, engines: Engines, token: Any) -> None:
    """Each was a write of its own, which cost more than all the rest of it; a batch of holds brings a viewer several."""
    async with socket(node) as phone, socket(node) as tablet:
        for connection in (phone, tablet):
            await connection.send(connect_command(token("ann")))
            await connection.recv()
        await engines.streams.publish_all([Publication("user:ann", b'{"number":%d}' % number) for number in range(3)])
        for connection in (phone, tablet):
            messages = [json.loads(line) for line in str(await connection.recv()).split("\n")]
            assert [one["push"]["pub"] for one in messages] == [{"data": {"number": number}, "offset": number + 1} for number in range(3)]


async def test_connect_and_subscribe_in_one_frame(node: Node, token: Any) -> None:
    async with socket(node) as connection:
        await connection.send(connect_command(token()) + '\n{"subscribe":{"channel":"room:r1","flag":1},"id":2}')
        first = json.loads(await connection.recv())
        assert first["connect"] | {"client": "", "version": "", "node": ""} == {
            "client": "",
            "version": "",
            "node": "",
            "ping": 25,
            "pong": True,
            "subs": {"user:ann": {"recoverable": True, "positioned": True, "epoch": first["connect"]["subs"]["user:ann"]["epoch"]}},
        }
        second = json.loads(await connection.recv())
        assert second["id"] == 2
        assert second["subscribe"]["data"] == {"test": {"title": "tea"}}


async def test_what_is_pipelined_behind_a_connect_keeps_its_order(node: Node, engines: Engines, token: Any) -> None:
    """The second subscribe was answered and carried out before the unsubscribe: the client had a channel that brought nothing."""
    async with raw_client(node.http, token("bob")) as bob, socket(node) as connection:
        await bob.subscribe("room:r1")  # it is at hand
        frame = [connect_command(token()), '{"subscribe":{"channel":"room:r1"},"id":2}']
        frame += ['{"unsubscribe":{"channel":"room:r1"},"id":3}', '{"subscribe":{"channel":"room:r1"},"id":4}']
        await connection.send("\n".join(frame))
        answers: dict[int, Any] = {}
        while len(answers) < 4:
            answers |= {answer["id"]: answer for answer in map(json.loads, str(await connection.recv()).split("\n")) if answer}
        assert ("error" in answers[2], "subscribe" in answers[4]) == (True, True)
        await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: bob.publications("room:r1"))
        assert [len(node.hub.rooms["r1"].members), bob.publications("room:r1")] == [2, [{"data": {}, "offset": 1}]]
        assert json.loads(await connection.recv())["push"]["pub"]["offset"] == 1


async def test_expiry_is_told_only_where_the_token_has_it(node: Node, token: Any) -> None:
    async with socket(node) as connection:
        await connection.send(connect_command(token(ttl_s=300)))
        reply = json.loads(await connection.recv())["connect"]
        assert (reply["expires"], reply["ttl"]) == (True, 300)


@pytest.mark.parametrize("frame", ["nonsense", '{"id":1,"rpc":{}}', b"\xff\x00", "{}", '{"id":1,"connect":7}'])
async def test_a_bad_start_is_told_and_closed_3501(node: Node, frame: Any) -> None:
    async with socket(node) as connection:
        await connection.send(frame)
        messages, code, reason = await until_closed(connection)
    assert (code, reason) == (3501, "bad request")
    assert messages == [{"push": {"disconnect": {"code": 3501, "reason": "bad request"}}}]


async def test_a_bad_token_is_final(node: Node, token: Any) -> None:
    async with socket(node) as connection:
        await connection.send(connect_command(token()[:-4] + "AAAA") + '\n{"subscribe":{"channel":"room:r1"},"id":2}')
        messages, code, _ = await until_closed(connection)
    assert code == 3500
    assert messages == [{"push": {"disconnect": {"code": 3500, "reason": "invalid token"}}}]


async def test_a_large_message_is_refused_by_reply(node: Node, token: Any) -> None:
    async with raw_client(node.http, token()) as client:
        reply = await client.command(rpc={"method": "test.echo", "data": {"text": "x" * 70_000}})
        assert reply["error"]["code"] == 106
        assert (await client.rpc("test.echo", {"text": "x"}))["text"] == "x"


async def test_replies_do_not_wait_for_each_other(node: Node, stage: Stage, token: Any) -> None:
    stage.gate = asyncio.Event()
    async with raw_client(node.http, token()) as client:
        slow = asyncio.create_task(client.rpc("test.echo", {"text": "slow"}))
        assert (await client.rpc("test.echo", {"text": "fast"}))["text"] == "fast"
        assert not slow.done()
        stage.gate.set()
        assert (await slow)["text"] == "slow"


async def test_calls_in_flight_are_bounded(node: Node, stage: Stage, token: Any) -> None:
    stage.gate = asyncio.Event()
    async with raw_client(node.http, token()) as client:
        slow = [asyncio.create_task(client.command(rpc={"method": "test.echo", "data": {"text": "slow"}})) for _ in range(17)]
        done, pending = await asyncio.wait(slow, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result()["error"]["code"] for task in done] == [111]
        stage.gate.set()
        await asyncio.wait(pending)


async def test_an_unanswered_call_is_refused_before_sdks_give_up(node: Node, stage: Stage, token: Any) -> None:
    stage.gate = asyncio.Event()
    async with raw_client(node.http, token()) as client:
        reply = await asyncio.wait_for(client.command(rpc={"method": "test.echo", "data": {"text": "slow"}}), 5)
        assert (reply["error"]["code"], reply["error"]["temporary"]) == (100, True)
        stage.gate.set()


async def test_overload_at_connect_is_temporary(node: Node, token: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any, **__: Any) -> None:
        raise AppError(SERVICE_UNAVAILABLE, "the engine does not answer")

    monkeypatch.setattr(node.hub.bus, "open", away)
    async with socket(node) as connection:
        await connection.send(connect_command(token()))
        assert json.loads(await connection.recv())["error"] == {"code": 413, "message": "the engine does not answer", "temporary": True}


async def test_a_ban_finds_a_client_whose_connect_is_still_being_answered(
    node: Node, engines: Engines, token: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it may come in has been looked up already, for the subscribe that it sent along; so the ban must find it by that."""
    gate, asked = asyncio.Event(), asyncio.Event()
    positions = Streams.positions

    async def held_up(streams: Streams, channels: list[str]) -> Any:
        if "user:mal" in channels:
            asked.set()
            await gate.wait()
        return await positions(streams, channels)

    async with raw_client(node.http, token("ann")) as ann, socket(node) as mal:
        await ann.subscribe("room:r1")
        monkeypatch.setattr(Streams, "positions", held_up)
        await mal.send(connect_command(token("mal")) + '\n{"id":2,"subscribe":{"channel":"room:r1"}}')
        await asyncio.wait_for(asked.wait(), 5)
        await engines.streams.control({"do": "disconnect", "user": "mal", "room": "r2", "code": "3507"})  # not its room
        await engines.streams.control({"do": "disconnect", "user": "mal", "room": "r1", "code": "3507"})
        messages, code, _ = await until_closed(mal)
        gate.set()
        assert (messages, code) == ([{"push": {"disconnect": {"code": 3507, "reason": "permission denied"}}}], 3507)
        assert {member.viewer_id for member in node.hub.rooms["r1"].members} == {"ann"}


async def test_a_banned_viewer_is_not_admitted(node: Node, stage: Stage, token: Any) -> None:
    stage.banned.add("ann")
    async with raw_client(node.http, token("ann")) as client:
        assert (await client.command(subscribe={"channel": "room:r1"}))["error"]["code"] == 412
        assert (await client.command(subscribe={"channel": "chat:r1"}))["error"]["code"] == 412
        assert (await client.command(history={"channel": "room:r1"}))["error"]["code"] == 412


async def test_a_ban_reaches_a_viewer_who_is_only_coming_in(node: Node, stage: Stage, engines: Engines, token: Any) -> None:
    stage.gate = asyncio.Event()
    async with socket(node) as connection:
        await connection.send(connect_command(token("ann")))
        await connection.recv()
        await connection.send(json.dumps({"id": 2, "subscribe": {"channel": "room:r1"}}))
        await wait_until(lambda: stage.snapshots_built)  # admitted, and not in the room yet
        await engines.streams.control({"do": "disconnect", "user": "ann", "room": "r1", "code": "3507"})
        messages, code, _ = await until_closed(connection)
        stage.gate.set()
    assert (len(messages), code) == (1, 3507)


async def test_a_deleted_line_is_not_handed_out_again(node: Node, engines: Engines, token: Any) -> None:
    lines = [
        ChatLine(id=f"r1-{number}", viewer="bob", name="Bob", text=f"line {number}", at="2025-06-15T15:06:40.000Z") for number in (1, 2, 3)
    ]
    async with raw_client(node.http, token("ann")) as client:
        epoch = (await client.command(history={"channel": "chat:r1"}))["history"]["epoch"]
        for line in lines:
            await engines.streams.publish("chat:r1", encode_event(ChatMessage(at=line.at, message=line)))
        await hide_message(engines, "r1", "r1-2")
        recovered = (await client.command(subscribe={"channel": "chat:r1", "recover": True, "offset": 0, "epoch": epoch}))["subscribe"]
        read = (await client.command(history={"channel": "chat:r1", "limit": -1}))["history"]
    assert recovered["recovered"]
    for answer in (recovered, read):
        assert [one["offset"] for one in answer["publications"]] == [1, 2, 3], "a client sees no gap"
        assert [one["data"]["type"] for one in answer["publications"]] == ["chat.sent", "chat.deleted", "chat.sent"]
        assert answer["publications"][1]["data"]["message"] == "r1-2"
        assert "line 2" not in json.dumps(answer)


async def test_a_token_for_other_rooms_does_not_open_this_one(node: Node, token: Any) -> None:
    async with raw_client(node.http, token("ann", rooms=["r2"])) as client:
        assert (await client.command(subscribe={"channel": "room:r1"}))["error"]["code"] == 103
        assert "error" not in await client.command(subscribe={"channel": "room:r2"})


async def test_a_refresh_that_narrows_takes_channels_away(node: Node, token: Any) -> None:
    async with raw_client(node.http, token("ann")) as client:
        await client.subscribe("room:r1")
        await client.subscribe("room:r2")
        assert "refresh" in await client.command(refresh={"token": token("ann", rooms=["r2"])})
        await wait_until(lambda: client.pushes)
        assert client.pushes == [{"channel": "room:r1", "unsubscribe": {"code": 2000, "reason": "permission denied"}}]
        assert not node.hub.rooms["r1"].members


async def test_a_refresh_that_narrows_ends_a_subscribe_under_way(node: Node, stage: Stage, token: Any) -> None:
    """The right was asked before the wait for the snapshot, so the channel came although the token no longer covered it."""
    stage.gate = asyncio.Event()
    async with raw_client(node.http, token("ann")) as client:
        coming = asyncio.create_task(client.command(subscribe={"channel": "room:r1"}))
        await wait_until(lambda: stage.snapshots_built)
        assert "refresh" in await client.command(refresh={"token": token("ann", rooms=["r2"])})
        stage.gate.set()
        assert (await coming)["error"]["code"] == 103
        assert not node.hub.rooms["r1"].members


async def test_a_refresh_as_somebody_else_is_final(node: Node, token: Any) -> None:
    async with socket(node) as connection:
        await connection.send(connect_command(token("ann")))
        await connection.recv()
        await connection.send(json.dumps({"id": 2, "refresh": {"token": token("bob")}}))
        assert (await until_closed(connection))[1] == 3500


async def test_history_from_another_life_is_112(node: Node, engines: Engines, token: Any) -> None:
    await engines.streams.publish("room:r1", b"{}")
    async with raw_client(node.http, token()) as client:
        reply = await client.command(history={"channel": "room:r1", "limit": 5, "since": {"offset": 0, "epoch": "old"}})
        assert reply["error"]["code"] == 112
        position = await engines.streams.position("room:r1")
        reply = await client.command(history={"channel": "room:r1", "limit": 5, "since": {"offset": 0, "epoch": position.epoch}})
        assert reply["history"] == {"publications": [{"data": {}, "offset": 1}], "epoch": position.epoch, "offset": 1}


# --- many at once, and slow ones -----------------------------------------------------------------------------------------------------


async def test_a_storm_builds_one_snapshot(node: Node, stage: Stage, engines: Engines, token: Any) -> None:
    stage.gate = asyncio.Event()
    clients: list[RawClient] = []

    async def join(number: int) -> None:
        async with raw_client(node.http, token(f"v{number}")) as client:
            clients.append(client)
            sub = await client.subscribe("room:r1")
            assert sub["data"] == {"test": {"title": "tea"}}

    joins = [asyncio.create_task(join(number)) for number in range(20)]
    await wait_until(lambda: len(node.hub.connections) == 20 and "r1" in node.hub.rooms and node.hub.rooms["r1"].pending == 20)
    stage.gate.set()
    await asyncio.gather(*joins)
    assert stage.snapshots_built == 1


async def test_a_snapshot_is_shared_across_events_and_followed_by_them(node: Node, stage: Stage, engines: Engines, token: Any) -> None:
    """In a busy room a snapshot an event, for each viewer who comes, would be built ten times a second."""
    async with raw_client(node.http, token()) as client, raw_client(node.http, token("bob")) as other:
        await client.subscribe("room:r1")
        for number in (1, 2):
            await engines.streams.publish("room:r1", b'{"number":%d}' % number)
        await wait_until(lambda: len(client.publications("room:r1")) == 2)
        stage.snapshot = {"title": "rice"}
        shared = await other.subscribe("room:r1")
        assert (shared["data"], shared.get("offset", 0)) == ({"test": {"title": "tea"}}, 0)
        await engines.streams.publish("room:r1", b'{"number":3}')
        await wait_until(lambda: len(other.publications("room:r1")) == 3)
        assert other.publications("room:r1") == [{"data": {"number": number}, "offset": number} for number in (1, 2, 3)]
        assert stage.snapshots_built == 1


async def test_an_old_snapshot_is_built_anew(node: Node, stage: Stage, token: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw_client(node.http, token()) as client, raw_client(node.http, token("bob")) as other:
        await client.subscribe("room:r1")
        stage.snapshot = {"title": "rice"}
        monkeypatch.setattr(shared_reads, "RENEW_AGE_S", -2.0)
        monkeypatch.setattr(shared_reads, "AGE_S_MAX", -1.0)
        assert (await other.subscribe("room:r1"))["data"] == {"test": {"title": "rice"}}
        assert stage.snapshots_built == 2


async def test_the_pulse_has_no_offset_and_cannot_be_recovered(node: Node, engines: Engines, token: Any) -> None:
    async with raw_client(node.http, token()) as client:
        await client.subscribe("room:r1")
        await engines.streams.publish("room:r1", b'{"type":"room.pulse"}', transient=True)
        await wait_until(lambda: client.publications("room:r1"))
        assert client.publications("room:r1") == [{"data": {"type": "room.pulse"}}]
        assert (await client.command(history={"channel": "room:r1", "limit": -1}))["history"]["publications"] == []


async def test_chat_recovers_its_last_lines(node: Node, engines: Engines, token: Any) -> None:
    for _ in range(60):
        await engines.streams.publish("chat:r1", b"{}")
    epoch = (await engines.streams.position("chat:r1")).epoch
    async with raw_client(node.http, token()) as client:
        recent = await client.subscribe("chat:r1", recover=True, offset=55, epoch=epoch)
        assert [one["offset"] for one in recent["publications"]] == [56, 57, 58, 59, 60]
    async with raw_client(node.http, token()) as client:
        long_gone = await client.subscribe("chat:r1", recover=True, offset=5, epoch=epoch)
        assert (long_gone["was_recovering"], long_gone.get("recovered", False), long_gone["offset"]) == (True, False, 60)
        assert "publications" not in long_gone


async def test_a_client_that_does_not_read_is_let_go(nodes: Nodes, engines: Engines, token: Any) -> None:
    node = await nodes.start(send_buffer_bytes_max=200_000, send_buffer_shed_bytes=50_000)

    def is_there(name: str) -> bool:
        return any(one.caller.id == name and one.is_open for one in node.hub.connections)

    stuck = await connect(node.ws, proxy=None, compression=None, max_queue=1)
    await stuck.send(connect_command(token("stuck")) + '\n{"subscribe":{"channel":"room:r1"},"id":2}')
    await wait_until(lambda: "r1" in node.hub.rooms and node.hub.rooms["r1"].members)
    stuck.transport.pause_reading()
    async with raw_client(node.http, token("ann")) as reader:
        await reader.subscribe("room:r1")
        for sent in range(1, 400):
            await engines.streams.publish("room:r1", b'"' + b"x" * 60_000 + b'"')
            await wait_until(lambda: len(reader.publications("room:r1")) == sent)  # noqa: B023 - awaited in this turn; nobody else is kept waiting
            if not is_there("stuck"):
                break
        assert not is_there("stuck")
        assert is_there("ann")
    stuck.transport.abort()
    await stuck.wait_closed()
    await wait_until(lambda: not node.hub.connections, within_s=10)


async def test_control_messages_reach_the_viewer_in_the_room_alone(node: Node, engines: Engines, token: Any) -> None:
    async with raw_client(node.http, token("ann")) as ann, raw_client(node.http, token("bob")) as bob:
        for one in (ann, bob):
            await one.subscribe("room:r1")
        await engines.streams.control({"do": "disconnect", "user": "ann", "room": "elsewhere", "code": "3507"})
        await engines.fanout.spublish("jishi:control", b"nonsense")
        await engines.streams.control({"do": "unsubscribe", "user": "ann", "room": "r1"})
        await wait_until(lambda: ann.pushes)
        assert ann.pushes == [{"channel": "room:r1", "unsubscribe": {"code": 2000, "reason": "unsubscribed by the server"}}]
        assert bob.pushes == []
        assert len(node.hub.connections) == 2


# --- the end -------------------------------------------------------------------------------------------------------------------------


async def test_draining_tells_everybody_and_closes_3001(nodes: Nodes, token: Any) -> None:
    node = await nodes.start(drain_s=0.3)
    connections = []
    for number in range(6):
        connection = await connect(node.ws, proxy=None, compression=None)
        await connection.send(connect_command(token(f"v{number}")))
        await connection.recv()
        connections.append(connection)
    node.server.should_exit = True  # what SIGTERM does
    for connection in connections:
        messages, code, reason = await until_closed(connection)
        assert messages == [{"push": {"disconnect": {"code": 3001, "reason": "shutdown", "reconnect": True}}}]
        assert (code, reason) == (3001, "shutdown")
    await node.task
    assert not node.hub.connections


async def test_a_command_under_way_is_answered_before_the_node_goes(nodes: Nodes, stage: Stage, token: Any) -> None:
    node = await nodes.start(drain_s=0.1)
    stage.gate = asyncio.Event()
    async with socket(node) as connection:
        await connection.send(connect_command(token()))
        await connection.recv()
        await connection.send('{"id":2,"rpc":{"method":"test.echo","data":{"text":"slow"}}}')
        await wait_until(lambda: next(iter(node.hub.connections)).session.is_awaited(2))
        node.server.should_exit = True
        await wait_until(lambda: node.hub.is_draining)
        stage.gate.set()
        messages, code, _ = await until_closed(connection)
        assert [message.get("id") for message in messages] == [2, None]
        assert code == 3001


async def test_plain_http_is_no_way_in(node: Node) -> None:
    async with httpx2.AsyncClient() as client:
        assert (await client.get(node.http + "/connection/websocket")).status_code == 404
