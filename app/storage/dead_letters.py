"""What was set aside because it kept failing: looked at, tried again, or dropped, by an operator.

Trying again does what intake or the announcer would have done, and takes the letter away in the same transaction: an entry has one effect
however often it is tried. Order is not kept: what came after it in its room has long had its effect. Dropping is an act for the audit log,
since nobody can find out afterwards what was lost.
"""

from collections.abc import Sequence

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import AppError
from app.protocol.codes import CONFLICT, NOT_FOUND
from app.storage.intake import OutboxEntry, hand_out
from app.storage.tables import Announcement, DeadLetter
from app.storage.work import Work

LISTED_MAX = 1000


async def list_letters(session: AsyncSession, room_id: str | None = None) -> Sequence[DeadLetter]:
    """The oldest first: what lies behind a fault began with the first that failed."""
    query = select(DeadLetter).order_by(DeadLetter.id).limit(LISTED_MAX)
    if room_id:
        query = query.where(DeadLetter.room_id == room_id)
    return (await session.scalars(query)).all()


async def get_letter(session: AsyncSession, letter_id: int, *, lock: bool = False) -> DeadLetter:
    """Raises AppError `not_found`."""
    letter = await session.get(DeadLetter, letter_id, with_for_update=lock or None)
    if letter is None:
        raise AppError(NOT_FOUND, f"there is no dead letter {letter_id}: see `jishi dead-letters list`")
    return letter


async def retry_letter(work: Work, letter_id: int) -> None:
    """Raises whatever its handler raises; the letter is still there then."""
    letter = await get_letter(work.session, letter_id, lock=True)
    if letter.source == "intake":
        await hand_out(work, [_entry(letter)])
    elif letter.channels is None:
        raise AppError(
            CONFLICT, f"dead letter {letter_id} was set aside by a version that did not keep its channels: it can only be dropped"
        )
    else:
        row = Announcement(room_id=letter.room_id, channels=letter.channels, type=letter.type, payload=letter.payload, attempts=0)
        work.session.add(row)
        work.announced_rooms.add(letter.room_id)
    await work.session.delete(letter)


async def drop_letter(work: Work, letter_id: int, reason: str) -> None:
    letter = await get_letter(work.session, letter_id, lock=True)
    await work.session.delete(letter)
    await work.audit(
        letter.room_id, "operator", "dead_letter.drop", str(letter_id), type=letter.type, payload=letter.payload.decode(), reason=reason
    )


def _entry(letter: DeadLetter) -> OutboxEntry:
    at_ms = int(letter.entry.partition("-")[0]) if letter.entry else round(letter.at.timestamp() * 1000)
    return OutboxEntry(letter.entry or f"{at_ms}-0", letter.room_id, letter.type, at_ms, msgspec.json.decode(letter.payload))
