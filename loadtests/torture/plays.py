"""Draws and envelopes as viewers and hosts were told of them, and whether anything said later contradicts it.

Times are the machine's: the engine that decides deadlines runs on it too. A command counts as sent when its first try was.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Play:
    """What a draw and an envelope have in common."""

    id: str
    room: str
    commitment: str  # published before anyone could take part
    closes_ms: int  # 0: by hand
    ended_ms: int = 0  # when its host had been told that it is over

    def is_over(self, sent_ms: int) -> bool:
        """Whoever sent their first command then can have no part in it."""
        return any(0 < end < sent_ms for end in (self.closes_ms, self.ended_ms))


@dataclass(slots=True)
class DrawBook(Play):
    keyword: str = ""
    rules_hash: str = ""
    entries: dict[str, str] = field(default_factory=dict[str, str])  # viewer -> key


@dataclass(slots=True)
class EnvelopeBook(Play):
    shares: dict[str, tuple[str, int, int]] = field(default_factory=dict[str, tuple[str, int, int]])  # viewer -> key, position, amount
    holders: dict[int, str] = field(default_factory=dict[int, str])  # position -> viewer


@dataclass(slots=True)
class PlayBook:
    draws: dict[str, DrawBook] = field(default_factory=dict[str, DrawBook])
    envelopes: dict[str, EnvelopeBook] = field(default_factory=dict[str, EnvelopeBook])
    counts: Counter[str] = field(default_factory=Counter[str])
    lost: list[str] = field(default_factory=list[str])
    duplicates: list[str] = field(default_factory=list[str])

    def entered(self, draw: DrawBook, viewer: str, key: str, outcome: str, sent_ms: int) -> None:
        """An answer to `draw.enter`. A viewer who is in is told so before all else."""
        before = draw.entries.get(viewer)
        expected = "entered" if before == key else "again" if before else ""
        told = f"draw {draw.id}: {viewer} was acknowledged with the key {before}, and {key} was answered {outcome}"
        if outcome == "frozen":  # the engine has just come back
            return
        if expected:
            if outcome != expected:
                (self.duplicates if outcome == "entered" else self.lost).append(told)
        elif outcome == "again":
            self.duplicates.append(f"draw {draw.id}: {viewer} is in without having been told so")
        elif outcome == "entered":
            draw.entries[viewer] = key
            self.counts["entries"] += 1
            if draw.is_over(sent_ms):
                self.lost.append(f"draw {draw.id} was over at {draw.closes_ms or draw.ended_ms}, and took {viewer} in at {sent_ms}")

    def grabbed(self, envelope: EnvelopeBook, viewer: str, key: str, answer: dict[str, Any], sent_ms: int) -> None:
        """An answer to `envelope.grab`."""
        outcome, before = str(answer["outcome"]), envelope.shares.get(viewer)
        if outcome == "frozen":
            return
        share = (int(answer["position"]), int(answer["amount_minor"])) if outcome in {"opened", "already"} else None
        if before is not None:
            if outcome != ("opened" if before[0] == key else "already") or share != before[1:]:
                told = f"share {before[1]} of envelope {envelope.id}, {before[2]} minor, was acknowledged to {viewer} for {before[0]}"
                (self.duplicates if share else self.lost).append(f"{told}, and {key} was answered {outcome} {share or ''}")
        elif outcome == "already":
            self.duplicates.append(f"envelope {envelope.id}: {viewer} has a share without having been told so")
        elif share is not None:
            self._opened(envelope, viewer, key, share, sent_ms)

    def _opened(self, envelope: EnvelopeBook, viewer: str, key: str, share: tuple[int, int], sent_ms: int) -> None:
        holder = envelope.holders.setdefault(share[0], viewer)
        if holder != viewer:
            self.duplicates.append(f"share {share[0]} of envelope {envelope.id} was acknowledged to {holder} and to {viewer}")
        if envelope.is_over(sent_ms):
            self.lost.append(f"envelope {envelope.id} was over at {envelope.closes_ms}, and gave {viewer} a share at {sent_ms}")
        envelope.shares[viewer] = (key, *share)
        self.counts["shares"] += 1
