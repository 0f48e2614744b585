"""The only door to the clock, to randomness and to new ids.

Rules and services take `now_ms`, `rng` or an id as an argument; whoever calls them takes it from the `Runtime`. Tests hand in one
with its own clock, a seeded generator and counted ids, so that every run can be repeated.
"""

import random
import time
from datetime import UTC, datetime
from functools import lru_cache

from ulid import ULID

_ALPHABET = b"0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u to misread on the phone
_LETTER_OF_BYTE = _ALPHABET * 8


class Runtime:
    """The machine's clock and the operating system's randomness."""

    def __init__(self) -> None:
        self.rng: random.Random = random.SystemRandom()

    def now_ms(self) -> int:
        """Milliseconds since 1970 in UTC. Deadlines are decided by the engine's clock, not by this one."""
        return time.time_ns() // 1_000_000

    def script_now_ms(self) -> int:
        """What scripts get as `now_ms`: 0 means the engine's own clock, the one that decides deadlines. Tests pass theirs."""
        return 0

    def monotonic_ms(self) -> float:
        return time.monotonic() * 1000

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.now_ms() / 1000, UTC)

    def new_id(self) -> str:
        """26 characters, sortable by time (ULID, lower case)."""
        return str(ULID()).lower()

    def new_short_id(self) -> str:
        """10 characters, 50 random bits: rooms and what is counted in thousands. Uniqueness is enforced where it is inserted."""
        return self.rng.randbytes(10).translate(_LETTER_OF_BYTE).decode()  # one question to the system, where `choices` asks ten

    def token_bytes(self, size: int) -> bytes:
        """Secret bytes: seeds, salts, API keys."""
        return self.rng.randbytes(size)


def at_text(at_ms: int) -> str:
    """RFC 3339 in UTC with milliseconds, as every event and reply states time: `2026-05-01T12:00:00.000Z`."""
    second, ms = divmod(at_ms, 1000)
    return f"{_second_text(second)}.{ms:03d}Z"


@lru_cache(maxsize=128)
def _second_text(second: int) -> str:
    """All that is told within a second tells the same ones: now, and the deadlines that follow from it."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
