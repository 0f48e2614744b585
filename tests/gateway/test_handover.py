"""Sockets from the upgrade to their end, in both shells, on the loop of the product: what a client may do wrong, late, or not at all.

What only a socket handed over can do is marked so; the framing of the plain shell is the server's.
"""

import asyncio
import gc
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from app.gateway.connection import Connection
from app.gateway.handover import GatewayHttp
from app.gateway.socket_transport import ViewerSocket
from app.protocol import codes
from app.protocol.session import Session
from app.storage.work import Engines
from tests.gateway.conftest import SHELLS, Node, Nodes, start_node
from tests.support.certificates import Certificates
from tests.support.clients import raw_client
from tests.support.frames import BINARY, CLOSE, FIN, PING, PONG, TEXT, RawSocket, handshake, masked
from tests.support.waiting import wait_until

PATH = "/connection/websocket"
Token = Callable[..., str]

both = pytest.mark.parametrize("shell", SHELLS)


def connect_command(token: str, command_id: int = 1) -> bytes:
    return json.dumps({"id": command_id, "connect": {"token": token}}).encode()


async def replies(client: RawSocket, count: int) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    while len(messages) < count:
        first, payload = await client.frame()
        assert first == TEXT, (first, payload)
        messages += [json.loads(line) for line in payload.split(b"\n")]
    return messages


@asynccontextmanager
async def joined(node: Node, token: Token) -> AsyncGenerator[RawSocket]:
    async with await RawSocket.upgraded(node.port) as client:
        client.send(masked(TEXT, connect_command(token())))
        [reply] = await replies(client, 1)
        assert "connect" in reply
        yield client


async def is_empty(node: Node) -> None:
    await wait_until(lambda: not node.hub.connections)


def only(node: Node) -> Connection:
    [connection] = node.hub.connections
    return connection


# --- frames -------------------------------------------------------------------------------------------------------------------------


@both
async def test_a_command_in_parts_with_a_ping_between(node: Node, token: Token) -> None:
    command = connect_command(token())
    async with await RawSocket.upgraded(node.port) as client:
        client.send(masked(1, command[:20]) + masked(PING, b"there?") + masked(0, command[20:50]) + masked(FIN, command[50:]))
        assert await client.frame() == (PONG, b"there?")
        [reply] = await replies(client, 1)
        assert reply["id"] == 1
        assert "connect" in reply


@both
async def test_a_command_in_single_bytes(node: Node, token: Token) -> None:
    async with await RawSocket.upgraded(node.port) as client:
        for byte in masked(TEXT, connect_command(token())):
            client.send(bytes((byte,)))
            await asyncio.sleep(0)
        [reply] = await replies(client, 1)
        assert "connect" in reply


@both
async def test_two_commands_in_one_read_are_both_answered(node: Node, token: Token) -> None:
    async with await RawSocket.upgraded(node.port) as client:
        client.send(masked(TEXT, connect_command(token())) + masked(BINARY, b'{"id":2,"ping":{}}'))
        assert {reply["id"] for reply in await replies(client, 2)} == {1, 2}


@both
async def test_broken_frames_end_the_connection_with_their_code(nodes: Nodes) -> None:
    node = await nodes.start(message_bytes_max=4096)
    for data, code in [
        (b"\x81\x02{}", 1002),
        (masked(0xC1, b"{}"), 1002),
        (masked(0x83, b"{}"), 1002),
        (masked(FIN, b"{}"), 1002),
        (masked(PING, b"p" * 126), 1002),
        (masked(TEXT, b'"\xff"'), 1007),
        (masked(1, b'"\xe2') + masked(FIN, b'\x28"'), 1007),
        (masked(CLOSE, b"\x03\xe8\xff"), 1007),
        (masked(CLOSE, b"\x03\xed"), 1002),
        (masked(CLOSE, b"\x03"), 1002),
        (masked(BINARY, b"x" * (16 * 4096 + 1))[:100], 1009),
    ]:
        async with await RawSocket.upgraded(node.port) as client:
            client.send(data)
            assert (data, await client.close_code()) == (data, code)
            assert await client.at_end()
            await is_empty(node)


