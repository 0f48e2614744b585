"""Both web processes go, one after the other, while a show runs: every viewer sees every stage event once and in order.

The viewers are the real SDK, 40 of them on both processes. Events are numbered and published all the while by the test itself, through the
product's engine, as the worker and either web process would.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager

import psutil
import pytest
from centrifuge import Client, ClientEventHandler, DisconnectedContext, PublicationContext, SubscribedContext, SubscriptionEventHandler

from app.demo.__main__ import Signer, websocket_url
from app.demo.team import Team
from app.protocol.channels import room_channel
from app.storage.work import Engines
from loadtests.product import Product, running_product
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("product"), pytest.mark.timeout(300)]

VIEWERS = 40
PAUSE_S = 0.2  # between two events; the history keeps 300 of them, a minute: a web process of a busy machine takes seconds to start
RESTART_S = 90  # for a machine that is busy with other things


@pytest.fixture(scope="module")
def product() -> Generator[Product]:
    with running_product(web=2, environment={"JISHI_DRAIN_S": "1"}) as product:
        yield product


class Watcher(ClientEventHandler, SubscriptionEventHandler):
    """What one viewer's application is told."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.recoveries: list[bool] = []
        self.is_subscribed = False
        self.ends: list[int] = []

    async def on_subscribed(self, ctx: SubscribedContext) -> None:
        self.is_subscribed = True
        if ctx.was_recovering:
            self.recoveries.append(ctx.recovered)

    async def on_subscribing(self, ctx: object) -> None:
        self.is_subscribed = False

    async def on_publication(self, ctx: PublicationContext) -> None:
        self.numbers.append(ctx.pub.data["number"])

    async def on_disconnected(self, ctx: DisconnectedContext) -> None:
        self.ends.append(ctx.code)  # for good


@pytest.fixture
async def watchers(product: Product, signer: Signer, operator: Team) -> AsyncGenerator[tuple[str, list[Watcher]]]:
    room = (await operator.post("/rooms", {"title": "Through a restart", "host_name": "Mei"}))["id"]
    async with AsyncExitStack() as stack:
        watchers = [await _watch(product, signer.token(f"v{number}", "V"), room, stack) for number in range(VIEWERS)]
        await wait_until(lambda: all(watcher.is_subscribed for watcher in watchers), within_s=30)
        yield room, watchers


async def _watch(product: Product, token: str, room: str, stack: AsyncExitStack) -> Watcher:
    watcher = Watcher()
    client = Client(websocket_url(product.url), events=watcher, token=token, proxy=None, min_reconnect_delay=0.05, max_reconnect_delay=0.5)
    subscription = client.new_subscription(room_channel(room), events=watcher, min_resubscribe_delay=0.05, max_resubscribe_delay=0.5)
    await subscription.subscribe()
    await client.connect()
    stack.push_async_callback(client.disconnect)
    return watcher


@asynccontextmanager
async def numbered_events(engines: Engines, room: str) -> AsyncGenerator[list[int]]:
    """Publishes until the block ends; the list has what was published so far."""
    published: list[int] = []
    end = asyncio.Event()

    async def publish() -> None:
        while not end.is_set():
            await engines.streams.publish(room_channel(room), json.dumps({"type": "test.numbered", "number": len(published)}).encode())
            published.append(len(published))
            await asyncio.sleep(PAUSE_S)

    task = asyncio.create_task(publish())
    try:
        await wait_until(lambda: len(published) > 2)
        yield published
        so_far = len(published)
        await wait_until(lambda: len(published) > so_far + 2)
    finally:
        end.set()
        await task


def web_processes(product: Product) -> set[int]:
    return {child.pid for child in psutil.Process(product.pid).children() if "serve" in _command(child)}


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


async def _hang_up(product: Product, _everybody_back: Callable[[], bool]) -> None:
    """What an operator does for a new version. Only when it is through are the old processes gone."""
    before = web_processes(product)
    os.kill(product.pid, signal.SIGHUP)
    log = product.data_dir / "up.log"
    await wait_until(lambda: "web 2 renewed" in log.read_text(), within_s=RESTART_S)
    assert not before & web_processes(product)
    assert len(web_processes(product)) == 2


async def _end_one_by_one(product: Product, everybody_back: Callable[[], bool]) -> None:
    """The first is asked to end, the second is killed; the supervisor starts both again."""
    for victim, number in zip(sorted(web_processes(product)), (signal.SIGTERM, signal.SIGKILL), strict=True):
        others = web_processes(product) - {victim}
        os.kill(victim, number)
        await wait_until(lambda victim=victim, others=others: web_processes(product) - others - {victim}, within_s=RESTART_S)
        await wait_until(everybody_back, within_s=RESTART_S)


@pytest.mark.parametrize("restart", [_hang_up, _end_one_by_one])
async def test_a_restart_under_load_loses_no_stage_event(
    product: Product, product_engines: Engines, watchers: tuple[str, list[Watcher]], restart: Callable[..., object]
) -> None:
    room, viewers = watchers
    async with numbered_events(product_engines, room) as published:
        await restart(product, lambda: all(viewer.is_subscribed for viewer in viewers))  # type: ignore[misc]
    await wait_until(lambda: all(published[-1] in viewer.numbers for viewer in viewers), within_s=60)
    assert [viewer.numbers for viewer in viewers] == [published] * VIEWERS
    assert {recovered for viewer in viewers for recovered in viewer.recoveries} == {True}
    assert sum(len(viewer.recoveries) for viewer in viewers) >= VIEWERS  # each was on a process that went
    assert [end for viewer in viewers for end in viewer.ends] == []
