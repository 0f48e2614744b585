"""The demo show, played fast by its real crowd, and killed in the middle: nothing acknowledged is lost, and the show goes on."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import psutil
import pytest

from app.demo.show import ACTS
from app.demo.team import Team
from app.demo.viewers import Viewer
from app.storage.work import Engines
from loadtests.product import Product
from tests.journeys.conftest import assert_books
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("product"), pytest.mark.timeout(300)]


def play_demo(product: Product, *, viewers: int, pace: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.demo", "--url", product.url, "--data-dir", str(product.data_dir), "--once"]
    environment = {**os.environ, "JISHI_TOKEN_SECRET": product.secret, "JISHI_DEMO_PASSWORD": "a-demo-password"}
    options = ["--viewers", str(viewers), "--pace", str(pace), "--seed", "7"]
    return subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=200, check=False)


async def test_the_demo_show_plays_to_its_end(product: Product, operator: Team, product_engines: Engines) -> None:
    played = play_demo(product, viewers=80, pace=0.05)
    assert played.returncode == 0, played.stdout + played.stderr
    assert "refused" not in played.stdout, played.stdout
    assert "Traceback" not in played.stderr, played.stderr
    assert "60 of 80 got a jar" in played.stdout, played.stdout  # the flash sale sells out, once
    place = json.loads((product.data_dir / "demo-show.json").read_text())
    assert place["act"] == len(ACTS)
    await assert_books(product_engines)
    report = await operator.get(f"/sessions/{place['session']}/report")
    assert report["summary"]["paid_orders"] > 60


def process_of(product: Product, role: str) -> psutil.Process:
    """One process of the running product by what its command line says it is."""
    words = {"web": ["serve"], "worker": ["worker"], "valkey": ["valkey-server"], "postgres": ["postgres", "-D"]}[role]
    for child in psutil.Process(product.pid).children(recursive=True):
        command = " ".join(child.cmdline())
        if all(word in command for word in words):
            return child
    raise AssertionError(f"no {role} below {product.pid}")


@pytest.mark.parametrize("role", ["web", "worker", "valkey", "postgres"])
async def test_killing_one_process_loses_nothing_that_was_acknowledged(
    role: str, product: Product, operator: Team, new_viewer: Callable[[str], Viewer], product_engines: Engines
) -> None:
    room = (await operator.post("/rooms", {"title": f"Kill {role}", "host_name": "Mei"}))["id"]
    session = (await operator.post(f"/rooms/{room}/sessions", {"title": f"Kill {role}"}))["id"]
    offer = (await operator.post(f"/sessions/{session}/offers", {"name": "Eggs", "price_minor": 100, "total": 100}))["id"]
    await operator.post(f"/sessions/{session}/go-live")
    viewers = [new_viewer(f"{role}-{number}") for number in range(8)]
    orders: list[str] = []
    for viewer in viewers:
        await viewer.arrive(room)
        orders.append((await viewer.order((await viewer.reserve(offer))["hold"]))["order"])

    victim = process_of(product, role)
    os.kill(victim.pid, signal.SIGKILL)

    # Every acknowledged order is there, and selling goes on: the same commands are answered again by whatever came back.
    outcomes = Counter([await viewer.pay(order) for viewer, order in zip(viewers, orders, strict=True)])
    assert outcomes == {"order.paid": 8}
    more = [await viewer.buy(offer) for viewer in viewers]
    assert Counter(more) == {"order.paid": 8}
    await wait_until(lambda: process_of(product, role).pid != victim.pid, within_s=60)
    listed = (await operator.get(f"/rooms/{room}/orders?limit=100"))["items"]
    assert {order["id"] for order in listed} >= set(orders)
    assert Counter(order["state"] for order in listed) == {"paid": 16}
    await assert_books(product_engines)
