"""Tables of rooms, sessions and the run-of-show."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.storage.sql import Table


class Room(Table):
    """The lasting place of a host. Its row is the lock under which the team's changes to the room happen one after another."""

    __tablename__ = "rooms"
    __table_args__ = (Index(None, "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    title: Mapped[str]
    host_name: Mapped[str] = mapped_column(default="")
    host_id: Mapped[str | None]  # the host's staff account, where there is one; rights come from grants, not from here
    description: Mapped[str] = mapped_column(default="")
    currency: Mapped[str]
    language: Mapped[str] = mapped_column(default="zh")
    pinned_offer_id: Mapped[str | None]
    created_at: Mapped[datetime]


class ShowSession(Table):
    """One show. (`Session` alone would be taken for SQLAlchemy's.)"""

    __tablename__ = "sessions"
    __table_args__ = (
        Index(None, "room_id", "created_at", "id"),
        Index(
            "uq_sessions_one_on_air",
            "room_id",
            unique=True,
            postgresql_where=text("state in ('live', 'interrupted')"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    room_id: Mapped[str] = mapped_column(ForeignKey("rooms.id"))
    title: Mapped[str]
    state: Mapped[str] = mapped_column(default="draft")
    reason: Mapped[str] = mapped_column(default="")  # why it is interrupted
    starts_at: Mapped[datetime | None]
    went_live_at: Mapped[datetime | None]
    interrupted_at: Mapped[datetime | None]  # since when, while it is
    interrupted_ms: Mapped[int] = mapped_column(default=0)  # all interruptions that are over
    ended_at: Mapped[datetime | None]
    archived_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    # Readings of the fan-out engine, written once when the session has ended.
    likes: Mapped[int] = mapped_column(default=0)
    peak_viewers: Mapped[int] = mapped_column(default=0)
    unique_viewers: Mapped[int] = mapped_column(default=0)


class Cue(Table):
    """One line of the run-of-show."""

    __tablename__ = "cues"
    __table_args__ = (Index(None, "session_id", "position"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id"))
    position: Mapped[int]
    title: Mapped[str]
    kind: Mapped[str]
    offer_id: Mapped[str | None]
    minutes: Mapped[int] = mapped_column(default=0)  # planned
    state: Mapped[str] = mapped_column(default="waiting")
    began_at: Mapped[datetime | None]
