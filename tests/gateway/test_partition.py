"""A node that is cut off from the engine: what its viewers are told, and that nothing is lost or doubled once it hears again.

The line between node and engine goes deaf; everybody else still speaks with the engine. Whoever publishes in these tests is such a one.
"""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from app.core.errors import AppError
from app.core.registry import Registry
from app.core.settings import Settings
from app.domains.chat.store import hide_message
from app.gateway import bus
from app.gateway.hub import Hub
from app.protocol.commands import ChatLine
from app.protocol.events import ChatMessage, encode_event
from app.rest import probes
from app.storage.streams import push_channel
from app.storage.work import Engines
from tests.gateway.conftest import Node, Stage, start_node
from tests.gateway.test_healing import offsets
from tests.gateway.test_wire import denied
from tests.support.clients import raw_client
from tests.support.faulty_proxy import Line, deaf_line
from tests.support.runtime import TestRuntime
from tests.support.servers import Servers
from tests.support.waiting import wait_until

SILENCE_S = 0.5  # long enough for a machine under full load to answer a ping


@dataclass
class Island:
    """Two nodes; the first speaks with the engine over a line that can go deaf."""

    line: Line
    cut: Node
    other: Node

    async def fall_silent(self) -> None:
        self.line.deafen()
        await wait_until(lambda: not self.cut.hub.is_hearing)

    async def hear_again(self) -> None:
        self.line.heal()
        await wait_until(lambda: self.cut.hub.is_hearing)


@pytest.fixture
def lost_s_max() -> float:
    return 60.0


@pytest.fixture
async def island(
    engines: Engines, servers: Servers, settings: Settings, runtime: TestRuntime, registry: Registry, lost_s_max: float
) -> AsyncGenerator[Island]:
    async with AsyncExitStack() as stack:
        line = await stack.enter_async_context(deaf_line(servers.valkey.socket_path))
        changed = settings.model_copy(update={"redis_url": line.url, "bus_silence_s": SILENCE_S, "bus_lost_s_max": lost_s_max})
        behind = Engines.connect(changed, runtime, registry)
        stack.push_async_callback(behind.close)
        cut, other = await start_node(behind), await start_node(engines)
        stack.push_async_callback(other.stop)
        stack.push_async_callback(cut.stop)
        stack.callback(line.heal)
        yield Island(line, cut, other)


async def test_what_was_said_meanwhile_comes_once_and_in_order_when_the_node_hears_again(
    island: Island, engines: Engines, token: Any
) -> None:
    async with raw_client(island.cut.http, token("ann")) as ann, raw_client(island.other.http, token("bob")) as bob:
        for client in (ann, bob):
            await client.subscribe("room:r1")
            await client.subscribe("chat:r1")
        await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: offsets(ann, "room:r1") == offsets(bob, "room:r1") == [1])
        island.line.deafen()
        for _ in range(2):  # before anybody has noticed
            await engines.streams.publish("room:r1", b"{}")
        await engines.streams.publish("user:ann", b"{}")
        await wait_until(lambda: not island.cut.hub.is_hearing)
        await engines.streams.publish("room:r1", b"{}")
        await engines.streams.publish("chat:r1", b"{}")
        await wait_until(lambda: offsets(bob, "room:r1") == [1, 2, 3, 4] and offsets(bob, "chat:r1") == [1])
        assert offsets(ann, "room:r1") == [1]
        island.line.heal()
        await wait_until(lambda: offsets(ann, "room:r1") == [1, 2, 3, 4] and offsets(ann, "chat:r1") == [1])
        await wait_until(lambda: offsets(ann, "user:ann") == [1])
        await wait_until(lambda: island.cut.hub.is_hearing)
        await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: offsets(ann, "room:r1") == offsets(bob, "room:r1") == [1, 2, 3, 4, 5])
        assert not [push for push in ann.pushes if "unsubscribe" in push or "disconnect" in push]


async def test_longer_than_history_remembers_starts_viewers_afresh(island: Island, engines: Engines, token: Any) -> None:
    async with raw_client(island.cut.http, token("ann")) as ann:
        await ann.subscribe("room:r1")
        await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: offsets(ann, "room:r1") == [1])
        await island.fall_silent()
        await engines.streams.publish("room:r1", b"{}")
        await engines.fanout.delete("{r1}:stream:room:r1")
        await engines.streams.publish("room:r1", b"{}")
        await island.hear_again()
        await wait_until(lambda: [push for push in ann.pushes if "unsubscribe" in push])
        assert ann.pushes[-1] == {"channel": "room:r1", "unsubscribe": {"code": 2500, "reason": "insufficient state"}}
        again = await ann.subscribe("room:r1", recover=True, offset=1, epoch="x")
        assert (again.get("recovered", False), again["offset"], again["data"]) == (False, 3, {"test": {"title": "tea"}})


