"""What hosts do over REST, each call with an `Idempotency-Key`: the shelf, and orders after their sale. Draws and envelopes: showman.py.

Hosts have connections of their own, so that a call of theirs which waits for a process to come back keeps no viewer waiting.
"""

import asyncio
import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2

from loadtests.torture.book import OfferBook, Purchase
from loadtests.torture.crowd import Act, Stage, live
from loadtests.torture.journal import Journal
from loadtests.torture.line import ANSWER_S_MAX, Refused, Unanswered, post

TRY_AGAIN_S = 0.3
PAUSE_S_MAX = 0.8  # between two acts
REFUNDS_MAX = 3  # of one order
NEW_OFFER_UNITS = 60
STEPS_WITHIN_S = 4.0
OPEN_RETURNS = ("requested", "approved", "shipped_back", "received")


@dataclass(slots=True)
class Staff:
    """One member of a room's team, and how they get an answer."""

    name: str
    room: str
    session: str
    token: str
    url: str
    stage: Stage
    http: httpx2.AsyncClient
    journal: Journal
    rng: random.Random
    keys: int = 0

    async def ask(self, act: str, path: str, data: dict[str, Any], *, method: str = "POST", token: str = "") -> dict[str, Any]:
        """Until there is an answer, with one key; empty where it was done by a process that died before it had told. Raises Refused."""
        self.keys += 1
        key = f"{self.name}-{self.keys}"
        until = time.monotonic() + ANSWER_S_MAX
        note = {"host": self.name, "act": act, "path": path, "data": data, "idempotency_key": key}
        while time.monotonic() < until:
            try:
                answer = await post(self.http, f"{self.url}/api/v1/{path}", token or self.token, data, key=key, method=method)
            except Unanswered as failure:
                self.stage.tally.unanswered[str(failure)] += 1
                self.journal.note(**note, unanswered=str(failure))
                await asyncio.sleep(TRY_AGAIN_S)
            except Refused as refused:
                self.stage.tally.answer(act, refused.word)
                self.journal.note(**note, refused=str(refused))
                if refused.word == "already_done":
                    return {}
                raise
            else:
                self.stage.tally.answer(act, "done")
                self.journal.note(**note, answer=answer)
                return answer
        raise Unanswered(f"{act} {path} with the key {key}")

    def complain(self, act: str, refused: Refused, *, expected: tuple[str, ...] = ()) -> None:
        if refused.word not in expected:
            self.stage.book.problems.append(f"{act} was refused: {refused}")


