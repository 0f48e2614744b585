"""What the tester was told, and whether anything said later contradicts it.

Each purchase keeps the states in which its hold may be after the last answer. An answer names the states in which the product gives it; if
none of them can be reached from what was true before, an acknowledged answer was lost.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Literal

NEXT: dict[str, frozenset[str]] = {
    "held": frozenset({"held", "released", "expired", "ordered", "cancelled", "lapsed", "sold"}),
    "ordered": frozenset({"ordered", "cancelled", "lapsed", "sold"}),
    "lapsed": frozenset({"lapsed", "sold"}),  # the late-pay rule
    **{state: frozenset({state}) for state in ("released", "expired", "cancelled", "sold", "closed")},
}
NEXT["waiting"] = NEXT["held"] | {"waiting", "closed"}
ALL = NEXT["waiting"]
RECENT_MAX = 200
PLACED = frozenset({"ordered", "cancelled", "lapsed", "sold"})
_ASKED = ("requested", "approved", "shipped_back", "received", "refunded", "rejected", "closed")
NEXT_RETURN: dict[str, frozenset[str]] = {
    "requested": frozenset(_ASKED),
    "approved": frozenset(_ASKED) - {"requested", "rejected"},
    "shipped_back": frozenset({"shipped_back", "received", "refunded"}) | {"closed"},
    "received": frozenset({"received", "refunded", "closed"}),
    **{state: frozenset({state}) for state in ("refunded", "rejected", "closed")},
}
# What an outcome says of the hold; `unknown` is never true of a hold that was acknowledged.
MEANING: dict[str, dict[str, frozenset[str]]] = {
    "inventory.release": {
        "released": frozenset({"released", "cancelled"}),
        "expired": frozenset({"expired", "lapsed"}),
        "ordered": frozenset({"ordered"}),
        "sold": frozenset({"sold"}),
    },
    "inventory.wait": {
        "waiting": frozenset({"waiting"}),
        "held": NEXT["held"],  # its turn came, whatever became of it since
        "left": frozenset({"released"}),
        "closed": frozenset({"closed"}),
    },
    "inventory.leave": {"left": frozenset({"released"}), "served": NEXT["held"], "closed": frozenset({"closed"})},
    "order.place": {
        "exhausted": frozenset({"held"}),  # first paid, first served: nothing is set aside
        "placed": PLACED,
        "released": frozenset({"released"}),
        "expired": frozenset({"expired"}),
        "frozen": ALL,
    },
    "order.confirm_receipt": {"confirmed": frozenset({"sold"}), "not_shipped": frozenset({"sold"})},
    "return.request": dict.fromkeys(
        (
            *("requested", "nothing_paid", "open", "limit", "too_many"),
            *("not_shipped", "evidence_needed", "excluded", "too_late"),
        ),
        frozenset({"sold"}),
    ),
    **dict.fromkeys(("return.cancel", "return.ship_back"), dict.fromkeys(("done", "not_possible"), frozenset({"sold"}))),
    "order.cancel": {"cancelled": frozenset({"cancelled"}), "expired": frozenset({"lapsed"}), "paid": frozenset({"sold"})},
    "order.pay": {
        "pending": PLACED,
        "paid": frozenset({"sold"}),
        "refunded": frozenset({"sold"}),
        "expired": frozenset({"ordered", "lapsed"}),  # due, and not swept yet
        "cancelled": frozenset({"cancelled"}),
    },
    "order.get": {
        "placed": frozenset({"ordered"}),
        "paid": frozenset({"sold"}),
        "shipped": frozenset({"sold"}),
        "delivered": frozenset({"sold"}),
        "refunded": frozenset({"sold"}),
        "expired": frozenset({"ordered", "lapsed"}),
        "cancelled": frozenset({"cancelled"}),
    },
}


@dataclass(slots=True)
class Purchase:
    viewer: str
    offer: str
    quantity: int
    key: str
    by: Literal["inventory.reserve", "inventory.wait", "chat.send"] = "inventory.reserve"
    hold: str = ""
    terms: tuple[str, int] = ("", 0)  # expires_at and price, the same at every repetition
    may_be: frozenset[str] = ALL
    placed: tuple[int, str] | None = None  # amount and pay_by
    payments: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])  # key -> id, method
    refunds: dict[str, tuple[int, bool]] = field(default_factory=dict[str, tuple[int, bool]])  # key -> amount, restock
    returns: dict[str, "Return"] = field(default_factory=dict[str, "Return"])  # by key
    is_busy: bool = False


@dataclass(slots=True)
class Return:
    """A return request of a purchase."""

    id: str
    purchase: Purchase
    data: dict[str, object]  # as it was asked for
    may_be: frozenset[str] = NEXT_RETURN["requested"]


@dataclass(slots=True)
class OfferBook:
    total: int
    limit: int
    prices: set[int]  # every one that its host has asked for
    selling: str = "hold"
    keyword: str = ""
    added: int = 0
    is_withdrawn: bool = False


@dataclass(slots=True)
class Book:
    purchases: dict[str, Purchase] = field(default_factory=dict[str, Purchase])  # by hold
    returns: dict[str, Return] = field(default_factory=dict[str, Return])
    offers: dict[str, OfferBook] = field(default_factory=dict[str, OfferBook])
    counts: Counter[str] = field(default_factory=Counter[str])
    paid_heard: set[str] = field(default_factory=set[str])  # orders of which `order.paid` came
    paid_lately: defaultdict[str, deque[str]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=RECENT_MAX)))  # by room
    messages: set[str] = field(default_factory=set[str])  # lines of the chat that were acknowledged
    lost: list[str] = field(default_factory=list[str])
    duplicates: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])  # whatever else is not as promised

    def held(self, purchase: Purchase, answer: dict[str, object]) -> None:
        """An acknowledged hold, the first time or again."""
        terms = (str(answer["expires_at"]), int(str(answer["price_minor"])))
        hold = str(answer["hold"])
        if not purchase.hold:
            purchase.hold, purchase.terms, purchase.may_be = hold, terms, NEXT["held"]
            self.purchases[hold] = purchase
            self.counts["holds"] += 1
            self._check_price(purchase)
            return
        if hold != purchase.hold:
            self.duplicates.append(f"one key, two holds: {purchase.hold} and {hold}")
        elif not answer.get("repeated"):
            self.lost.append(f"hold {hold} was acknowledged, and made again")
        elif terms != purchase.terms:
            self.lost.append(f"hold {hold} was acknowledged with {purchase.terms}, and again with {terms}")

    def _check_price(self, purchase: Purchase) -> None:
        if purchase.terms[1] not in self.offers[purchase.offer].prices:
            self.lost.append(f"hold {purchase.hold} was acknowledged for {purchase.terms[1]}, a price that {purchase.offer} never had")

    def waited(self, purchase: Purchase, answers: Sequence[dict[str, object]]) -> None:
        """Acknowledged places in a line of one command, or what became of it; the one that made it comes first."""
        for answer in answers:
            wait = str(answer.get("wait") or purchase.hold)  # a place that was given up has no id to be told
            if not purchase.hold:
                purchase.hold = wait
                self.purchases[wait] = purchase
                self.counts["waits"] += 1
            elif wait != purchase.hold:
                self.duplicates.append(f"one key, two places in line: {purchase.hold} and {wait}")
            elif not answer.get("repeated"):
                self.lost.append(f"place {wait} was acknowledged, and made again")
            if answer["outcome"] == "held":
                terms = (str(answer["expires_at"]), int(str(answer["price_minor"])))
                if purchase.terms[0] and terms != purchase.terms:
                    self.lost.append(f"hold {wait} was acknowledged with {purchase.terms}, and again with {terms}")
                purchase.terms = terms
                self._check_price(purchase)
        self.says(purchase, "inventory.wait", *[str(answer["outcome"]) for answer in answers])

    def bought_by_word(self, purchase: Purchase, answer: dict[str, object]) -> None:
        """What came of a line in the chat that is an offer's keyword: the reservation, or the line's own outcome where there is none."""
        if answer["outcome"] == "held":
            self.held(purchase, answer)
        elif purchase.hold:
            self.lost.append(f"hold {purchase.hold} was acknowledged, and its line in the chat answers {answer['outcome']}")

    def asked_back(self, purchase: Purchase, key: str, data: dict[str, object], answer: dict[str, object]) -> None:
        """An acknowledged return request, the first time or again."""
        before, request = purchase.returns.get(key), str(answer["request"])
        if before is None:
            self.returns[request] = purchase.returns[key] = Return(request, purchase, data)
            self.counts["returns"] += 1
        elif before.id != request:
            self.duplicates.append(f"one key, two return requests of {purchase.hold}: {before.id} and {request}")
        elif not answer.get("repeated"):
            self.lost.append(f"return request {request} of {purchase.hold} was acknowledged, and made again")

    def return_is(self, asked: Return, state: str, why: str) -> None:
        """Each answer about a return request says its state."""
        if not any(state in NEXT_RETURN[before] for before in asked.may_be):
            self.lost.append(f"return request {asked.id} was one of {', '.join(sorted(asked.may_be))}, then {why}: {state}")
        else:
            asked.may_be = frozenset({state})

    def heard_paid(self, order: str) -> None:
        if order not in self.paid_heard:
            self.paid_heard.add(order)
            self.paid_lately[order.partition("-")[0]].append(order)

    def placed(self, purchase: Purchase, answer: dict[str, object]) -> None:
        said = (int(str(answer["amount_minor"])), str(answer["pay_by"]))
        if purchase.placed is None:
            purchase.placed = said
            self.counts["orders"] += 1
        elif said != purchase.placed:
            self.lost.append(f"order {purchase.hold} was acknowledged with {purchase.placed}, and again with {said}")

    def says(self, purchase: Purchase, method: str, *outcomes: str) -> None:
        """Answers about a hold that was acknowledged: one, or two to a command that was sent twice at once. Which of these was given first
        nobody knows, however they came."""
        meanings = [MEANING[method].get(outcome) for outcome in outcomes]
        known = [meaning for meaning in meanings if meaning is not None]
        if purchase.placed is None and method != "order.place":
            known = [meaning - PLACED for meaning in known]  # nobody but its viewer turns a hold into an order
        orders = permutations(known) if len(known) == len(outcomes) else ()
        ends = frozenset(state for order in orders for state in self._after(purchase.may_be, order))
        if ends:
            purchase.may_be = ends
        else:
            before = ", ".join(sorted(purchase.may_be))
            self.lost.append(f"{purchase.hold} was one of {before}, then {method} answered {' and '.join(outcomes)}")

    def _after(self, may_be: frozenset[str], meanings: Iterable[frozenset[str]]) -> frozenset[str]:
        for meaning in meanings:
            may_be = frozenset(state for before in may_be for state in NEXT[before]) & meaning
        return may_be

    def ends(self, purchase: Purchase, state: str) -> bool:
        """What the engine has at the end; whether an answer led there."""
        if self._after(purchase.may_be, [frozenset({state})]):
            return True
        self.lost.append(f"{purchase.hold} was one of {', '.join(sorted(purchase.may_be))}, then the engine ended with {state}")
        return False
