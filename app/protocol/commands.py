"""Requests and replies of every RPC method (and of its REST twin), and the words of their outcomes.

A request refuses unknown fields: a mistyped `quantitiy` must not become a default. A reply may grow: clients ignore what they do not know.
Every command that changes something takes `key`, the caller's idempotency key: the same key and body give the same answer with no second
effect; the same key with another body is the error `key_reused`. Ids are opaque. Times are RFC 3339 in UTC. Money is in minor units.
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

Id = Annotated[str, Meta(min_length=1, max_length=64)]
Key = Annotated[str, Meta(min_length=1, max_length=64, description="idempotency key: a ULID or any string")]
Reason = Annotated[str, Meta(max_length=200)]


class Request(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A command's body."""


class Reply(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A command's answer."""


class Empty(Request, frozen=True):
    """A body without fields."""


class Done(Reply, frozen=True):
    """Nothing to tell but that it is done."""

    outcome: str = "done"


# --- chat ---------------------------------------------------------------------------------------------------------------------------


class ChatOutcome(StrEnum):
    SENT = "sent"
    HELD_FOR_REVIEW = "held_for_review"  # a listed word: a moderator decides
    MUTED = "muted"
    BANNED = "banned"
    SLOW_MODE = "slow_mode"  # wait `wait_ms`
    TOO_FAST = "too_fast"  # the general rate limit; wait `wait_ms`
    CLOSED = "closed"  # the room has no live session


class ChatSend(Request, frozen=True):
    room: Id
    text: Annotated[str, Meta(min_length=1, max_length=1000)]
    key: Key
    reply_to: Id | None = None


class ChatSent(Reply, frozen=True):
    outcome: ChatOutcome
    message: str | None = None
    wait_ms: int = 0


class ChatHistory(Request, frozen=True):
    room: Id
    limit: Annotated[int, Meta(ge=1, le=100)] = 50


class ChatLine(Struct, frozen=True, kw_only=True):
    """One chat message as viewers see it."""

    id: str
    viewer: str
    name: str
    text: str
    at: str
    role: str = ""  # "host", "moderator", ... for the team's lines; empty for viewers
    level: int = 0
    reply_to: str | None = None


class ChatLines(Reply, frozen=True):
    messages: list[ChatLine]


class ChatDelete(Request, frozen=True):
    room: Id
    message: Id
    key: Key
    reason: Reason = ""


class ChatMute(Request, frozen=True):
    room: Id
    viewer: Id
    seconds: Annotated[int, Meta(ge=0, le=30 * 86400, description="0 lifts the mute")]
    key: Key
    reason: Reason = ""


class ChatBan(Request, frozen=True):
    room: Id
    viewer: Id
    key: Key
    reason: Reason = ""
    lift: bool = False


class ChatSlowMode(Request, frozen=True):
    room: Id
    interval_s: Annotated[int, Meta(ge=0, le=3600, description="least time between two messages of one viewer; 0 ends slow mode")]
    key: Key


class ChatNotice(Request, frozen=True):
    room: Id
    text: Annotated[str, Meta(max_length=300, description="empty takes the notice down")]
    key: Key


class ChatReview(Request, frozen=True):
    room: Id
    message: Id
    approve: bool
    key: Key


# --- rooms --------------------------------------------------------------------------------------------------------------------------


class RoomSnapshot(Request, frozen=True):
    room: Id


class RoomLike(Request, frozen=True):
    room: Id
    count: Annotated[int, Meta(ge=1, le=50, description="taps since the last call; clients gather them for a second")]


# --- inventory ----------------------------------------------------------------------------------------------------------------------


class ReserveOutcome(StrEnum):
    HELD = "held"
    EXHAUSTED = "exhausted"  # not enough left
    LIMIT = "limit"  # the viewer's limit for this offer is reached
    CLOSED = "closed"  # the offer or its session is over
    NOT_OPEN = "not_open"  # the window has not begun
    FROZEN = "frozen"  # sales of the room are stopped for now


class Reserve(Request, frozen=True):
    offer: Id
    quantity: Annotated[int, Meta(ge=1, le=999)]
    key: Key


class Reserved(Reply, frozen=True):
    outcome: ReserveOutcome
    offer: str
    quantity: int
    hold: str | None = None
    expires_at: str | None = None
    price_minor: int | None = None
    repeated: bool = False  # this key was answered before; this is the same answer
    available: int | None = None  # what is left, when that explains the outcome


class ReleaseOutcome(StrEnum):
    RELEASED = "released"  # now, or by an earlier call
    EXPIRED = "expired"
    ORDERED = "ordered"  # an order was placed: cancel that
    SOLD = "sold"
    UNKNOWN = "unknown"  # no such hold of this viewer


class Release(Request, frozen=True):
    """The hold is its own idempotency record: however often and with whatever key it is released, the answer states what became of it.

    A key says nothing here that the hold's id does not, so the same key may release several holds.
    """

    hold: Id
    key: Key


class Released(Reply, frozen=True):
    outcome: ReleaseOutcome
    hold: str


# --- orders -------------------------------------------------------------------------------------------------------------------------


class Address(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=80)]
    phone: Annotated[str, Meta(min_length=3, max_length=32)]
    region: Annotated[str, Meta(max_length=120)] = ""
    line: Annotated[str, Meta(min_length=1, max_length=300)]
    postcode: Annotated[str, Meta(max_length=16)] = ""


