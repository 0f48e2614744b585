"""Clients that do not read, on real sockets with small buffers: what they cost, what they still get, and what they are told."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import REGISTRY

from app.gateway.connection import Connection
from app.protocol.framing import pack_frame
from app.storage.work import Engines
from tests.gateway.conftest import SHELLS, Node, Nodes
from tests.support.clients import raw_client
from tests.support.waiting import wait_until

SOCKET_BYTES = 4096  # the kernel makes more of it
PAD = "x" * 8_000
HANDSHAKE = (
    "GET /connection/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

pytestmark = pytest.mark.parametrize("shell", SHELLS)


class Phone:
    """A client that reads when it is told to."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._data = b""
        self.pushes: list[dict[str, Any]] = []
        self.replies: list[dict[str, Any]] = []
        self.closed: tuple[int, str] | None = None

    async def send(self, *commands: dict[str, Any]) -> None:
        text = "\n".join(json.dumps(command) for command in commands).encode()
        frame = pack_frame(text, True)
        head = len(frame) - len(text)
        masked = bytes([frame[0], frame[1] | 0x80]) + frame[2:head] + bytes(4) + text
        await asyncio.get_running_loop().sock_sendall(self._line, masked)

    async def read_on(self) -> bool:
        """Something more; False at the end."""
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._line, 65_536), 10)
        self._data += data
        while self._take_frame():
            pass
        return bool(data)

    def _take_frame(self) -> bool:
        if len(self._data) < 4:
            return False
        size, start = self._data[1], 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(self._data[2:start])
        if len(self._data) < start + size:
            return False
        opcode, payload = self._data[0] & 15, self._data[start : start + size]
        self._data = self._data[start + size :]
        if opcode == 8:
            self.closed = (int.from_bytes(payload[:2]), payload[2:].decode())
        else:
            for line in payload.split(b"\n"):
                message = json.loads(line)
                (self.pushes if "push" in message else self.replies).append(message.get("push", message))
        return True

    async def read_handshake(self) -> None:
        while b"\r\n\r\n" not in self._data:
            self._data += await asyncio.get_running_loop().sock_recv(self._line, 65_536)
        self._data = self._data.partition(b"\r\n\r\n")[2]

    def offsets(self, channel: str) -> list[int]:
        return [push["pub"]["offset"] for push in self.pushes if push.get("channel") == channel and "pub" in push]


@asynccontextmanager
async def phone(node: Node, token: str, *channels: str) -> AsyncGenerator[Phone]:
    """Connected and subscribed, and from then on deaf until it is told to read."""
    loop = asyncio.get_running_loop()
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        line.setblocking(False)
        await loop.sock_connect(line, ("127.0.0.1", node.port))
        await loop.sock_sendall(line, HANDSHAKE.encode())
        one = Phone(line)
        await one.read_handshake()
        subscribes = [{"id": 2 + number, "subscribe": {"channel": channel}} for number, channel in enumerate(channels)]
        await one.send({"id": 1, "connect": {"token": token}}, *subscribes)
        while len(one.replies) < 1 + len(channels):
            assert await one.read_on()
        yield one


