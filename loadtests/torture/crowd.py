"""What viewers do: at random, with their own seeded dice, never two things with one purchase at a time unless they mean to."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from loadtests.torture.book import MEANING, Book, Purchase
from loadtests.torture.line import Line, Refused, Tally, Unanswered
from loadtests.torture.plays import DrawBook, EnvelopeBook, PlayBook, now_ms

ADDRESS = {"name": "Torture", "phone": "13900000000", "region": "浙江省", "line": "1 Test Street"}
HTTP_SHARE = 0.02  # through the REST twin: it costs tester and product several times what the socket does
TWICE_SHARE = 0.04  # the same command twice at once, as an impatient thumb does
TWICE_HTTP_SHARE = 0.3  # the second of these
OLD_MAX = 60  # purchases of a viewer that later repetitions choose from
RARE = ("slow", "decline", "reordered", "dispute", "dispute_won", "refund_fails")
LATEST, LATEST_SHARE = 4, 0.6
METHODS = ("sandbox_ok",) * 12 + ("sandbox_duplicate",) * 3 + ("sandbox_late",) * 2 + tuple(f"sandbox_{word}" for word in RARE)
REASONS = ("no_reason", "damaged", "wrong_item", "other")
PLAYS_LATELY = 6  # draws or envelopes of all rooms that viewers choose from; the oldest of them are over


@dataclass(slots=True)
class Stage:
    """What all viewers share."""

    book: Book
    tally: Tally
    http: httpx2.AsyncClient
    shelf: list[str]  # offers to choose from
    lines: list[str]  # those of them that have a line
    words: list[str]  # those of them that a word in the chat buys
    operations: int
    plays: PlayBook
    draws: deque[DrawBook] = field(default_factory=lambda: deque(maxlen=PLAYS_LATELY))
    envelopes: deque[EnvelopeBook] = field(default_factory=lambda: deque(maxlen=PLAYS_LATELY))

    @property
    def is_over(self) -> bool:
        return self.tally.answered >= self.operations

    def hear(self, event: dict[str, Any]) -> None:
        if event["type"] == "order.paid":
            self.book.heard_paid(event["order"])


Act = Callable[[], Awaitable[None]]


async def live(stage: Stage, rng: random.Random, acts: Mapping[Act, int], *, pause_s: float = 0.0) -> None:
    """One act after another, at random by their weights, until all is over."""
    calls, weights = list(acts), list(acts.values())
    while not stage.is_over:
        try:
            await rng.choices(calls, weights)[0]()
        except Unanswered as failure:
            stage.book.problems.append(f"never answered: {failure}")
        if pause_s:
            await asyncio.sleep(rng.random() * pause_s)


def in_order(answers: list[dict[str, Any]], *granted: str) -> list[dict[str, Any]]:
    """Of two to a command that was sent twice at once: what was refused came before what was granted, and that before its repetition."""
    return sorted(answers, key=lambda answer: (answer["outcome"] in granted, bool(answer.get("repeated"))))


class Viewer:
    def __init__(self, name: str, line: Line, stage: Stage, rng: random.Random) -> None:
        self.name = name
        self.line = line
        self.stage = stage
        self.rng = rng
        self.purchases: deque[Purchase] = deque(maxlen=OLD_MAX)
        self.keys = 0

    async def live(self) -> None:
        acts: dict[Act, int] = {
            self.reserve: 28,
            self.place: 17,
            self.pay: 8,
            self.release: 6,
            self.cancel: 4,
            self.look: 5,
            self.again: 12,
            self.wait: 4,
            self.leave: 2,
            self.chat: 5,
            self.confirm_receipt: 2,
            self.ask_back: 3,
            self.step_back: 2,
            self.enter: 5,
            self.grab: 6,
        }
        await live(self.stage, self.rng, acts)

    async def ask(self, method: str, data: dict[str, Any]) -> list[dict[str, Any]]:
        """The answers: one, or two when it was sent twice at once."""
        if self.rng.random() < TWICE_SHARE:
            beside = self.stage.http if self.rng.random() < TWICE_HTTP_SHARE else None
            return list(await asyncio.gather(self.line.ask(method, data), self.line.ask(method, data, http=beside)))
        return [await self.line.ask(method, data, http=self.stage.http if self.rng.random() < HTTP_SHARE else None)]

    def pick(self, *states: str) -> Purchase | None:
        """One of the viewer's own that may be in such a state; now and then any at all, but for those whose turn has not come."""
        free = [one for one in self.purchases if one.hold and not one.is_busy and ("waiting" in states or "waiting" not in one.may_be)]
        wanted = [purchase for purchase in free if purchase.may_be & set(states)] if self.rng.random() < 0.97 else free
        if self.rng.random() < LATEST_SHARE:
            wanted = wanted[-LATEST:]  # of the others the time is over, more often than not
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
        for answer in in_order(answers, "held"):
            if answer["outcome"] == "held":
                self.stage.book.held(purchase, answer)
            elif purchase.hold:
                self.stage.book.lost.append(f"hold {purchase.hold} was acknowledged, and its key answers {answer['outcome']}")

    async def chat(self) -> None:
        """Buys by a word in the chat."""
        quantity = self.rng.choice((1, 1, 2))
        purchase = Purchase(self.name, self.rng.choice(self.stage.words), quantity, self.new_key(), by="chat.send", is_busy=True)
        self.purchases.append(purchase)
        await self.send_chat(purchase)
        if not purchase.hold:
            self.purchases.remove(purchase)
        purchase.is_busy = False

    async def send_chat(self, purchase: Purchase) -> None:
        word = self.stage.book.offers[purchase.offer].keyword
        text = f"{word} {purchase.quantity}" if purchase.quantity > 1 else word
        data = {"room": purchase.offer.partition("-")[0], "text": text, "key": purchase.key}
        try:
            answers = await self.ask("chat.send", data)
        except Refused as refused:
            self.refused("chat.send", refused)
            return
        for reservation in in_order([answer.get("reservation") or answer for answer in answers], "held"):
            self.stage.book.bought_by_word(purchase, reservation)
        self.stage.book.messages.update(answer["message"] for answer in answers if answer["outcome"] == "sent")

    async def wait(self) -> None:
        purchase = Purchase(
            self.name, self.rng.choice(self.stage.lines), self.rng.choice((1, 1, 2)), self.new_key(), by="inventory.wait", is_busy=True
        )
        self.purchases.append(purchase)
        await self.send_wait(purchase)
        if not purchase.hold:
            self.purchases.remove(purchase)
        purchase.is_busy = False

    async def send_wait(self, purchase: Purchase) -> None:
        data, before = {"offer": purchase.offer, "quantity": purchase.quantity, "key": purchase.key}, purchase.hold
        try:
            answers = await self.ask("inventory.wait", data)
        except Refused as refused:
            self.refused("inventory.wait", refused)
            return
        acknowledged = [answer for answer in in_order(answers, "waiting", "held") if answer["outcome"] in MEANING["inventory.wait"]]
        if acknowledged:
            self.stage.book.waited(purchase, acknowledged)
        if before and len(acknowledged) < len(answers):  # of two at once the refusal may have come first
            words = ", ".join(answer["outcome"] for answer in answers)
            self.stage.book.lost.append(f"place {purchase.hold} was acknowledged, and its key answers {words}")

    async def leave(self) -> None:
        purchase = self.pick("waiting")
        if purchase is None or purchase.by != "inventory.wait":
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

    # --- after the sale ----------------------------------------------------------------------------------------------------------------

    def pick_paid(self) -> Purchase | None:
        """One whose order is in SQL: its viewer has heard so."""
        paid = [one for one in self.purchases if one.hold in self.stage.book.paid_heard and one.placed and not one.is_busy]
        return self.rng.choice(paid) if paid else None

    async def confirm_receipt(self) -> None:
        purchase = self.pick_paid()
        if purchase is not None:
            purchase.is_busy = True
            await self.settle("order.confirm_receipt", purchase, {"order": purchase.hold, "key": self.new_key()})
            purchase.is_busy = False

    async def ask_back(self) -> None:
        """A return request, or an earlier one again."""
        purchase = self.pick_paid()
        if purchase is None:
            return
        purchase.is_busy = True
        key = self.rng.choice(list(purchase.returns)) if purchase.returns and self.rng.random() < 0.5 else self.new_key()
        kind, quantity = self.rng.choice(("refund_only", "return_goods")), self.rng.randint(1, purchase.quantity)
        what = {"kind": kind, "reason": self.rng.choice(REASONS), "quantity": quantity, "text": "as the picture shows"}
        fresh: dict[str, object] = {"order": purchase.hold, **what, "key": key}
        data = purchase.returns[key].data if key in purchase.returns else fresh
        answers = await self.settle("return.request", purchase, data)
        for answer in in_order(answers, "requested"):
            if answer["outcome"] == "requested":
                self.stage.book.asked_back(purchase, key, data, answer)
            elif key in purchase.returns:
                said = f"return request {purchase.returns[key].id} of {purchase.hold} was acknowledged"
                self.stage.book.lost.append(f"{said}, and its key answers {answer['outcome']}")
        purchase.is_busy = False

    async def step_back(self) -> None:
        """Takes a return request back, or says how the goods travel."""
        purchase = self.pick_paid()
        if purchase is None or not purchase.returns:
            return
        purchase.is_busy = True
        asked = self.rng.choice(list(purchase.returns.values()))
        data: dict[str, Any] = {"request": asked.id, "key": self.new_key()}
        if self.rng.random() < 0.7:
            method, data = "return.ship_back", {**data, "carrier": "SF Express", "tracking": asked.id[-20:]}
        else:
            method = "return.cancel"
        for answer in await self.settle(method, purchase, data):
            if answer["outcome"] != "unknown":
                self.stage.book.return_is(asked, answer["state"], f"{method} answered")
        purchase.is_busy = False

    # --- draws and envelopes -------------------------------------------------------------------------------------------------------------

    async def enter(self) -> None:
        """With the key of before, or one of its own, as from a second phone."""
        if not self.stage.draws:
            return
        draw = self.rng.choice(self.stage.draws)
        key = f"{self.name}-{draw.id[-8:]}" if self.rng.random() < 0.8 else self.new_key()
        word = draw.keyword if self.rng.random() < 0.9 else ""
        sent_ms = now_ms()
        try:
            answers = await self.ask("draw.enter", {"draw": draw.id, "key": key, "keyword": word})
        except Refused as refused:
            self.refused("draw.enter", refused, expected=("key_reused",))  # entered before, and with another word now
            return
        for answer in answers:
            self.stage.plays.entered(draw, self.name, key, answer["outcome"], sent_ms)

    async def grab(self) -> None:
        if not self.stage.envelopes:
            return
        envelope = self.rng.choice(self.stage.envelopes)
        key = f"{self.name}-{envelope.id[-8:]}" if self.rng.random() < 0.8 else self.new_key()
        sent_ms = now_ms()
        try:
            answers = await self.ask("envelope.grab", {"envelope": envelope.id, "key": key})
        except Refused as refused:
            self.refused("envelope.grab", refused)
            return
        for answer in answers:
            self.stage.plays.grabbed(envelope, self.name, key, answer, sent_ms)

    async def again(self) -> None:
        """A command of the past once more, with its own key: the same answer, and nothing happens."""
        purchase = self.pick("waiting", "held", "released", "expired", "ordered", "cancelled", "lapsed", "sold")
        if purchase is None:
            return
        purchase.is_busy = True
        if purchase.placed is not None and self.rng.random() < 0.5:
            await self.send_place(purchase)
        else:
            sends = {"inventory.reserve": self.send_reserve, "inventory.wait": self.send_wait, "chat.send": self.send_chat}
            await sends[purchase.by](purchase)
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
        self.stage.book.says(purchase, method, *[answer["outcome"] for answer in answers])
        return answers

    def refused(self, method: str, refused: Refused, *, expected: tuple[str, ...] = ()) -> None:
        if refused.word not in expected:
            self.stage.book.problems.append(f"{method} was refused: {refused}")
