"""Holds: a closed loop of `inventory.reserve`, against one HTTP request and one script call each on the same engine.

Accepted and refused are measured in turns of their own: what a shop answers when nothing is left costs less than a hold does, and figures
that mix the two say nothing.
"""

import asyncio
import json
import statistics
import time

from loadtests.bench.crowds import Crowd, Trouble
from loadtests.bench.machine import cpu_s
from loadtests.bench.plan import Figures, Plan, medians
from loadtests.bench.product_server import ALL_JOINS, ProductServer, running_jishi
from loadtests.bench.servers import Server, running_rival

IN_FLIGHT = 500
PLAIN_IN_FLIGHT = 64
STOCK = 10_000_000
WARM_UP_S = 1.0


async def measure_holds(plan: Plan) -> tuple[Figures, Figures]:
    turns: dict[str, list[dict[str, float]]] = {"jishi": [], "plain_fastapi": []}
    async with (
        running_jishi(ALL_JOINS, offers=STOCK) as product,
        running_rival("plain_fastapi", product.redis_url) as plain,
        product.server.crowd(IN_FLIGHT) as crowd,
    ):
        await crowd.open(IN_FLIGHT)
        sold_out = await product.sell_out()
        await crowd.loop(_reserve(product.on_sale), mark='"held"', seconds=WARM_UP_S)
        for number in range(plan.rounds):
            turns["jishi"].append(await _jishi_turn(product, crowd, sold_out, plan.seconds))
            turns["plain_fastapi"].append(await _plain_turn(plain, plan.seconds))
            said = ", ".join(f"{name} {one[-1]['accepted_per_s']:.0f} accepted" for name, one in turns.items())
            plan.say(f"  round {number + 1}, a second: {said}")
    figures = {name: medians(rounds, 1) for name, rounds in turns.items()}
    details = {"in_flight": {"jishi": IN_FLIGHT, "plain_fastapi": PLAIN_IN_FLIGHT}}
    return figures, details | {"ratio_to_plain_fastapi": _ratios(turns)}


def _ratios(turns: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """How many times as much as the plain way in the same round; of CPU, how many times less."""
    pairs = list(zip(turns["jishi"], turns["plain_fastapi"], strict=True))
    return {
        "accepted": round(statistics.median(ours["accepted_per_s"] / plain["accepted_per_s"] for ours, plain in pairs), 2),
        "refused": round(statistics.median(ours["refused_per_s"] / plain["refused_per_s"] for ours, plain in pairs), 2),
        "accepted_per_cpu": round(statistics.median(plain["cpu_us"] / ours["cpu_us"] for ours, plain in pairs), 2),
    }


def _reserve(offer: str) -> str:
    rpc = {"method": "inventory.reserve", "data": {"offer": offer, "quantity": 1, "key": "b%N"}}
    return json.dumps({"rpc": rpc}, separators=(",", ":")).replace("{", '{"id":%N,', 1)


async def _jishi_turn(product: ProductServer, crowd: Crowd, sold_out: str, seconds: float) -> dict[str, float]:
    began_cpu_s = cpu_s(product.server.pid)
    held = await crowd.loop(_reserve(product.on_sale), mark='"held"', seconds=seconds)
    used_s = cpu_s(product.server.pid) - began_cpu_s
    if not held["accepted"] or held["refused"]:
        raise Trouble(f"not every hold was accepted: {held}")
    await asyncio.sleep(WARM_UP_S)  # what the worker still does for the holds
    began_cpu_s = cpu_s(product.server.pid)
    refused = await crowd.loop(_reserve(sold_out), mark='"exhausted"', seconds=seconds)
    refused_s = cpu_s(product.server.pid) - began_cpu_s
    if not refused["accepted"] or refused["refused"]:
        raise Trouble(f"not every hold was refused as sold out: {refused}")
    return {
        "accepted_per_s": held["accepted"] / held["seconds"],
        "refused_per_s": refused["accepted"] / refused["seconds"],
        "p50_ms": held["p50_ms"],
        "p99_ms": held["p99_ms"],
        "cpu_us": used_s / held["accepted"] * 1e6,
        "refused_cpu_us": refused_s / refused["accepted"] * 1e6,
    }


async def _plain_turn(server: Server, seconds: float) -> dict[str, float]:
    began_cpu_s = cpu_s(server.pid)
    held_ms, held_s = await _ask_plain(server.port, "on_sale", b"held", seconds)
    used_s = cpu_s(server.pid) - began_cpu_s
    began_cpu_s = cpu_s(server.pid)
    refused_ms, refused_s = await _ask_plain(server.port, "sold_out", b"exhausted", seconds)
    refused_used_s = cpu_s(server.pid) - began_cpu_s
    return {
        "accepted_per_s": len(held_ms) / held_s,
        "refused_per_s": len(refused_ms) / refused_s,
        "p50_ms": statistics.median(held_ms),
        "p99_ms": held_ms[int(len(held_ms) * 0.99)],
        "cpu_us": used_s / len(held_ms) * 1e6,
        "refused_cpu_us": refused_used_s / len(refused_ms) * 1e6,
    }


async def _ask_plain(port: int, offer: str, word: bytes, seconds: float) -> tuple[list[float], float]:
    """The latencies in order, and how long it took."""
    latencies_ms: list[float] = []
    began = time.monotonic()

    async def one(index: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        number = 0
        while time.monotonic() - began < seconds:
            number += 1
            body = json.dumps({"offer": offer, "quantity": 1, "key": f"{began}-{index}-{number}"}).encode()
            head = b"POST /reserve HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            sent = time.monotonic()
            writer.write(head + body)
            answer = await reader.readuntil(b"}")
            if word not in answer:
                raise Trouble(f"the plain server answered {answer[:100]!r}")
            latencies_ms.append((time.monotonic() - sent) * 1000)
        writer.close()

    await asyncio.gather(*(one(index) for index in range(PLAIN_IN_FLIGHT)))
    return sorted(latencies_ms), time.monotonic() - began
