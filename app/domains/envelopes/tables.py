"""Envelopes and their shares. Amounts and salts are secret until the envelope is settled; the commitment is public from the start."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.storage.sql import Table


class Envelope(Table):
    __tablename__ = "envelopes"
    __table_args__ = (
        Index(None, "session_id", "opened_at", "id"),
        Index(None, "room_id", "state"),
        Index(None, "state", "expires_at"),
        CheckConstraint("remaining BETWEEN 0 AND share_count", name="remaining_in_range"),
        CheckConstraint("opened_minor >= 0 AND refunded_minor >= 0 AND opened_minor + refunded_minor <= total_minor", name="funded"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    room_id: Mapped[str]
    session_id: Mapped[str]
    title: Mapped[str]
    mode: Mapped[str]  # lucky, equal
    total_minor: Mapped[int]
    currency: Mapped[str]
    share_count: Mapped[int]
    commitment: Mapped[str]  # Merkle root over the shares, in hex
    state: Mapped[str]  # open, settled; what comes between them is one transaction
    ended_by: Mapped[str] = mapped_column(default="")  # emptied, expired, ended
    remaining: Mapped[int]
    shown_remaining: Mapped[int]  # what the last event said: the snapshot says the same
    shown_at: Mapped[datetime]
    opened_minor: Mapped[int] = mapped_column(default=0)  # funded = opened + refunded + still open
    refunded_minor: Mapped[int] = mapped_column(default=0)
    opened_by: Mapped[str]
    opened_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    settled_at: Mapped[datetime | None]


class EnvelopeShare(Table):
    __tablename__ = "envelope_shares"
    __table_args__ = (
        UniqueConstraint("envelope_id", "viewer_id"),  # one share a viewer
        CheckConstraint("amount_minor >= 1", name="amount_positive"),
    )

    envelope_id: Mapped[str] = mapped_column(ForeignKey("envelopes.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)  # from 1, in the order in which they are handed out
    amount_minor: Mapped[int]
    salt: Mapped[str]  # 16 random bytes in hex: keeps a small amount from being guessed out of its hash
    viewer_id: Mapped[str | None]
    opened_at: Mapped[datetime | None]
