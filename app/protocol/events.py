"""Every event a client can receive: one class a type, past tense, tagged `type`.

An event states the whole new state of what it names, never a difference, so that applying one twice does no harm and a fresh snapshot
plus the events after its offset is again a fresh snapshot. `v` is the version of the type; a change that breaks readers gets a new one.
Only services emit events (through `Work.emit`); the worker and the scripts have no private ones.
"""

from typing import Any, Union

import msgspec
from msgspec import Struct

from app.protocol.commands import ChatLine
from app.protocol.views import DrawView, EnvelopeView, OfferView, PrizeView, RoomView, Winner


class Event(Struct, frozen=True, kw_only=True, tag_field="type"):
    at: str  # RFC 3339 in UTC
    v: int = 1


# --- room:<id> -----------------------------------------------------------------------------------------------------------------------


class RoomUpdated(Event, frozen=True, tag="room.updated"):
    """The lasting data of the room changed: its title, description or language."""

    room: RoomView


class SessionScheduled(Event, frozen=True, tag="session.scheduled"):
    """A show is announced; again, when its title or start has changed."""

    room: str
    session: str
    title: str
    starts_at: str


class SessionWentLive(Event, frozen=True, tag="session.went_live"):
    """A show begins: no longer upcoming; shelf and pin are empty, and an `offer.listed` follows for each offer."""

    room: str
    session: str
    title: str


class SessionInterrupted(Event, frozen=True, tag="session.interrupted"):
    """The show stands still for a while; holds and orders go on."""

    room: str
    session: str
    reason: str = ""


class SessionResumed(Event, frozen=True, tag="session.resumed"):
    """The show goes on."""

    room: str
    session: str


class SessionEnded(Event, frozen=True, tag="session.ended"):
    """The show is over, or was called off before it began. If it was on air, shelf and pin are empty now."""

    room: str
    session: str


class SessionArchived(Event, frozen=True, tag="session.archived"):
    """For the team only: what must last is in SQL, the hot keys of the session may go."""

    room: str
    session: str


class OfferListed(Event, frozen=True, tag="offer.listed"):
    """An offer is on the shelf now."""

    offer: OfferView


class OfferUpdated(Event, frozen=True, tag="offer.updated"):
    """Price, stock, window, limit or state changed; `offer` is the whole new state."""

    offer: OfferView
    reason: str = ""


class OfferSoldOut(Event, frozen=True, tag="offer.sold_out"):
    """Nothing is left to hold."""

    offer: str


class OfferRestocked(Event, frozen=True, tag="offer.restocked"):
    """An offer that was sold out has stock again."""

    offer: str


class OfferWithdrawn(Event, frozen=True, tag="offer.withdrawn"):
    """The offer is gone from the shelf; who ordered it keeps the order."""

    offer: str
    reason: str = ""


class OfferPinned(Event, frozen=True, tag="offer.pinned"):
    """The offer being explained now; null when the pin was taken away."""

    offer: str | None


class NoticePinned(Event, frozen=True, tag="notice.pinned"):
    """The notice above the chat."""

    text: str  # empty: it was taken down


class SlowModeSet(Event, frozen=True, tag="chat.slow_mode_set"):
    interval_s: int


class ChatDeleted(Event, frozen=True, tag="chat.deleted"):
    """Take this line off the screen."""

    message: str
    viewer: str = ""


class PurchaseAnnounced(Event, frozen=True, tag="purchase.announced"):
    """Somebody bought: for the room's mood, with a shortened name and no id."""

    offer: str
    name: str
    quantity: int


class SalesFrozen(Event, frozen=True, tag="sales.frozen"):
    """For a moment no hold, order, entry or grab is taken: the engine of sales has restarted, and its books are compared. What was promised
    stands."""

    room: str


class SalesReopened(Event, frozen=True, tag="sales.reopened"):
    """Sales go on. `lost`: the engine had lost something, and `epoch` has grown. The pulse tells what is left of each offer; holds that are
    known to be void are told to their viewers, and any other is void when `order.place` answers `unknown`. Draws and envelopes: send
    again, with the same keys, entries and grabs whose draw or envelope is open; the answer says what is true now."""

    room: str
    epoch: int
    lost: bool


