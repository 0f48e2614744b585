"""What no client should send or leave undone, before the handshake and behind it: refused in time, bounded, and without a trace in the log.

Each was found by `make fuzz`, or beside it.
"""

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from app.gateway.admission import is_allowed_origin
from app.storage.work import Engines
from tests.gateway.conftest import Node, Nodes, start_node
from tests.support.clients import raw_client
from tests.support.corpus.frames import TEXT, client_frame
from tests.support.frames import RawSocket, handshake
from tests.support.waiting import wait_until

PATH = "/connection/websocket"


@pytest.fixture(autouse=True)
def _nothing_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("origin", ["http://[::1", "http://[", "//[x]y", "http://\u2100.example"])
async def test_an_origin_that_is_none_is_a_foreign_one(node: Node, origin: str) -> None:
    """urlsplit raises for half a bracketed address: the handshake ended in a traceback, and the client without an answer."""
    assert not is_allowed_origin(origin, "localhost", "")
    if not origin.isascii():
        return  # on the wire it would be other characters
    async with await RawSocket.connect(node.port) as client:
        client.send(handshake(node.port, PATH, Origin=origin))
        assert (await client.read_head()).startswith(b"HTTP/1.1 403 ")


async def test_frames_behind_a_handshake_to_another_path_harm_nobody(node: Node) -> None:
    """uvicorn's websocket class parses them before its answer is out, and then fails an assertion of its own, twice."""
    async with await RawSocket.connect(node.port) as client:
        client.send(handshake(node.port, "/elsewhere") + client_frame(3, b"x") + client_frame(TEXT, b"{}", mask=None))
        assert (await client.read_head()).startswith(b"HTTP/1.1 403 ")
        await wait_until(lambda: not node.server.server_state.connections)
        assert not node.server.server_state.tasks


@pytest.mark.parametrize("head", [b"", b"GET ", handshake(1, PATH)[:-2], b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /"])
async def test_a_head_that_does_not_come_to_its_end_is_not_awaited_for_ever(nodes: Nodes, head: bytes) -> None:
    """uvicorn has a time-out between requests, and none within one: such a connection stayed until the client went."""
    node = await nodes.start(connect_timeout_s=1)
    async with await RawSocket.connect(node.port) as client:
        client.send(head)
        said = await asyncio.wait_for(client.reader.read(-1), 15)
        assert b"HTTP/1.1 408 " in said
    await wait_until(lambda: not node.server.server_state.connections)


async def test_a_head_without_end_is_not_kept(nodes: Nodes) -> None:
    """uvicorn's parser has no limit: whoever sent headers for ever filled the memory of the node."""
    node = await nodes.start(head_bytes_max=10_000)
    async with await RawSocket.connect(node.port) as client:
        client.send(b"GET / HTTP/1.1\r\n")
        await wait_until(lambda: node.server.server_state.connections)
        client.send((b"X-More: " + b"x" * 1_000 + b"\r\n") * 9)
        await asyncio.sleep(0)
        assert node.server.server_state.connections
        client.send((b"X-More: " + b"x" * 1_000 + b"\r\n") * 9)
        assert (await client.read_head()).startswith(b"HTTP/1.1 431 ")
    await wait_until(lambda: not node.server.server_state.connections)


@pytest.mark.parametrize(("request_head", "more"), [(b"GET / HTTP/1.1\r\n", b"\r\n"), (b"POST / HTTP/1.1\r\nContent-Length: 99\r\n", b"x")])
async def test_a_byte_behind_an_answer_is_no_way_to_stay(engines: Engines, request_head: bytes, more: bytes) -> None:
    """uvicorn stopped its time-out between requests at any byte: an empty line, or the rest of a body that was not waited for, and a
    connection that did nothing more stayed until the client went."""
    node = await start_node(engines, timeout_keep_alive=1)
    try:
        async with await RawSocket.connect(node.port) as client:
            client.send(request_head + b"Host: x\r\n\r\n")
            assert (await client.read_head()).startswith(b"HTTP/1.1 404 ")
            client.send(more)
            await asyncio.wait_for(client.reader.read(-1), 15)
        await wait_until(lambda: not node.server.server_state.connections)
    finally:
        await node.stop()


async def test_requests_sent_ahead_are_few(node: Node) -> None:
    """uvicorn made all of a read into requests at once: 256 KiB were 14,000 of them, 30 MiB, and nobody else served for 0.3 s."""
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    async with await RawSocket.connect(node.port) as client:
        client.send(request * 10 + request.replace(b"x", b"x\r\nConnection: close"))
        assert (await client.reader.read()).count(b"HTTP/1.1 404 ") == 11
    async with await RawSocket.connect(node.port) as client:
        client.send(request * 100)
        with suppress(ConnectionResetError):
            assert (await client.reader.read()).count(b"HTTP/1.1 ") < 100
    await wait_until(lambda: not node.server.server_state.connections)


async def test_an_answer_that_is_not_taken_is_not_kept(nodes: Nodes) -> None:
    """uvicorn waits for the client to take it, and so does the close after the keep-alive time: the answer stayed as long as the client."""

    async def large(_: Request) -> PlainTextResponse:
        return PlainTextResponse("x" * 20_000_000)

    node = await nodes.start(send_stalled_s_max=1)
    assert isinstance(node.server.config.app, FastAPI)
    node.server.config.app.add_route("/large", large)
    async with await RawSocket.connect(node.port) as client:
        client.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.read_head()
        client.writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]  # a socket's transport can read
        await wait_until(lambda: not node.server.server_state.connections)
    async with await RawSocket.connect(node.port) as client:
        client.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.read_head()
        assert len(await client.reader.readexactly(20_000_000)) == 20_000_000


async def test_a_body_is_no_head(nodes: Nodes) -> None:
    """A request that comes in one read with a body larger than a head may be is an ordinary one."""
    node = await nodes.start(head_bytes_max=1_000)
    body = b"x" * 30_000
    async with await RawSocket.connect(node.port) as client:
        client.send(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert (await client.read_head()).startswith(b"HTTP/1.1 404 ")


async def test_who_asks_and_never_takes_the_answers_is_let_go(nodes: Nodes, engines: Engines, token: Any) -> None:
    """Publications were bounded, answers were not: 50 histories a second, of 600 KiB each, waited in the node for ten seconds."""
    node = await nodes.start(send_stalled_s_max=60)  # it is not for its time that it is let go
    reply_bytes = 30 * 20_000
    async with raw_client(node.http, token("bob")) as other:
        for _ in range(30):
            await engines.streams.publish("room:r1", b'"' + b"x" * 20_000 + b'"')
        async with await RawSocket.upgraded(node.port) as client:
            client.send(client_frame(TEXT, json.dumps({"id": 1, "connect": {"token": token("ann")}}).encode()))
            await client.frame()
            [connection] = [one for one in node.hub.connections if one.caller.id == "ann"]
            client.writer.transport.pause_reading()
            for number in range(2, 42):
                client.send(client_frame(TEXT, json.dumps({"id": number, "history": {"channel": "room:r1", "limit": -1}}).encode()))
            await wait_until(lambda: not connection.is_open, what="the node has had enough")
            assert connection.transport.buffered_bytes < node.hub.settings.send_buffer_bytes_max + 2 * reply_bytes
            assert len((await other.command(history={"channel": "room:r1", "limit": -1}))["history"]["publications"]) == 30
        await wait_until(lambda: len(node.hub.connections) == 1)