@both
async def test_a_large_message_is_refused_by_a_reply(nodes: Nodes, token: Token) -> None:
    """The limit of frames lies above that of messages, since SDKs take 1009 for final, or come back with the same for ever."""
    node = await nodes.start(message_bytes_max=4096)
    async with joined(node, token) as client:
        client.send(masked(TEXT, json.dumps({"id": 7, "rpc": {"method": "test.echo", "data": {"text": "x" * 5000}}}).encode()))
        [reply] = await replies(client, 1)
        assert (reply["id"], reply["error"]["code"]) == (7, codes.LIMIT_EXCEEDED.number)


@both
async def test_a_viewers_whole_visit(node: Node, token: Token, engines: Engines) -> None:
    """Connect, subscribe, commands, pushes in order, and back again after a cut: the session does not know what carries it."""
    async with raw_client(node.http, token()) as client:
        start = await client.subscribe("room:r1")
        for number in range(5):
            await engines.streams.publish("room:r1", b'{"number":%d}' % number)
            assert await client.rpc("test.echo", {"text": str(number)}) == {"outcome": "echoed", "text": str(number), "by": "ann"}
        await wait_until(lambda: len(client.publications("room:r1")) == 5)
        assert [one["data"]["number"] for one in client.publications("room:r1")] == [0, 1, 2, 3, 4]
        offset = client.publications("room:r1")[2]["offset"]
    async with raw_client(node.http, token()) as client:
        again = await client.subscribe("room:r1", recover=True, epoch=start["epoch"], offset=offset)
        assert again["recovered"]
        assert [one["data"]["number"] for one in again["publications"]] == [3, 4]


# --- closing ------------------------------------------------------------------------------------------------------------------------


@both
async def test_a_clients_close_is_answered_by_its_code(node: Node, token: Token) -> None:
    for payload, code in [(b"\x03\xe8", 1000), (b"\x03\xe9going", 1001), (b"\x0f\xa0", 4000)]:
        async with joined(node, token) as client:
            client.send(masked(CLOSE, payload))
            assert await client.close_code() == code
            assert await client.at_end()
            await is_empty(node)


@both
async def test_a_close_of_ours_waits_for_the_clients(node: Node, token: Token) -> None:
    async with joined(node, token) as client:
        only(node).close(codes.FORCE_DISCONNECT)
        [push] = await replies(client, 1)
        assert push["push"]["disconnect"]["code"] == codes.FORCE_DISCONNECT.number
        assert await client.close_code() == codes.FORCE_DISCONNECT.number
        client.send(masked(CLOSE, codes.FORCE_DISCONNECT.number.to_bytes(2, "big")))
        assert await client.at_end()
        await is_empty(node)


async def test_a_client_that_does_not_answer_our_close_is_dropped(nodes: Nodes, token: Token) -> None:
    """Of sockets handed over; the plain shell has the server's own ten seconds."""
    node = await nodes.start(close_grace_s=1)
    async with joined(node, token) as client:
        only(node).close(codes.FORCE_DISCONNECT)
        await replies(client, 1)
        assert await client.close_code() == codes.FORCE_DISCONNECT.number
        client.send(masked(TEXT, b'{"id":3,"ping":{}}'))  # does not count any more
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await client.frame()
        await is_empty(node)


@both
async def test_a_client_that_only_ends_its_stream_is_gone(node: Node, token: Token) -> None:
    """Half open: its end of the stream came, a close frame did not."""
    async with joined(node, token) as client:
        client.writer.write_eof()
        assert await client.at_end()
        await is_empty(node)


@both
async def test_a_client_that_vanishes_is_gone(node: Node, token: Token) -> None:
    async with joined(node, token) as client:
        client.abort()
        await is_empty(node)


@both
async def test_a_client_that_vanishes_in_the_middle_of_a_frame_is_gone(node: Node, token: Token) -> None:
    async with joined(node, token) as client:
        client.send(masked(TEXT, b"x" * 1000)[:500])
        await client.writer.drain()
        client.abort()
        await is_empty(node)


async def test_a_silent_client_is_found_out_by_its_ping_and_dropped(nodes: Nodes, token: Token) -> None:
    """The peer is there for TCP, and does nothing: no pong in time, a close that it does not answer, then the socket is dropped."""
    node = await nodes.start(ping_interval_s=1, pong_timeout_s=1, close_grace_s=1)
    async with joined(node, token) as client:
        assert await replies(client, 1) == [{}]
        [push] = await replies(client, 1)
        assert push["push"]["disconnect"]["code"] == codes.NO_PONG.number
        await is_empty(node)


