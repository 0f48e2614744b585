"""What inventory decides from values: a hold's states, the words of the scripts, and whether the books of a room add up.

Invariant of every offer: total + short = available + held + ordered + sold, none below zero. `short` is what a cut of the total owes to
promises already made; stock that comes back pays it first. A `first_paid` hold is counted in none of them before it is sold. A hold is in
one state; `sold` and the released states never change, but a `lapsed` order may still become `sold` when its money comes late and stock is
left. The transitions themselves are in the scripts, because only there are they atomic; `find_faults` checks their results without knowing
how they came about.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from msgspec import Struct, field

from app.core.ids import derived_tail, scoped_id
from app.protocol.commands import LeaveOutcome, ReleaseOutcome, ReserveOutcome, WaitOutcome
from app.protocol.order_commands import CancelOutcome, PlaceOutcome


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
    expired: int = 0  # units of holds and orders whose time ran out, so far
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
    closed: bool = False  # the room has to be renewed first


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


# --- a new life of the engine --------------------------------------------------------------------------------------------------------

Record = dict[str, Any]  # an offer or a hold, as the engine keeps it


class Survivors(Struct, frozen=True, kw_only=True):
    """What the engine still has of a room."""

    offers: dict[str, Record]
    holds: dict[str, Record]
    counts: dict[str, int]
    deadlines: dict[str, int]
    line: frozenset[str] = frozenset()


class Known(Struct, frozen=True, kw_only=True):
    """What is known of a room elsewhere, when its outbox has been read to the end."""

    terms: dict[str, Record]  # offers, as sync takes them
    sessions: dict[str, str]  # those that are not long over
    standing: dict[str, Record]  # holds that SQL knows to have become orders, or to keep prizes
    noted: dict[str, Record]  # open holds that SQL has a note of
    waits: dict[str, Record] = field(default_factory=dict[str, Record])  # places in lines that SQL has not heard the end of
    is_cut: bool  # the outbox ends before what SQL has read of it: its end is lost, and with it an unknown part of everything


class Rebuilt(Struct, frozen=True, kw_only=True):
    """What must be written so that the records are right, and what cannot be kept."""

    offers: dict[str, Record]
    holds: dict[str, Record]
    counts: dict[str, int]  # 0: none
    deadlines: dict[str, int]  # 0: none
    line: dict[str, bool]  # whether this place is in a line
    void: dict[str, Record]  # noted holds that are gone: their viewers have to be told
    void_waits: dict[str, Record]  # places in the line of an offer that is gone
    is_lost: bool  # something that was known is missing or older in the engine


_RANK = {HoldState.HELD: 0, HoldState.ORDERED: 1, HoldState.CANCELLED: 2, HoldState.LAPSED: 2, HoldState.SOLD: 3}


def further(first: Record, second: Record) -> Record:
    """Two records of one hold: the one that is further on its way. The keys that only one has are kept."""
    ahead, behind = (second, first) if _RANK.get(second["state"], 0) > _RANK.get(first["state"], 0) else (first, second)
    return behind | ahead


def rebuild(survivors: Survivors, known: Known, now_ms: int) -> Rebuilt:
    """Pure merge. The engine's records and SQL's are both beginnings of one history, so the further state of a hold is the true one.

    Holds that survived stand, also those that had ended in what was lost: they run out by themselves, and never more is promised than there
    is. A line is who stands in it by SQL's notes, each in the old place, and whoever had a turn in what was lost, which is void. A prize
    that no draw knows of is given back: its draw ended in what was lost, or never opened. Counters, counts and deadlines are sums over the
    holds; what they were before does not matter.
    """
    holds, is_lost = dict(survivors.holds), known.is_cut
    for hold_id, record in known.standing.items():
        merged = _merge(holds.get(hold_id), record, survivors, known)
        if merged is not None and merged != holds.get(hold_id):
            holds[hold_id] = merged
            is_lost = True
    holds |= {hold_id: hold | {"state": HoldState.RELEASED} for hold_id, hold in holds.items() if _has_left(hold_id, hold, known)}
    for wait_id in known.waits.keys() - holds.keys():
        if known.waits[wait_id]["offer"] in known.terms:
            holds[wait_id] = _waiting(known.waits[wait_id], known.terms)
        is_lost = True
    void_waits = {wait_id: wait for wait_id, wait in known.waits.items() if wait_id not in holds}
    void = {hold_id: note for hold_id, note in known.noted.items() if hold_id not in holds and note["expires"] > now_ms}
    offers = _offers(survivors.offers, known, holds)
    is_lost = is_lost or bool(void) or any(_counters(offer) != _counters(survivors.offers.get(name)) for name, offer in offers.items())
    unclaimed = {
        hold_id: hold | {"state": HoldState.RELEASED} for hold_id, hold in holds.items() if _is_unclaimed(hold_id, hold, known, offers)
    }
    if unclaimed:
        holds |= unclaimed
        offers = _offers(survivors.offers, known, holds)
    open_holds = {hold_id: hold for hold_id, hold in holds.items() if hold["state"] in _OPEN_STATES and not hold["escrow"]}
    line = {f"{hold['offer']}|{hold['turn']:012d}|{hold_id}" for hold_id, hold in holds.items() if hold["state"] == HoldState.WAITING}
    return Rebuilt(
        offers={name: offer for name, offer in offers.items() if offer != survivors.offers.get(name)},
        holds={hold_id: hold for hold_id, hold in holds.items() if hold is not survivors.holds.get(hold_id)},
        counts=_changes(survivors.counts, _counts(holds.values())),
        deadlines=_changes(survivors.deadlines, {hold_id: hold["deadline"] for hold_id, hold in open_holds.items()}),
        line={name: name in line for name in survivors.line ^ line},
        void=void,
        void_waits=void_waits,
        is_lost=is_lost,
    )


def _has_left(hold_id: str, hold: Record, known: Known) -> bool:
    return known.is_cut and hold["state"] == HoldState.WAITING and hold_id not in known.waits and hold_id not in known.noted


def _is_unclaimed(hold_id: str, hold: Record, known: Known, offers: Mapping[str, Record]) -> bool:
    return hold["escrow"] and hold["state"] == HoldState.HELD and hold_id not in known.standing and hold["offer"] in offers


def _merge(mine: Record | None, record: Record, survivors: Survivors, known: Known) -> Record | None:
    """The hold as it must be; None: it need not be here, since the engine has forgotten it or its offer in good order."""
    terms = known.terms.get(record["offer"])
    if mine is None:
        is_over = record["state"] in {HoldState.CANCELLED, HoldState.LAPSED}
        if (is_over and not known.is_cut) or (record["offer"] not in survivors.offers and terms is None):
            return None
        first_paid = {"first_paid": True} if terms and terms.get("selling") == "first_paid" and not record["escrow"] else {}
        return {name: terms[name] for name in _OF_TERMS if terms} | _LEFT_OPEN | record | first_paid
    merged = _LEFT_OPEN | further(mine, record)
    returned = {**record.get("given", {}), **mine.get("given", {})}  # a refund gives back once: SQL notes what the engine had
    if returned:
        merged |= {"given": returned, "returned": sum(returned.values())}
    return merged if _essence(merged) != _essence(mine) else mine


def _waiting(wait: Record, terms: Mapping[str, Record]) -> Record:
    of_terms = {name: terms[wait["offer"]][name] for name in _OF_TERMS}  # its price will be that of the moment when its turn comes
    return of_terms | _LEFT_OPEN | wait | {"state": HoldState.WAITING, "escrow": False, "deadline": 0}


_OF_TERMS = ("session", "price", "version", "policy", "currency")  # what a hold has from its offer, and a prize's draw does not know

# SQL does not know the key of an order's placing: whichever comes again is taken for it.
_LEFT_OPEN: Record = {"place_key": "", "expires": 0}


def _essence(hold: Record) -> tuple[str, int]:
    return hold["state"], hold.get("returned", 0)


def _offers(before: Mapping[str, Record], known: Known, holds: Mapping[str, Record]) -> dict[str, Record]:
    mine: dict[str, list[Record]] = {offer_id: [] for offer_id in before.keys() | known.terms.keys()}
    for hold in holds.values():
        if hold["offer"] in mine:
            mine[hold["offer"]].append(hold)
    return {offer_id: _offer(before.get(offer_id), known.terms.get(offer_id), mine[offer_id]) for offer_id in mine}


def _offer(before: Record | None, terms: Record | None, holds: Sequence[Record]) -> Record:
    offer: Record = {"holds": 0, "out": False} | (before or {})
    if terms and terms["version"] > offer.get("version", 0):
        offer |= terms
    units = {"held": 0, "ordered": 0, "sold": 0}
    for hold in holds:
        counter = _STOCK_STATES.get(hold["state"])
        if counter and (counter == "sold" or not hold.get("first_paid")):
            units[counter] += hold["quantity"] - (hold.get("returned", 0) if counter == "sold" else 0)
    left = offer["total"] - sum(units.values())
    offer |= units | {"available": max(left, 0), "short": max(-left, 0)}
    offer["holds"] = max(offer["holds"], sum(not hold["escrow"] and hold["state"] != HoldState.WAITING for hold in holds))
    waiting = [hold["turn"] for hold in holds if hold["state"] == HoldState.WAITING]
    if not waiting and not offer.get("waiting"):
        return offer
    return offer | {"waiting": len(waiting), "turns": max([offer.get("turns", 0), *waiting])}  # who comes next, stands behind them


def _counters(offer: Record | None) -> tuple[int, ...]:
    return tuple(offer[name] for name in ("held", "ordered", "sold")) if offer else (0, 0, 0)


def _counts(holds: Iterable[Record]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for hold in holds:
        if hold["state"] in _COUNTED_STATES and not hold["escrow"]:
            field_name = f"{hold['offer']}|{hold['viewer']}"
            counts[field_name] = counts.get(field_name, 0) + hold["quantity"]
    return counts


def _changes(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What has to be written so that `before` becomes `after`; 0 takes a name away."""
    return {name: after.get(name, 0) for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
