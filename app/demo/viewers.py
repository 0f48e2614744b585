"""Simulated viewers: each is a real client SDK on a real websocket with its own signed token.

A viewer knows only what a phone would know: the events of its channels and the replies to its commands. When the connection breaks, the
SDK reconnects and recovers; a command that got no answer is sent again with the same key, as a good client does.
"""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from centrifuge import CentrifugeError, Client, ClientEventHandler, PublicationContext, ServerPublicationContext, SubscriptionEventHandler

from app.demo import voices

ATTEMPTS_MAX = 8
RETRY_S = 0.75


@dataclass(slots=True)
class Tally:
    """What the crowd has seen and done, for the progress line."""

    said: int = 0
    heard: int = 0
    outcomes: Counter[str] = field(default_factory=Counter[str])


class _OwnEvents(ClientEventHandler):
    """Hands news about an order to whoever waits for it."""

    NEWS = frozenset({"order.paid", "order.changed", "payment.declined"})

    def __init__(self) -> None:
        self.waiting: dict[str, asyncio.Future[str]] = {}

    async def on_publication(self, ctx: ServerPublicationContext) -> None:
        event = ctx.pub.data
        waiter = self.waiting.get(event.get("order", "")) if event.get("type") in self.NEWS else None
        if waiter is not None and not waiter.done():
            waiter.set_result(event["type"])


class _Ears(SubscriptionEventHandler):
    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    async def on_publication(self, ctx: PublicationContext) -> None:
        self._tally.heard += 1


class Viewer:
    def __init__(self, *, viewer_id: str, name: str, websocket_url: str, token: str, rng: random.Random, tally: Tally) -> None:
        self.id = viewer_id
        self.name = name
        self.address = {
            "name": name,
            "phone": f"139{rng.randrange(10**8):08d}",
            "region": rng.choice(voices.CITIES),
            "line": f"{rng.choice(voices.STREETS)} {rng.randrange(1, 300)}",
        }
        self._rng = rng
        self._tally = tally
        self._own = _OwnEvents()
        self._client = Client(websocket_url, events=self._own, token=token, name="demo", proxy=None)
        self._count = 0

    async def arrive(self, room_id: str) -> None:
        """Connects and subscribes; the SDK keeps trying for as long as the product is away."""
        await self._client.connect()
        for channel in (f"room:{room_id}", f"chat:{room_id}"):
            await self._client.new_subscription(channel, events=_Ears(self._tally), recoverable=True).subscribe()

    async def leave(self) -> None:
        await self._client.disconnect()

    def new_key(self) -> str:
        self._count += 1
        return f"{self.id}-{self._rng.randrange(10**12):012d}-{self._count}"

    async def call(self, method: str, data: dict[str, Any]) -> dict[str, Any]:
        """The reply's data. An answer that does not come is asked for again with the same key, so nothing happens twice."""
        for attempt in range(ATTEMPTS_MAX):
            try:
                reply = (await self._client.rpc(method, data)).data
                self._tally.outcomes[f"{method}:{reply.get('outcome', 'done')}"] += 1
                return reply
            except CentrifugeError as failure:
                if not _worth_retrying(failure) or attempt == ATTEMPTS_MAX - 1:
                    self._tally.outcomes[f"{method}:failed"] += 1
                    return {"outcome": "failed", "error": str(failure)}
                await asyncio.sleep(RETRY_S * (attempt + self._rng.random()))
        raise AssertionError("unreachable: the last attempt returns")

    async def say(self, room_id: str, text: str) -> dict[str, Any]:
        reply = await self.call("chat.send", {"room": room_id, "text": text, "key": self.new_key()})
        self._tally.said += reply.get("outcome") == "sent"
        return reply

    async def like(self, room_id: str, count: int) -> None:
        await self.call("room.like", {"room": room_id, "count": count})

    async def reserve(self, offer_id: str, quantity: int = 1, *, key: str = "") -> dict[str, Any]:
        return await self.call("inventory.reserve", {"offer": offer_id, "quantity": quantity, "key": key or self.new_key()})

    async def order(self, hold_id: str) -> dict[str, Any]:
        return await self.call("order.place", {"hold": hold_id, "address": self.address, "policy_accepted": True, "key": self.new_key()})

    async def pay(self, order_id: str, method: str = "sandbox_ok", *, wait_s: float = 20) -> str:
        """Starts a payment; the type of the event that settles it on the viewer's own channel, or `silence` when none came in time."""
        news: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._own.waiting[order_id] = news
        try:
            reply = await self.call("order.pay", {"order": order_id, "method": method, "key": self.new_key()})
            if reply.get("outcome") != "pending":
                return str(reply.get("outcome"))
            return await asyncio.wait_for(news, wait_s)
        except TimeoutError:
            return "silence"
        finally:
            del self._own.waiting[order_id]

    async def buy(self, offer_id: str, quantity: int = 1, *, method: str = "sandbox_ok") -> str:
        """Hold, order, pay. `order.paid`, or the word that stopped it on the way."""
        hold = await self.reserve(offer_id, quantity)
        if hold.get("outcome") != "held":
            return str(hold.get("outcome"))
        order = await self.order(hold["hold"])
        if order.get("outcome") != "placed":
            return str(order.get("outcome"))
        return await self.pay(order["order"], method)


def _worth_retrying(failure: CentrifugeError) -> bool:
    """Silence and cut connections always; an error reply only when the server calls it temporary."""
    return getattr(failure, "temporary", True)


def viewer_name(rng: random.Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(voices.FAMILY_NAMES) + rng.choice(voices.GIVEN_NAMES)
    return rng.choice(voices.WESTERN_NAMES)
