"""Who gets as far as the upgrade: origin, draining, room for one more, and the rate of joins. Before any token is looked at.

A refusal is an HTTP answer, because clients come again after it with a pause of their own; a websocket that is accepted and then closed has
already cost the most. `Retry-After` is jittered, so that those refused together do not return together.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from app.core.settings import Settings
from app.protocol.buckets import Bucket

RETRY_S_MIN, RETRY_S_MAX = 1, 10


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    reason: str  # a label of the metrics, and the body
    retry_after_s: int | None = None


class Admission:
    def __init__(self, settings: Settings, *, now_ms: float, rng: random.Random, is_cut_off: Callable[[], bool] = lambda: False) -> None:
        self._settings = settings
        self._rng = rng
        self._is_cut_off = is_cut_off  # the node, from its engine: another one may hear it
        self._joins = Bucket(per_s=settings.joins_per_s, burst=settings.joins_per_s, now_ms=now_ms)

    def refusal(self, *, origin: str, host: str, connections: int, is_draining: bool, now_ms: float) -> Refusal | None:
        """None: come in. Origin first, since its answer does not change by waiting."""
        if not is_allowed_origin(origin, host, self._settings.allowed_origins):
            return Refusal(403, "origin")
        if is_draining:
            return self._later("draining")
        if self._is_cut_off():
            return self._later("cut_off")
        if connections >= self._settings.connections_max:
            return self._later("connections")
        if not self._joins.take(now_ms):
            return self._later("joins")
        return None

    def _later(self, reason: str) -> Refusal:
        return Refusal(503, reason, self._rng.randint(RETRY_S_MIN, RETRY_S_MAX))


def is_allowed_origin(origin: str, host: str, allowed: str) -> bool:
    """Browsers always send an origin; other clients send none and pass, since they could send any."""
    if not origin or allowed.strip() == "*":
        return True
    if allowed:
        return origin.rstrip("/").lower() in {one.strip().rstrip("/").lower() for one in allowed.split(",")}
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:  # no origin that a browser writes: half a bracketed address, say
        return False
