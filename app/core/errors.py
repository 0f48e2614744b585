"""The shape of an error, and the one exception that carries it to the edge.

The rows themselves (numbers, words, texts) are the wire contract and stand in `protocol/codes.py`.
Expected refusals of a command (`exhausted`, `closed`, ...) are not errors: they are outcomes in a reply.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """One row of the registry. `number` is never reused once it has been published."""

    number: int
    word: str
    http_status: int
    temporary: bool  # the same call may succeed later without a change; client SDKs retry these
    text: str
    issued_when: str


class AppError(Exception):
    """An error for the caller. `detail` says what was wrong and what to do, in one sentence; it never holds a secret."""

    def __init__(self, code: ErrorCode, detail: str = "", *, retry_after_ms: int | None = None) -> None:
        super().__init__(detail or code.text)
        self.code = code
        self.detail = detail or code.text
        self.retry_after_ms = retry_after_ms


class SetupError(Exception):
    """The product cannot start or be found. The text says what to do; the command line prints it in one line."""