# --- slow clients -------------------------------------------------------------------------------------------------------------------


def fill(connection: Connection, size: int) -> None:
    """More than the kernel takes off our hands for a client that reads nothing."""
    piece = connection.transport.pack(b'{"filling":"' + b"x" * 65_000 + b'"}', True)
    while connection.transport.buffered_bytes < size:
        connection.write_packed(piece)


async def stop_reading(client: RawSocket) -> None:
    client.writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]  # a socket's transport can read


async def read_on(client: RawSocket) -> None:
    client.writer.transport.resume_reading()  # pyright: ignore[reportAttributeAccessIssue]


@both
async def test_a_client_that_does_not_read_is_paused_until_it_does(node: Node, token: Token) -> None:
    async with joined(node, token) as client:
        connection = only(node)
        await stop_reading(client)
        fill(connection, 300_000)
        await wait_until(lambda: connection.is_slow)
        await read_on(client)
        while connection.is_slow or connection.transport.buffered_bytes:
            assert (await client.frame())[0] == TEXT
        assert connection.is_open


async def test_a_client_that_did_not_take_an_answer_before_its_upgrade_is_paused(node: Node) -> None:
    """The loop says once that too much waits, and had said it to the server's class: such a viewer counted as fast, and all that its rooms
    told was put on top."""

    async def large(_: Request) -> PlainTextResponse:
        return PlainTextResponse("x" * 20_000_000)

    assert isinstance(node.server.config.app, FastAPI)
    node.server.config.app.add_route("/large", large)
    async with await RawSocket.connect(node.port) as client:
        client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.read_head()
        await stop_reading(client)
        await wait_until(lambda: not node.server.server_state.tasks)
        client.send(handshake(node.port, PATH))
        await wait_until(lambda: node.hub.connections)
        connection = only(node)
        assert connection.is_slow
        await read_on(client)
        while connection.is_slow:
            assert await client.reader.read(1_000_000)
        assert connection.is_open


async def test_pings_of_a_client_that_does_not_read_are_not_answered(node: Node, token: Token) -> None:
    """A client could fill its buffer by pings alone, which no limit of the session sees."""
    async with joined(node, token) as client:
        connection = only(node)
        await stop_reading(client)
        fill(connection, 300_000)
        before = connection.transport.buffered_bytes
        client.send(masked(PING, b"p" * 125) * 1000 + masked(TEXT, b'{"id":9,"ping":{}}'))
        await wait_until(lambda: connection.transport.buffered_bytes > before)  # the one reply
        assert connection.transport.buffered_bytes < before + 100


async def test_a_deaf_client_is_dropped_with_all_that_waits_for_it(nodes: Nodes, token: Token) -> None:
    node = await nodes.start(close_grace_s=1)
    async with joined(node, token) as client:
        connection = only(node)
        await stop_reading(client)
        fill(connection, 900_000)
        connection.close(codes.SLOW)
        await is_empty(node)
        assert connection.transport.buffered_bytes == 0


async def test_an_end_of_stream_of_a_deaf_client_is_no_way_to_keep_its_buffer(nodes: Nodes, token: Token) -> None:
    """The loop closes a socket when its buffer is out: for a client that ended its stream and reads nothing, that would be never."""
    node = await nodes.start(close_grace_s=1)
    async with joined(node, token) as client:
        transport = only(node).transport
        await stop_reading(client)
        fill(only(node), 900_000)
        client.writer.write_eof()
        await is_empty(node)
        await wait_until(lambda: transport.buffered_bytes == 0)


# --- the end of a node --------------------------------------------------------------------------------------------------------------


@both
async def test_draining_closes_everybody_and_the_server_ends(node: Node, token: Token) -> None:
    async with joined(node, token) as client:
        node.server.should_exit = True
        [push] = await replies(client, 1)
        assert push["push"]["disconnect"]["code"] == codes.SHUTDOWN.number
        assert await client.close_code() == codes.SHUTDOWN.number
        client.send(masked(CLOSE, codes.SHUTDOWN.number.to_bytes(2, "big")))
        assert await client.at_end()
        await node.stop()
        assert not node.hub.connections


