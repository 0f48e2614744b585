"""Memory a viewer: the server process's proportional set size with everybody there, less what it was before, by how many they are.

Jishi's viewers have shown a token, connected and subscribed to their room's two channels; the others' have only upgraded.
"""

import asyncio

from loadtests.bench.crowds import Crowd, Trouble
from loadtests.bench.machine import memory_kib
from loadtests.bench.plan import Figures, Plan
from loadtests.bench.product_server import ALL_JOINS, running_jishi
from loadtests.bench.servers import Server, running_rival

WARM_UP_VIEWERS = 100  # what is loaded or allocated for the first is not counted as theirs
SETTLE_S = 3.0


async def measure_memory(plan: Plan) -> tuple[Figures, Figures]:
    figures: Figures = {}
    for name in plan.servers:
        try:
            if name == "jishi":
                async with running_jishi(ALL_JOINS) as product:
                    figures[name] = await _measure(product.server, plan.viewers)
            else:
                async with running_rival(name) as server:
                    figures[name] = await _measure(server, plan.viewers)
            plan.say(f"  {name:14} {figures[name]:6.2f} KiB a viewer")
        except Trouble as trouble:
            plan.missing[f"memory_kib_per_viewer {name}"] = str(trouble)
    return figures, {"viewers": plan.viewers}


async def _measure(server: Server, viewers: int) -> float:
    async with server.crowd(viewers + WARM_UP_VIEWERS) as crowd:
        await crowd.open(WARM_UP_VIEWERS)
        await crowd.close()
        before_kib = await _settled_kib(server)
        await crowd.open(viewers)
        after_kib = await _settled_kib(server)
        await _all_there(crowd, viewers)
        await crowd.close()
    return round((after_kib - before_kib) / viewers, 2)


async def _settled_kib(server: Server) -> float:
    await asyncio.sleep(SETTLE_S)
    return memory_kib(server.pid)


async def _all_there(crowd: Crowd, viewers: int) -> None:
    ready = (await crowd.stage())["ready"]
    if ready != viewers:
        raise Trouble(f"only {ready} of {viewers} were still there when memory was read")