class DrawOpened(Event, frozen=True, tag="draw.opened"):
    """A draw takes entries; `commitment` is the hash of a seed that is already chosen."""

    draw: DrawView


class DrawClosed(Event, frozen=True, tag="draw.closed"):
    """No more entries; the digest names exactly who is in."""

    draw: DrawView
    entrants_digest: str = ""


class DrawDrawn(Event, frozen=True, tag="draw.drawn"):
    """The winners, and the seed with which anyone can draw them again."""

    draw: DrawView
    winners: list[Winner]
    seed: str


class DrawCancelled(Event, frozen=True, tag="draw.cancelled"):
    draw: DrawView
    reason: str = ""


class EnvelopeOpened(Event, frozen=True, tag="envelope.opened"):
    """Shares of a red envelope can be grabbed."""

    envelope: EnvelopeView


class EnvelopeUpdated(Event, frozen=True, tag="envelope.updated"):
    """Shares were taken (at most one such event a second), or it was emptied, expired or settled."""

    envelope: EnvelopeView


class Pulse(Event, frozen=True, tag="room.pulse"):
    """Counters, once a second, without an offset: only the newest matters. `at` is the clock that decides windows and deadlines."""

    room: str
    viewers: int
    likes: int
    stock: dict[str, int]  # offer id -> available
    peak_viewers: int = 0
    said: int = 0  # chat messages since the last pulse, as the viewer's node counts them
    shown: int = 0  # how many of them this viewer was shown, beside its own


# --- chat:<id> -----------------------------------------------------------------------------------------------------------------------


class ChatMessage(Event, frozen=True, tag="chat.sent"):
    message: ChatLine


# --- user:<id> -----------------------------------------------------------------------------------------------------------------------


class HoldPlaced(Event, frozen=True, tag="hold.placed"):
    """Stock is set aside for the viewer until `expires_at`."""

    hold: str
    offer: str
    quantity: int
    expires_at: str
    set_aside: bool = True  # false: the offer goes to who pays first, and the hold is the right to order it
    promoted: bool = False  # the viewer waited in the offer's line; `hold` is the id of that wait
    price_minor: int | None = None  # of what was promoted: nobody asked, so no reply told it


class HoldEnded(Event, frozen=True, tag="hold.ended"):
    """The hold was given back or ran out, or is void: the engine has lost it. One that became an order says so by `order.placed`."""

    hold: str
    offer: str
    outcome: str  # released, expired, void


class WaitEnded(Event, frozen=True, tag="wait.ended"):
    """The viewer's place in an offer's line is gone, without a hold."""

    wait: str
    offer: str
    outcome: str  # left, closed


class OrderChanged(Event, frozen=True, tag="order.changed"):
    """Any change that has no event of its own: shipped, delivered, cancelled, expired, refunded."""

    order: str
    session: str
    offer: str
    state: str
    reason: str = ""
    carrier: str = ""
    tracking: str = ""
    refunded_minor: int = 0


class OrderPlacedEvent(Event, frozen=True, tag="order.placed"):
    order: str
    session: str
    offer: str
    viewer: str
    quantity: int
    amount_minor: int
    currency: str
    pay_by: str


class OrderPaid(Event, frozen=True, tag="order.paid"):
    """The payment is in; a prize that is sent home is an order paid with 0."""

    order: str
    session: str
    offer: str
    viewer: str
    quantity: int
    amount_minor: int
    currency: str


class PaymentStarted(Event, frozen=True, tag="payment.started"):
    """The provider has the attempt; the viewer's app goes on there with `client_secret`, as in the reply to `order.pay`."""

    order: str
    payment: str
    provider: str
    client_secret: str


class PaymentDeclined(Event, frozen=True, tag="payment.declined"):
    order: str
    payment: str
    reason: str


class RefundSettled(Event, frozen=True, tag="refund.settled"):
    """What became of money that was sent back: `succeeded`, or `failed`, which leaves it with the merchant."""

    refund: str
    order: str
    state: str
    amount_minor: int
    currency: str
    reason: str = ""


