"""What hosts do over REST, each call with an `Idempotency-Key`: top up, change a price, replace an offer, refund."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from loadtests.torture.book import OfferBook
from loadtests.torture.crowd import Stage
from loadtests.torture.line import Refused, Unanswered, post

ACTS = {"top_up": 10, "reprice": 2, "replace": 1, "refund": 8}
UNANSWERED_MAX = 400  # tries of one call; a call that died half-way is taken over after a minute
PAUSE_S = 0.3
REFUNDS_MAX = 3  # of one order
NEW_OFFER_UNITS = 60


@dataclass(slots=True)
class Host:
    room: str
    session: str
    token: str
    url: str
    stage: Stage
    rng: random.Random
    offers: list[str]
    keys: int = 0

    async def live(self) -> None:
        acts: dict[str, Callable[[], Awaitable[None]]] = {
            "top_up": self.top_up,
            "reprice": self.reprice,
            "replace": self.replace,
            "refund": self.refund,
        }
        names, weights = list(ACTS), list(ACTS.values())
        while not self.stage.is_over:
            try:
                await acts[self.rng.choices(names, weights)[0]]()
            except Unanswered as failure:
                self.stage.problems.append(f"never answered: {failure}")
            await asyncio.sleep(self.rng.random() * 0.1)

    async def ask(self, act: str, path: str, data: dict[str, Any]) -> dict[str, Any]:
        """Until there is an answer, with one key. Raises Refused."""
        self.keys += 1
        key = f"{self.room}-{self.keys}"
        for _ in range(UNANSWERED_MAX):
            try:
                answer = await post(self.stage.http, f"{self.url}/api/v1/{path}", self.token, data, key=key)
            except Unanswered as failure:
                self.stage.tally.unanswered[str(failure)] += 1
                await asyncio.sleep(PAUSE_S)
            except Refused as refused:
                self.stage.tally.answer(act, refused.word)
                if refused.word == "already_done":
                    return {}  # done by a process that died before it had told
                raise
            else:
                self.stage.tally.answer(act, "done")
                return answer
        raise Unanswered(f"{act} {path} with the key {key}")

    async def top_up(self) -> None:
        offer = self.rng.choice(self.offers)
        add = self.rng.randint(1, 12)
        await self.ask("host.top_up", f"offers/{offer}/stock", {"add": add})
        self.stage.book.offers[offer].added += add

    async def reprice(self) -> None:
        await self.ask("host.reprice", f"offers/{self.rng.choice(self.offers)}/price", {"price_minor": self.rng.randint(100, 900)})

    async def replace(self) -> None:
        """Another offer first, so that the shelf is never empty."""
        listed = {"name": f"Offer {self.keys}", "price_minor": 500, "total": NEW_OFFER_UNITS}
        answer = await self.ask("host.list", f"sessions/{self.session}/offers", listed)
        if "id" not in answer:
            return
        fresh = str(answer["id"])
        self.stage.book.offers[fresh] = OfferBook(NEW_OFFER_UNITS, 0)
        self.offers.append(fresh)
        self.stage.shelf.append(fresh)
        old = self.rng.choice([offer for offer in self.offers[:-1] if offer not in self.stage.lines])  # viewers wait there
        self.offers.remove(old)
        self.stage.shelf.remove(old)
        await self.ask("host.withdraw", f"offers/{old}/withdraw", {"reason": "torture"})
        self.stage.book.offers[old].is_withdrawn = True

    async def refund(self) -> None:
        """A paid order, whole or a part, with its units back on the shelf or not."""
        sold = self.stage.book.paid_lately[self.room]
        order = self.stage.book.purchases.get(self.rng.choice(sold)) if sold else None
        if order is None or order.is_busy or order.placed is None or len(order.refunds) >= REFUNDS_MAX:
            return
        restock = self.rng.random() < 0.5
        part = self.rng.random() < 0.4
        amount = self.rng.randint(1, max(1, order.placed[0] // 2)) if part else None
        data = {"amount_minor": amount, "reason": "damaged", "restock": restock}
        order.is_busy = True
        try:
            await self.ask("host.refund", f"orders/{order.hold}/refund", data)
        except Refused as refused:
            if refused.word not in {"conflict", "not_found", "insufficient_funds"}:
                self.stage.problems.append(f"refund of {order.hold}: {refused}")
        else:
            order.refunds[f"{self.room}-{self.keys}"] = (amount or 0, restock)
        order.is_busy = False
