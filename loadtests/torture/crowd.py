"""What viewers do: at random, with their own seeded dice, never two things with one purchase at a time unless they mean to."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx2

from loadtests.torture.book import MEANING, Book, Purchase
from loadtests.torture.line import Line, Refused, Tally, Unanswered

ADDRESS = {"name": "Torture", "phone": "13900000000", "region": "浙江省", "line": "1 Test Street"}
HTTP_SHARE = 0.04  # through the REST twin
TWICE_SHARE = 0.04  # the same command twice at once, as an impatient thumb does
OLD_MAX = 60  # purchases of a viewer that later repetitions choose from
METHODS = ("sandbox_ok",) * 14 + ("sandbox_duplicate",) * 3 + ("sandbox_late",) * 2 + ("sandbox_slow", "sandbox_decline")
ACTS = {"reserve": 32, "place": 20, "pay": 12, "release": 7, "cancel": 5, "look": 5, "again": 13, "wait": 4, "leave": 2}


@dataclass(slots=True)
class Stage:
    """What all viewers share."""

    book: Book
    tally: Tally
    http: httpx2.AsyncClient
    shelf: list[str]  # offers to choose from
    lines: list[str]  # those of them that have a line
    operations: int
    problems: list[str]

    @property
    def is_over(self) -> bool:
        return self.tally.answered >= self.operations

    def hear(self, event: dict[str, Any]) -> None:
        if event["type"] == "order.paid":
            self.book.heard_paid(event["order"])


class Viewer:
    def __init__(self, name: str, line: Line, stage: Stage, rng: random.Random) -> None:
        self.name = name
        self.line = line
        self.stage = stage
        self.rng = rng
        self.purchases: deque[Purchase] = deque(maxlen=OLD_MAX)
        self.keys = 0

    async def live(self) -> None:
        acts: dict[str, Callable[[], Awaitable[None]]] = {
            "reserve": self.reserve,
            "place": self.place,
            "pay": self.pay,
            "release": self.release,
            "cancel": self.cancel,
            "look": self.look,
            "again": self.again,
            "wait": self.wait,
            "leave": self.leave,
        }
        names, weights = list(ACTS), list(ACTS.values())
        while not self.stage.is_over:
            try:
                await acts[self.rng.choices(names, weights)[0]]()
            except Unanswered as failure:
                self.stage.problems.append(f"never answered: {failure}")
                return

    async def ask(self, method: str, data: dict[str, Any]) -> list[dict[str, Any]]:
        """The answers: one, or two when it was sent twice at once."""
        http = self.stage.http if self.rng.random() < HTTP_SHARE else None
        if self.rng.random() < TWICE_SHARE:
            return list(await asyncio.gather(self.line.ask(method, data), self.line.ask(method, data, http=http)))
        return [await self.line.ask(method, data, http=http)]

    def pick(self, *states: str) -> Purchase | None:
        """One of the viewer's own that may be in such a state; now and then any at all, but for those whose turn has not come."""
        free = [one for one in self.purchases if one.hold and not one.is_busy and ("waiting" in states or "waiting" not in one.may_be)]
        wanted = [purchase for purchase in free if purchase.may_be & set(states)] if self.rng.random() < 0.97 else free
        return self.rng.choice(wanted) if wanted else None

    def new_key(self) -> str:
        self.keys += 1
        return f"{self.name}-{self.keys}"

    # --- commands ---------------------------------------------------------------------------------------------------------------------

    async def reserve(self) -> None:
        quantity = self.rng.choice((1, 1, 1, 2, 3))
        purchase = Purchase(self.name, self.rng.choice(self.stage.shelf), quantity, self.new_key(), is_busy=True)
        self.purchases.append(purchase)
        await self.send_reserve(purchase)
        if not purchase.hold:
            self.purchases.remove(purchase)
        elif self.rng.random() < 0.6 and not self.stage.is_over:
            await self.send_place(purchase)  # or few would get there before the deadline
        purchase.is_busy = False

    async def send_reserve(self, purchase: Purchase) -> None:
        data = {"offer": purchase.offer, "quantity": purchase.quantity, "key": purchase.key}
        try:
            answers = await self.ask("inventory.reserve", data)
        except Refused as refused:
            self.refused("inventory.reserve", refused, expected=("not_found",))  # not on the shelf yet, or forgotten
            return
        answers.sort(key=lambda answer: bool(answer.get("repeated")))  # of two at once, one is the first
        for answer in answers:
            if answer["outcome"] == "held":
                self.stage.book.held(purchase, answer)
            elif purchase.hold:
                self.stage.book.lost.append(f"hold {purchase.hold} was acknowledged, and its key answers {answer['outcome']}")

    async def wait(self) -> None:
        purchase = Purchase(
            self.name, self.rng.choice(self.stage.lines), self.rng.choice((1, 1, 2)), self.new_key(), waits=True, is_busy=True
        )
        self.purchases.append(purchase)
        await self.send_wait(purchase)
        if not purchase.hold:
            self.purchases.remove(purchase)
        purchase.is_busy = False

    async def send_wait(self, purchase: Purchase) -> None:
        data = {"offer": purchase.offer, "quantity": purchase.quantity, "key": purchase.key}
        try:
            answers = await self.ask("inventory.wait", data)
        except Refused as refused:
            self.refused("inventory.wait", refused)
            return
        for answer in sorted(answers, key=lambda answer: bool(answer.get("repeated"))):
            if answer["outcome"] in MEANING["inventory.wait"]:
                self.stage.book.waited(purchase, answer)
            elif purchase.hold:
                self.stage.book.lost.append(f"place {purchase.hold} was acknowledged, and its key answers {answer['outcome']}")

    async def leave(self) -> None:
        purchase = self.pick("waiting")
        if purchase is None or not purchase.waits:
            return
        purchase.is_busy = True
        await self.settle("inventory.leave", purchase, {"wait": purchase.hold, "key": self.new_key()})
        purchase.is_busy = False

    async def place(self) -> None:
        await self.with_one(("held",), self.send_place)

    async def send_place(self, purchase: Purchase) -> None:
        data = {"hold": purchase.hold, "address": ADDRESS, "policy_accepted": True, "key": f"p{purchase.key}"}
        for answer in await self.settle("order.place", purchase, data):
            if answer["outcome"] == "placed":
                self.stage.book.placed(purchase, answer)

    async def pay(self) -> None:
        await self.with_one(("ordered",), self.send_pay)

    async def send_pay(self, purchase: Purchase) -> None:
        if purchase.placed is None:
            return
        known = list(purchase.payments)
        if known and self.rng.random() < 0.6:  # else a second attempt, for an order that may be paid already
            key = self.rng.choice(known)
            method = purchase.payments[key][1]
        else:
            key, method = self.new_key(), self.rng.choice(METHODS)
        for answer in await self.settle("order.pay", purchase, {"order": purchase.hold, "key": key, "method": method}):
            if answer["outcome"] == "pending":
                before, _ = purchase.payments.setdefault(key, (answer["payment"], method))
                if before != answer["payment"]:
                    self.stage.book.duplicates.append(f"one key, two payments of {purchase.hold}: {before} and {answer['payment']}")

    async def release(self) -> None:
        await self.with_one(("held",), self.send_release)

    async def send_release(self, purchase: Purchase) -> None:
        await self.settle("inventory.release", purchase, {"hold": purchase.hold, "key": self.new_key()})

    async def cancel(self) -> None:
        await self.with_one(("ordered",), self.send_cancel)

    async def send_cancel(self, purchase: Purchase) -> None:
        if purchase.placed is not None:
            await self.settle("order.cancel", purchase, {"order": purchase.hold, "key": self.new_key()})

    async def look(self) -> None:
        purchase = self.pick("ordered", "lapsed", "sold")
        if purchase is None or purchase.placed is None:
            return
        purchase.is_busy = True
        try:
            answer = await self.line.ask("order.get", {"order": purchase.hold})
            self.stage.book.says(purchase, "order.get", answer["state"])
        except Refused as refused:
            self.refused("order.get", refused)
        purchase.is_busy = False

    async def again(self) -> None:
        """A command of the past once more, with its own key: the same answer, and nothing happens."""
        purchase = self.pick("waiting", "held", "released", "expired", "ordered", "cancelled", "lapsed", "sold")
        if purchase is None:
            return
        purchase.is_busy = True
        if purchase.placed is not None and self.rng.random() < 0.5:
            await self.send_place(purchase)
        elif purchase.waits:
            await self.send_wait(purchase)
        else:
            await self.send_reserve(purchase)
        purchase.is_busy = False

    async def with_one(self, states: tuple[str, ...], send: Callable[[Purchase], Awaitable[None]]) -> None:
        purchase = self.pick(*states)
        if purchase is None:
            return
        purchase.is_busy = True
        await send(purchase)
        purchase.is_busy = False

    async def settle(self, method: str, purchase: Purchase, data: dict[str, Any]) -> list[dict[str, Any]]:
        try:
            answers = await self.ask(method, data)
        except Refused as refused:
            self.refused(method, refused)
            return []
        for answer in answers:
            self.stage.book.says(purchase, method, answer["outcome"])
        return answers

    def refused(self, method: str, refused: Refused, *, expected: tuple[str, ...] = ()) -> None:
        if refused.word not in expected and len(self.stage.problems) < 100:
            self.stage.problems.append(f"{method} was refused: {refused}")
