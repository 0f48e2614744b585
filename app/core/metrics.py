"""Every metric of every process. Names begin with `jishi_` and end in their unit; label values come from closed lists, never from users.

Where PROMETHEUS_MULTIPROC_DIR is set (`jishi up` sets it), the processes keep their figures in files there, and `/metrics` of any of
them tells the sum of all; elsewhere each process tells its own.

What every command writes is looked up once (`outcome_counter` and its neighbours): the library's way from label values to the figure takes
longer than the figure itself. And a process that has said `write_late` counts in memory and brings its files up to date when it calls
`write_figures`, once a second: four figures of a command took 5 us in the file, and take 2.
"""

import os
from functools import lru_cache
from itertools import repeat
from typing import Any

from prometheus_client import Counter, Gauge, Histogram, values

# No process of ours forks; the library asks the system for the number of the process with every figure that it writes.
_in_file: Any = values.MultiProcessValue(repeat(os.getpid()).__next__)


class _Late:
    """What is not in this process's files yet. None: all is written at once."""

    figures: "list[FigureInFile] | None" = None


class FigureInFile:
    """One number of a figure, as the library keeps it, in this process's file. For one thread: that of the loop."""

    _multiprocess = True

    def __init__(self, *names: Any, **mode: Any) -> None:
        self._written = _in_file(*names, **mode)
        self._value: float = self._written.get()
        self._is_late = False

    def inc(self, amount: float) -> None:
        self._value += amount
        self._note()

    def set(self, value: float, timestamp: float | None = None) -> None:
        self._value = value
        self._note()

    def get(self) -> float:
        return self._value

    def set_exemplar(self, exemplar: Any) -> None:
        """The files hold none."""

    def get_exemplar(self) -> None:
        return None

    def _note(self) -> None:
        if _Late.figures is None:
            self._written.set(self._value)
        elif not self._is_late:
            self._is_late = True
            _Late.figures.append(self)

    def write(self) -> None:
        self._is_late = False
        self._written.set(self._value)


def write_late() -> None:
    """From now on `write_figures` writes; whoever calls this calls that about once a second."""
    if _Late.figures is None:
        _Late.figures = []


def write_figures() -> None:
    """All that was counted since the last time."""
    late = _Late.figures or []
    for figure in late:
        figure.write()
    late.clear()


def write_at_once() -> None:
    write_figures()
    _Late.figures = None


if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    values.ValueClass = FigureInFile

# gateway
CONNECTIONS = Gauge("jishi_connections", "Open client connections", multiprocess_mode="livesum")
SUBSCRIPTIONS = Gauge("jishi_subscriptions", "Channel subscriptions of these connections", multiprocess_mode="livesum")
DELIVERIES = Counter("jishi_deliveries_total", "Publications written to a client", ["lane"])
SHED = Counter("jishi_shed_total", "Publications not written to a client because of overload", ["lane", "reason"])
CLOSES = Counter("jishi_closes_total", "Connections closed by the server", ["code"])
COMMANDS = Counter("jishi_commands_total", "Commands answered", ["method", "result"])
COMMAND_SECONDS = Histogram(
    "jishi_command_seconds",
    "From a command's arrival to its reply",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
JOINS_REFUSED = Counter("jishi_joins_refused_total", "Connections refused before the upgrade", ["reason"])
RECOVERIES = Counter("jishi_recoveries_total", "Subscriptions that asked to recover", ["result"])

# REST and pages
REQUESTS = Counter("jishi_requests_total", "HTTP requests answered", ["method", "route", "status"])
REQUEST_SECONDS = Histogram(
    "jishi_request_seconds",
    "From an HTTP request's arrival to the end of its answer",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)

JWKS_FETCHES = Counter("jishi_jwks_fetches_total", "Fetches of the keys that the company's backend signs tokens with", ["result"])

# hot path
BATCH_SIZE = Histogram(
    "jishi_group_commit_batch_size",
    "Commands in one script call",
    ["script"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
BATCH_WAIT_SECONDS = Histogram("jishi_group_commit_wait_seconds", "How long the first command of a batch waited for it", ["script"])
OUTCOMES = Counter("jishi_outcomes_total", "Outcome words of commands", ["method", "outcome"])

# worker
INTAKE_ENTRIES = Counter("jishi_intake_entries_total", "Outbox entries taken into SQL", ["type"])
INTAKE_LAG_SECONDS = Gauge(
    "jishi_intake_lag_seconds", "Age of the oldest outbox entry that was not in SQL at the last look; 0: none", multiprocess_mode="livemax"
)
INTAKE_WAITING_ENTRIES = Gauge(
    "jishi_intake_waiting_entries",
    "Outbox entries of this worker's rooms that were not in SQL at the last look",
    multiprocess_mode="livesum",
)
BOOKS_DIFFERENCES = Gauge(
    "jishi_books_differences", "Differences between the engine of sales and SQL at the last look at each room", multiprocess_mode="livesum"
)
DEAD_LETTERS = Counter("jishi_dead_letters_total", "Entries set aside after repeated failure", ["source"])
LOOP_FAILURES = Counter("jishi_loop_failures_total", "Runs of a worker loop that raised", ["loop"])
LOOP_RUNS = Counter("jishi_loop_runs_total", "Runs of a worker loop", ["loop"])
WEBHOOK_DELIVERIES = Counter("jishi_webhook_deliveries_total", "Deliveries to the company's backend", ["result"])
PROVIDER_CALLS = Counter("jishi_provider_calls_total", "Calls to payment providers", ["provider", "call", "result"])


@lru_cache(maxsize=4096)
def command_counter(method: str, result: str) -> Counter:
    return COMMANDS.labels(method, result)


@lru_cache(maxsize=1024)
def command_seconds(method: str) -> Histogram:
    return COMMAND_SECONDS.labels(method)


@lru_cache(maxsize=4096)
def outcome_counter(method: str, outcome: str) -> Counter:
    return OUTCOMES.labels(method, outcome)
