"""Tables of the catalogue. `offers` names its room and session without a foreign key: those belong to the domain above."""

from datetime import date, datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.storage.sql import Table


class Product(Table):
    """Something a merchant or village grows or makes, with its origin. It has no price: an offer has."""

    __tablename__ = "products"
    __table_args__ = (Index(None, "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str]  # who made the entry: may change it, as an operator may
    name: Mapped[str]
    description: Mapped[str] = mapped_column(default="")
    unit: Mapped[str] = mapped_column(default="")  # "500 g", "box of 12"
    image: Mapped[str] = mapped_column(default="")  # URL or path under /static
    village: Mapped[str] = mapped_column(default="")
    lot: Mapped[str] = mapped_column(default="")
    harvested_on: Mapped[date | None]
    return_policy: Mapped[str] = mapped_column(default="no_reason_7_days")
    created_at: Mapped[datetime]


class Offer(Table):
    """A product on a session's shelf. Origin, unit and image are copied from the product: an offer says what was sold, then.

    `sold` counts paid units and is moved by intake alone. `version` grows by one with every change that viewers see.
    """

    __tablename__ = "offers"
    __table_args__ = (
        Index(None, "session_id", "position"),
        Index(None, "product_id"),
        Index("ix_offers_next_step_at", "next_step_at", postgresql_where=text("next_step_at is not null")),
        CheckConstraint("sold >= 0 and sold <= total", name="sold"),
        CheckConstraint("price_minor >= 0", name="price"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    room_id: Mapped[str]
    session_id: Mapped[str]
    product_id: Mapped[str | None] = mapped_column(ForeignKey("products.id"))
    name: Mapped[str]
    currency: Mapped[str]
    price_minor: Mapped[int]
    list_price_minor: Mapped[int]
    price_min_minor: Mapped[int | None]  # the limits delegated to a host; null: does not bind
    price_max_minor: Mapped[int | None]
    discount_percent_max: Mapped[int | None]  # delegated as well: off the list price
    total_max: Mapped[int | None]  # delegated as well: to how many units the host may top up
    total: Mapped[int]
    sold: Mapped[int] = mapped_column(default=0)
    limit_per_viewer: Mapped[int] = mapped_column(default=0)  # 0: no limit
    limit_per_order: Mapped[int] = mapped_column(default=0, server_default="0")  # 0: no limit
    selling_policy: Mapped[str] = mapped_column(default="hold", server_default="hold")
    keyword: Mapped[str] = mapped_column(default="", server_default="")  # what a viewer writes in the chat to buy; empty: none
    price_steps: Mapped[list[Any]] = mapped_column(default=list, server_default=text("'[]'::jsonb"))  # those to come: at_ms, price_minor
    next_step_at: Mapped[datetime | None]  # of the first of them: what the worker looks for
    opens_at: Mapped[datetime | None]
    closes_at: Mapped[datetime | None]
    return_policy: Mapped[str]
    state: Mapped[str] = mapped_column(default="listed")
    position: Mapped[int]
    version: Mapped[int] = mapped_column(default=1)
    image: Mapped[str] = mapped_column(default="")
    village: Mapped[str] = mapped_column(default="")
    lot: Mapped[str] = mapped_column(default="")
    harvested_on: Mapped[date | None]
    unit: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime]
