"""Draws, prizes, entries, winners. `seed` and `salt` are secret until the draw is drawn; their hashes are public from the start."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.storage.sql import Table


class Draw(Table):
    __tablename__ = "draws"
    __table_args__ = (
        Index(None, "session_id", "created_at", "id"),
        Index(None, "room_id", "state"),
        Index(None, "state", "closes_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    room_id: Mapped[str]
    session_id: Mapped[str]
    title: Mapped[str]
    state: Mapped[str]  # preparing (escrow under way), open, drawn, cancelled
    condition: Mapped[str]  # everyone, keyword
    keyword: Mapped[str]
    entrants_max: Mapped[int]
    currency: Mapped[str]
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    opened_at: Mapped[datetime | None]
    closes_at: Mapped[datetime | None]  # null: by hand
    ended_at: Mapped[datetime | None]
    settled_at: Mapped[datetime | None]  # every prize is delivered and every surplus returned
    rules_json: Mapped[str] = mapped_column(default="")  # canonical (RFC 8785): exactly the bytes that were hashed
    rules_hash: Mapped[str] = mapped_column(default="")
    seed: Mapped[str] = mapped_column(default="")
    commitment: Mapped[str] = mapped_column(default="")  # SHA-256 of the seed
    salt: Mapped[str] = mapped_column(default="")  # of the pseudonyms; its hash is in the rules
    entrants: Mapped[int] = mapped_column(default=0)  # counted when it closed
    entrants_root: Mapped[str] = mapped_column(default="")
    reason: Mapped[str] = mapped_column(default="")  # why it was cancelled


class DrawPrize(Table):
    __tablename__ = "draw_prizes"
    __table_args__ = (CheckConstraint("unit_count > 0", name="count_positive"),)

    draw_id: Mapped[str] = mapped_column(ForeignKey("draws.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)  # from 0; prizes go to the winners in this order
    kind: Mapped[str]  # money, product
    name: Mapped[str]
    unit_count: Mapped[int]
    amount_minor: Mapped[int]
    offer_id: Mapped[str | None]


class DrawEntry(Table):
    __tablename__ = "draw_entries"
    __table_args__ = (Index(None, "draw_id", "pseudonym", unique=True),)

    draw_id: Mapped[str] = mapped_column(ForeignKey("draws.id"), primary_key=True)
    viewer_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    pseudonym: Mapped[str]  # HMAC-SHA-256(salt, viewer), hex
    evidence: Mapped[str]  # canonical JSON: how each condition was met
    evidence_hash: Mapped[str]
    at: Mapped[datetime]


class DrawWinner(Table):
    __tablename__ = "draw_winners"

    draw_id: Mapped[str] = mapped_column(ForeignKey("draws.id"), primary_key=True)
    unit: Mapped[int] = mapped_column(primary_key=True)  # from 0: which of all the prizes' units
    prize_position: Mapped[int]
    entrant_index: Mapped[int]  # place in the sorted list of entrants
    viewer_id: Mapped[str]
    name: Mapped[str]
    pseudonym: Mapped[str]
    delivered_at: Mapped[datetime | None]  # money: moved; product: an order exists
    order_id: Mapped[str | None]
