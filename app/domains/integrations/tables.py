"""Webhook endpoints, what is to be delivered to them, and each attempt."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, LargeBinary, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.storage.sql import Table


class WebhookEndpoint(Table):
    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(primary_key=True)
    url: Mapped[str]
    secret: Mapped[str]  # in the clear: it signs every delivery; shown once to people
    events: Mapped[list[Any]]
    created_by: Mapped[str]
    created_at: Mapped[datetime]


class WebhookDelivery(Table):
    """One event for one endpoint. While it is pending, `next_attempt_at` is when it falls due; a worker that sends it moves that ahead."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("endpoint_id", "identity"),
        Index(None, "endpoint_id", "id"),
        Index("ix_webhook_deliveries_due", "next_attempt_at", postgresql_where=text("state = 'pending'")),
        Index(None, "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)  # sortable by time; the `webhook-id` header
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    identity: Mapped[str]  # what happened: the same again is not delivered again
    event: Mapped[str]
    body: Mapped[bytes] = mapped_column(LargeBinary)
    state: Mapped[str] = mapped_column(default="pending")  # pending, delivered, failed
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime]
    created_at: Mapped[datetime]


class WebhookAttempt(Table):
    __tablename__ = "webhook_attempts"
    __table_args__ = (Index(None, "delivery_id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    delivery_id: Mapped[str] = mapped_column(ForeignKey("webhook_deliveries.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    at: Mapped[datetime]
    status: Mapped[int | None]  # null: no answer
    error: Mapped[str] = mapped_column(default="")
    duration_ms: Mapped[int]
