"""Requests, replies and outcome words of what comes after shipping: receipt, and return requests. The common part is in commands.py."""

from typing import Annotated

from msgspec import Meta, Struct

from app.protocol.commands import Id, Key, Outcome, Reply, Request

Text = Annotated[str, Meta(max_length=500)]


class ReceiptOutcome(Outcome):
    CONFIRMED = "confirmed", "now, or by an earlier call, or by itself some days after shipping"
    NOT_SHIPPED = "not_shipped", "the order is not on its way"
    UNKNOWN = "unknown", "no such order of this viewer"


class OrderConfirmReceipt(Request, frozen=True):
    """The parcel has arrived. The order is its own idempotency record."""

    order: Id
    key: Key


class ReceiptConfirmed(Reply, frozen=True):
    outcome: ReceiptOutcome
    order: str


class Evidence(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A picture or document that the app keeps elsewhere; the hash says that it is still the same one."""

    url: Annotated[str, Meta(max_length=500, pattern="^https?://[^\\s]+$")]
    sha256: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")] = ""


class ReturnOutcome(Outcome):
    REQUESTED = "requested", "the team has until `due_at` to answer; then it is approved by itself"
    UNKNOWN = "unknown", "no such order of this viewer"
    NOTHING_PAID = "nothing_paid", "the order holds no payment that could go back"
    OPEN = "open", "a return request of this order is open"
    LIMIT = "limit", "there were too many return requests of this order: write to the team"
    TOO_MANY = "too_many", "more units than the order has left"
    NOT_SHIPPED = "not_shipped", "there is nothing to send back yet: ask for `refund_only`"
    EVIDENCE_NEEDED = "evidence_needed", "say what is wrong, in `text` or with evidence"
    EXCLUDED = "excluded", "fresh goods, as confirmed at purchase: they go back for a fault only"
    TOO_LATE = "too_late", "the time for this reason is over"


class ReturnRequest(Request, frozen=True):
    """Asks for money back, with or without the goods."""

    order: Id
    kind: Annotated[str, Meta(pattern="^(refund_only|return_goods)$")]
    reason: Annotated[str, Meta(pattern="^(no_reason|damaged|wrong_item|not_as_described|not_received|other)$")]
    key: Key
    quantity: Annotated[int, Meta(ge=1, le=9999)] = 1
    text: Text = ""
    evidence: Annotated[list[Evidence], Meta(max_length=9)] = []  # noqa: RUF012 - msgspec copies an empty list


class ReturnRequested(Reply, frozen=True):
    outcome: ReturnOutcome
    order: str
    request: str | None = None
    amount_minor: int | None = None
    currency: str | None = None
    due_at: str | None = None
    repeated: bool = False


class ReturnStepOutcome(Outcome):
    DONE = "done", "now, or by an earlier call"
    NOT_POSSIBLE = "not_possible", "`state` says why"
    UNKNOWN = "unknown", "no such return request of this viewer"


class ReturnCancel(Request, frozen=True):
    """Takes a return request back, as long as nothing was sent. It is its own idempotency record, as is the next one."""

    request: Id
    key: Key


class ReturnShipBack(Request, frozen=True):
    """Says how the goods of an approved return request travel back."""

    request: Id
    carrier: Annotated[str, Meta(min_length=1, max_length=60)]
    tracking: Annotated[str, Meta(min_length=1, max_length=80)]
    key: Key


class ReturnStepped(Reply, frozen=True):
    outcome: ReturnStepOutcome
    request: str
    state: str | None = None


class ReturnGet(Request, frozen=True):
    request: Id


class ReturnList(Request, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    cursor: Annotated[str, Meta(max_length=200)] = ""
    order: Id | None = None


class ReturnView(Reply, frozen=True):
    """A return request as its viewer sees it."""

    id: str
    order: str
    room: str
    kind: str
    reason: str
    quantity: int
    amount_minor: int
    currency: str
    state: str  # requested, approved, shipped_back, received, refunded, rejected, closed
    text: str
    evidence: list[Evidence]
    requested_at: str
    answer: str = ""  # what the team said, or why it is closed
    due_at: str | None = None  # what happens then: requested → approved, approved → closed, else → refunded
    carrier: str | None = None
    tracking: str | None = None
    closed_at: str | None = None


class ReturnPage(Reply, frozen=True):
    requests: list[ReturnView]
    next_cursor: str = ""
