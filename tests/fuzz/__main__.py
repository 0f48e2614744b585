"""The driver: so many inputs of every target, and the memory that they leave behind.

Two runs with one seed are the same run. Whatever fails is printed with what makes it again (`--replay`), and counted once a place; the run
goes on, and ends with 1. Memory is looked at after a tenth of the inputs, when caches are warm, and at the end: what grew more than
`GROWTH_BYTES_MAX` or `GROWTH_BLOCKS_MAX` has leaked.
"""

import argparse
import gc
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.fuzz.codecs import JSON_TARGET, PROTOBUF_TARGET
from tests.fuzz.framing import FRAMING_TARGET
from tests.fuzz.sessions import SESSION_TARGETS
from tests.fuzz.sockets import NAME as SOCKETS
from tests.fuzz.sockets import SHARE as SOCKETS_SHARE
from tests.fuzz.sockets import run_sockets
from tests.fuzz.target import Target

TARGETS: tuple[Target[Any], ...] = (JSON_TARGET, PROTOBUF_TARGET, FRAMING_TARGET, *SESSION_TARGETS)
INPUTS = 1_000_000
GROWTH_BYTES_MAX = 8 * 1024 * 1024  # of the process, a target: what the allocator keeps for itself comes and goes by some MiB
GROWTH_BLOCKS_MAX = 20_000  # of Python's objects: one kept for each input of a target is many times that
INPUT_S_MAX = 2.0  # of processor time: an input that costs more would keep every viewer of the node waiting
PROGRESS_S = 5.0
FAILURES_SHOWN = 10


@dataclass
class Memory:
    resident_bytes: int
    blocks: int

    @classmethod
    def now(cls) -> "Memory":
        gc.collect()
        return cls(psutil.Process().memory_info().rss, sys.getallocatedblocks())

    def __str__(self) -> str:
        return f"{self.resident_bytes / 2**20:.1f} MiB, {self.blocks} blocks"


@dataclass
class Tally:
    """Of one target."""

    name: str
    inputs: int = 0
    corpus: int = 0
    cpu_s: float = 0.0
    slowest_s: float = 0.0
    slowest: int | str = 0
    before: Memory | None = None
    after: Memory | None = None
    failures: dict[str, str] = field(default_factory=dict[str, str])

    def fail(self, number: int | str, raw: object, failure: BaseException) -> None:
        place = next(reversed(traceback.extract_tb(failure.__traceback__)), None)
        where = f"{type(failure).__name__} at {Path(place.filename).name}:{place.lineno}" if place else str(failure)[:80]
        if where not in self.failures and len(self.failures) < FAILURES_SHOWN:
            trace = "".join(traceback.format_exception(failure))
            self.failures[where] = f"--replay {self.name}:{number}\n{repr(raw)[:2000]}\n{trace}"

    def check_memory(self) -> None:
        assert self.before is not None and self.after is not None, "measured"
        grown_bytes = self.after.resident_bytes - self.before.resident_bytes
        grown_blocks = self.after.blocks - self.before.blocks
        if grown_bytes > GROWTH_BYTES_MAX or grown_blocks > GROWTH_BLOCKS_MAX:
            self.failures["memory"] = f"grew by {grown_bytes} bytes and {grown_blocks} blocks: {self.before} -> {self.after}"

    def __str__(self) -> str:
        each_us = self.cpu_s / max(1, self.inputs + self.corpus) * 1e6
        counts = f"{self.name:<17}{self.inputs:>9} made, {self.corpus:>5} of the corpus"
        times = f"{each_us:>6.0f} µs each, slowest {self.slowest_s * 1000:.0f} ms ({self.slowest})"
        return f"{counts}   {times}   memory {self.before} -> {self.after}   {len(self.failures)} failures"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run_target(target: Target[Any], seed: int, count: int) -> Tally:
    tally = Tally(target.name)

    def check(number: int | str, raw: Any) -> None:
        started = time.process_time()
        try:
            target.check(raw)
        except Exception as failure:
            tally.fail(number, raw, failure)
        took_s = time.process_time() - started
        if took_s > tally.slowest_s:
            tally.slowest_s, tally.slowest = took_s, number
        if took_s > INPUT_S_MAX:
            tally.failures["time"] = f"--replay {target.name}:{number}\n{repr(raw)[:2000]}\ntook {took_s:.1f} s"

    started, shown_at = time.process_time(), time.monotonic()
    for number, raw in enumerate(target.corpus()):
        check(f"corpus-{number}", raw)
        tally.corpus += 1
    for number in range(count):
        check(number, target.make(target.generator(seed, number)))
        tally.inputs += 1
        if number == count // 10:
            tally.before = Memory.now()
        if time.monotonic() - shown_at > PROGRESS_S:
            shown_at = time.monotonic()
            say(f"  {target.name}: {number + 1} of {count}, {len(tally.failures)} failures")
    tally.after = Memory.now()
    tally.cpu_s = time.process_time() - started
    tally.check_memory()
    return tally


