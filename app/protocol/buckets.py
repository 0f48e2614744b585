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
            level = self._level + (now_ms - self._at_ms) * self._per_ms
            self._level = level if level < self._burst else self._burst  # a call of `min` takes as long as the rest
            self._at_ms = now_ms
        return self._level

    def is_full(self, now_ms: float) -> bool:
        return self.level(now_ms) >= self._burst

    def take(self, now_ms: float, count: int = 1) -> bool:
        """Takes `count`, or nothing at all when there are fewer."""
        level = self._level if now_ms <= self._at_ms else self.level(now_ms)  # several ask within a moment
        if level < count:
            return False
        self._level = level - count
        return True