async def small_node(nodes: Nodes, **settings: Any) -> Node:
    """A node whose sockets hold little, so that a deaf client shows early."""
    node = await nodes.start(send_buffer_shed_bytes=32_768, send_buffer_bytes_max=131_072, close_grace_s=1, **settings)
    listening = node.server.servers[0].sockets[0]
    with socket.socket(fileno=os.dup(listening.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)  # accepted sockets inherit it
    return node


def connection_of(node: Node, name: str) -> Connection:
    [connection] = [one for one in node.hub.connections if one.caller.id == name]
    return connection


async def say(node: Node, engines: Engines, channel: str) -> None:
    """One event, on its way to whoever takes it when this returns: on a fast machine many would go in one window."""
    offset = await engines.streams.publish(channel, json.dumps({"type": "test.said", "pad": PAD}).encode())

    def is_carried() -> bool:
        feed = node.hub.feed_of(channel)
        if feed is None:
            return True  # its last connection was given up
        room = node.hub.rooms.get("r1")
        return feed.channel.top == offset and (room is None or (room.window.is_empty and room.sweeping is None))

    await wait_until(is_carried)


async def fill(node: Node, engines: Engines, line: Connection) -> None:
    """Until the client is seen to take nothing."""
    while not line.is_slow:
        assert line.is_open
        await say(node, engines, "room:r1")


def shed(lane: str) -> float:
    return REGISTRY.get_sample_value("jishi_shed_total", {"lane": lane, "reason": "slow"}) or 0.0


async def test_a_deaf_client_is_closed_3008_and_costs_no_more_than_its_buffer(nodes: Nodes, engines: Engines, token: Any) -> None:
    node = await small_node(nodes)
    async with raw_client(node.http, token("bob")) as bob, phone(node, token("ann"), "room:r1"):
        await bob.subscribe("room:r1")
        ann = connection_of(node, "ann")
        waited = [0]

        def is_gone() -> bool:
            waited.append(ann.transport.buffered_bytes)
            return ann not in node.hub.connections

        for _ in range(40):
            await say(node, engines, "room:r1")
            is_gone()
        await wait_until(is_gone)  # without a word from the client
        assert not ann.is_open
        assert 32_768 < max(waited) < 131_072 + 1_000  # the push that says why, and the close frame
        await wait_until(lambda: len(bob.publications("room:r1")) == 40)
    assert [one["offset"] for one in bob.publications("room:r1")] == list(range(1, 41))


async def test_a_window_larger_than_the_buffer_closes_nobody_who_takes_it(nodes: Nodes, engines: Engines, token: Any) -> None:
    """On a fast machine forty large events came in one window, and every viewer of the room was closed 3008."""
    node = await small_node(nodes, stage_sweep_ms=300, sweep_ms=300)
    async with raw_client(node.http, token("bob")) as bob:
        await bob.subscribe("room:r1")
        for _ in range(40):
            await engines.streams.publish("room:r1", json.dumps({"type": "test.said", "pad": PAD}).encode())
        await wait_until(lambda: len(bob.publications("room:r1")) == 40)
        assert [push for push in bob.pushes if "disconnect" in push] == []


async def test_a_client_that_wakes_up_after_it_was_given_up_is_told_so(nodes: Nodes, engines: Engines, token: Any) -> None:
    """Everything before the end is there without a gap, then the push, then the close frame with the same code."""
    node = await small_node(nodes, send_stalled_s_max=1)
    async with phone(node, token("ann"), "room:r1") as ann:
        line = connection_of(node, "ann")
        await fill(node, engines, line)
        await wait_until(lambda: not line.is_open)
        while ann.closed is None:
            assert await ann.read_on()
    assert ann.closed[0] == 3008
    assert ann.pushes[-1]["disconnect"] == {"code": 3008, "reason": ann.closed[1], "reconnect": True}
    offsets = ann.offsets("room:r1")
    assert offsets == list(range(1, len(offsets) + 1))


async def test_a_slow_client_keeps_the_stage_skips_chat_and_recovers(nodes: Nodes, engines: Engines, token: Any) -> None:
    node = await small_node(nodes, chat_shown_per_s=1000)
    async with phone(node, token("ann"), "room:r1", "chat:r1") as ann:
        line = connection_of(node, "ann")
        await fill(node, engines, line)
        before = shed("chat"), shed("pulse")
        for number in range(5):
            await engines.streams.publish("chat:r1", b'{"type":"test.line"}')
            await engines.streams.publish("room:r1", b'{"type":"room.pulse"}', transient=True)
            await wait_until(lambda number=number: (shed("chat"), shed("pulse")) == (before[0] + number + 1, before[1] + number + 1))
        position = await engines.streams.publish("room:r1", b'{"type":"test.last"}')
        assert line.is_open
        while position not in ann.offsets("room:r1"):
            assert await ann.read_on()
        assert ann.offsets("room:r1") == list(range(1, position + 1))
        assert (ann.offsets("chat:r1"), ann.closed) == ([], None)
        await wait_until(lambda: not line.is_slow)
        await engines.streams.publish("chat:r1", b'{"type":"test.line"}')
        while not ann.offsets("chat:r1"):
            assert await ann.read_on()
        assert ann.offsets("chat:r1") == [6]


async def test_an_own_event_for_a_deaf_client_closes_it_too(nodes: Nodes, engines: Engines, token: Any) -> None:
    """Its own channel is of the stage: never skipped."""
    node = await small_node(nodes)
    async with phone(node, token("ann")) as ann:
        line = connection_of(node, "ann")
        for _ in range(40):
            await say(node, engines, "user:ann")
        await wait_until(lambda: line not in node.hub.connections)
        while await ann.read_on():
            pass
        offsets = ann.offsets("user:ann")
        assert 0 < len(offsets) < 40
        assert offsets == list(range(1, len(offsets) + 1))
