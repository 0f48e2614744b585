"""What orders decide from values: states, what a viewer hears, what may be refunded, how a payment event is signed.

    placed -> paid -> shipped -> delivered          placed -> cancelled | expired          expired -> paid (the late-pay rule)
    paid, shipped, delivered -> refunded, once the whole amount went back; a part leaves the state as it is

The engine decides the steps up to `paid`, SQL those after it. A prize is an order that was paid by winning it.
"""

import hashlib
import hmac
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import assert_never

from msgspec import Struct

from app.core.ids import derived_tail, room_of, scoped_id
from app.domains.inventory.rules import Hold, HoldState, RoomBooks
from app.protocol.order_commands import PayOutcome, SetAddressOutcome
from app.protocol.return_commands import ReturnOutcome

SIGNATURE_HEADER = "Jishi-Signature"


class OrderState(StrEnum):
    PLACED = "placed"
    PAID = "paid"
    SHIPPED = "shipped"
    DELIVERED = "delivered"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REFUNDED = "refunded"


PAID_STATES = (OrderState.PAID, OrderState.SHIPPED, OrderState.DELIVERED)
PAYABLE_STATES = (OrderState.PLACED, OrderState.EXPIRED)  # what a confirmed payment may still turn into `paid`


class PaymentNotice(Struct, frozen=True, kw_only=True):
    """What a provider's webhook says, in our words; the sandbox's body is just this."""

    id: str  # unique at the provider: a repeated notice has the same
    type: str  # payment.succeeded, payment.declined, refund.succeeded, refund.failed, dispute.opened, dispute.won, dispute.lost
    payment: str = ""  # our id of the payment; empty: `reference` names it
    reference: str = ""  # the provider's own id of the payment
    subject: str = ""  # our id of the refund, or the provider's of the dispute
    amount_minor: int = 0
    currency: str = ""
    reason: str = ""
    answer_by_s: int = 0  # until when the provider takes evidence in a dispute


class DisputeState(StrEnum):
    OPEN = "open"
    WON = "won"  # the money stays
    LOST = "lost"  # it went back to the buyer


def decide_dispute(state: DisputeState | None, notice: str) -> DisputeState | None:
    """The state that a notice of type `dispute.*` leads to; None: nothing changes. One that was decided stays so, whatever comes late."""
    match notice, state:
        case "dispute.opened", None:
            return DisputeState.OPEN
        case "dispute.won", None | DisputeState.OPEN:
            return DisputeState.WON
        case "dispute.lost", None | DisputeState.OPEN:
            return DisputeState.LOST
        case _:
            return None


class RefundRefusal(StrEnum):
    DISPUTED = "disputed"
    NOT_PAID = "not_paid"
    TOO_MUCH = "too_much"
    TOO_MANY_UNITS = "too_many_units"


def payment_id(order_id: str, viewer_id: str, key: str) -> str:
    return scoped_id(room_of(order_id), derived_tail("pay", viewer_id, key))


def automatic_refund_id(payment: str) -> str:
    return scoped_id(room_of(payment), derived_tail("refund", payment))


def state_of_hold(state: HoldState, *, overdue: bool) -> OrderState | None:
    """The order's state as the engine's record has it; None while there is no order."""
    match state:
        case HoldState.ORDERED:
            return OrderState.EXPIRED if overdue else OrderState.PLACED
        case HoldState.SOLD:
            return OrderState.PAID
        case HoldState.CANCELLED:
            return OrderState.CANCELLED
        case HoldState.LAPSED:
            return OrderState.EXPIRED
        case HoldState.WAITING | HoldState.CLOSED | HoldState.HELD | HoldState.RELEASED | HoldState.EXPIRED:
            return None
        case _:
            assert_never(state)


def newest_state(in_sql: OrderState, in_engine: OrderState | None) -> OrderState:
    """The engine is ahead until intake has caught up; shipping and refunds are known to SQL alone."""
    return in_engine if in_engine and in_sql in PAYABLE_STATES else in_sql


def decide_pay(state: OrderState) -> PayOutcome:
    match state:
        case OrderState.PLACED:
            return PayOutcome.PENDING
        case OrderState.PAID | OrderState.SHIPPED | OrderState.DELIVERED:
            return PayOutcome.PAID
        case OrderState.CANCELLED:
            return PayOutcome.CANCELLED
        case OrderState.EXPIRED:
            return PayOutcome.EXPIRED
        case OrderState.REFUNDED:
            return PayOutcome.REFUNDED
        case _:
            assert_never(state)


