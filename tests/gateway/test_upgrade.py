"""The way in: handshakes, what comes behind them, what is refused, and what is written down of it. On the loop of the product."""

import asyncio
import logging
from collections.abc import Callable

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from app.gateway.socket_transport import ViewerSocket
from app.serve import without_addresses
from tests.gateway.conftest import SHELLS, Node
from tests.gateway.test_handover import connect_command, is_empty, only, replies
from tests.support.frames import ACCEPT, CLOSE, KEY, TEXT, RawSocket, handshake, masked
from tests.support.waiting import wait_until

PATH = "/connection/websocket"
Token = Callable[..., str]

both = pytest.mark.parametrize("shell", SHELLS)


async def test_what_comes_with_the_handshake_is_not_lost(node: Node, token: Token) -> None:
    """uvicorn drops the bytes behind a handshake in the same read. Here in every split of handshake, frame and rest of the frame."""
    whole = handshake(node.port, PATH) + masked(TEXT, connect_command(token()))
    for cut in (len(whole), len(whole) - 5, whole.index(b"\r\n\r\n") + 4, whole.index(b"\r\n\r\n") + 2, 20):
        async with await RawSocket.connect(node.port) as client:
            client.send(whole[:cut])
            await client.writer.drain()
            for _ in range(3):
                await asyncio.sleep(0)
            client.send(whole[cut:])
            await client.read_head()
            [reply] = await replies(client, 1)
            assert "connect" in reply


@both
async def test_what_comes_right_after_the_handshake_is_not_lost(node: Node, token: Token) -> None:
    async with await RawSocket.upgraded(node.port) as client:
        client.send(masked(TEXT, connect_command(token())) + masked(CLOSE, b""))
        seen = [await client.frame()]
        while seen[-1][0] != CLOSE:
            seen.append(await client.frame())
        assert await client.at_end()


async def test_the_upgrade_itself(node: Node) -> None:
    async with await RawSocket.connect(node.port) as client:
        client.send(
            handshake(node.port, PATH, Sec_WebSocket_Protocol="other, centrifuge-json", Sec_WebSocket_Extensions="permessage-deflate")
        )
        head = (await client.read_head()).lower().split(b"\r\n")
        assert head[0] == b"http/1.1 101 switching protocols"
        assert b"upgrade: websocket" in head
        assert b"connection: upgrade" in head
        assert b"sec-websocket-accept: " + ACCEPT.lower() in head
        assert b"sec-websocket-protocol: centrifuge-json" in head
        assert not any(line.startswith(b"sec-websocket-extensions") for line in head)


