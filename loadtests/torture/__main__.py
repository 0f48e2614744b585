"""Random operations on a whole product while its processes are killed, and then the books. Exit code 1 when a promise broke.
Ctrl-C ends the operations and goes on with the books.

python -m loadtests.torture [--operations 1000000] [--seed 1] [--kill-every-s 8] [--seconds-max 3600]
"""

import argparse
import signal
import sys
from pathlib import Path

from loadtests.torture.run import Plan, run


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operations", type=int, default=1_000_000, help="answers to collect, repetitions included [1,000,000]")
    parser.add_argument("--seed", type=int, default=1, help="of every dice: who does what, what is killed [1]")
    parser.add_argument("--kill-every-s", type=float, default=8.0, help="one kill about this often; 0: none [8]")
    parser.add_argument("--seconds-max", type=float, default=3600.0, help="then no more operations begin, however many are missing [3600]")
    parser.add_argument("--viewers", type=int, default=160, help="websockets at the same time [160]")
    parser.add_argument("--data-dir", type=Path, help="where the product keeps its data, which then stay; else a folder that goes with it")
    asked = parser.parse_args()
    print(f"seed {asked.seed}: {asked.operations:,} operations, a kill about every {asked.kill_every_s:g} s", flush=True)
    plan = Plan(
        operations=asked.operations,
        seed=asked.seed,
        kill_every_s=asked.kill_every_s,
        seconds_max=asked.seconds_max,
        viewers=asked.viewers,
        data_dir=asked.data_dir,
        say=lambda line: print(line, flush=True),
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: plan.enough.set())  # the books are held against the answers all the same
    return 0 if run(plan).holds else 1


if __name__ == "__main__":
    sys.exit(main())
