"""What inventory decides from values: a hold's states, the words of the scripts, and whether the books of a room add up.

Invariant of every offer: total + short = available + held + ordered + sold, none below zero. `short` is what a cut of the total owes to
promises already made; stock that comes back pays it first. A `first_paid` hold is counted in none of them before it is sold. A hold is in
one state; `sold` and the released states never change, but a `lapsed` order may still become `sold` when its money comes late and stock is
left. The transitions themselves are in the scripts, because only there are they atomic; `find_faults` checks their results without knowing
how they came about.
"""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct, field

from app.core.ids import derived_tail, scoped_id
from app.protocol.commands import LeaveOutcome, ReleaseOutcome, ReserveOutcome, WaitOutcome
from app.protocol.order_commands import CancelOutcome, PlaceOutcome

WAITLIST_LENGTH_MAX = 1000  # viewers who may wait for one offer


class HoldState(StrEnum):
    WAITING = "waiting"  # in the offer's line: it takes no units yet
    CLOSED = "closed"  # it waited in vain
    HELD = "held"
    ORDERED = "ordered"
    SOLD = "sold"
    RELEASED = "released"
    EXPIRED = "expired"  # its deadline passed before an order
    CANCELLED = "cancelled"
    LAPSED = "lapsed"  # its payment deadline passed


class SessionState(StrEnum):
    """What a session means for sales. An interrupted show goes on selling: the host's line is cut, not the viewers' baskets."""

    LIVE = "live"
    INTERRUPTED = "interrupted"
    ENDED = "ended"


class ConfirmWord(StrEnum):
    PAID = "paid"
    REFUND = "refund"  # the money has to go back; `reason` says why
    UNKNOWN = "unknown"  # the engine has forgotten this order, or never knew it


class Stock(Struct, frozen=True, kw_only=True):
    """An offer's counters in the engine, in units; `holds` counts all holds that viewers ever placed."""

    total: int
    available: int
    held: int
    ordered: int
    sold: int
    short: int = 0
    holds: int = 0
    waiting: int = 0  # who stands in its line
    session: str = ""
    state: str = "listed"
    version: int = 0


class Hold(Struct, frozen=True, kw_only=True):
    """A hold as the engine keeps it. `buyer`, `name`, `placed` and `pay_by` are there once it was ordered."""

    offer: str
    session: str
    viewer: str
    quantity: int
    state: HoldState
    price: int
    version: int
    currency: str
    policy: str
    escrow: bool
    first_paid: bool = False  # nothing is set aside: it takes units when it is sold
    turn: int = 0  # in the offer's line; 0: it never waited
    since: int = 0
    deadline: int
    expires: int
    name: str = ""
    buyer: str = ""
    placed: int = 0
    pay_by: int = 0
    payment: str = ""
    winner: str = ""
    prize: str = ""
    returned: int = 0


class ReserveAnswer(Struct, frozen=True, kw_only=True):
    word: str
    expires: int = 0
    price: int | None = None
    available: int | None = None
    first_paid: bool = False
    repeated: bool = False
    waiting: int | None = None  # in the offer's line; None: it has none
    ahead: int | None = None


class MoveAnswer(Struct, frozen=True, kw_only=True):
    word: str
    repeated: bool = False
    price: int = 0
    quantity: int = 0
    currency: str = ""
    pay_by: int = 0
    reason: str = ""


class SweepAnswer(Struct, frozen=True, kw_only=True):
    settled: int
    forgotten: int
    empty: bool = False  # nothing is left of the room's sales


class RoomBooks(Struct, frozen=True, kw_only=True):
    """All that the engine knows of a room's sales, read in one step."""

    offers: dict[str, Stock]
    holds: dict[str, Hold]
    counts: dict[str, int] = field(default_factory=dict[str, int])  # "offer|viewer" -> units
    deadlines: dict[str, int] = field(default_factory=dict[str, int])  # hold -> ms
    line: list[str] = field(default_factory=list[str])  # "offer|turn|hold"


# A script knows only the hold's state; the viewer hears what it means for the command. None: an error, not an outcome.
RELEASE_WORDS = {
    "unknown": ReleaseOutcome.UNKNOWN,
    "released": ReleaseOutcome.RELEASED,
    "cancelled": ReleaseOutcome.RELEASED,
    "expired": ReleaseOutcome.EXPIRED,
    "lapsed": ReleaseOutcome.EXPIRED,
    "ordered": ReleaseOutcome.ORDERED,
    "sold": ReleaseOutcome.SOLD,
}
LEAVE_WORDS = {
    "unknown": LeaveOutcome.UNKNOWN,
    "released": LeaveOutcome.LEFT,
    "closed": LeaveOutcome.CLOSED,
    **dict.fromkeys(("held", "ordered", "sold", "expired", "cancelled", "lapsed"), LeaveOutcome.SERVED),
}
WAIT_WORDS = {outcome.value: outcome for outcome in WaitOutcome} | {"released": WaitOutcome.LEFT}
CANCEL_WORDS = {
    "unknown": CancelOutcome.UNKNOWN,
    "cancelled": CancelOutcome.CANCELLED,
    "lapsed": CancelOutcome.EXPIRED,
    "sold": CancelOutcome.PAID,
}
PLACE_WORDS = {outcome.value: outcome for outcome in PlaceOutcome}
RESERVE_WORDS = {outcome.value: outcome for outcome in ReserveOutcome}

