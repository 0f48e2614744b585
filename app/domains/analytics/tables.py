"""Projections: what analytics keeps of other domains' events and readings. All of it can be thrown away but the readings."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from app.storage.sql import Table


class SessionFigures(Table):
    """A show that went live, and its report once it has ended. `stale`: something came in since the report was computed."""

    __tablename__ = "session_figures"
    __table_args__ = (Index("ix_session_figures_open", "live", "stale", "report_at"),)

    session_id: Mapped[str] = mapped_column(primary_key=True)
    room_id: Mapped[str]
    live: Mapped[bool]
    stale: Mapped[bool] = mapped_column(default=True)
    final: Mapped[bool] = mapped_column(default=False)  # archived: the report stands as it is
    ended_at: Mapped[datetime | None]
    report: Mapped[dict[str, Any] | None]
    report_at: Mapped[datetime | None]


class SessionMinute(Table):
    """The most viewers that a reading in this minute found."""

    __tablename__ = "session_minutes"

    session_id: Mapped[str] = mapped_column(primary_key=True)
    minute: Mapped[datetime] = mapped_column(primary_key=True)
    viewers: Mapped[int]


class OfferReading(Table):
    """The last reading of an offer's stock in the engine. When the engine has forgotten the show, this is what is left of it."""

    __tablename__ = "offer_readings"

    offer_id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(index=True)
    total: Mapped[int]
    available: Mapped[int]
    held: Mapped[int]
    ordered: Mapped[int]
    sold: Mapped[int]
    holds: Mapped[int]


class OrderFact(Table):
    """An order as the figures need it: one row an order, so an event that comes twice changes nothing.

    `placed_at` is null for a prize, which is never placed; prizes count in no figure of sales.
    """

    __tablename__ = "order_facts"
    __table_args__ = (Index(None, "session_id", "offer_id"),)

    order_id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str]
    offer_id: Mapped[str]
    viewer_id: Mapped[str]
    quantity: Mapped[int]
    amount_minor: Mapped[int]
    state: Mapped[str]
    placed_at: Mapped[datetime | None]
    paid_at: Mapped[datetime | None]
    refunded_minor: Mapped[int] = mapped_column(default=0)
