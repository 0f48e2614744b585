"""`python -m loadtests.bench`: the measurements one after the other, one table, and build/bench.json.

A measurement that fails says why and the others go on; then the exit status is 1.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from loadtests.bench.crowds import Trouble, crowd_program
from loadtests.bench.fanout import measure_fanout
from loadtests.bench.flood import measure_flood
from loadtests.bench.holds import measure_holds
from loadtests.bench.intake import measure_intake
from loadtests.bench.joins import measure_joins
from loadtests.bench.machine import CROWD_CORE, SERVER_CORE, cpu_name, pin, raise_file_limit
from loadtests.bench.memory import measure_memory
from loadtests.bench.plan import Figures, Plan
from loadtests.bench.product_server import PAD
from loadtests.bench.report import JSON, Results, as_markdown, print_results, read_json, write_docs, write_json
from loadtests.bench.servers import MESSAGE_BYTES, RIVALS, floor_command, missing_rivals
from loadtests.bench.storm import measure_storm

Measurement = Callable[[Plan], Awaitable[tuple[Figures | float, Figures]]]

MEASUREMENTS: dict[str, Measurement] = {
    "fanout_2000x10": lambda plan: measure_fanout(plan, 2000, 10),
    "fanout_1000x100": lambda plan: measure_fanout(plan, 1000, 100),
    "memory_kib_per_viewer": measure_memory,
    "join_cpu_us": measure_joins,
    "storm": measure_storm,
    "flood": measure_flood,
    "holds": measure_holds,
    "intake_orders_per_s": measure_intake,
}


def main() -> int:
    arguments = _parse(sys.argv[1:])
    if arguments.markdown:
        print(as_markdown(read_json(arguments.output)))
        return 0
    if arguments.docs:
        write_docs(read_json(arguments.output))
        return 0
    plan = Plan(seconds=arguments.seconds, rounds=arguments.rounds, viewers=arguments.viewers)
    plan.storm_viewers = arguments.storm_viewers or arguments.viewers
    try:
        results = asyncio.run(_run(plan, arguments.only or list(MEASUREMENTS)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    print_results(results)
    write_json(results, arguments.output)
    print(f"\nwritten to {arguments.output}")
    return 1 if plan.missing.keys() - RIVALS else 0


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description="Jishi and others side by side, as ratios.")
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, help="measure this alone; may be given several times")
    parser.add_argument("--seconds", type=float, default=4, help="how long each turn of a server sends (4)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each server has its turn (3)")
    parser.add_argument("--viewers", type=int, default=15_000, help="of the memory measurement and the storm (15000)")
    parser.add_argument("--storm-viewers", type=int, help="of the storm, if others than --viewers")
    parser.add_argument("--output", type=Path, default=JSON, help=f"where the results are written ({JSON})")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--markdown", action="store_true", help="measure nothing; print the tables of the results as Markdown")
    shown.add_argument("--docs", action="store_true", help="measure nothing; put the tables of the results into docs/performance.md")
    arguments = parser.parse_args(words)
    if arguments.seconds <= 0 or arguments.rounds < 1 or min(arguments.viewers, arguments.storm_viewers or 1) < 1:
        parser.error("seconds, rounds and viewers must be positive")
    return arguments


async def _run(plan: Plan, names: Sequence[str]) -> Results:
    _end_with_children()
    pin(os.getpid(), CROWD_CORE)
    _bound_viewers(plan)
    plan.missing |= missing_rivals()
    plan.servers = [server for server in plan.servers if server not in plan.missing]
    results: Results = {}
    details: Figures = {}
    load_before = os.getloadavg()[0]
    for name in names:
        plan.say(name)
        try:
            results[name], details[name] = await MEASUREMENTS[name](plan)
        except (Trouble, OSError) as trouble:
            plan.missing[name] = f"{type(trouble).__name__}: {trouble}"
            plan.say(f"  not measured: {trouble}")
    return {**results, "details": details, "conditions": _conditions(plan, load_before)}


def _end_with_children() -> None:
    """A SIGTERM ends the run as Ctrl-C does: through the blocks that end what they started."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _bound_viewers(plan: Plan) -> None:
    """One process holds a socket for each viewer: no more of them than it may have file descriptors."""
    allowed = raise_file_limit()
    if max(plan.viewers, plan.storm_viewers) > allowed:
        plan.notes["viewers"] = f"{allowed} instead of {max(plan.viewers, plan.storm_viewers)}: file descriptors are limited (ulimit -n)"
    plan.viewers, plan.storm_viewers = min(plan.viewers, allowed), min(plan.storm_viewers, allowed)


def _conditions(plan: Plan, load_before: float) -> Results:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "server_core": SERVER_CORE,
        "crowd_core": f"{CROWD_CORE} (with Jishi's engines and worker)",
        "crowd": crowd_program()[1],
        "kernel_floor": floor_command()[1],
        "message_bytes": f"{MESSAGE_BYTES}; Jishi: {len(PAD) + 22} of text in an envelope of about 300",
        "versions": ", ".join(f"{package} {_version(package)}" for package in ("fastapi", "uvicorn", "uvloop", "websockets", "picows")),
        "seconds": plan.seconds,
        "rounds": plan.rounds,
        "load_average_before": round(load_before, 2),
        "minutes": round((time.monotonic() - plan.began) / 60, 1),
        **plan.notes,
        "missing": plan.missing,
    }


def _version(package: str) -> str:
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return "missing"


if __name__ == "__main__":
    sys.exit(main())