async def test_while_it_is_cut_off_new_subscribes_are_told_to_come_again_and_it_is_not_ready(
    island: Island, token: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus, "OPEN_TIMEOUT_S", 0.5)
    app = FastAPI()
    app.include_router(probes.router)
    app.state.engines, app.state.hub, app.state.draining = island.other.hub.engines, island.cut.hub, False
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://testserver") as probe:
        assert (await probe.get("/readyz")).json()["checks"]["bus"] == "ok"
        async with raw_client(island.cut.http, token("ann")) as ann:
            await island.fall_silent()
            answer = await probe.get("/readyz")
            assert (answer.status_code, answer.json()["checks"]["bus"]) == (503, "lost")
            refused = await ann.command(subscribe={"channel": "room:r1"})
            assert (refused["error"]["temporary"], ann.pushes) == (True, [])
            await island.hear_again()
            assert (await probe.get("/readyz")).status_code == 200
            assert "error" not in await ann.command(subscribe={"channel": "room:r2"})


@pytest.mark.parametrize("lost_s_max", [0.5])
async def test_cut_off_for_long_it_sends_its_viewers_to_other_nodes(island: Island, token: Any) -> None:
    async with raw_client(island.cut.http, token("ann")) as ann, raw_client(island.other.http, token("bob")) as bob:
        await ann.subscribe("room:r1")
        await bob.subscribe("room:r1")
        await island.fall_silent()
        await wait_until(lambda: ann.pushes)
        assert ann.pushes[0]["disconnect"] == {"code": 3011, "reason": "force reconnect", "reconnect": True}
        status, retry_after, body = await denied(island.cut)
        assert (status, body) == (503, b"cut_off")
        assert 1 <= int(retry_after or 0) <= 10
        assert bob.pushes == []
        await island.hear_again()
        async with raw_client(island.cut.http, token("ann")) as again:
            await again.subscribe("room:r1")


async def test_a_ban_that_the_node_did_not_hear_of_is_found_when_it_hears_again(
    island: Island, stage: Stage, engines: Engines, token: Any
) -> None:
    """Control messages are pub/sub: the call to disconnect was lost with the line, and the banned viewer stayed."""
    async with raw_client(island.cut.http, token("ann")) as ann, raw_client(island.cut.http, token("bob")) as bob:
        await ann.subscribe("room:r1")
        await bob.subscribe("room:r1")
        await island.fall_silent()
        stage.banned.add("ann")
        await engines.streams.control({"do": "disconnect", "user": "ann", "room": "r1", "code": "3507"})
        await island.hear_again()
        await wait_until(lambda: ann.pushes)
        assert ann.pushes[0]["disconnect"]["code"] == 3507
        await engines.streams.publish("room:r1", b"{}")
        await wait_until(lambda: offsets(bob, "room:r1") == [1])
        assert [push for push in bob.pushes if "disconnect" in push] == []


async def test_a_line_deleted_meanwhile_is_not_handed_out_by_healing(island: Island, engines: Engines, token: Any) -> None:
    """Healing read the history as it was said: who was cut off saw what had been deleted for everybody else."""
    async with raw_client(island.cut.http, token("ann")) as ann:
        await ann.subscribe("chat:r1")
        await island.fall_silent()
        for number in (1, 2, 3):
            line = ChatLine(id=f"r1-{number}", viewer="bob", name="Bob", text=f"line {number}", at="2025-06-15T15:06:40.000Z")
            await engines.streams.publish("chat:r1", encode_event(ChatMessage(at=line.at, message=line)))
        await hide_message(engines, "r1", "r1-2")
        await island.hear_again()
        await wait_until(lambda: offsets(ann, "chat:r1") == [1, 2, 3])
        assert [one["data"]["type"] for one in ann.publications("chat:r1")] == ["chat.sent", "chat.deleted", "chat.sent"]


async def test_a_node_that_starts_before_its_engine_hears_it_when_it_is_there(
    servers: Servers, settings: Settings, runtime: TestRuntime, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who come meanwhile are refused at once after a while. The node's own channels were asked for again at once then, for ever,

    and nothing else ran."""
    monkeypatch.setattr(bus, "OPEN_TIMEOUT_S", 0.2)
    async with deaf_line(servers.valkey.socket_path) as line:
        engines = Engines.connect(settings.model_copy(update={"redis_url": line.url}), runtime, registry)
        line.deafen()
        hub = Hub(engines)
        await hub.start()
        await wait_until(lambda: hub.bus.lost_s > 0.5)
        with pytest.raises(AppError) as refusal:
            await hub.bus.open(push_channel("r1"))
        assert refusal.value.code.temporary
        line.heal()
        await wait_until(lambda: hub.is_hearing and not hub._tasks)
        await hub.stop()
        await engines.close()
