"""Fan-out: what one viewer says reaches all. CPU a delivery, latency, and the share that arrived, for all servers in turns.

Jishi's chat goes the whole way: `chat.send` by RPC in, admission and archive in the engine, the bus, the sweep, out. The others are sent a
message and send it to all. A server that cannot carry the rate is measured at what it can, and `details` says at which.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from loadtests.bench.crowds import Crowd, Trouble
from loadtests.bench.machine import cpu_s
from loadtests.bench.plan import Figures, Plan, medians, ratios
from loadtests.bench.product_server import ALL_JOINS, NO_SAMPLING, running_jishi
from loadtests.bench.servers import Server, running_rival

TRY_S = 1.5
LATE_S_MAX = 0.3  # who is this long in arrears after TRY_S, and would need more than this share of the core, cannot carry the rate
CORE_SHARE_MAX = 0.9
CARRIED_SHARE = 0.7  # of a core, for those that are measured at what they can
GRACE_S = 15.0
SETTLE_S = 0.5


@dataclass(slots=True)
class Contender:
    server: Server
    crowd: Crowd
    rate: float
    turns: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    async def measure(self, seconds: float) -> dict[str, float]:
        await asyncio.sleep(SETTLE_S)
        began_cpu_s = cpu_s(self.server.pid)
        told = await self.crowd.speak(self.server.text, rate=self.rate, seconds=seconds, grace_s=GRACE_S)
        used_s = cpu_s(self.server.pid) - began_cpu_s
        if not told["deliveries"]:
            raise Trouble(f"nothing arrived: {told}")
        return {
            "cpu_us": used_s / told["deliveries"] * 1e6,
            "p50_ms": told["p50_ms"],
            "p99_ms": told["p99_ms"],
            "delivered": told["deliveries"] / max(1, told["wanted"]),
            "server_busy": used_s / told["seconds"],
            "crowd_busy": told["busy"],
            "late_s": told["seconds"] - seconds,
            "lost": told["lost"],
            "refused": told["refused"],
        }


async def measure_fanout(plan: Plan, viewers: int, rate: float) -> tuple[Figures, Figures]:
    """The figures by server, and the details: ratios, rates, shares."""
    async with AsyncExitStack() as stack:
        contenders: dict[str, Contender] = {}
        for name in plan.servers:
            try:
                contenders[name] = await _enter(stack, plan, name, viewers, rate)
            except Trouble as trouble:
                plan.missing[f"fanout_{viewers}x{rate:g} {name}"] = str(trouble)
        for number, names in plan.turns():
            for name in [name for name in names if name in contenders]:
                try:
                    turn = await contenders[name].measure(plan.seconds)
                except Trouble as trouble:
                    plan.missing[f"fanout_{viewers}x{rate:g} {name}"] = str(trouble)
                    del contenders[name]
                    continue
                contenders[name].turns.append(turn)
                plan.say(f"  round {number}: {name:14} {turn['cpu_us']:6.2f} µs a delivery, p99 {turn['p99_ms']:.0f} ms")
    return _figures(contenders, rate), _details(contenders, rate)


async def _enter(stack: AsyncExitStack, plan: Plan, name: str, viewers: int, rate: float) -> Contender:
    """Starts a server, fills it, and finds out whether it carries the rate; that is its warm-up too."""
    if name == "jishi":
        server = (await stack.enter_async_context(running_jishi(NO_SAMPLING | ALL_JOINS))).server
    else:
        server = await stack.enter_async_context(running_rival(name))
    crowd = await stack.enter_async_context(server.crowd(viewers))
    await crowd.open(viewers)
    contender = Contender(server, crowd, rate)
    tried = await contender.measure(TRY_S)
    needed = tried["cpu_us"] * viewers * rate / 1e6
    if needed > CORE_SHARE_MAX and (tried["late_s"] > LATE_S_MAX or tried["delivered"] < 0.99):
        contender.rate = max(1.0, float(int(CARRIED_SHARE * 1e6 / (tried["cpu_us"] * viewers))))
        plan.say(f"  {name} cannot carry {rate:g} messages a second to {viewers}; measured at {contender.rate:g}")
    return contender


def _figures(contenders: dict[str, Contender], rate: float) -> Figures:
    return {
        name: {key: value for key, value in medians(contender.turns).items() if key in {"cpu_us", "p50_ms", "p99_ms"}}
        for name, contender in contenders.items()
    }


def _details(contenders: dict[str, Contender], rate: float) -> Figures:
    cpu_us = {name: [turn["cpu_us"] for turn in contender.turns] for name, contender in contenders.items()}
    kept = ("delivered", "server_busy", "crowd_busy", "lost", "refused")
    details: Figures = {}
    for name, contender in contenders.items():
        middle = medians(contender.turns, 3)
        details[name] = {"rate_per_s": contender.rate, "carries": contender.rate == rate, **{key: middle[key] for key in kept}}
    return {
        "servers": details,
        "cpu_ratio_to_kernel_floor": ratios(cpu_us, "kernel_floor"),
        "cpu_ratio_to_plain_fastapi": ratios(cpu_us, "plain_fastapi"),
    }
