"""A reconnect storm: hundreds of clients come back at once, each to where it was. Little is read, and nothing is missing or double."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from app.domains.chat.store import hide_message
from app.protocol import codes
from app.protocol.channels import Kind
from app.protocol.commands import ChatLine
from app.protocol.events import ChatDeleted, ChatMessage, encode_event
from app.storage.streams import Streams
from app.storage.work import Engines
from tests.gateway.conftest import Node, Nodes, Stage
from tests.support.clients import raw_client
from tests.support.waiting import wait_until

CLIENTS = 300
EVENTS = 120


@pytest.fixture
def histories_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The channels whose history was read from the engine."""
    read: list[str] = []
    history = Streams.history

    async def counted(streams: Streams, channel: str, **options: Any) -> Any:
        read.append(channel)
        return await history(streams, channel, **options)

    monkeypatch.setattr(Streams, "history", counted)
    return read


class Returner:
    """A client that comes back in one frame, as SDKs do, and follows what it gets."""

    def __init__(self, connection: ClientConnection, since: int) -> None:
        self.connection = connection
        self.offsets = [since]
        self.subscribed: dict[str, Any] | None = None

    async def come(self, token: str, epoch: str, frames: str = "") -> None:
        subscribe = {"channel": "room:r1", "recover": True, "epoch": epoch, "offset": self.offsets[0]}
        await self.connection.send(
            json.dumps({"id": 1, "connect": {"token": token}}) + "\n" + json.dumps({"id": 2, "subscribe": subscribe})
        )

    async def follow(self, last: int) -> None:
        """Until it has the event `last`. Fails on whatever is not the next event, or comes before the subscribe's reply."""
        while self.offsets[-1] != last:
            for line in str(await self.connection.recv()).split("\n"):
                self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if message.get("id") == 2:
            self.subscribed = message["subscribe"]
            self.offsets += [one["offset"] for one in self.subscribed.get("publications", [])]
        elif message.get("push", {}).get("channel") == "room:r1":
            assert self.subscribed is not None, "a publication before the reply"
            self.offsets.append(message["push"]["pub"]["offset"])
        else:
            assert message == {} or message["id"] == 1, message


async def publish(engines: Engines, count: int) -> None:
    for _ in range(count):
        await engines.streams.publish("room:r1", b'{"type":"test.numbered"}')


@asynccontextmanager
async def returners(node: Node, sinces: list[int]) -> AsyncGenerator[list[Returner]]:
    async with AsyncExitStack() as stack:

        async def knock(since: int) -> Returner:
            return Returner(await stack.enter_async_context(connect(node.ws, proxy=None, compression=None)), since)

        yield await asyncio.gather(*[knock(since) for since in sinces])


async def test_all_come_back_to_a_node_that_knows_nothing_yet(
    nodes: Nodes, engines: Engines, token: Any, histories_read: list[str]
) -> None:
    """Each from a place of its own, while events go on: one read of the room's history, no gap, no double."""
    await publish(engines, EVENTS)
    epoch = (await engines.streams.position("room:r1")).epoch
    node = await nodes.start()
    rng = random.Random(1)
    async with returners(node, [rng.randrange(EVENTS + 1) for _ in range(CLIENTS)]) as clients:
        await asyncio.gather(*[client.come(token(f"v{number}"), epoch) for number, client in enumerate(clients)], publish(engines, 20))
        await asyncio.gather(*[client.follow(EVENTS + 20) for client in clients])
        for client in clients:
            assert client.offsets == list(range(client.offsets[0], EVENTS + 21))
            assert client.subscribed is not None
            assert (client.subscribed["was_recovering"], client.subscribed["recovered"]) == (True, True)
    assert histories_read == ["room:r1"]


async def test_a_node_that_was_there_reads_nothing(nodes: Nodes, engines: Engines, token: Any, histories_read: list[str]) -> None:
    node = await nodes.start()
    async with raw_client(node.http, token()) as client:
        epoch = (await client.subscribe("room:r1"))["epoch"]
        await publish(engines, EVENTS)
        await wait_until(lambda: len(client.publications("room:r1")) == EVENTS)
        async with returners(node, list(range(40, EVENTS))) as clients:
            await asyncio.gather(*[one.come(token(f"v{number}"), epoch) for number, one in enumerate(clients)])
            await asyncio.gather(*[one.follow(EVENTS) for one in clients])
            assert [one.offsets for one in clients] == [list(range(since, EVENTS + 1)) for since in range(40, EVENTS)]
    assert histories_read == []


async def test_what_one_frame_asks_is_answered_in_one_message(node: Node, token: Any, engines: Engines) -> None:
    async with raw_client(node.http, token()) as first:
        await first.subscribe("room:r1")
        await first.subscribe("chat:r1")
        async with connect(node.ws, proxy=None, compression=None) as connection:
            commands = [{"id": 1, "connect": {"token": token("bob")}}]
            commands += [{"id": number, "subscribe": {"channel": channel}} for number, channel in ((2, "room:r1"), (3, "chat:r1"))]
            await connection.send("\n".join(json.dumps(command) for command in commands))
            replies = [json.loads(line) for line in str(await connection.recv()).split("\n")]
            assert [(reply["id"], *(set(reply) - {"id"})) for reply in replies] == [(1, "connect"), (2, "subscribe"), (3, "subscribe")]
            assert replies[1]["subscribe"]["data"] == {"test": {"title": "tea"}}


