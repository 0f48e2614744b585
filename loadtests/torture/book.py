"""What the tester was told, and whether anything said later contradicts it.

Each purchase keeps the states in which its hold may be after the last answer. An answer names the states in which the product gives it; if
none of them can be reached from what was true before, an acknowledged answer was lost.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

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
    waits: bool = False  # it began as a place in a line
    hold: str = ""
    terms: tuple[str, int] = ("", 0)  # expires_at and price, the same at every repetition
    may_be: frozenset[str] = ALL
    placed: tuple[int, str] | None = None  # amount and pay_by
    payments: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])  # key -> id, method
    refunds: dict[str, tuple[int, bool]] = field(default_factory=dict[str, tuple[int, bool]])  # key -> amount, restock
    is_busy: bool = False


@dataclass(slots=True)
class OfferBook:
    total: int
    limit: int
    selling: str = "hold"
    added: int = 0
    is_withdrawn: bool = False


@dataclass(slots=True)
class Book:
    purchases: dict[str, Purchase] = field(default_factory=dict[str, Purchase])  # by hold
    offers: dict[str, OfferBook] = field(default_factory=dict[str, OfferBook])
    counts: Counter[str] = field(default_factory=Counter[str])
    paid_heard: set[str] = field(default_factory=set[str])  # orders of which `order.paid` came
    paid_lately: defaultdict[str, deque[str]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=RECENT_MAX)))  # by room
    lost: list[str] = field(default_factory=list[str])
    duplicates: list[str] = field(default_factory=list[str])

    def held(self, purchase: Purchase, answer: dict[str, object]) -> None:
        """An acknowledged hold, the first time or again."""
        terms = (str(answer["expires_at"]), int(str(answer["price_minor"])))
        hold = str(answer["hold"])
        if not purchase.hold:
            purchase.hold, purchase.terms, purchase.may_be = hold, terms, NEXT["held"]
            self.purchases[hold] = purchase
            self.counts["holds"] += 1
            return
        if hold != purchase.hold:
            self.duplicates.append(f"one key, two holds: {purchase.hold} and {hold}")
        elif not answer.get("repeated"):
            self.lost.append(f"hold {hold} was acknowledged, and made again")
        elif terms != purchase.terms:
            self.lost.append(f"hold {hold} was acknowledged with {purchase.terms}, and again with {terms}")

    def waited(self, purchase: Purchase, answer: dict[str, object]) -> None:
        """An acknowledged place in a line, or what became of it."""
        outcome = str(answer["outcome"])
        wait = str(answer.get("wait") or purchase.hold)  # a place that was given up has no id to be told
        if not purchase.hold:
            purchase.hold = wait
            self.purchases[wait] = purchase
            self.counts["waits"] += 1
        elif wait != purchase.hold:
            self.duplicates.append(f"one key, two places in line: {purchase.hold} and {wait}")
        elif not answer.get("repeated"):
            self.lost.append(f"place {wait} was acknowledged, and made again")
        self.says(purchase, "inventory.wait", outcome)
        if outcome == "held":
            terms = (str(answer["expires_at"]), int(str(answer["price_minor"])))
            if purchase.terms[0] and terms != purchase.terms:
                self.lost.append(f"hold {wait} was acknowledged with {purchase.terms}, and again with {terms}")
            purchase.terms = terms

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

    def says(self, purchase: Purchase, method: str, outcome: str) -> None:
        """An answer about a hold that was acknowledged."""
        meaning = MEANING[method].get(outcome)
        if meaning is None:
            self.lost.append(f"{method} of {purchase.hold} answered {outcome}; it was one of {', '.join(sorted(purchase.may_be))}")
            return
        if purchase.placed is None and method != "order.place":
            meaning -= PLACED  # nobody but its viewer turns a hold into an order
        self.narrow(purchase, meaning, f"{method} answered {outcome}")

    def narrow(self, purchase: Purchase, meaning: Iterable[str], why: str) -> None:
        reachable = frozenset(state for before in purchase.may_be for state in NEXT[before])
        now = reachable & frozenset(meaning)
        if not now:
            self.lost.append(f"{purchase.hold} was one of {', '.join(sorted(purchase.may_be))}, then {why}")
            return
        purchase.may_be = now