def decide_address(state: OrderState) -> SetAddressOutcome:
    """Whether an order may still go somewhere else."""
    match state:
        case OrderState.PLACED | OrderState.PAID:
            return SetAddressOutcome.SET
        case OrderState.SHIPPED | OrderState.DELIVERED:
            return SetAddressOutcome.SHIPPED
        case OrderState.CANCELLED:
            return SetAddressOutcome.CANCELLED
        case OrderState.EXPIRED:
            return SetAddressOutcome.EXPIRED
        case OrderState.REFUNDED:
            return SetAddressOutcome.REFUNDED
        case _:
            assert_never(state)


def decide_refund(
    state: OrderState, *, paid_minor: int, refunded_minor: int, asked_minor: int, units_left: int, units: int, disputed: bool = False
) -> RefundRefusal | None:
    """Whether this much may go back. The order of the checks is part of the contract. What the bank is asked for, it alone sends back."""
    if disputed:
        return RefundRefusal.DISPUTED
    if state not in PAID_STATES or paid_minor == 0:
        return RefundRefusal.NOT_PAID
    if asked_minor > paid_minor - refunded_minor:
        return RefundRefusal.TOO_MUCH
    if units > units_left:
        return RefundRefusal.TOO_MANY_UNITS
    return None


def dispute_id(room_id: str, provider: str, reference: str) -> str:
    return scoped_id(room_id, derived_tail("dispute", provider, reference))


# --- return requests -----------------------------------------------------------------------------------------------------------------
#
#     requested -> approved -> shipped_back -> received -> refunded        requested -> rejected
#     approved -> received (handed over)    approved -> refunded, where nothing is sent back
#     requested, approved -> closed: taken back, or nothing was sent in time         received -> closed: not as promised


class ReturnState(StrEnum):
    REQUESTED = "requested"
    APPROVED = "approved"
    SHIPPED_BACK = "shipped_back"
    RECEIVED = "received"
    REFUNDED = "refunded"
    REJECTED = "rejected"
    CLOSED = "closed"


class ReturnAct(StrEnum):
    APPROVE = "approve"
    REJECT = "reject"
    CANCEL = "cancel"
    SHIP_BACK = "ship_back"
    RECEIVE = "receive"
    REFUND = "refund"
    REFUSE = "refuse"


REFUND_ONLY = "refund_only"
RETURN_GOODS = "return_goods"
NO_REASON = "no_reason"
FRESH = "fresh_no_return"
NO_REASON_DAYS = 7
DAY_MS = 24 * 3600 * 1000

_STEPS = {
    (ReturnState.REQUESTED, ReturnAct.APPROVE): ReturnState.APPROVED,
    (ReturnState.REQUESTED, ReturnAct.REJECT): ReturnState.REJECTED,
    (ReturnState.REQUESTED, ReturnAct.CANCEL): ReturnState.CLOSED,
    (ReturnState.APPROVED, ReturnAct.CANCEL): ReturnState.CLOSED,
    (ReturnState.RECEIVED, ReturnAct.REFUND): ReturnState.REFUNDED,
    (ReturnState.RECEIVED, ReturnAct.REFUSE): ReturnState.CLOSED,
}
_STEPS_OF_KIND = {
    REFUND_ONLY: {(ReturnState.APPROVED, ReturnAct.REFUND): ReturnState.REFUNDED},
    RETURN_GOODS: {
        (ReturnState.APPROVED, ReturnAct.SHIP_BACK): ReturnState.SHIPPED_BACK,
        (ReturnState.APPROVED, ReturnAct.RECEIVE): ReturnState.RECEIVED,
        (ReturnState.SHIPPED_BACK, ReturnAct.RECEIVE): ReturnState.RECEIVED,
        (ReturnState.SHIPPED_BACK, ReturnAct.REFUND): ReturnState.REFUNDED,  # when the team says nothing of a parcel for long
    },
}


def next_return_state(state: ReturnState, act: ReturnAct, kind: str) -> ReturnState | None:
    """None: this cannot be done in this state."""
    return _STEPS.get((state, act)) or _STEPS_OF_KIND[kind].get((state, act))