_STOCK_STATES = {HoldState.HELD: "held", HoldState.ORDERED: "ordered", HoldState.SOLD: "sold"}
_COUNTED_STATES = (HoldState.WAITING, *_STOCK_STATES)
_OPEN_STATES = (HoldState.HELD, HoldState.ORDERED)


def hold_id(room_id: str, viewer_id: str, key: str) -> str:
    """Derived from viewer and key: the hold is its own idempotency record."""
    return scoped_id(room_id, derived_tail(viewer_id, key))


def wait_id(room_id: str, viewer_id: str, key: str) -> str:
    """Of a place in a line, and of the hold that it becomes. The key may have been used to reserve: that is another command."""
    return scoped_id(room_id, derived_tail("wait", viewer_id, key))


def find_faults(room_id: str, books: RoomBooks) -> list[str]:
    """What does not add up in a room, one sentence each."""
    sums = {offer_id: {"held": 0, "ordered": 0, "sold": 0} for offer_id in books.offers}
    for hold in books.holds.values():
        counter = _STOCK_STATES.get(hold.state)
        if counter and hold.offer in sums and (counter == "sold" or not hold.first_paid):
            sums[hold.offer][counter] += hold.quantity - (hold.returned if counter == "sold" else 0)
    faults = [fault for offer_id, stock in books.offers.items() for fault in _offer_faults(offer_id, stock, sums[offer_id])]
    return [f"{room_id}: {fault}" for fault in (*faults, *_deadline_faults(books), *_count_faults(books), *_line_faults(books))]


def _offer_faults(offer_id: str, stock: Stock, sums: Mapping[str, int]) -> list[str]:
    counters = {"available": stock.available, "held": stock.held, "ordered": stock.ordered, "sold": stock.sold, "short": stock.short}
    faults = [f"offer {offer_id}: {name} is {value}" for name, value in counters.items() if value < 0]
    if stock.total + stock.short != stock.available + stock.held + stock.ordered + stock.sold:
        faults.append(f"offer {offer_id}: the total {stock.total} is not the sum of {counters}")
    for name, units in sums.items():
        if counters[name] != units:
            faults.append(f"offer {offer_id}: {name} is {counters[name]}, its holds say {units}")
    return faults


def _deadline_faults(books: RoomBooks) -> list[str]:
    due = {hold_id: hold.deadline for hold_id, hold in books.holds.items() if hold.state in _OPEN_STATES and not hold.escrow}
    wrong = sorted(due.items() ^ books.deadlines.items())
    return [f"hold {hold_id}: its deadline {at_ms} is not in both places" for hold_id, at_ms in wrong]


def _count_faults(books: RoomBooks) -> list[str]:
    counts: dict[str, int] = {}
    for hold in books.holds.values():
        if hold.state in _COUNTED_STATES and not hold.escrow:
            field_name = f"{hold.offer}|{hold.viewer}"
            counts[field_name] = counts.get(field_name, 0) + hold.quantity
    return [f"count {name}: {units} is not in both places" for name, units in sorted(counts.items() ^ books.counts.items())]


def _line_faults(books: RoomBooks) -> list[str]:
    waits = {f"{hold.offer}|{hold.turn:012d}|{name}" for name, hold in books.holds.items() if hold.state == HoldState.WAITING}
    faults = [f"wait {name}: it is not in both places" for name in sorted(waits ^ set(books.line))]
    for offer_id, stock in books.offers.items():
        length = sum(name.startswith(f"{offer_id}|") for name in waits)
        if stock.waiting != length:
            faults.append(f"offer {offer_id}: {stock.waiting} wait, its line says {length}")
    return faults


def stock_levels(offers: Mapping[str, Stock], sessions: Mapping[str, str]) -> dict[str, int]:
    """What is left of every offer that is on a shelf: the snapshot's and the pulse's reading."""
    return {
        offer_id: stock.available
        for offer_id, stock in sorted(offers.items())
        if stock.state != "withdrawn" and sessions.get(stock.session) != SessionState.ENDED
    }
