"""Chat in SQL: every message, what was held for review, sanctions, each room's settings and word lists."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.storage.sql import Table


class ChatMessageRow(Table):
    """One admitted message. `state`: sent (shown), held (waits for a moderator), rejected. A deleted one keeps its text, for the record."""

    __tablename__ = "chat_messages"
    __table_args__ = (
        Index(None, "room_id", "at", "id"),
        Index(None, "session_id", "at"),
        Index(None, "viewer_id", "room_id", "at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    room_id: Mapped[str]
    session_id: Mapped[str]
    viewer_id: Mapped[str]
    name: Mapped[str]
    role: Mapped[str]
    level: Mapped[int]
    text: Mapped[str]
    reply_to: Mapped[str | None]
    at: Mapped[datetime]
    state: Mapped[str]
    deleted_at: Mapped[datetime | None]
    deleted_by: Mapped[str | None]


class ChatReview(Table):
    """A message with a listed word. `state`: waiting, approved, rejected; decided once."""

    __tablename__ = "chat_reviews"
    __table_args__ = (Index(None, "room_id", "state", "message_id"),)

    message_id: Mapped[str] = mapped_column(primary_key=True)
    room_id: Mapped[str]
    words: Mapped[list[Any]]
    state: Mapped[str] = mapped_column(default="waiting")
    decided_by: Mapped[str | None]
    decided_at: Mapped[datetime | None]


class ChatSanction(Table):
    """A mute or a ban. In force while `lifted_at` is null and `until` is null or ahead; a new one replaces the one in force."""

    __tablename__ = "chat_sanctions"
    __table_args__ = (
        Index("ix_chat_sanctions_in_force", "room_id", "viewer_id", "kind", unique=True, postgresql_where=text("lifted_at is null")),
        Index(None, "room_id", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    room_id: Mapped[str]
    viewer_id: Mapped[str]
    kind: Mapped[str]  # mute, ban
    until: Mapped[datetime | None]
    reason: Mapped[str]
    by: Mapped[str]
    at: Mapped[datetime]
    session_id: Mapped[str]
    lifted_at: Mapped[datetime | None]
    lifted_by: Mapped[str | None]


class ChatRoom(Table):
    """A room's chat settings."""

    __tablename__ = "chat_rooms"

    room_id: Mapped[str] = mapped_column(primary_key=True)
    slow_mode_s: Mapped[int] = mapped_column(default=0)
    notice: Mapped[str] = mapped_column(default="")


class ChatWords(Table):
    """A word list: a room's, or the platform's under the empty room id."""

    __tablename__ = "chat_words"

    room_id: Mapped[str] = mapped_column(primary_key=True)
    words: Mapped[list[Any]]
    changed_at: Mapped[datetime]
    changed_by: Mapped[str]


class ChatKey(Table):
    """A moderator's command that was done: the same key with the same body has no second effect."""

    __tablename__ = "chat_keys"
    __table_args__ = (Index(None, "at"),)

    caller_id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    outcome: Mapped[str] = mapped_column(default="done")
    at: Mapped[datetime]