def act_when_due(state: ReturnState, kind: str) -> ReturnAct:
    """What happens by itself when the time of an open return request is over."""
    match state:
        case ReturnState.REQUESTED:
            return ReturnAct.APPROVE
        case ReturnState.APPROVED if kind == RETURN_GOODS:
            return ReturnAct.CANCEL
        case _:
            return ReturnAct.REFUND


class ReturnDays(Struct, frozen=True, kw_only=True):
    """How long each waits for the other, in days; from the settings."""

    answer: int
    ship: int
    receive: int
    inspect: int
    fault: int
    fresh_fault: int


def days_in(state: ReturnState, kind: str, days: ReturnDays) -> int | None:
    """How long a return request may stay in a state; 0: it goes on at once; None: it has ended."""
    match state:
        case ReturnState.REQUESTED:
            return days.answer
        case ReturnState.APPROVED:
            return days.ship if kind == RETURN_GOODS else 0
        case ReturnState.SHIPPED_BACK:
            return days.receive
        case ReturnState.RECEIVED:
            return days.inspect
        case ReturnState.REFUNDED | ReturnState.REJECTED | ReturnState.CLOSED:
            return None
        case _:
            assert_never(state)


class ReturnCase(Struct, frozen=True, kw_only=True):
    """An order, and what is asked for it."""

    state: OrderState
    policy: str
    left_minor: int  # of what was paid
    units_left: int  # that no return request was refunded for
    delivered_ms: int | None
    requests: int  # that came before
    is_open: bool  # one of them still is
    kind: str
    reason: str
    quantity: int
    explained: bool  # by text or evidence


def decide_return(case: ReturnCase, *, now_ms: int, days: ReturnDays, requests_max: int) -> ReturnOutcome:
    """Whether a return request may be made. The order of the checks is part of the contract. The team may always refund by itself."""
    shipped = case.state in {OrderState.SHIPPED, OrderState.DELIVERED}
    if case.state not in PAID_STATES or case.left_minor <= 0:
        return ReturnOutcome.NOTHING_PAID
    if case.is_open:
        return ReturnOutcome.OPEN
    if case.requests >= requests_max:
        return ReturnOutcome.LIMIT
    if case.quantity > case.units_left:
        return ReturnOutcome.TOO_MANY
    if case.kind == RETURN_GOODS and not shipped:
        return ReturnOutcome.NOT_SHIPPED
    if case.reason not in {NO_REASON, "not_received"} and not case.explained:
        return ReturnOutcome.EVIDENCE_NEEDED
    if case.reason == NO_REASON and case.policy == FRESH:
        return ReturnOutcome.EXCLUDED
    if case.delivered_ms is not None and now_ms > case.delivered_ms + _window_days(case, days) * DAY_MS:
        return ReturnOutcome.TOO_LATE
    return ReturnOutcome.REQUESTED


def _window_days(case: ReturnCase, days: ReturnDays) -> int:
    if case.reason == NO_REASON:
        return NO_REASON_DAYS
    return days.fresh_fault if case.policy == FRESH else days.fault


def restocks(*, kind: str, reason: str, policy: str, shipped: bool) -> bool:
    """Whether the units may be sold again: they never left, or came back whole. What is fresh, or faulty, may not."""
    return not shipped or (kind == RETURN_GOODS and reason in {NO_REASON, "wrong_item"} and policy != FRESH)


def return_request_id(order_id: str, viewer_id: str, key: str) -> str:
    return scoped_id(room_of(order_id), derived_tail("return", viewer_id, key))


def short_name(name: str) -> str:
    """`Lin` is `L**`: for the room's mood, without naming the buyer."""
    return (name[:1] or "*") + "**"