class ReturnRequestedEvent(Event, frozen=True, tag="return.requested"):
    """A viewer asks for money back, with or without sending the goods back."""

    request: str
    order: str
    viewer: str
    kind: str
    reason: str
    quantity: int
    amount_minor: int
    currency: str
    due_at: str


class ReturnChanged(Event, frozen=True, tag="return.changed"):
    """A return request went on: by the viewer, by the team, or by itself because its time was over."""

    request: str
    order: str
    state: str
    answer: str = ""
    carrier: str = ""
    tracking: str = ""
    due_at: str | None = None


class DisputeOpened(Event, frozen=True, tag="dispute.opened"):
    """A buyer asks the bank for the money of an order back; the amount is set aside until the bank has decided."""

    dispute: str
    order: str
    amount_minor: int
    currency: str
    reason: str


class DisputeClosed(Event, frozen=True, tag="dispute.closed"):
    """The bank has decided: `won`, the money stays, or `lost`, it went back to the buyer."""

    dispute: str
    order: str
    outcome: str
    amount_minor: int


class DrawWon(Event, frozen=True, tag="draw.won"):
    """The viewer is among the winners; `order` is there when the prize is a product."""

    draw: str
    prize: PrizeView
    order: str | None = None


class ShareOpened(Event, frozen=True, tag="share.opened"):
    envelope: str
    amount_minor: int
    currency: str


class ChatMuted(Event, frozen=True, tag="chat.muted"):
    room: str
    viewer: str
    until: str | None  # null: the mute was lifted
    reason: str = ""


class ViewerBanned(Event, frozen=True, tag="viewer.banned"):
    room: str
    viewer: str
    reason: str = ""
    lifted: bool = False


# --- staff:<id> ----------------------------------------------------------------------------------------------------------------------


class ReviewRequested(Event, frozen=True, tag="review.requested"):
    message: ChatLine
    words: list[str]


class ReviewResolved(Event, frozen=True, tag="review.resolved"):
    message: str
    approved: bool
    by: str


class WordsChanged(Event, frozen=True, tag="chat.words_changed"):
    """The word list that holds messages for review was changed; an empty room means the platform's list."""

    room: str


class FiguresUpdated(Event, frozen=True, tag="figures.updated"):
    session: str
    figures: dict[str, Any]


class CueAdvanced(Event, frozen=True, tag="cue.advanced"):
    """The run-of-show moved on; null: it is through."""

    session: str
    cue: str | None
    title: str = ""


class AlertRaised(Event, frozen=True, tag="alert.raised"):
    word: str
    text: str


EVENTS: tuple[type[Event], ...] = (
    RoomUpdated,
    SessionScheduled,
    SessionWentLive,
    SessionInterrupted,
    SessionResumed,
    SessionEnded,
    SessionArchived,
    OfferListed,
    OfferUpdated,
    OfferSoldOut,
    OfferRestocked,
    OfferWithdrawn,
    OfferPinned,
    NoticePinned,
    SlowModeSet,
    ChatDeleted,
    PurchaseAnnounced,
    SalesFrozen,
    SalesReopened,
    DrawOpened,
    DrawClosed,
    DrawDrawn,
    DrawCancelled,
    EnvelopeOpened,
    EnvelopeUpdated,
    Pulse,
    ChatMessage,
    HoldPlaced,
    HoldEnded,
    WaitEnded,
    OrderChanged,
    OrderPlacedEvent,
    OrderPaid,
    PaymentStarted,
    PaymentDeclined,
    RefundSettled,
    ReturnRequestedEvent,
    ReturnChanged,
    DisputeOpened,
    DisputeClosed,
    DrawWon,
    ShareOpened,
    ChatMuted,
    ViewerBanned,
    ReviewRequested,
    ReviewResolved,
    WordsChanged,
    FiguresUpdated,
    CueAdvanced,
    AlertRaised,
)

AnyEvent = Union[EVENTS]  # noqa: UP007 - msgspec builds its decoder from the union of the tuple

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(AnyEvent)


def encode_event(event: Event) -> bytes:
    return _encoder.encode(event)


def decode_event(raw: bytes) -> Event:
    """Raises msgspec.ValidationError for a type that is not in EVENTS."""
    return _decoder.decode(raw)


def event_type(event: Event) -> str:
    return str(event.__struct_config__.tag)