def run_node(seed: int, count: int) -> Tally:
    """Through real sockets; the engines are started for it."""
    tally = Tally(SOCKETS)
    started, shown_at = time.process_time(), time.monotonic()

    def on_progress(done: int, failures: int) -> None:
        nonlocal shown_at
        if tally.before is None and done > count // 10:
            tally.before = Memory.now()
        if time.monotonic() - shown_at > PROGRESS_S:
            shown_at = time.monotonic()
            say(f"  {SOCKETS}: {done} of {count}, {failures} failures")

    def on_end() -> None:
        tally.after = Memory.now()

    report = run_sockets(seed, count, on_progress, on_end)
    tally.cpu_s = time.process_time() - started
    tally.inputs, tally.corpus = report.inputs, report.corpus
    tally.slowest_s, tally.slowest = report.slowest_s, report.slowest
    for number, plan, failure in report.failures:
        tally.fail(number, plan, failure)
    tally.check_memory()
    return tally


def replay(text: str, seed: int) -> None:
    """One input again; the failure goes up."""
    name, _, number = text.partition(":")
    if name == SOCKETS:
        report = run_sockets(seed, 1, lambda *_: None, lambda: None, only=number)
        for _, plan, failure in report.failures:
            say(repr(plan))
            raise failure
        return
    [target] = [target for target in TARGETS if target.name == name]
    raw = list(target.corpus())[int(number[7:])] if number.startswith("corpus-") else target.make(target.generator(seed, int(number)))
    say(repr(raw))
    target.check(raw)


def main() -> int:
    names = [*(target.name for target in TARGETS), SOCKETS]
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Any bytes at all.")
    parser.add_argument("--inputs", type=int, default=INPUTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--replay", metavar="TARGET:NUMBER")
    arguments = parser.parse_args()
    if arguments.replay:
        replay(arguments.replay, arguments.seed)
        return 0
    say(f"seed {arguments.seed}, {arguments.inputs} inputs")
    shares = {target.name: target.share for target in TARGETS} | {SOCKETS: SOCKETS_SHARE}
    whole = sum(shares[name] for name in arguments.only)
    started = time.monotonic()
    tallies: list[Tally] = []
    for name in arguments.only:
        count = round(arguments.inputs * shares[name] / whole)
        target = next((target for target in TARGETS if target.name == name), None)
        tallies.append(run_target(target, arguments.seed, count) if target else run_node(arguments.seed, count))
        say(str(tallies[-1]))
    failures = [text for tally in tallies for text in tally.failures.values()]
    for text in failures:
        say("\n" + text)
    made = sum(tally.inputs for tally in tallies)
    cpu_s = sum(tally.cpu_s for tally in tallies)
    say(
        f"\n{made} inputs made and {sum(tally.corpus for tally in tallies)} of the corpus, {len(failures)} failures, "
        f"{time.monotonic() - started:.0f} s, {cpu_s:.0f} s of processor time, seed {arguments.seed}"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
