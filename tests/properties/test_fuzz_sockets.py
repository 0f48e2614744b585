"""Any bytes at all on a real socket of a real node: an answer, an error or the right close code, and a neighbour who notices nothing.

The corpus in full and some of what is made of it; `make fuzz` does the same ten thousand times.
"""

import asyncio
import itertools

import pytest

from app.protocol.json_codec import JSON
from app.storage.work import Engines
from tests.fuzz.sockets import Plan, a_run, carry_out, corpus_of, judge, made, watched_logs
from tests.support.corpus import seeds

pytestmark = pytest.mark.slow

INPUTS = 250
SEED = 20_251_122


async def test_whatever_comes_ends_well_and_leaves_nothing_behind(engines: Engines) -> None:
    async with a_run(engines) as (run, before):
        with watched_logs() as logged:
            await run.through(itertools.chain(corpus_of(run.planner), made(run.planner, SEED, INPUTS)), lambda _: None)
            await run.check_after(before)
        assert run.report.failures == []
        assert logged == []
        assert run.report.inputs == INPUTS


async def test_who_says_nothing_more_is_let_go(engines: Engines) -> None:
    """In the head, behind it, in the midst of a frame, and after a connect that was accepted: by the clock, with a word."""
    async with a_run(engines) as (run, _):
        planner = run.planner
        head = planner.heads["json"]
        begin = seeds.client_frame(seeds.TEXT, seeds.to_json(planner.connect))
        plans = [Plan(JSON, [head, behind], "wait", 1000) for behind in (b"", begin[:3], begin[:-1], begin, begin + begin[:1])]
        half_a_head = Plan(JSON, [head[:50]], "wait", 1000)
        *ends, end = await asyncio.gather(*(carry_out(run.node, plan) for plan in (*plans, half_a_head)))
        for plan, said in zip(plans, ends, strict=True):
            judge(plan, said)
        assert end.startswith(b"HTTP/1.1 408 ")
