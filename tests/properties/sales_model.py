"""What sales should answer: a page of Python that predicts the word of every reply. The machine runs it beside the product.

Holds have a state and a deadline, offers a total and perhaps a line; what is available is what no hold has.
"""

from dataclasses import dataclass

from app.domains.inventory.rules import hold_id, wait_id
from tests.support.runtime import TestRuntime

HOLD_MS, PAY_MS, PRICE, LIMIT = 300_000, 900_000, 500, 2


@dataclass(slots=True)
class ModelHold:
    offer: str
    viewer: str
    quantity: int
    state: str
    deadline: int
    expires: int
    escrow: bool = False
    place_key: str = ""
    accepted: bool = True
    first_paid: bool = False
    waited: bool = False
    paid_by: str = ""
    winner: str = ""
    returned: int = 0

    @property
    def units(self) -> int:
        takes = {"sold"} if self.first_paid else {"held", "ordered", "sold"}
        return self.quantity - self.returned if self.state in takes else 0


@dataclass(slots=True)
class ModelOffer:
    total: int
    limit: int = 0
    order_limit: int = 0
    fresh: bool = False
    paused: bool = False
    first_paid: bool = False
    line: list[str] | None = None  # who waits, in turn; None: the offer has no line


class SalesModel:
    def __init__(self) -> None:
        self.runtime = TestRuntime()
        self.offers: dict[str, ModelOffer] = {}
        self.holds: dict[str, ModelHold] = {}
        self.money = 0

    def available(self, offer: str) -> int:
        return self.offers[offer].total - sum(hold.units for hold in self.holds.values() if hold.offer == offer)

    def due(self, hold: ModelHold) -> bool:
        return 0 < hold.deadline <= self.runtime.now_ms()

    def move(self, hold: ModelHold, state: str, deadline: int = 0) -> None:
        hold.state, hold.deadline = state, deadline

    def settle(self) -> None:
        for hold in self.holds.values():
            if self.due(hold):
                self.move(hold, {"held": "expired", "ordered": "lapsed"}[hold.state])
        self.serve()

    def serve(self) -> None:
        """What the scripts do at their end: what came back is a hold of the first in line."""
        for offer, terms in self.offers.items():
            while terms.line and not terms.paused and self.available(offer) > 0:
                hold = self.holds[terms.line[0]]
                if hold.quantity > terms.total - sum(
                    other.units for other in self.holds.values() if (other.offer, other.state) == (offer, "sold")
                ):
                    hold.state = "closed"
                elif hold.quantity <= self.available(offer):
                    hold.expires = self.runtime.now_ms() + HOLD_MS
                    self.move(hold, "held", hold.expires)
                else:
                    break
                terms.line.pop(0)

    def taken(self, offer: str, viewer: str) -> int:
        mine = [hold for hold in self.holds.values() if (hold.offer, hold.viewer, hold.escrow) == (offer, viewer, False)]
        return sum(hold.quantity for hold in mine if hold.state in {"waiting", "held", "ordered", "sold"})

    def expect_wait(self, viewer: str, offer: str, quantity: int, key: str) -> str:
        self.settle()
        name, terms = wait_id("room1", viewer, key), self.offers[offer]
        before = self.holds.get(name)
        if before:
            if (before.offer, before.quantity) != (offer, quantity):
                return "key_reused"
            return {"waiting": "waiting", "closed": "closed", "released": "left" if not before.expires else "held"}.get(
                before.state, "held"
            ) + " again"
        if terms.paused:
            return "closed"
        if terms.line is None:
            return "no_line"
        if self.taken(offer, viewer) + quantity > terms.limit:
            return "limit"
        if quantity > terms.total - sum(hold.units for hold in self.holds.values() if (hold.offer, hold.state) == (offer, "sold")):
            return "exhausted"
        self.holds[name] = ModelHold(offer, viewer, quantity, "waiting", 0, 0, waited=True)
        terms.line.append(name)
        self.serve()
        return self.holds[name].state

    def expect_reserve(self, viewer: str, offer: str, quantity: int, key: str, *, escrow: bool) -> str:
        self.settle()
        name, terms = hold_id("room1", viewer, key), self.offers[offer]
        before = self.holds.get(name)
        if before:
            return "held again" if (before.offer, before.quantity, before.escrow) == (offer, quantity, escrow) else "key_reused"
        if terms.paused:
            return "closed"
        if terms.order_limit and not escrow and quantity > terms.order_limit:
            return "order_limit"
        if terms.limit and not escrow and self.taken(offer, viewer) + quantity > terms.limit:
            return "limit"
        if quantity > self.available(offer) or terms.line:
            return "exhausted"
        expires = 0 if escrow else self.runtime.now_ms() + HOLD_MS
        self.holds[name] = ModelHold(offer, viewer, quantity, "held", expires, expires, escrow, first_paid=terms.first_paid and not escrow)
        return "held"

    def expect_place(self, hold: ModelHold, key: str, accepted: bool) -> str:
        if hold.escrow or hold.state in {"waiting", "closed"}:
            return "unknown"
        if hold.place_key:
            return "key_reused" if hold.place_key == key and hold.accepted != accepted else "placed again"
        if hold.state == "held" and self.due(hold):
            self.move(hold, "expired")
        if hold.state != "held":
            return hold.state
        if hold.first_paid and self.available(hold.offer) < hold.quantity:
            return "exhausted"
        if self.offers[hold.offer].fresh and not accepted:
            return "policy_not_accepted"
        hold.place_key, hold.accepted = key, accepted
        self.move(hold, "ordered", self.runtime.now_ms() + PAY_MS)
        return "placed"

    def expect_money(self, hold: ModelHold, attempt: str) -> str:
        refusals = {"sold": "paid_twice", "cancelled": "order_cancelled"}
        if hold.state in refusals:
            return refusals[hold.state]
        if hold.state == "lapsed" and self.available(hold.offer) < hold.quantity:
            return "late_and_sold_out"
        if hold.first_paid and self.available(hold.offer) < hold.quantity:
            self.move(hold, "cancelled")
            return "sold_out"
        self.move(hold, "sold")
        hold.paid_by = attempt
        self.money += PRICE * hold.quantity
        return "paid"