async def test_too_many_at_once_are_told_to_come_again_and_do(nodes: Nodes, engines: Engines, token: Any) -> None:
    """The only error of a storm is 503 with a time to return, and who comes again gets everything."""
    await publish(engines, EVENTS)
    epoch = (await engines.streams.position("room:r1")).epoch
    node = await nodes.start(joins_per_s=100)
    refused: list[int] = []

    async def come_back(number: int) -> list[int]:
        while True:
            try:
                async with connect(node.ws, proxy=None, compression=None) as connection:
                    client = Returner(connection, since=100)
                    await client.come(token(f"v{number}"), epoch)
                    await client.follow(EVENTS)
                    return client.offsets
            except InvalidStatus as refusal:
                refused.append(refusal.response.status_code)
                assert 1 <= int(refusal.response.headers["Retry-After"]) <= 10
                await asyncio.sleep(0.05)  # a client that does not wait as it is told

    everybody = await asyncio.gather(*[come_back(number) for number in range(200)])
    assert everybody == [list(range(100, EVENTS + 1))] * 200
    assert set(refused) == {503}


async def test_a_history_that_was_lost_starts_everybody_afresh_with_few_snapshots(
    nodes: Nodes, engines: Engines, stage: Stage, token: Any, histories_read: list[str]
) -> None:
    await publish(engines, 5)
    node = await nodes.start()
    async with returners(node, [3] * 100) as clients:
        await asyncio.gather(*[client.come(token(f"v{number}"), "another-life") for number, client in enumerate(clients)])
        await wait_until(lambda: len(node.hub.rooms["r1"].members) == 100 if "r1" in node.hub.rooms else False)
        await publish(engines, 1)
        for client in clients:
            client.offsets[0] = 5
        await asyncio.gather(*[client.follow(6) for client in clients])
        for client in clients:
            assert client.subscribed is not None
            assert client.subscribed.get("recovered", False) is False
            assert (client.subscribed["offset"], client.subscribed["data"]) == (5, {"test": {"title": "tea"}})
    assert histories_read == ["room:r1"]
    assert stage.snapshots_built == 1


# --- chat ----------------------------------------------------------------------------------------------------------------------------


def line(number: int) -> bytes:
    said = ChatLine(id=f"m{number}", viewer="mal", name="Mal", text="buy elsewhere", at="2026-05-01T12:00:00.000Z", role="", level=0)
    return encode_event(ChatMessage(at="2026-05-01T12:00:00.000Z", message=said))


DELETED = encode_event(ChatDeleted(at="2026-05-01T12:00:01.000Z", message="m2", viewer="mal"))


@pytest.mark.parametrize("is_shared", [True, False])
async def test_a_deleted_line_is_recovered_as_its_deletion(node: Node, engines: Engines, token: Any, is_shared: bool) -> None:
    """Also by those who share what was read before the deletion."""
    streams = engines.streams
    for number in (1, 2, 3):
        await streams.publish("chat:r1", line(number))
    epoch = (await streams.position("chat:r1")).epoch
    async with raw_client(node.http, token()) as client:
        await client.subscribe("chat:r1", recover=True, offset=1, epoch=epoch)
        await hide_message(engines, "r1", "m2")
        await streams.publish("chat:r1", DELETED)
        await wait_until(lambda: len(client.publications("chat:r1")) == 1)
        if not is_shared:
            node.hub.rooms["r1"].feeds[Kind.CHAT].forget_reads()
        async with raw_client(node.http, token("bob")) as bob:
            back = await bob.subscribe("chat:r1", recover=True, offset=1, epoch=epoch)
            assert [one["data"]["type"] for one in back["publications"]] == ["chat.deleted", "chat.sent", "chat.deleted"]
            assert bob.publications("chat:r1") == []


async def test_a_deletion_told_on_stage_ends_what_is_shared_of_the_chat(node: Node, engines: Engines, token: Any) -> None:
    """It is told in room:<id>, beside the chat's own stream; for two seconds those who came back were still handed the line."""
    for number in (1, 2, 3):
        await engines.streams.publish("chat:r1", line(number))
    epoch = (await engines.streams.position("chat:r1")).epoch
    async with raw_client(node.http, token()) as client, raw_client(node.http, token("bob")) as bob:
        await client.subscribe("room:r1")
        await client.subscribe("chat:r1", recover=True, offset=1, epoch=epoch)
        await hide_message(engines, "r1", "m2")  # as the reaction does, before the event goes out
        await engines.streams.publish("room:r1", DELETED)
        await wait_until(lambda: client.publications("room:r1"))
        back = await bob.subscribe("chat:r1", recover=True, offset=1, epoch=epoch)
        assert [one["data"]["type"] for one in back["publications"]] == ["chat.deleted", "chat.sent"]


async def test_a_deletion_that_nothing_else_knows_of_yet_is_seen_in_the_history_itself(node: Node, engines: Engines, token: Any) -> None:
    """The engine is told which lines are hidden after the deletion was published; a client that comes between must not get the line."""
    for data in (line(1), line(2), DELETED):
        await engines.streams.publish("chat:r1", data)
    epoch = (await engines.streams.position("chat:r1")).epoch
    async with raw_client(node.http, token()) as client:
        back = await client.subscribe("chat:r1", recover=True, offset=0, epoch=epoch)
        assert [one["data"]["type"] for one in back["publications"]] == ["chat.sent", "chat.deleted", "chat.deleted"]


async def test_a_position_that_never_was_starts_afresh(node: Node, engines: Engines, token: Any) -> None:
    epoch = (await engines.streams.position("room:r1")).epoch
    async with raw_client(node.http, token()) as client:
        back = await client.subscribe("room:r1", recover=True, offset=2**64 - 1, epoch=epoch)
        assert (back["was_recovering"], back.get("recovered", False), back.get("offset", 0)) == (True, False, 0)
        assert codes.CLOSE_BAD_REQUEST.number not in [push.get("disconnect", {}).get("code") for push in client.pushes]
