"""How often a viewer may call each method on this node: what the registry says of the command, over all connections of the viewer.

A guard for the node and the engines, well above what a client of ours does; what is fair between viewers is the domains' own to say, as an
outcome (chat's pace, the limit of an offer). REST has no part in it: it is reached through the operator's proxy, which limits addresses.
"""

from app.core.registry import Command
from app.protocol.buckets import Bucket

BURST_S = 2  # of calls at the full rate, at once
BUCKETS_MAX = 20_000  # some 300 bytes each; the one longest unused goes first, and begins full again


class MethodRates:
    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def take(self, viewer_id: str, command: Command, now_ms: float) -> bool:
        """False: too many."""
        key = (viewer_id, command.method)
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            rate = command.calls_per_s_max * self._factor
            bucket = Bucket(per_s=rate, burst=max(1, rate * BURST_S), now_ms=now_ms)
            if len(self._buckets) >= BUCKETS_MAX:
                del self._buckets[next(iter(self._buckets))]
        self._buckets[key] = bucket
        return bucket.take(now_ms)
