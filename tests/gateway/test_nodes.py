"""Several nodes: how a room reaches them, how many viewers they count together, and what becomes of the count of one that ends or dies."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.composition import build_registry
from app.core.runtime import Runtime
from app.core.settings import Settings
from app.domains.accounts.service import make_token
from app.domains.rooms import audience
from app.storage import presence
from app.storage.redis import blocking_client
from app.storage.streams import push_channel
from app.storage.work import Engines
from loadtests.product import free_port
from tests.gateway.conftest import Nodes, start_node
from tests.gateway.test_healing import offsets
from tests.support.builders import open_room
from tests.support.clients import raw_client
from tests.support.waiting import wait_until


async def subscribers(engines: Engines, room_id: str) -> int:
    _, count = await engines.fanout.execute_command("PUBSUB", "SHARDNUMSUB", push_channel(room_id))
    return int(count)


async def test_a_room_is_one_subscription_a_node_however_many_watch_it(nodes: Nodes, engines: Engines, token: Any) -> None:
    first, second = await nodes.start(), await nodes.start()
    async with AsyncExitStack() as stack:
        for node in (first, second):
            for name in ("ann", "bob", "cid"):
                client = await stack.enter_async_context(raw_client(node.http, token(name)))
                await client.subscribe("room:r1")
                await client.subscribe("chat:r1")
        assert await subscribers(engines, "r1") == 2
    await wait_until(lambda: _has(subscribers(engines, "r1"), 0))


async def _has(found: Any, wanted: Any) -> bool:
    return await found == wanted


async def test_a_burst_of_chat_is_one_message_between_nodes_and_comes_whole(nodes: Nodes, engines: Engines, token: Any) -> None:
    first, second = await nodes.start(), await nodes.start()
    listener = blocking_client(engines.fanout.line.options)
    async with listener.pubsub() as bus, raw_client(first.http, token("ann")) as ann, raw_client(second.http, token("bob")) as bob:
        await bus.ssubscribe(push_channel("r1"))
        assert await bus.get_message(timeout=5)
        for client in (ann, bob):
            await client.subscribe("chat:r1")
        await asyncio.gather(*[engines.streams.publish("chat:r1", json.dumps({"n": number}).encode()) for number in range(200)])
        await wait_until(lambda: len(offsets(ann, "chat:r1")) == len(offsets(bob, "chat:r1")) == 200)
        for client in (ann, bob):
            assert [(one["offset"], one["data"]["n"]) for one in client.publications("chat:r1")] == [(n + 1, n) for n in range(200)]
        assert await bus.get_message(timeout=5)
        assert await bus.get_message(timeout=0) is None
    await listener.aclose()


# --- counting ------------------------------------------------------------------------------------------------------------------------


async def test_a_viewer_counts_once_a_node(nodes: Nodes, engines: Engines, token: Any) -> None:
    """Two tabs on one node are one; the phone on another node is a second. Unique viewers know no nodes."""
    first, second = await nodes.start(), await nodes.start()
    async with raw_client(first.http, token("ann")) as tab, raw_client(first.http, token("ann")) as other_tab:
        await tab.subscribe("room:r1")
        await other_tab.subscribe("room:r1")
        await wait_until(lambda: _has(presence.viewers(engines, "r1"), 1))
        async with raw_client(second.http, token("ann")) as phone:
            await phone.subscribe("room:r1")
            await wait_until(lambda: _has(presence.viewers(engines, "r1"), 2))
            assert await presence.unique_viewers(engines, "r1") == 1
            stats = (await phone.command(presence_stats={"channel": "room:r1"}))["presence_stats"]
            assert stats["num_clients"] == 2
        await wait_until(lambda: _has(presence.viewers(engines, "r1"), 1))
    await wait_until(lambda: _has(presence.viewers(engines, "r1"), 0))


async def test_a_node_that_ends_takes_its_counts_back_at_once(nodes: Nodes, engines: Engines, token: Any) -> None:
    """The clock of these tests stands still: nothing lapses. A node that ended used to be counted until its counts did."""
    first, second = await nodes.start(), await nodes.start()
    async with raw_client(first.http, token("ann")) as ann, raw_client(second.http, token("bob")) as bob:
        await ann.subscribe("room:r1")
        await bob.subscribe("room:r1")
        await wait_until(lambda: _has(presence.viewers(engines, "r1"), 2))
        await first.stop()
        assert await presence.viewers(engines, "r1") == 1


async def test_a_node_that_drains_counts_down_as_its_viewers_go(nodes: Nodes, engines: Engines, token: Any) -> None:
    first, second = await nodes.start(), await nodes.start()
    async with raw_client(first.http, token("ann")) as ann, raw_client(second.http, token("bob")) as bob:
        await ann.subscribe("room:r1")
        await bob.subscribe("room:r1")
        await wait_until(lambda: _has(presence.viewers(engines, "r1"), 2))
        await first.hub.drain()
        assert ann.pushes[-1]["disconnect"]["code"] == 3001
        await wait_until(lambda: _has(presence.viewers(engines, "r1"), 1))


async def test_counts_of_nodes_with_wrong_clocks_hold_and_lapse_by_the_engines_clock(engines: Engines, settings: Settings) -> None:
    """A node wrote its deadline by its own clock, and another judged it by its own: with clocks 20 s apart nobody was there."""

    class Late(Runtime):
        def now_ms(self) -> int:
            return super().now_ms() - 3_600_000

    late = Engines.connect(settings, Late(), engines.registry)
    punctual = Engines.connect(settings, Runtime(), engines.registry)
    await presence.record(late, "r1", "n1", 3, [])
    assert await presence.viewers(punctual, "r1") == 3
    await late.close()
    await punctual.close()


# --- a process of its own, to be killed ----------------------------------------------------------------------------------------------

TTL_S = 3


@pytest.fixture
async def real_time(engines: Engines, settings: Settings) -> AsyncGenerator[Engines]:
    """All domains, and the engine's clock decides."""
    settings = settings.model_copy(update={"presence_ttl_s": TTL_S})
    product = Engines.connect(settings, Runtime(), build_registry())
    yield product
    await product.close()


