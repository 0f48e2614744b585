"""Tables that belong to no domain: the two outboxes' bookkeeping, dead letters, idempotency records, the audit log."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Identity, Index, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from app.storage.sql import Table


class Announcement(Table):
    """An event that was committed and has still to be published. Deleted once it is out."""

    __tablename__ = "announcements"
    __table_args__ = (Index(None, "room_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    room_id: Mapped[str]
    channels: Mapped[list[Any]]
    type: Mapped[str]
    payload: Mapped[bytes] = mapped_column(LargeBinary)
    attempts: Mapped[int] = mapped_column(default=0)


class IntakeProgress(Table):
    """The last entry of a room's engine outbox that is in SQL: written in the same transaction, so each entry has one effect.

    `epoch` counts how often the room's records in the engine were lost, whole or in part, and made anew from here.
    """

    __tablename__ = "intake_progress"

    room_id: Mapped[str] = mapped_column(primary_key=True)
    last_entry: Mapped[str] = mapped_column(default="0-0")
    epoch: Mapped[int] = mapped_column(default=0, server_default="0")


class DeadLetter(Table):
    """What failed too often and was set aside so that the rest could go on. `jishi dead-letters` is for the operator who decides."""

    __tablename__ = "dead_letters"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    source: Mapped[str]  # "announcement" or "intake"
    room_id: Mapped[str]
    type: Mapped[str]
    payload: Mapped[bytes] = mapped_column(LargeBinary)
    error: Mapped[str]
    at: Mapped[datetime]
    entry: Mapped[str | None]  # the outbox entry's id in the engine
    channels: Mapped[list[Any] | None]  # of an announcement


class IdempotencyRecord(Table):
    """The answer that a REST call with an `Idempotency-Key` got. `status` 0: the first call is still under way;
    1: what it did is committed, its answer not recorded yet."""

    __tablename__ = "idempotency_records"
    __table_args__ = (Index(None, "created_at"),)

    caller_id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    status: Mapped[int] = mapped_column(default=0)
    body: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    headers: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime]


class AuditEntry(Table):
    """One act that a supervisor may ask about. Each entry's hash covers the one before it in its room."""

    __tablename__ = "audit_entries"
    __table_args__ = (Index(None, "room_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    room_id: Mapped[str]
    at: Mapped[datetime]
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[dict[str, Any]]
    previous_hash: Mapped[str]
    hash: Mapped[str]
