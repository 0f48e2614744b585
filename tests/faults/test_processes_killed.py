"""Web processes and workers that are killed with `kill -9`: at every boundary of what a payment and its intake do, and at any instant."""

import asyncio
import random
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from sqlalchemy import func, select

from app.core.settings import Settings
from app.domains.inventory import service as inventory
from app.domains.orders import payments, reconciliation, sandbox
from app.domains.orders.tables import SandboxCharge
from app.protocol.order_commands import OrderPay
from app.storage.announcements import announce_room
from app.storage.tables import DeadLetter
from app.storage.work import Engines
from loadtests.torture.crowd import ADDRESS
from loadtests.torture.journal import Journal
from loadtests.torture.line import Line, Tally
from tests.faults.processes import start_taking_in, start_web
from tests.support.auditor.ledger import audit_ledger
from tests.support.auditor.stock import audit_stock
from tests.support.builders import open_room
from tests.support.shelf import open_shelf
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

BOUNDARIES_MIN, BOUNDARIES_MAX = 16, 80
VIEWERS, TURNS, KILLS = 10, 10, 2


async def test_a_process_killed_at_any_boundary_leaves_each_order_once(engines: Engines, settings: Settings) -> None:
    """Between read, commit and acknowledge, before and after each of them. What a process left is met by the next, which dies a step
    further on; the provider repeats the webhook."""
    shelf = await open_shelf(engines)
    offer = await shelf.offer(total=200, price_minor=500)
    paid: list[str] = []
    while True:
        order = await shelf.order(offer, key=f"k{len(paid)}")
        attempt = await payments.pay(engines, viewer_id="lin", request=OrderPay(order=order, key=f"m{len(paid)}"))
        async with engines.sql.read() as session:
            charge = await session.get_one(SandboxCharge, attempt.payment)
        body, header = sandbox.sandbox_notice(engines.settings, charge, now_ms=engines.runtime.now_ms())
        paid.append(order)
        process = start_taking_in(settings, body, header, len(paid))
        await asyncio.to_thread(process.join)
        assert await audit_stock(engines, ["room1"], after_intake=False) == []
        assert await payments.receive_webhook(engines, "sandbox", {"Jishi-Signature": header}, body) == "paid"
        if process.exitcode == 0:
            break
        assert process.exitcode == -9
        assert len(paid) < BOUNDARIES_MAX
    assert len(paid) > BOUNDARIES_MIN, "there are at least so many"
    await shelf.intake()
    await announce_room(engines, "room1")
    assert await audit_stock(engines, ["room1"]) == []
    assert await audit_ledger(engines) == []
    assert await reconciliation.reconcile(engines) == []
    publications, _ = await engines.streams.history("user:lin")
    for kind in ("order.placed", "order.paid"):
        told = [order for row in publications for order in paid if f'"{kind}"'.encode() in row.data and order.encode() in row.data]
        assert sorted(told) == sorted(paid), kind
    async with engines.sql.read() as session:
        assert await session.scalar(select(func.count()).select_from(DeadLetter)) == 0


async def test_a_killed_web_process_takes_back_nothing_that_it_said(engines: Engines, settings: Settings, tmp_path: Path) -> None:
    """At whatever instant: what was acknowledged exists, and the same key gets the same answer from the next process."""
    room = await open_room(engines, offers=[("Tea", 500, 5000)])
    tally, journal, answers = Tally(), Journal(tmp_path / "journal"), dict[str, dict[str, Any]]()

    async def buy(line: Line, name: str) -> None:
        for turn in range(TURNS):
            key = f"{name}.{turn}"
            held = await line.ask("inventory.reserve", {"offer": room.offer_ids[0], "quantity": 1, "key": key})
            placed = await line.ask("order.place", {"hold": held["hold"], "address": ADDRESS, "policy_accepted": True, "key": key})
            answers[key] = {"hold": held["hold"], "expires_at": held["expires_at"], "pay_by": placed["pay_by"]}

    async with _web_processes(settings, tmp_path / "web.log") as (url, kill):
        lines = {f"v{number}": _line(url, settings, f"v{number}", tally, journal) for number in range(VIEWERS)}
        buyers = [asyncio.create_task(buy(line, name)) for name, line in lines.items()]
        for number in range(1, KILLS + 1):
            await wait_until(lambda number=number: tally.answered >= number * VIEWERS * TURNS * 2 // (KILLS + 1), within_s=60)
            await kill()
        await asyncio.gather(*buyers)
        assert tally.unanswered["cut"] > 0, "it was killed in the middle"
        for key, said in answers.items():
            line = lines[key.partition(".")[0]]
            held = await line.ask("inventory.reserve", {"offer": room.offer_ids[0], "quantity": 1, "key": key})
            placed = await line.ask("order.place", {"hold": said["hold"], "address": ADDRESS, "policy_accepted": True, "key": key})
            assert (held["repeated"], placed["repeated"]) == (True, True)
            assert {"hold": held["hold"], "expires_at": held["expires_at"], "pay_by": placed["pay_by"]} == said
        for line in lines.values():
            await line.close()
    journal.close()
    stock = (await inventory.read_stock(engines, room.room_id))[room.offer_ids[0]]
    assert (stock.ordered, stock.available) == (VIEWERS * TURNS, 5000 - VIEWERS * TURNS)
    assert await audit_stock(engines, [room.room_id], after_intake=False) == []


def _line(url: str, settings: Settings, name: str, tally: Tally, journal: Journal) -> Line:
    token = jwt.encode({"sub": name, "exp": int(time.time()) + 600}, settings.secret_bytes, algorithm="HS256")
    return Line(url, name, token, tally, journal, random.Random(name), lambda _: None)


@asynccontextmanager
async def _web_processes(settings: Settings, log: Path) -> AsyncGenerator[tuple[str, Any]]:
    """One at a time on one listening socket, and how to kill it and start the next."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        fast = settings.model_copy(update={"method_rates_factor": 1000.0, "commands_per_s_max": 100_000})
        process = start_web(fast, listener, log)

        async def kill() -> None:
            nonlocal process
            process.kill()
            await asyncio.to_thread(process.join)
            process = start_web(fast, listener, log)

        yield f"http://127.0.0.1:{listener.getsockname()[1]}", kill
        process.kill()
        await asyncio.to_thread(process.join)