async def test_a_node_ends_although_a_client_does_not_answer(nodes: Nodes, token: Token) -> None:
    node = await nodes.start(close_grace_s=1)
    async with joined(node, token):
        await node.stop()
        assert not node.hub.connections


async def test_being_told_twice_to_stop_drops_everybody_at_once(nodes: Nodes, token: Token) -> None:
    node = await nodes.start(drain_s=3600)
    async with joined(node, token) as client:
        node.server.should_exit = True
        await replies(client, 1)
        node.server.force_exit = True
        await node.task
        await is_empty(node)


async def test_a_node_that_has_stopped_has_no_task_left(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came late was only told to end, and found the engines closed when it did."""

    async def linger() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            for _ in range(100):  # as giving back a connection does
                await asyncio.sleep(0)

    monkeypatch.setattr("app.gateway.hub.STOP_S_MAX", 0.05)
    late = node.hub.spawn(linger())
    await node.stop()
    assert late.done()


# --- what stays ---------------------------------------------------------------------------------------------------------------------


def alive(*kinds: type) -> list[Any]:
    """By type alone: `isinstance` would ask the weak references of other tests for objects that are gone."""
    return [one for one in gc.get_objects() if issubclass(type(one), kinds)]


async def test_the_server_keeps_nothing_of_a_viewer(node: Node, token: Token) -> None:
    async with joined(node, token):
        assert len(node.hub.connections) == 1
        assert not node.server.server_state.connections
        assert not node.server.server_state.tasks
        assert not alive(GatewayHttp)


async def test_viewers_who_left_are_freed_without_the_collector(node: Node, token: Token) -> None:
    """No cycle is left, so memory does not swing with the collector's turns."""
    kinds = (ViewerSocket, Connection, Session, GatewayHttp)
    gc.collect()
    gc.disable()
    try:
        for turn in range(10):
            async with joined(node, token) as client:
                if turn % 2:
                    client.send(masked(CLOSE, b""))
                    await client.close_code()
        await is_empty(node)
        await wait_until(lambda: not alive(*kinds))
    finally:
        gc.enable()


@pytest.mark.parametrize("shell", ["asgi"])
async def test_the_plain_shell_leaves_nothing_either(node: Node, token: Token) -> None:
    for _ in range(10):
        async with joined(node, token):
            pass
    await is_empty(node)
    await wait_until(lambda: not node.server.server_state.tasks)
    gc.collect()
    assert not alive(Connection, Session)


# --- TLS ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def tls_node(engines: Engines, certificates: Certificates) -> AsyncGenerator[Node]:
    node = await start_node(engines, ssl_certfile=certificates.certificate, ssl_keyfile=certificates.key)
    yield node
    await node.stop()


async def test_over_tls_from_handshake_to_close(tls_node: Node, token: Token, certificates: Certificates) -> None:
    behind = masked(TEXT, connect_command(token()))
    async with await RawSocket.upgraded(tls_node.port, tls=certificates.trust, behind=behind) as client:
        assert "connect" in (await replies(client, 1))[0]
        client.send(masked(CLOSE, b"\x03\xe8"))
        assert await client.close_code() == 1000
        assert await client.at_end()
        await is_empty(tls_node)


async def test_over_tls_a_broken_frame_is_named_before_the_end(tls_node: Node, certificates: Certificates) -> None:
    async with await RawSocket.upgraded(tls_node.port, tls=certificates.trust) as client:
        client.send(b"\x81\x00")
        assert await client.close_code() == 1002
        assert await client.at_end()
        await is_empty(tls_node)


async def test_over_tls_a_client_that_does_not_read_is_paused(tls_node: Node, token: Token, certificates: Certificates) -> None:
    async with await RawSocket.upgraded(tls_node.port, tls=certificates.trust) as client:
        client.send(masked(TEXT, connect_command(token())))
        await replies(client, 1)
        connection = only(tls_node)
        await stop_reading(client)
        fill(connection, 300_000)
        await wait_until(lambda: connection.is_slow)
        await read_on(client)
        while connection.is_slow:
            assert (await client.frame())[0] == TEXT


async def test_over_tls_requests_are_served_beside(tls_node: Node, certificates: Certificates) -> None:
    async with httpx2.AsyncClient(verify=certificates.trust) as http:
        assert (await http.get(f"https://127.0.0.1:{tls_node.port}/nothing")).status_code == 404
