"""Draws and envelopes of a room, over REST: opened in a row, some closed or cancelled by hand, the rest by their time; and their money."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from loadtests.torture.crowd import Act, live
from loadtests.torture.host import Staff
from loadtests.torture.line import Refused
from loadtests.torture.plays import DrawBook, EnvelopeBook, now_ms

PAUSE_S_MAX = 1.2
DEPOSIT_MINOR = 1_000_000
OPEN_S_MIN, OPEN_S_MAX = 2, 8
WORD = "good harvest"


@dataclass(slots=True)
class Showman(Staff):
    operator: str = ""  # a token: hosts book no money
    prizes: list[str] = field(default_factory=list[str])  # offers that are prizes too
    deposits: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # room and reference, as acknowledged

    async def live(self) -> None:
        acts: dict[Act, int] = {self.open_draw: 4, self.open_envelope: 5, self.end_draw: 2, self.end_envelope: 2, self.deposit: 1}
        await self.deposit()
        await live(self.stage, self.rng, acts, pause_s=PAUSE_S_MAX)

    async def deposit(self) -> None:
        reference = f"bank-{self.name}-{self.keys}"
        data = {"amount_minor": DEPOSIT_MINOR, "reference": reference}
        await self.ask("host.deposit", f"rooms/{self.room}/wallet/deposits", data, token=self.operator)
        self.deposits.append((self.room, reference))

    async def open_draw(self) -> None:
        condition = self.rng.choice(("everyone", "keyword"))
        keyword, entrants_max = WORD if condition == "keyword" else "", self.rng.choice((10, 1000))
        prizes: list[dict[str, Any]] = [{"kind": "money", "name": "Cash", "count": self.rng.randint(1, 5), "amount_minor": 100}]
        if self.rng.random() < 0.4:
            prizes.append({"kind": "product", "name": "A gift", "count": self.rng.randint(1, 2), "offer": self.rng.choice(self.prizes)})
        seconds = self.rng.choice((None, self.rng.randint(OPEN_S_MIN, OPEN_S_MAX)))
        data = {
            "title": "Thanks",
            "condition": condition,
            "keyword": keyword,
            "prizes": prizes,
            "duration_s": seconds,
            "entrants_max": entrants_max,
        }
        try:
            said = await self.ask("host.open_draw", f"sessions/{self.session}/draws", data)
        except Refused as refused:
            self.complain("a draw", refused, expected=("conflict", "insufficient_funds"))  # the stock is not there
            return
        if said:
            draw = DrawBook(
                said["id"], self.room, said["commitment"], _ms(said["closes_at"]), keyword=keyword, rules_hash=said["rules_hash"]
            )
            self.stage.plays.draws[draw.id] = draw
            self.stage.draws.append(draw)

    async def end_draw(self) -> None:
        """By hand, also one whose time ends it, and one that is over."""
        mine = [draw for draw in self.stage.draws if draw.room == self.room]
        if not mine:
            return
        draw = self.rng.choice(mine)
        act, data = self.rng.choice((("close", {}), ("close", {}), ("cancel", {"reason": "torture"})))
        try:
            said = await self.ask(f"host.{act}_draw", f"draws/{draw.id}/{act}", data)
        except Refused as refused:
            self.complain(f"{act} of draw {draw.id}", refused, expected=("conflict",))  # drawn
            return
        if said and said["state"] in {"drawn", "cancelled"} and not draw.ended_ms:
            draw.ended_ms = now_ms()

    async def open_envelope(self) -> None:
        count = self.rng.randint(3, 60)
        mode = self.rng.choice(("lucky", "equal"))
        data = {"title": "Luck", "mode": mode, "total_minor": count * self.rng.randint(1, 20), "count": count}
        try:
            said = await self.ask(
                "host.open_envelope", f"sessions/{self.session}/envelopes", {**data, "ttl_s": self.rng.randint(OPEN_S_MIN, OPEN_S_MAX)}
            )
        except Refused as refused:
            self.complain("an envelope", refused, expected=("insufficient_funds",))
            return
        if said:
            envelope = EnvelopeBook(said["id"], self.room, said["commitment"], _ms(said["expires_at"]))
            self.stage.plays.envelopes[envelope.id] = envelope
            self.stage.envelopes.append(envelope)

    async def end_envelope(self) -> None:
        mine = [envelope for envelope in self.stage.envelopes if envelope.room == self.room]
        if mine:
            envelope = self.rng.choice(mine)
            said = await self.ask("host.end_envelope", f"envelopes/{envelope.id}/end", {})
            if said and said["state"] == "settled" and not envelope.ended_ms:
                envelope.ended_ms = now_ms()


def _ms(at: str | None) -> int:
    return round(datetime.fromisoformat(at).timestamp() * 1000) if at else 0