def sign(secret: bytes, at_s: int, body: bytes) -> str:
    """`t=<seconds>,v1=<hex HMAC-SHA256 of "t.body">`, as payment providers sign."""
    digest = hmac.new(secret, f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"


def signature_fits(secret: bytes, header: str, body: bytes, *, now_s: int, tolerance_s: int) -> bool:
    """Compares in constant time; a signature older or newer than the tolerance does not fit, however right it is."""
    at, comma, _ = header.partition(",")
    if not comma or not at.startswith("t=") or not at[2:].isascii() or not at[2:].isdigit() or len(at) > 20:
        return False
    at_s = int(at[2:])
    return hmac.compare_digest(sign(secret, at_s, body).encode(), header.encode()) and abs(now_s - at_s) <= tolerance_s


HOLD_OF_ORDER: dict[OrderState, HoldState] = {
    OrderState.PLACED: HoldState.ORDERED,
    OrderState.PAID: HoldState.SOLD,
    OrderState.SHIPPED: HoldState.SOLD,
    OrderState.DELIVERED: HoldState.SOLD,
    OrderState.REFUNDED: HoldState.SOLD,
    OrderState.CANCELLED: HoldState.CANCELLED,
    OrderState.EXPIRED: HoldState.LAPSED,
}


SOLD_STATES = tuple(state for state, hold_state in HOLD_OF_ORDER.items() if hold_state is HoldState.SOLD)


class Remedy(StrEnum):
    """Who is right, and so what mends it."""

    REBUILD = "rebuild"  # the engine's records are worked out again from its holds and SQL's orders
    WRITE = "write"  # SQL is written from the engine's hold
    COUNT = "count"  # SQL counts its own orders again
    NONE = "none"


class Difference(Struct, frozen=True, kw_only=True):
    room: str
    subject: str  # the hold, order, offer or room that it is about
    text: str
    remedy: Remedy


class OrderFacts(Struct, frozen=True, kw_only=True):
    """An order as far as stock is concerned."""

    offer: str
    state: OrderState
    quantity: int
    returned: int  # units that a refund gives back
    restocked: int  # of these, those that the engine has


_FURTHER = {HoldState.ORDERED: 1, HoldState.CANCELLED: 2, HoldState.LAPSED: 2, HoldState.SOLD: 3}


def find_order_differences(
    room_id: str, orders: Mapping[str, OrderFacts], sold: Mapping[str, int], books: RoomBooks, under_way: Collection[str]
) -> list[Difference]:
    """Orders in SQL against the engine's holds, one to one, and SQL's own `sold`. `under_way`: what the outbox has yet to tell of."""

    def difference(subject: str, text: str, remedy: Remedy) -> Difference:
        return Difference(room=room_id, subject=subject, text=f"{room_id}: {text}", remedy=remedy)

    found: list[Difference] = []
    units = dict.fromkeys(sold, 0)
    for order_id, order in orders.items():
        if order.offer in units and HOLD_OF_ORDER[order.state] is HoldState.SOLD:
            units[order.offer] += order.quantity - order.returned
        problem = None if order_id in under_way else _compare(order, books.holds.get(order_id))
        if problem:
            found.append(difference(order_id, f"order {order_id}: {problem[0]}", problem[1]))
    known = orders.keys() | under_way
    for hold_id, hold in books.holds.items():
        if hold.state in {HoldState.ORDERED, HoldState.SOLD} and hold.offer in books.offers and hold_id not in known:
            found.append(difference(hold_id, f"hold {hold_id}: {hold.state}, but there is no order in SQL", Remedy.WRITE))
    for offer_id, count in units.items():
        if count != sold[offer_id]:
            found.append(difference(offer_id, f"offer {offer_id}: sold {sold[offer_id]} in SQL, its orders say {count}", Remedy.COUNT))
    return found


def _compare(order: OrderFacts, hold: Hold | None) -> tuple[str, Remedy] | None:
    expected = HOLD_OF_ORDER[order.state]
    if hold is None:
        stands = expected in {HoldState.ORDERED, HoldState.SOLD}  # one that ended is forgotten in time
        return (f"{order.state} in SQL, the engine has no hold of it", Remedy.REBUILD) if stands else None
    if hold.quantity != order.quantity:
        return f"{order.quantity} units in SQL, {hold.quantity} in the engine", Remedy.NONE
    if hold.state is not expected:
        remedy = Remedy.WRITE if _FURTHER.get(hold.state, 0) > _FURTHER[expected] else Remedy.REBUILD
        return f"{order.state} in SQL, {hold.state} in the engine", remedy
    if hold.returned < order.restocked:
        return f"{order.restocked} units went back on the shelf, {hold.returned} in the engine", Remedy.REBUILD
    if hold.returned > order.returned:
        return f"{order.returned} units were to go back on the shelf, {hold.returned} did in the engine", Remedy.NONE
    return None
