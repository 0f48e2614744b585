"""Staff, what they were granted, and API keys. Viewers have no row: a signed token says who they are."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Identity, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.storage.sql import Table


class Staff(Table):
    """A member of the team who signs in with a password. The id is the `sub` of the tokens."""

    __tablename__ = "staff"

    id: Mapped[str] = mapped_column(primary_key=True)
    login: Mapped[str] = mapped_column(unique=True)  # lower case
    name: Mapped[str]
    password_hash: Mapped[str]  # argon2id, with its parameters
    created_at: Mapped[datetime]


class StaffGrant(Table):
    """A role of a member, in one room or (null) in all."""

    __tablename__ = "staff_grants"
    __table_args__ = (UniqueConstraint("staff_id", "role", "room_id", postgresql_nulls_not_distinct=True),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    staff_id: Mapped[str] = mapped_column(ForeignKey("staff.id", ondelete="CASCADE"))
    role: Mapped[str]
    room_id: Mapped[str | None]


class ApiKey(Table):
    """A key of the company's backend. The secret is shown once and kept as a hash; a revoked key stays, so that logs keep their meaning."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    secret_hash: Mapped[str]  # SHA-256: the secret has 256 random bits, so a slow hash would add nothing
    rights: Mapped[list[Any]]
    rooms: Mapped[list[Any] | None]  # null: all rooms
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
