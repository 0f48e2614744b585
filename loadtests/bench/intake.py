"""Intake: how many orders a second the worker writes into PostgreSQL, both on one core.

The worker is stopped (SIGSTOP) while `ORDERS` orders are placed, by the product's own use cases on its engine; then it goes on, and the
clock runs until the outbox is empty and SQL has every order.
"""

import asyncio
import signal
import time

import psutil
from sqlalchemy import func, select

from app.domains.inventory import service as inventory
from app.domains.orders import service as orders
from app.domains.orders.tables import Order
from app.protocol.commands import ReserveOutcome
from app.protocol.order_commands import Address, OrderPlace, PlaceOutcome
from app.storage.work import Engines
from loadtests.bench.crowds import Trouble
from loadtests.bench.machine import cpu_s
from loadtests.bench.plan import Figures, Plan
from loadtests.bench.product_server import ALL_JOINS, ProductServer, running_jishi

ORDERS = 20_000
AT_ONCE = 1_000
S_MAX = 120.0
ADDRESS = Address(name="Lin", phone="13800000000", region="Yunnan", line="Tea Road 1, Pu'er")


async def measure_intake(plan: Plan) -> tuple[float, Figures]:
    async with running_jishi(ALL_JOINS, offers=ORDERS) as product, product.engines() as engines:
        worker = _worker_of(product)
        worker.send_signal(signal.SIGSTOP)
        try:
            for start in range(0, ORDERS, AT_ONCE):
                await asyncio.gather(*(_place(engines, product.on_sale, number) for number in range(start, start + AT_ONCE)))
            plan.say(f"  {ORDERS} orders placed")
            began, began_cpu_s = time.monotonic(), cpu_s(worker.pid)
        finally:
            worker.send_signal(signal.SIGCONT)
        await _until_taken_in(engines, product.room)
        took_s, used_s = time.monotonic() - began, cpu_s(worker.pid) - began_cpu_s
        async with engines.sql.read() as session:
            written = await session.scalar(select(func.count()).select_from(Order))
    if written != ORDERS:
        raise Trouble(f"{ORDERS} orders were placed and {written} are in SQL")
    plan.say(f"  {ORDERS / took_s:.0f} a second")
    return round(ORDERS / took_s), {"orders": ORDERS, "seconds": round(took_s, 2), "worker_cpu_us": round(used_s / ORDERS * 1e6, 1)}


def _worker_of(product: ProductServer) -> psutil.Process:
    [worker] = [one for one in psutil.Process(product.product.pid).children(recursive=True) if "worker" in one.cmdline()]
    return worker


async def _place(engines: Engines, offer_id: str, number: int) -> None:
    viewer_id = f"buyer{number}"
    held = await inventory.reserve(engines, viewer_id=viewer_id, offer_id=offer_id, quantity=1, key="k")
    if held.outcome is not ReserveOutcome.HELD or held.hold is None:
        raise Trouble(f"a hold was refused: {held.outcome}")
    request = OrderPlace(hold=held.hold, address=ADDRESS, key="k", policy_accepted=True)
    placed = await orders.place(engines, viewer_id=viewer_id, name="Lin", request=request)
    if placed.outcome is not PlaceOutcome.PLACED:
        raise Trouble(f"an order was refused: {placed.outcome}")


async def _until_taken_in(engines: Engines, room_id: str) -> None:
    deadline = time.monotonic() + S_MAX
    while await inventory.outbox_length(engines, room_id):
        if time.monotonic() > deadline:
            raise Trouble(f"intake took longer than {S_MAX:.0f} s")
        await asyncio.sleep(0.01)
