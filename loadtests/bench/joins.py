"""CPU a join. Jishi: handshake, token, connect, two subscribes with the room's snapshot. The others: the handshake alone.

All servers stand side by side and take a few hundred joins each in turns; a ratio is made within a round. `details` has Jishi's handshake
alone too.
"""

import asyncio
from contextlib import AsyncExitStack

from loadtests.bench.crowds import Crowd, Trouble
from loadtests.bench.machine import cpu_s
from loadtests.bench.plan import Figures, Plan, medians, ratios
from loadtests.bench.product_server import ALL_JOINS, running_jishi
from loadtests.bench.servers import Server, running_rival

JOINS = 300
ROUNDS_MIN = 5
AT_ONCE = 32
HANDSHAKE = "jishi handshake alone"
SETTLE_S = 0.15  # what a server still does for the last who came, and for those who have left


async def measure_joins(plan: Plan) -> tuple[Figures, Figures]:
    rounds = max(ROUNDS_MIN, plan.rounds)
    async with AsyncExitStack() as stack:
        crowds = await _crowds(stack, plan, (rounds + 1) * JOINS)
        cpu_us: dict[str, list[float]] = {name: [] for name in crowds}
        for number in range(rounds + 1):
            for name, (server, crowd) in crowds.items():
                used_us = await _joins(server, crowd)
                if number:  # the first is for warming up
                    cpu_us[name].append(used_us)
            if number:
                plan.say(f"  round {number}: " + ", ".join(f"{name} {taken[-1]:.0f} µs" for name, taken in cpu_us.items()))
    if not cpu_us:
        raise Trouble("no server could be measured")
    figures = {name: medians({"us": taken} for taken in turns)["us"] for name, turns in cpu_us.items()}
    handshake = {"jishi": figures.pop(HANDSHAKE)} if HANDSHAKE in figures else {}
    return figures, {
        "handshake_cpu_us": handshake,
        "cpu_ratio_to_plain_fastapi": ratios(cpu_us, "plain_fastapi"),
        "joins_a_round": JOINS,
        "at_once": AT_ONCE,
        "rounds": rounds,
    }


async def _crowds(stack: AsyncExitStack, plan: Plan, joins: int) -> dict[str, tuple[Server, Crowd]]:
    crowds: dict[str, tuple[Server, Crowd]] = {}
    for name in plan.servers:
        try:
            if name == "jishi":
                server = (await stack.enter_async_context(running_jishi(ALL_JOINS))).server
                crowds[HANDSHAKE] = (server, await stack.enter_async_context(server.crowd(0)))
            else:
                server = await stack.enter_async_context(running_rival(name))
            crowds[name] = (server, await stack.enter_async_context(server.crowd(joins)))
        except Trouble as trouble:
            plan.missing[f"join_cpu_us {name}"] = str(trouble)
    return crowds


async def _joins(server: Server, crowd: Crowd) -> float:
    """Microseconds of the server a join. Whoever joined leaves again, outside of what is counted."""
    began_cpu_s = cpu_s(server.pid)
    await crowd.open(JOINS, at_once=AT_ONCE)
    await asyncio.sleep(SETTLE_S)
    used_s = cpu_s(server.pid) - began_cpu_s
    await crowd.close()
    await asyncio.sleep(SETTLE_S)
    return used_s / JOINS * 1e6
