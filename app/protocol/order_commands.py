"""Requests, replies and outcome words of orders. What holds for all commands is said in commands.py."""

from typing import Annotated

from msgspec import Meta, Struct

from app.protocol.commands import Id, Key, Outcome, Reply, Request


class Address(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=80)]
    phone: Annotated[str, Meta(min_length=3, max_length=32)]
    region: Annotated[str, Meta(max_length=120)] = ""
    line: Annotated[str, Meta(min_length=1, max_length=300)]
    postcode: Annotated[str, Meta(max_length=16)] = ""


class PlaceOutcome(Outcome):
    PLACED = "placed", "pay it until `pay_by`"
    EXPIRED = "expired", "the hold ran out"
    RELEASED = "released", "the hold was given back before"
    UNKNOWN = "unknown", "no such hold of this viewer"
    FROZEN = "frozen", "sales of the room are stopped for now"
    EXHAUSTED = "exhausted", "an offer that goes to who pays first: not enough is left"
    POLICY_NOT_ACCEPTED = "policy_not_accepted", "the offer's return policy must be confirmed at purchase"


class OrderPlace(Request, frozen=True):
    hold: Id
    address: Address
    key: Key
    policy_accepted: bool = True


class OrderPlaced(Reply, frozen=True):
    outcome: PlaceOutcome
    order: str | None = None
    amount_minor: int | None = None
    currency: str | None = None
    pay_by: str | None = None
    repeated: bool = False


class CancelOutcome(Outcome):
    CANCELLED = "cancelled", "now, or by an earlier call"
    EXPIRED = "expired", "the payment deadline had passed"
    PAID = "paid", "too late: ask for a refund"
    UNKNOWN = "unknown", "no such order of this viewer"


class OrderCancel(Request, frozen=True):
    """The order is its own idempotency record, as the hold is of `Release`: the answer states what became of it, whatever the key."""

    order: Id
    key: Key


class OrderCancelled(Reply, frozen=True):
    outcome: CancelOutcome
    order: str


class PayOutcome(Outcome):
    PENDING = "pending", "the provider has it; `order.paid` or `payment.declined` follows on the viewer's own channel"
    PAID = "paid", "it was paid before"
    EXPIRED = "expired", "the payment deadline had passed"
    CANCELLED = "cancelled", "the order was cancelled"
    REFUNDED = "refunded", "the order was refunded"
    UNKNOWN = "unknown", "no such order of this viewer"


class OrderPay(Request, frozen=True):
    order: Id
    key: Key
    method: Annotated[str, Meta(max_length=64, description="the provider's payment method; empty: its own choice")] = ""


class OrderPaying(Reply, frozen=True):
    """With `client_secret` the app goes on at the provider, by the provider's own SDK. Not there yet: it follows with `payment.started`."""

    outcome: PayOutcome
    order: str
    payment: str | None = None
    provider: str = ""
    client_secret: str | None = None
    publishable_key: str | None = None


class SetAddressOutcome(Outcome):
    SET = "set", "it will be sent there"
    SHIPPED = "shipped", "too late: it is on its way to the address before"
    CANCELLED = "cancelled", "the order was cancelled"
    EXPIRED = "expired", "the order was not paid in time"
    REFUNDED = "refunded", "the order was refunded"
    UNKNOWN = "unknown", "no such order of this viewer"


class OrderSetAddress(Request, frozen=True):
    order: Id
    address: Address
    key: Key


class OrderAddressed(Reply, frozen=True):
    outcome: SetAddressOutcome
    order: str


class OrderGet(Request, frozen=True):
    order: Id


class OrderList(Request, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    cursor: Annotated[str, Meta(max_length=200)] = ""
    room: Id | None = None


class OrderView(Reply, frozen=True):
    """An order as its viewer sees it."""

    id: str
    room: str
    session: str
    offer: str
    name: str
    quantity: int
    price_minor: int
    amount_minor: int
    currency: str
    state: str  # placed, paid, shipped, delivered, cancelled, expired, refunded
    placed_at: str
    pay_by: str | None = None
    paid_at: str | None = None
    shipped_at: str | None = None
    delivered_at: str | None = None
    carrier: str | None = None
    tracking: str | None = None
    refunded_minor: int = 0
    reason: str = ""
    return_policy: str = "no_reason_7_days"  # as confirmed at purchase; or "fresh_no_return"
    has_address: bool = True  # false: a prize that waits for `order.set_address`


class OrderPage(Reply, frozen=True):
    orders: list[OrderView]
    next_cursor: str = ""
