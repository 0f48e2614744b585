"""The audit log: append-only, a hash chain a room, written in the same transaction as the act it records.

The lock is held until the commit, so it is the last that a unit of work takes (work.py).

hash = SHA-256(previous hash, canonical JSON of room, time, actor, action, subject, detail). Changing, removing or reordering an
entry breaks every hash after it; `verify_chain` says where. The order of a room's entries is the order of the lock taken here.
"""

import hashlib
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.storage.tables import AuditEntry


async def append_audit(
    session: AsyncSession, *, room_id: str, at: datetime, actor: str, action: str, subject: str, detail: dict[str, Any]
) -> None:
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"audit:{room_id}", 0))))
    newest = select(AuditEntry.hash).where(AuditEntry.room_id == room_id).order_by(AuditEntry.id.desc()).limit(1)
    previous = await session.scalar(newest) or ""
    entry = AuditEntry(room_id=room_id, at=at, actor=actor, action=action, subject=subject, detail=detail, previous_hash=previous, hash="")
    entry.hash = entry_hash(entry)
    session.add(entry)
    await session.flush()


def entry_hash(entry: AuditEntry) -> str:
    content = [entry.room_id, int(entry.at.timestamp() * 1000), entry.actor, entry.action, entry.subject, entry.detail]
    canonical = msgspec.json.encode(content, order="sorted")
    return hashlib.sha256(entry.previous_hash.encode() + canonical).hexdigest()


async def verify_chain(session: AsyncSession, room_id: str) -> int | None:
    """The id of the first entry whose hash does not fit; None when the chain is whole."""
    previous = ""
    rows = await session.stream_scalars(select(AuditEntry).where(AuditEntry.room_id == room_id).order_by(AuditEntry.id))
    async for entry in rows:
        if entry.previous_hash != previous or entry.hash != entry_hash(entry):
            return entry.id
        previous = entry.hash
    return None
