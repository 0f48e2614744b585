"""Requests and replies of every RPC method (and of its REST twin), and the words of their outcomes.

A request refuses unknown fields: a mistyped `quantitiy` must not become a default. A reply may grow: clients ignore what they do not know.
Every command that changes something takes `key`, the caller's idempotency key: the same key and body give the same answer with no second
effect; the same key with another body is the error `key_reused`. Ids are opaque. Times are RFC 3339 in UTC. Money is in minor units.
"""

from enum import StrEnum
from typing import Annotated, Self

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


class Outcome(StrEnum):
    """A word for what became of a command, and what it means to whoever reads the reference. The meaning is not sent."""

    meaning: str

    def __new__(cls, word: str, meaning: str = "") -> Self:
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning = meaning
        return member


class DoneOutcome(Outcome):
    DONE = "done", "now, or by an earlier call with this key"
    CLOSED = "closed", "`room.like` alone: the room has no live session, nothing was counted"
    ALREADY_DECIDED = "already_decided", "`chat.review` alone: another moderator was first"


class Done(Reply, frozen=True):
    """Nothing to tell but that it is done."""

    outcome: DoneOutcome = DoneOutcome.DONE


# --- chat ---------------------------------------------------------------------------------------------------------------------------


class ChatOutcome(Outcome):
    SENT = "sent", "it is on its way to the room"
    HELD_FOR_REVIEW = "held_for_review", "a listed word: a moderator decides"
    MUTED = "muted", "a moderator silenced the viewer; wait `wait_ms`"
    BANNED = "banned", "a moderator keeps the viewer out of the room"
    SLOW_MODE = "slow_mode", "wait `wait_ms`"
    TOO_FAST = "too_fast", "the general rate limit; wait `wait_ms`"
    CLOSED = "closed", "the room has no live session"


class ChatSend(Request, frozen=True):
    room: Id
    text: Annotated[str, Meta(min_length=1, max_length=1000)]
    key: Key
    reply_to: Id | None = None


class ChatSent(Reply, frozen=True):
    outcome: ChatOutcome
    message: str | None = None
    wait_ms: int = 0
    reservation: "Reserved | None" = None  # the line was an offer's keyword: what came of it


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


class ReserveOutcome(Outcome):
    HELD = "held", "the stock is set aside until `expires_at`; with `set_aside: false` nothing is, and it goes to who pays first"
    EXHAUSTED = "exhausted", "not enough left; where `waiting` is a number, there is a line for what comes back: `inventory.wait`"
    ORDER_LIMIT = "order_limit", "more than one order of this offer may have: ask for less"
    LIMIT = "limit", "the viewer's limit for this offer is reached"
    CLOSED = "closed", "the offer or its session is over"
    NOT_OPEN = "not_open", "the window has not begun"
    FROZEN = "frozen", "sales of the room are stopped for now"


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
    set_aside: bool = True  # false: the hold is the right to order until `expires_at`, and who pays first gets it
    repeated: bool = False  # this key was answered before; this is the same answer
    available: int | None = None  # what is left, when that explains the outcome
    waiting: int | None = None  # how many stand in the offer's line; null: it has none


class ReleaseOutcome(Outcome):
    RELEASED = "released", "now, or by an earlier call"
    EXPIRED = "expired", "its deadline had passed"
    ORDERED = "ordered", "an order was placed: cancel that"
    SOLD = "sold", "its order was paid"
    UNKNOWN = "unknown", "no such hold of this viewer"


class Release(Request, frozen=True):
    """The hold is its own idempotency record: however often and with whatever key it is released, the answer states what became of it.

    A key says nothing here that the hold's id does not, so the same key may release several holds.
    """

    hold: Id
    key: Key


class Released(Reply, frozen=True):
    outcome: ReleaseOutcome
    hold: str


class WaitOutcome(Outcome):
    WAITING = "waiting", "in line behind `ahead` others; `hold.placed` with `promoted` comes when it is the viewer's turn"
    HELD = "held", "it is the viewer's turn: `wait` is the id of the hold, until `expires_at`"
    LEFT = "left", "this key's place was given up"
    NO_LINE = "no_line", "the offer has no line: reserve"
    LINE_FULL = "line_full", "as many wait as may"
    EXHAUSTED = "exhausted", "so much can never come back"
    ORDER_LIMIT = "order_limit", "more than one order of this offer may have: ask for less"
    LIMIT = "limit", "the viewer's limit for this offer is reached; who waits counts towards it"
    CLOSED = "closed", "the offer or its session is over, and so is its line"
    NOT_OPEN = "not_open", "the window has not begun"
    FROZEN = "frozen", "sales of the room are stopped for now"


class Wait(Request, frozen=True):
    """A place in the line of an offer whose `selling_policy` is `waitlist`. First come, first served, and nobody jumps it."""

    offer: Id
    quantity: Annotated[int, Meta(ge=1, le=999)]
    key: Key


class Waiting(Reply, frozen=True):
    outcome: WaitOutcome
    offer: str
    quantity: int
    wait: str | None = None  # becomes the id of the hold
    ahead: int | None = None
    waiting: int | None = None  # how many stand in the line, when that explains the outcome
    expires_at: str | None = None
    price_minor: int | None = None
    repeated: bool = False  # this key was answered before; this is how it stands now


class LeaveOutcome(Outcome):
    LEFT = "left", "now, or by an earlier call"
    SERVED = "served", "its turn had come: it is a hold of the same id now, give it back with `inventory.release`"
    CLOSED = "closed", "the line had ended"
    UNKNOWN = "unknown", "no such place of this viewer"


class Leave(Request, frozen=True):
    """The place is its own idempotency record, as the hold is of `Release`."""

    wait: Id
    key: Key


class Left(Reply, frozen=True):
    outcome: LeaveOutcome
    wait: str


# --- wallet -------------------------------------------------------------------------------------------------------------------------


class WalletBalance(Reply, frozen=True):
    currency: str
    available_minor: int


# --- envelopes ----------------------------------------------------------------------------------------------------------------------


class GrabOutcome(Outcome):
    OPENED = "opened", "`amount_minor` is in the wallet"
    ALREADY = "already", "this viewer has a share; `amount_minor` is it"
    EMPTY = "empty", "all shares are taken"
    NOT_ELIGIBLE = "not_eligible", "guests and the team take no part"
    CLOSED = "closed", "the envelope is over"
    FROZEN = "frozen", "the engine has restarted: the same key again in a moment"


class EnvelopeGrab(Request, frozen=True):
    envelope: Id
    key: Key


class EnvelopeGrabbed(Reply, frozen=True):
    outcome: GrabOutcome
    envelope: str
    amount_minor: int | None = None
    position: int | None = None


# --- draws --------------------------------------------------------------------------------------------------------------------------


class EnterOutcome(Outcome):
    ENTERED = "entered", "in"
    AGAIN = "again", "already in"
    NOT_ELIGIBLE = "not_eligible", "`condition` says what was not met"
    CLOSED = "closed", "no more entries are taken"
    FULL = "full", "it has as many entrants as it may have"
    FROZEN = "frozen", "the engine has restarted: the same key again in a moment"


class DrawEnter(Request, frozen=True):
    draw: Id
    key: Key
    keyword: Annotated[str, Meta(max_length=60)] = ""


class DrawEntered(Reply, frozen=True):
    outcome: EnterOutcome
    draw: str
    condition: str = ""  # the condition that was not met
    entrants: int | None = None
