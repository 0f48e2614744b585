"""Holds: a closed loop of `inventory.reserve`, all accepted, against one HTTP request and one script call each on the same engine."""

import asyncio
import json
import statistics
import time

from loadtests.bench.crowds import Trouble
from loadtests.bench.machine import cpu_s
from loadtests.bench.plan import Figures, Plan
from loadtests.bench.product_server import ALL_JOINS, ProductServer, running_jishi
from loadtests.bench.servers import running_rival

IN_FLIGHT = 200
PLAIN_IN_FLIGHT = 64
STOCK = 1_000_000


async def measure_holds(plan: Plan) -> tuple[Figures, Figures]:
    """`seconds` of the plan, but long enough that all groups have filled."""
    seconds = max(5.0, plan.seconds)
    figures: Figures = {}
    async with running_jishi(ALL_JOINS, offers=STOCK) as product:
        figures["jishi"] = await _by_rpc(plan, product, seconds)
        plan.say(f"  jishi {figures['jishi']['accepted_per_s']} holds a second")
        async with running_rival("plain_fastapi", product.redis_url) as server:
            figures["plain_fastapi"] = await _by_http(server.port, server.pid, seconds)
        plan.say(f"  plain_fastapi {figures['plain_fastapi']['accepted_per_s']} holds a second")
    accepted = {name: one["accepted_per_s"] for name, one in figures.items()}
    share = round(accepted["jishi"] / accepted["plain_fastapi"], 2)
    return figures, {"in_flight": {"jishi": IN_FLIGHT, "plain_fastapi": PLAIN_IN_FLIGHT}, "accepted_ratio_to_plain_fastapi": share}


async def _by_rpc(plan: Plan, product: ProductServer, seconds: float) -> Figures:
    offer = product.place["offers"][0]["id"]
    data = {"offer": offer, "quantity": 1, "key": "b%N"}
    text = json.dumps({"rpc": {"method": "inventory.reserve", "data": data}}, separators=(",", ":")).replace("{", '{"id":%N,', 1)
    async with product.server.crowd(IN_FLIGHT) as crowd:
        await crowd.open(IN_FLIGHT)
        await crowd.loop(text, mark='"held"', seconds=1)  # warms up
        await asyncio.sleep(1)
        began_cpu_s = cpu_s(product.server.pid)
        told = await crowd.loop(text, mark='"held"', seconds=seconds)
        used_s = cpu_s(product.server.pid) - began_cpu_s
        await crowd.close()
    if told["refused"]:
        plan.say(f"  jishi refused {told['refused']} holds: {told['errors'] or 'by outcome'}")
    if not told["accepted"]:
        raise Trouble(f"no hold was accepted: {told}")
    return {
        "accepted_per_s": round(told["accepted"] / told["seconds"]),
        "refused_per_s": round(told["refused"] / told["seconds"]),
        "p50_ms": round(told["p50_ms"], 1),
        "p99_ms": round(told["p99_ms"], 1),
        "cpu_us": round(used_s / told["accepted"] * 1e6, 1),
    }


async def _by_http(port: int, pid: int, seconds: float) -> Figures:
    latencies_ms: list[float] = []
    began_cpu_s, began = cpu_s(pid), time.monotonic()

    async def one(index: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        number = 0
        while time.monotonic() - began < seconds:
            number += 1
            body = json.dumps({"offer": "o", "quantity": 1, "key": f"{index}-{number}"}).encode()
            head = b"POST /reserve HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            sent = time.monotonic()
            writer.write(head + body)
            answer = await reader.readuntil(b"}")
            if b"held" not in answer:
                raise Trouble(f"the plain server answered {answer[:100]!r}")
            latencies_ms.append((time.monotonic() - sent) * 1000)
        writer.close()

    await asyncio.gather(*(one(index) for index in range(PLAIN_IN_FLIGHT)))
    elapsed_s, used_s = time.monotonic() - began, cpu_s(pid) - began_cpu_s
    ordered = sorted(latencies_ms)
    return {
        "accepted_per_s": round(len(ordered) / elapsed_s),
        "refused_per_s": 0,
        "p50_ms": round(statistics.median(ordered), 1),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)], 1),
        "cpu_us": round(used_s / len(ordered) * 1e6, 1),
    }