async def test_an_upgrade_on_a_connection_that_served_requests(node: Node) -> None:
    async with await RawSocket.connect(node.port) as client:
        client.send(b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n")
        head = await client.read_head()
        assert head.startswith(b"HTTP/1.1 404")
        await client.reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        client.send(handshake(node.port, PATH))
        assert (await client.read_head()).startswith(b"HTTP/1.1 101")


async def test_an_upgrade_behind_a_request_that_is_not_answered_yet_is_refused(node: Node) -> None:
    """Answer and frames would be written into each other."""
    async with await RawSocket.connect(node.port) as client:
        client.send(b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n" + handshake(node.port, PATH))
        assert b"101 Switching" not in await client.reader.read()
        assert not node.hub.connections


async def test_handshakes_that_are_refused(node: Node) -> None:
    refusals: list[tuple[dict[str, str | None], int]] = [
        ({"Sec_WebSocket_Version": "12"}, 426),
        ({"Sec_WebSocket_Version": None}, 426),
        ({"Sec_WebSocket_Key": None}, 400),
        ({"Sec_WebSocket_Key": "short"}, 400),
        ({"Sec_WebSocket_Key": "!" * 24}, 400),
        ({"Sec_WebSocket_Key": KEY + "\r\nSec-WebSocket-Key: " + KEY}, 400),
        ({"Host": "a\r\nHost: b"}, 400),
        ({"Content_Length": "2"}, 400),
        ({"Origin": "https://evil.example"}, 403),
    ]
    for changed, status in refusals:
        async with await RawSocket.connect(node.port) as client:
            client.send(handshake(node.port, PATH, **changed) + (b"{}" if "Content_Length" in changed else b""))
            head = (await client.read_head()).lower()
            assert head.startswith(b"http/1.1 %d " % status), (changed, head)
            assert (b"sec-websocket-version: 13" in head) == (status == 426)
            await client.reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
            assert await client.at_end()
            assert not node.hub.connections


@pytest.mark.parametrize("request_line", [b"POST %s HTTP/1.1", b"GET %s HTTP/1.0"])
async def test_only_get_of_http_1_1_upgrades(node: Node, request_line: bytes) -> None:
    async with await RawSocket.connect(node.port) as client:
        client.send(handshake(node.port, PATH).replace(b"GET " + PATH.encode() + b" HTTP/1.1", request_line % PATH.encode()))
        assert (await client.read_head()).startswith(b"HTTP/1.1 400 ")


async def test_the_path_may_be_written_in_any_way(node: Node, token: Token) -> None:
    async with await RawSocket.upgraded(node.port, path="/connection/%77ebsocket?cf_protocol=json") as client:
        client.send(masked(TEXT, connect_command(token())))
        assert "connect" in (await replies(client, 1))[0]
        assert type(only(node).transport) is ViewerSocket


async def test_other_paths_are_not_upgraded(node: Node) -> None:
    async with await RawSocket.connect(node.port) as client:
        client.send(handshake(node.port, "/elsewhere"))
        assert (await client.read_head()).startswith(b"HTTP/1.1 403 ")


H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"


@pytest.mark.parametrize("in_parts", [False, True])
async def test_who_asks_for_another_protocol_is_answered_in_this_one(node: Node, in_parts: bool) -> None:
    """Java's client asks for h2c in its first request. It was cut off without an answer, being taken for an upgrade behind a request that
    is under way: its own. uvicorn alone answers, but loses the body, and takes what comes of it later for the next request."""

    async def echo(request: Request) -> PlainTextResponse:
        return PlainTextResponse(b"<" + await request.body() + b">")

    assert isinstance(node.server.config.app, FastAPI)
    node.server.config.app.add_route("/echo", echo, methods=["POST"])
    body = b"GET /body HTTP/1.1\r\nHost: a\r\n\r\n"
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\n" + H2C + b"Content-Length: %d\r\n\r\n" % len(body)
    rest = body + b"GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    async with await RawSocket.connect(node.port) as client:
        client.send(head if in_parts else head + rest)
        if in_parts:
            await wait_until(lambda: node.server.server_state.tasks)
            client.send(rest)
        said = await client.reader.read()
        assert said.count(b"HTTP/1.1 ") == 2
        assert said.startswith(b"HTTP/1.1 200 ")
        assert b"<" + body + b">HTTP/1.1 404 " in said


async def test_the_server_is_no_proxy(node: Node) -> None:
    """The parser takes a CONNECT for an upgrade too."""
    async with await RawSocket.connect(node.port) as client:
        client.send(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.read_head()).startswith(b"HTTP/1.1 400 ")


async def test_no_request_at_all_is_told_so(node: Node) -> None:
    async with await RawSocket.connect(node.port) as client:
        client.send(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert (await client.read_head()).startswith(b"HTTP/1.1 400 ")


async def test_the_address_is_logged_nowhere(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with await RawSocket.upgraded(node.port, path=PATH + "?token=s3cr3t"):
        await wait_until(lambda: node.hub.connections)
    await is_empty(node)
    assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize("shell", ["asgi"])
async def test_the_servers_own_lines_with_addresses_are_left_out(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """`serve` sets this filter; uvicorn's websocket classes log the whole address of whoever comes in."""
    caplog.set_level(logging.INFO)
    caplog.handler.addFilter(without_addresses)
    try:
        async with await RawSocket.upgraded(node.port, path=PATH + "?token=s3cr3t"):
            await wait_until(lambda: node.hub.connections)
    finally:
        caplog.handler.removeFilter(without_addresses)
    assert "s3cr3t" not in caplog.text