@contextmanager
def web_process(settings: Settings, data_dir: Path) -> Generator[tuple[str, "subprocess.Popen[bytes]"]]:
    port = free_port()
    names = {"ENVIRONMENT": "development", "PORT": str(port), "PRESENCE_TTL_S": str(TTL_S), "DRAIN_S": "0.2"}
    environment = {f"JISHI_{name}": value for name, value in names.items()}
    environment |= {"REDIS_URL": settings.redis_url, "DATABASE_URL": settings.database_url}
    command = [sys.executable, "-m", "app.cli", "serve", "--data-dir", str(data_dir)]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


async def test_a_node_that_is_killed_vanishes_from_the_counts(real_time: Engines, tmp_path: Path) -> None:
    """`kill -9`: it can take nothing back. The pulse and the peak follow from the sum."""
    room_id = (await open_room(real_time)).room_id
    survivor = await start_node(real_time)
    tokens = {
        name: make_token(real_time.settings, subject=name, name=name, ttl_s=600, now_ms=real_time.runtime.now_ms())
        for name in ("ann", "bob", "cid")
    }
    with web_process(real_time.settings, tmp_path) as (url, process):
        async with AsyncExitStack() as stack:
            ann = await stack.enter_async_context(raw_client(survivor.http, tokens["ann"]))
            await ann.subscribe(f"room:{room_id}")
            await wait_until(lambda: _answers(url), within_s=60, what="the web process answers")
            for name in ("bob", "cid"):
                client = await stack.enter_async_context(raw_client(url, tokens[name]))
                await client.subscribe(f"room:{room_id}")
            await wait_until(lambda: _has(presence.viewers(real_time, room_id), 3))
            pulse = await audience.pulse_room(real_time, room_id)
            assert pulse is not None
            assert (pulse.viewers, pulse.peak_viewers) == (3, 3)
            process.kill()
            await wait_until(lambda: _has(presence.viewers(real_time, room_id), 1))
            pulse = await audience.pulse_room(real_time, room_id)
            assert pulse is not None
            assert (pulse.viewers, pulse.peak_viewers) == (1, 3)
    await survivor.stop()


async def _answers(url: str) -> bool:
    async with httpx2.AsyncClient() as client:
        try:
            return (await client.get(f"{url}/readyz")).status_code == 200
        except httpx2.TransportError:
            return False
