"""An `Idempotency-Key` whose call is under way, and the mark that its unit of work leaves on it.

The mark is written in the transaction of the call's first unit of work, so that a process which dies before it has recorded the answer
leaves the record saying that the effect is there. A call that was taken for dead, and whose key another call has taken over meanwhile,
finds the record no longer its own and cannot commit. What a call triggers beside its own work (intake) is `unclaimed`.
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import CursorResult, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import AppError
from app.protocol.codes import CONFLICT
from app.storage.tables import IdempotencyRecord

UNDER_WAY = 0
DONE = 1  # committed; the answer is not recorded yet


@dataclass(slots=True)
class Claim:
    caller_id: str
    key: str
    since: datetime  # the record's `created_at`: whoever takes the key over sets another
    is_marked: bool = False

    @property
    def conditions(self) -> tuple[Any, ...]:
        """Of the record, as long as it is this call's own."""
        record = IdempotencyRecord
        return record.caller_id == self.caller_id, record.key == self.key, record.created_at == self.since


_claim: ContextVar[Claim | None] = ContextVar("claim", default=None)


@contextmanager
def claimed(claim: Claim | None) -> Generator[None]:
    token = _claim.set(claim)
    try:
        yield
    finally:
        _claim.reset(token)


def current_claim() -> Claim | None:
    """The claim that the next unit of work has to mark."""
    claim = _claim.get()
    return None if claim is None or claim.is_marked else claim


async def mark_done(session: AsyncSession, claim: Claim) -> None:
    """At the end of the transaction. Raises AppError `conflict` when another call has taken the key over."""
    change = update(IdempotencyRecord).where(*claim.conditions, IdempotencyRecord.status == UNDER_WAY).values(status=DONE)
    if cast("CursorResult[Any]", await session.execute(change)).rowcount != 1:
        raise AppError(CONFLICT, "this call took too long: another one with its Idempotency-Key has taken its place")
