"""A token bucket: pure, the clock comes in. For rates of commands, errors, joins and chat."""


class Bucket:
    """Holds at most `burst` and gains `per_s` a second; starts full."""

    __slots__ = ("_at_ms", "_burst", "_level", "_per_ms")

    def __init__(self, *, per_s: float, burst: float, now_ms: float) -> None:
        self._per_ms = per_s / 1000
        self._burst = burst
        self._level = burst
        self._at_ms = now_ms

    def level(self, now_ms: float) -> float:
        if now_ms > self._at_ms:
            self._level = min(self._burst, self._level + (now_ms - self._at_ms) * self._per_ms)
            self._at_ms = now_ms
        return self._level

    def is_full(self, now_ms: float) -> bool:
        return self.level(now_ms) >= self._burst

    def take(self, now_ms: float, count: int = 1) -> bool:
        """Takes `count`, or nothing at all when there are fewer."""
        if self.level(now_ms) < count:
            return False
        self._level -= count
        return True
