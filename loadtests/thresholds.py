"""What fails a run, beside a broken invariant: failures, and answers so slow that an SDK would hang up.

Latency limits are wide on purpose: this is a check that nothing is broken under load, on whatever machine it runs. Speed is
measured by `make bench`.
"""

from typing import Any

from locust.env import Environment

FAILED_RATIO_MAX = 0.01
P99_MS_MAX = 5_000  # client SDKs drop a connection whose command is unanswered for 5 s


def broken_thresholds(environment: Environment) -> list[str]:
    total: Any = environment.stats.total
    if total.num_requests == 0:
        return ["not a single request was made"]
    problems: list[str] = []
    if total.fail_ratio > FAILED_RATIO_MAX:
        problems.append(f"{total.fail_ratio:.1%} of {total.num_requests} requests failed; at most {FAILED_RATIO_MAX:.0%} may")
    for entry in environment.stats.entries.values():
        p99_ms = entry.get_response_time_percentile(0.99)
        if entry.num_requests >= 20 and p99_ms > P99_MS_MAX:
            problems.append(f"{entry.method} {entry.name}: p99 {p99_ms:.0f} ms; at most {P99_MS_MAX} ms")
    return problems
