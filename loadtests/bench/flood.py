"""The chat flood: at ten times the rate that a room shows, do stage events arrive as they do in a quiet room? In turns, both in each round.

With the product's sampling on. A stage event is stamped when it is published and counted when viewers have it.
"""

import asyncio
import statistics

from loadtests.bench.crowds import Crowd
from loadtests.bench.plan import Figures, Plan
from loadtests.bench.product_server import ALL_JOINS, ProductServer, chat_text, running_jishi

VIEWERS = 1000
SHOWN_PER_S = 20  # the product's default `chat_shown_per_s`
FLOOD_PER_S = 10 * SHOWN_PER_S
EVENTS_PER_S = 10.0
SETTLE_S = 1.0


async def measure_flood(plan: Plan) -> tuple[Figures, Figures]:
    quiet: list[Figures] = []
    flooded: list[Figures] = []
    async with running_jishi(ALL_JOINS) as product, product.server.crowd(VIEWERS) as crowd:
        await crowd.open(VIEWERS)
        async with product.stage_events(EVENTS_PER_S):
            await _listen(product, crowd, FLOOD_PER_S, 1.0)  # warms up
            for number in range(1, plan.rounds + 1):
                quiet.append(await _listen(product, crowd, 0, plan.seconds))
                flooded.append(await _listen(product, crowd, FLOOD_PER_S, plan.seconds))
                plan.say(f"  round {number}: stage p99 {quiet[-1]['p99_ms']:.0f} ms quiet, {flooded[-1]['p99_ms']:.0f} ms in the flood")
        await crowd.close()
    figures = {
        "chat_per_s": FLOOD_PER_S,
        "quiet_p99_ms": _middle(quiet, "p99_ms"),
        "flood_p99_ms": _middle(flooded, "p99_ms"),
        "difference_ms": round(statistics.median(one["p99_ms"] - other["p99_ms"] for one, other in zip(flooded, quiet, strict=True)), 1),
        "quiet_p50_ms": _middle(quiet, "p50_ms"),
        "flood_p50_ms": _middle(flooded, "p50_ms"),
        "refused": sum(turn["refused"] for turn in flooded),
        "lost": sum(turn["lost"] for turn in flooded),
    }
    return {"jishi": figures}, {"viewers": VIEWERS, "stage_events_per_s": EVENTS_PER_S}


def _middle(turns: list[Figures], name: str) -> float:
    return round(statistics.median(turn[name] for turn in turns), 1)


async def _listen(product: ProductServer, crowd: Crowd, chat_per_s: float, seconds: float) -> Figures:
    """Only stage events carry the stamp that is counted; the chat has another."""
    await asyncio.sleep(SETTLE_S)
    return await crowd.speak(chat_text(product.room, mark="c"), rate=chat_per_s, seconds=seconds, grace_s=0.1)
