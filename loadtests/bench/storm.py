"""The reconnect storm: everybody is cut at once and comes back within two seconds, recovering, while stage events go on.

With the product's own settings for admission: what it cannot take at once it refuses with 503 and a `Retry-After`, which viewers obey. Any
other error fails the measurement's purpose, and so does a stage event that is missing or comes twice. `late` counts viewers whose commands
were unanswered for 5 s, when an SDK would have hung up.
"""

import asyncio

from loadtests.bench.crowds import Crowd, Trouble
from loadtests.bench.machine import cpu_s
from loadtests.bench.plan import Figures, Plan
from loadtests.bench.product_server import ProductServer, running_jishi

EVENTS_PER_S = 3.0  # fewer than the history holds over the longest storm
SPREAD_S = 2.0
STORM_S_MAX = 90.0
CATCH_UP_S_MAX = 10


async def measure_storm(plan: Plan) -> tuple[Figures, Figures]:
    viewers = plan.storm_viewers
    async with running_jishi() as product, product.server.crowd(viewers) as crowd:
        await crowd.open(viewers)
        async with product.stage_events(EVENTS_PER_S):
            await asyncio.sleep(2)
            began_cpu_s = cpu_s(product.server.pid)
            plan.say(f"  {viewers} viewers are cut")
            told = await crowd.storm(spread_s=SPREAD_S, seconds_max=STORM_S_MAX)
            used_s = cpu_s(product.server.pid) - began_cpu_s
            plan.say(f"  {told['ready']} are back after {told['seconds']:.1f} s")
            await asyncio.sleep(2)
        stage = await _caught_up(crowd, product)
        await crowd.close()
    figures = {
        "viewers": viewers,
        "back": told["ready"],
        "seconds_until_back": round(told["seconds"], 1),
        "errors": told["errors"],
        "gaps": stage["gaps"],
        "duplicates": stage["duplicates"],
        "behind": product.last_offset - stage["lowest"],
        "recovered": told["recovered"],
        "not_recovered": told["afresh"],
        "rejoin_cpu_us": round(used_s / max(1, told["ready"]) * 1e6, 1),
        "rejoin_p50_ms": round(told["p50_ms"], 1),
        "rejoin_p99_ms": round(told["p99_ms"], 1),
    }
    return {"jishi": figures}, {"stage_events_per_s": EVENTS_PER_S, "spread_s": SPREAD_S}


async def _caught_up(crowd: Crowd, product: ProductServer) -> Figures:
    """Where everybody stands once the last event has had time to arrive."""
    stage = await crowd.stage()
    for _ in range(CATCH_UP_S_MAX * 5):
        if stage["lowest"] >= product.last_offset:
            break
        await asyncio.sleep(0.2)
        stage = await crowd.stage()
    if stage["highest"] > product.last_offset:
        raise Trouble("a viewer stands behind the last event of the stage channel")
    return stage