class PlaceOutcome(StrEnum):
    PLACED = "placed"
    EXPIRED = "expired"  # the hold ran out
    RELEASED = "released"
    UNKNOWN = "unknown"  # no such hold of this viewer
    FROZEN = "frozen"
    POLICY_NOT_ACCEPTED = "policy_not_accepted"  # the offer's return policy must be confirmed at purchase


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


class CancelOutcome(StrEnum):
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # the payment deadline had passed
    PAID = "paid"  # too late: ask for a refund
    UNKNOWN = "unknown"


class OrderCancel(Request, frozen=True):
    """The order is its own idempotency record, as the hold is of `Release`: the answer states what became of it, whatever the key."""

    order: Id
    key: Key


class OrderCancelled(Reply, frozen=True):
    outcome: CancelOutcome
    order: str


class PayOutcome(StrEnum):
    PENDING = "pending"  # the provider has it; `order.paid` or `payment.declined` follows on the viewer's own channel
    PAID = "paid"  # it was paid before
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    REFUNDED = "refunded"
    UNKNOWN = "unknown"


class OrderPay(Request, frozen=True):
    order: Id
    key: Key
    method: Annotated[str, Meta(max_length=64, description="the provider's payment method")] = "sandbox_ok"


class OrderPaying(Reply, frozen=True):
    outcome: PayOutcome
    order: str
    payment: str | None = None


class SetAddressOutcome(StrEnum):
    SET = "set"
    SHIPPED = "shipped"  # too late: it is on its way to the address before
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REFUNDED = "refunded"
    UNKNOWN = "unknown"  # no such order of this viewer


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
    state: str  # placed, paid, shipped, cancelled, expired, refunded
    placed_at: str
    pay_by: str | None = None
    paid_at: str | None = None
    shipped_at: str | None = None
    carrier: str | None = None
    tracking: str | None = None
    refunded_minor: int = 0
    reason: str = ""
    has_address: bool = True  # false: a prize that waits for `order.set_address`


class OrderPage(Reply, frozen=True):
    orders: list[OrderView]
    next_cursor: str = ""


# --- wallet -------------------------------------------------------------------------------------------------------------------------


class WalletBalance(Reply, frozen=True):
    currency: str
    available_minor: int


# --- envelopes ----------------------------------------------------------------------------------------------------------------------


class GrabOutcome(StrEnum):
    OPENED = "opened"
    ALREADY = "already"  # this viewer has a share; `amount_minor` is it
    EMPTY = "empty"
    NOT_ELIGIBLE = "not_eligible"
    CLOSED = "closed"


class EnvelopeGrab(Request, frozen=True):
    envelope: Id
    key: Key


class EnvelopeGrabbed(Reply, frozen=True):
    outcome: GrabOutcome
    envelope: str
    amount_minor: int | None = None
    position: int | None = None


# --- draws --------------------------------------------------------------------------------------------------------------------------


class EnterOutcome(StrEnum):
    ENTERED = "entered"
    AGAIN = "again"  # already in
    NOT_ELIGIBLE = "not_eligible"
    CLOSED = "closed"
    FULL = "full"


class DrawEnter(Request, frozen=True):
    draw: Id
    key: Key
    keyword: Annotated[str, Meta(max_length=60)] = ""


class DrawEntered(Reply, frozen=True):
    outcome: EnterOutcome
    draw: str
    condition: str = ""  # the condition that was not met
    entrants: int | None = None
