"""Tables of orders, payments and after-sales. Rooms, sessions, offers and viewers are named without foreign keys: other domains own them.

A payment may be written before its order: the engine knows an order first, intake brings it here.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, LargeBinary, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.storage.sql import Table

_OPEN_RETURN = text("state in ('requested', 'approved', 'shipped_back', 'received')")
_OWED = text("state = 'lost' and not covered")


class Order(Table):
    """A purchase, or a prize on its way. Its id is the hold's: one order a hold, by the primary key."""

    __tablename__ = "orders"
    __table_args__ = (
        Index(None, "viewer_id", "placed_at", "id"),
        Index(None, "room_id", "placed_at", "id"),
        Index(None, "session_id", "state"),
        Index(None, "offer_id"),
        Index(None, "shipped_at", postgresql_where=text("state = 'shipped'")),
        CheckConstraint("quantity > 0 and returned >= 0 and returned <= quantity", name="quantity"),
        CheckConstraint("refunded_minor >= 0 and refunded_minor <= amount_minor", name="refunded"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    room_id: Mapped[str]
    session_id: Mapped[str]
    offer_id: Mapped[str]
    offer_version: Mapped[int]
    name: Mapped[str]
    viewer_id: Mapped[str]
    buyer: Mapped[str]
    quantity: Mapped[int]
    price_minor: Mapped[int]
    amount_minor: Mapped[int]
    currency: Mapped[str]
    return_policy: Mapped[str]
    address: Mapped[dict[str, Any] | None]  # null: a prize whose winner has not said where to send it
    state: Mapped[str]
    reason: Mapped[str] = mapped_column(default="")
    prize: Mapped[bool] = mapped_column(default=False)
    placed_at: Mapped[datetime]
    pay_by: Mapped[datetime | None]
    paid_at: Mapped[datetime | None]
    shipped_at: Mapped[datetime | None]
    delivered_at: Mapped[datetime | None]  # as the viewer or the team said, or by itself some days after shipping
    payment_id: Mapped[str | None]
    carrier: Mapped[str | None]
    tracking: Mapped[str | None]
    refunded_minor: Mapped[int] = mapped_column(default=0)
    returned: Mapped[int] = mapped_column(default=0)  # units that went back on the shelf


class Payment(Table):
    """One attempt to pay an order. Its id is derived from viewer and key: its own idempotency record."""

    __tablename__ = "payments"
    __table_args__ = (Index(None, "order_id"), Index(None, "provider", "reference", postgresql_where=text("reference <> ''")))

    id: Mapped[str] = mapped_column(primary_key=True)
    order_id: Mapped[str]
    room_id: Mapped[str]
    viewer_id: Mapped[str]
    provider: Mapped[str]
    method: Mapped[str]
    amount_minor: Mapped[int]
    currency: Mapped[str]
    state: Mapped[str] = mapped_column(default="pending")  # pending, succeeded, declined, refunded
    reason: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime]
    settled_at: Mapped[datetime | None]
    reference: Mapped[str] = mapped_column(default="", server_default="")  # the provider's own id of it
    client_secret: Mapped[str] = mapped_column(default="", server_default="")  # with which the viewer's app goes on at the provider


class ProviderCall(Table):
    """A call that is owed to a provider: written in the transaction that needs it, made outside of any, repeated until it is answered.

    `subject` is a payment or a refund; kind and subject are the provider's idempotency key, so a repetition has no second effect there.
    """

    __tablename__ = "provider_calls"
    __table_args__ = (
        Index(None, "due_at", postgresql_where=text("state = 'due'")),
        Index("ix_provider_calls_ended", "due_at", postgresql_where=text("state <> 'due'")),
    )

    kind: Mapped[str] = mapped_column(primary_key=True)  # create, refund, cancel
    subject: Mapped[str] = mapped_column(primary_key=True)
    provider: Mapped[str]
    payment_id: Mapped[str]
    amount_minor: Mapped[int]
    currency: Mapped[str]
    data: Mapped[dict[str, Any]]
    state: Mapped[str]  # due, done, failed
    attempts: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[datetime]  # after its end: half a minute later
    error: Mapped[str] = mapped_column(default="")


class PaymentEvent(Table):
    """A provider's webhook as it came. `outcome` is empty until its effect is certain; the provider repeats it until then."""

    __tablename__ = "payment_events"
    __table_args__ = (UniqueConstraint("provider", "event_id"), Index(None, "received_at"))

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    provider: Mapped[str]
    event_id: Mapped[str]
    payment_id: Mapped[str]
    raw: Mapped[bytes] = mapped_column(LargeBinary)
    received_at: Mapped[datetime]
    outcome: Mapped[str] = mapped_column(default="")


class Refund(Table):
    """Money sent back. An automatic refund's id is derived from the payment, a refund by staff has an id of its own."""

    __tablename__ = "refunds"
    __table_args__ = (Index(None, "order_id"), CheckConstraint("amount_minor > 0", name="amount"))

    id: Mapped[str] = mapped_column(primary_key=True)
    order_id: Mapped[str]
    payment_id: Mapped[str]
    amount_minor: Mapped[int]
    currency: Mapped[str]
    reason: Mapped[str]
    restock: Mapped[int] = mapped_column(default=0)  # units to put back on the shelf
    restocked: Mapped[bool] = mapped_column(default=False)  # the engine has them
    by: Mapped[str]
    at: Mapped[datetime]
    state: Mapped[str] = mapped_column(default="pending", server_default="succeeded")  # pending, succeeded, failed
    reference: Mapped[str] = mapped_column(default="", server_default="")  # the provider's own id of it


class ReturnRequest(Table):
    """A viewer wants money back. Its id is derived from viewer and key: its own idempotency record. `due_at`: when it goes on by itself."""

    __tablename__ = "return_requests"
    __table_args__ = (
        Index("uq_return_requests_open", "order_id", unique=True, postgresql_where=_OPEN_RETURN),  # one at a time
        Index(None, "order_id"),
        Index(None, "viewer_id", "requested_at", "id"),
        Index(None, "room_id", "requested_at", "id"),
        Index(None, "due_at", postgresql_where=text("due_at is not null")),
        CheckConstraint("quantity > 0 and amount_minor > 0", name="amount"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]  # of the request
    order_id: Mapped[str]
    room_id: Mapped[str]
    viewer_id: Mapped[str]
    kind: Mapped[str]
    reason: Mapped[str]
    quantity: Mapped[int]
    amount_minor: Mapped[int]
    currency: Mapped[str]
    text: Mapped[str]
    evidence: Mapped[list[Any]]
    state: Mapped[str]
    answer: Mapped[str] = mapped_column(default="")
    carrier: Mapped[str | None]
    tracking: Mapped[str | None]
    due_at: Mapped[datetime | None]
    requested_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]


class Dispute(Table):
    """A buyer asks the bank for the money back. While it is open, the room's wallet sets the amount aside."""

    __tablename__ = "disputes"
    __table_args__ = (Index(None, "order_id"), Index(None, "room_id", "opened_at", "id"), Index(None, "closed_at", postgresql_where=_OWED))

    id: Mapped[str] = mapped_column(primary_key=True)  # the room's id, and what is derived from the provider's
    provider: Mapped[str]
    reference: Mapped[str]  # the provider's own id of it
    payment_id: Mapped[str]
    order_id: Mapped[str]
    room_id: Mapped[str]
    amount_minor: Mapped[int]
    currency: Mapped[str]
    reason: Mapped[str]
    state: Mapped[str]  # open, won, lost
    covered: Mapped[bool]  # the wallet had the amount to set aside, or has paid it
    answer_by: Mapped[datetime | None]  # until then the provider takes evidence
    opened_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]


class SandboxCharge(Table):
    """The sandbox provider's own book: what it will say of a payment, when, and whether it was heard.

    It says its verdict, more than once if it repeats itself, and then the `steps`, of which each waits for the one before it.
    """

    __tablename__ = "sandbox_charges"
    __table_args__ = (Index(None, "due_at", postgresql_where="left_to_send > 0"),)

    payment_id: Mapped[str] = mapped_column(primary_key=True)
    verdict: Mapped[str]  # payment.succeeded, payment.declined
    amount_minor: Mapped[int]
    currency: Mapped[str]
    due_at: Mapped[datetime]
    left_to_send: Mapped[int]  # steps that are left, and before them the verdict, twice for a provider that repeats itself
    attempts: Mapped[int] = mapped_column(default=0)  # of the notice that is next
    refunded_minor: Mapped[int] = mapped_column(default=0)
    method: Mapped[str] = mapped_column(default="", server_default="")  # how it behaves
    steps: Mapped[list[Any]] = mapped_column(default=list, server_default=text("'[]'::jsonb"))