@dataclass(slots=True)
class Host(Staff):
    offers: list[str] = field(default_factory=list[str])
    kept: set[str] = field(default_factory=set[str])  # never withdrawn: viewers wait there, know its word, or win it

    async def live(self) -> None:
        acts: dict[Act, int] = {
            self.top_up: 10,
            self.reprice: 2,
            self.schedule: 3,
            self.replace: 1,
            self.refund: 7,
            self.ship: 6,
            self.answer: 8,
        }
        await live(self.stage, self.rng, acts, pause_s=PAUSE_S_MAX)

    async def top_up(self) -> None:
        offer = self.rng.choice(self.offers)
        add = self.rng.randint(1, 12)
        await self.ask("host.top_up", f"offers/{offer}/stock", {"add": add})
        self.stage.book.offers[offer].added += add

    async def reprice(self) -> None:
        offer, price = self.rng.choice(self.offers), self.rng.randint(100, 900)
        self.stage.book.offers[offer].prices.add(price)
        await self.ask("host.reprice", f"offers/{offer}/price", {"price_minor": price})

    async def schedule(self) -> None:
        """Prices that fall due during the sale; no list price is below them."""
        offer = self.rng.choice(self.offers)
        moments = sorted(self.rng.uniform(0.5, STEPS_WITHIN_S) for _ in range(2))
        steps = [(datetime.now(UTC) + timedelta(seconds=moment), self.rng.randint(50, 200)) for moment in moments]
        self.stage.book.offers[offer].prices.update(price for _, price in steps)
        data = {"price_steps": [{"at": at.isoformat(), "price_minor": price} for at, price in steps]}
        await self.ask("host.schedule", f"offers/{offer}", data, method="PATCH")

    async def replace(self) -> None:
        """Another offer first, so that the shelf is never empty."""
        listed = {"name": f"Offer {self.keys}", "price_minor": 500, "total": NEW_OFFER_UNITS}
        answer = await self.ask("host.list", f"sessions/{self.session}/offers", listed)
        if "id" not in answer:
            return
        fresh = str(answer["id"])
        self.stage.book.offers[fresh] = OfferBook(NEW_OFFER_UNITS, 0, {500})
        self.offers.append(fresh)
        self.stage.shelf.append(fresh)
        old = self.rng.choice([offer for offer in self.offers[:-1] if offer not in self.kept])
        self.offers.remove(old)
        self.stage.shelf.remove(old)
        await self.ask("host.withdraw", f"offers/{old}/withdraw", {"reason": "torture"})
        self.stage.book.offers[old].is_withdrawn = True

    def pick_paid(self) -> Purchase | None:
        sold = self.stage.book.paid_lately[self.room]
        order = self.stage.book.purchases.get(self.rng.choice(sold)) if sold else None
        return order if order is not None and order.placed and not order.is_busy else None

    async def refund(self) -> None:
        """A paid order, whole or a part, with its units back on the shelf or not."""
        order = self.pick_paid()
        if order is None or order.placed is None or len(order.refunds) >= REFUNDS_MAX:
            return
        restock = self.rng.random() < 0.5
        part = self.rng.random() < 0.4
        amount = self.rng.randint(1, max(1, order.placed[0] // 2)) if part else None
        data = {"amount_minor": amount, "reason": "damaged", "restock": restock}
        order.is_busy = True
        try:
            await self.ask("host.refund", f"orders/{order.hold}/refund", data)
        except Refused as refused:
            self.complain(f"refund of {order.hold}", refused, expected=("conflict", "not_found", "insufficient_funds"))
        else:
            order.refunds[f"{self.name}-{self.keys}"] = (amount or 0, restock)
        order.is_busy = False

    async def ship(self) -> None:
        order = self.pick_paid()
        if order is None:
            return
        order.is_busy = True
        try:
            await self.ask("host.ship", f"orders/{order.hold}/ship", {"carrier": "SF Express", "tracking": order.hold[-20:]})
        except Refused as refused:
            self.complain(f"shipping {order.hold}", refused, expected=("conflict",))  # not any more, or refunded
        order.is_busy = False

    async def answer(self) -> None:
        """The next step of a return request, or one that is not possible."""
        order = self.pick_paid()
        waiting = [one for one in order.returns.values() if one.may_be & set(OPEN_RETURNS)] if order else []
        if order is None or not waiting:
            return
        asked = self.rng.choice(waiting)
        likely = {"requested": "approve", "approved": "receive", "shipped_back": "receive", "received": "refund"}
        act = likely[self.rng.choice([state for state in OPEN_RETURNS if state in asked.may_be])]
        if self.rng.random() < 0.2:
            act = self.rng.choice(("approve", "reject", "receive", "refund", "refuse"))
        data = {"refund": {"restock": self.rng.choice((None, True, False))}, "receive": {}}.get(act, {"answer": "we looked at it"})
        order.is_busy = True
        try:
            said = await self.ask(f"host.return_{act}", f"returns/{asked.id}/{act}", data)
        except Refused as refused:
            self.complain(f"{act} of return request {asked.id}", refused, expected=("conflict", "insufficient_funds"))
        else:
            if said:
                self.stage.book.return_is(asked, said["state"], f"its host's {act} answered")
        order.is_busy = False
