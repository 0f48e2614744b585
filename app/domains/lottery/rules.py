"""How a draw is fixed, frozen and drawn. Pure: an outsider with the published values recomputes all of it.

Algorithm "jishi-draw-1"
1. rules hash = SHA-256 of the rules object in canonical JSON (RFC 8785; it holds strings, integers, booleans and null only).
2. An entrant's leaf = pseudonym || evidence hash; pseudonym = HMAC-SHA-256(salt, viewer id). Leaves are sorted as bytes;
   root = Merkle root (RFC 6962).
3. randomness = SHA-256("jishi-draw-1" || 0x00 || rules hash || root || seed).
4. Stream: block i = SHA-256(randomness || i as 8 bytes), read as unsigned 64-bit integers, big-endian. An integer below n is x mod n of
   the first x below the largest multiple of n, so that no value is favoured.
5. Partial Fisher-Yates over the places 0..n-1: for u = 0, 1, ... swap place u with place u + (integer below n - u). Place u wins unit u.

The platform alone chooses seed and salt, before the first entry: it can still not steer a draw without knowing who will enter, but it
could enter accounts of its own and compute ahead. More parties and a public beacon take that away; they plug into step 3.
"""

import hashlib
import hmac
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from app.core.merkle import merkle_root
from app.core.runtime import at_text
from app.protocol.views import DrawView, PrizeView

if TYPE_CHECKING:
    from app.domains.lottery.tables import Draw, DrawPrize

ALGORITHM = "jishi-draw-1"
SECRET_BYTES = 32
UNITS_MAX = 1000
ENTRANTS_MAX = 100_000


class Condition(StrEnum):
    EVERYONE = "everyone"
    KEYWORD = "keyword"


class PrizeKind(StrEnum):
    MONEY = "money"
    PRODUCT = "product"


@dataclass(frozen=True, slots=True)
class PrizeDraft:
    kind: PrizeKind
    name: str
    count: int
    amount_minor: int = 0
    offer_id: str | None = None


@dataclass(frozen=True, slots=True)
class DrawDraft:
    """What the host asks for."""

    title: str
    condition: Condition
    keyword: str
    prizes: tuple[PrizeDraft, ...]
    duration_s: int | None
    entrants_max: int = ENTRANTS_MAX


def check_draft(draft: DrawDraft, room_id: str) -> str | None:
    """What is wrong with the draft, in one sentence; None when it can be opened."""
    if not draft.prizes:
        return "prizes: a draw needs at least one"
    if sum(prize.count for prize in draft.prizes) > UNITS_MAX:
        return f"prizes: more than {UNITS_MAX} units in one draw"
    if draft.condition is Condition.KEYWORD and not normal_keyword(draft.keyword):
        return "keyword: the condition `keyword` needs one"
    for prize in draft.prizes:
        if prize.kind is PrizeKind.MONEY and (prize.amount_minor < 1 or prize.offer_id is not None):
            return f"prize {prize.name!r}: money needs amount_minor of at least 1 and no offer"
        if prize.kind is PrizeKind.PRODUCT and (prize.amount_minor or not (prize.offer_id or "").startswith(f"{room_id}-")):
            return f"prize {prize.name!r}: a product needs an offer of this room and no amount_minor"
    return None


def normal_keyword(text: str) -> str:
    """Compared without case, width and outer spaces: what two people would call the same word."""
    return unicodedata.normalize("NFKC", text).casefold().strip()


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """RFC 8785 for what we put into it: no floats, keys of ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def evidence_of(condition: Condition, keyword: str) -> bytes:
    """How an entrant met the condition, as canonical JSON."""
    met: dict[str, Any] = {"condition": condition.value}
    if condition is Condition.KEYWORD:
        met["keyword"] = keyword
    return canonical_json(met)


def pseudonym_of(salt: bytes, viewer_id: str) -> bytes:
    return hmac.new(salt, viewer_id.encode(), hashlib.sha256).digest()


def entrants_root(leaves: Sequence[bytes]) -> bytes:
    """Over the leaves (pseudonym || evidence hash), which are sorted here: the order of entering means nothing."""
    return merkle_root(sorted(leaves))


def randomness_of(rules_hash: bytes, root: bytes, seed: bytes) -> bytes:
    return hashlib.sha256(ALGORITHM.encode() + b"\x00" + rules_hash + root + seed).digest()


def _words(randomness: bytes) -> Iterator[int]:
    block = 0
    while True:
        digest = hashlib.sha256(randomness + block.to_bytes(8, "big")).digest()
        for start in range(0, 32, 8):
            yield int.from_bytes(digest[start : start + 8], "big")
        block += 1


def _below(n: int, words: Iterator[int]) -> int:
    """Rejection, never a plain modulo: 2**64 is no multiple of n."""
    bound = 2**64 - 2**64 % n
    return next(word for word in words if word < bound) % n


def draw_places(randomness: bytes, entrants: int, units: int) -> list[int]:
    """The places of the winners in the sorted list, one for each unit; fewer than `units` when there are fewer entrants."""
    words = _words(randomness)
    moved: dict[int, int] = {}  # the few places that a swap has touched, instead of the whole list
    winners: list[int] = []
    for unit in range(min(units, entrants)):
        other = unit + _below(entrants - unit, words)
        winners.append(moved.get(other, other))
        moved[other] = moved.get(unit, unit)
    return winners


def prize_of_unit(counts: Sequence[int]) -> list[int]:
    """The prize's position for each unit: units are numbered through the prizes in their order."""
    return [position for position, count in enumerate(counts) for _ in range(count)]


def shorten_name(name: str) -> str:
    """`"Li Wei"` is `"L**i"`: enough to recognise oneself by."""
    name = name.strip()
    if not name:
        return "**"
    return f"{name[0]}**{name[-1]}" if len(name) > 2 else f"{name[0]}**"


def units_of(prizes: Sequence["DrawPrize"]) -> list["DrawPrize"]:
    """The prize of each unit."""
    return [prizes[position] for position in prize_of_unit([prize.unit_count for prize in prizes])]


def product_units(prizes: Sequence["DrawPrize"]) -> list[tuple[int, "DrawPrize"]]:
    return [(unit, prize) for unit, prize in enumerate(units_of(prizes)) if prize.kind == PrizeKind.PRODUCT]


def money_total(prizes: Sequence["DrawPrize"]) -> int:
    return sum(prize.amount_minor * prize.unit_count for prize in prizes)


def _text(at: datetime) -> str:
    return at_text(round(at.timestamp() * 1000))


def rules_object(draw: "Draw", prizes: Sequence["DrawPrize"], *, salt_hash: str) -> dict[str, object]:
    """Everything that decides the outcome but the entrants and the seed; strings, integers, booleans and null only."""
    assert draw.opened_at is not None
    return {
        "algorithm": ALGORITHM,
        "draw": draw.id,
        "room": draw.room_id,
        "session": draw.session_id,
        "title": draw.title,
        "opened_at": _text(draw.opened_at),
        "closes_at": _text(draw.closes_at) if draw.closes_at else None,
        "condition": draw.condition,
        "keyword": draw.keyword,
        "staff_excluded": True,
        "entrants_max": draw.entrants_max,
        "interruption": "goes_on",  # a break in the show moves no deadline
        "surplus": "returns",  # fewer entrants than prizes
        "randomness": "commit_reveal",
        "seed_hash": draw.commitment,
        "salt_hash": salt_hash,
        "currency": draw.currency,
        "prizes": [
            {
                "kind": prize.kind,
                "name": prize.name,
                "count": prize.unit_count,
                "amount_minor": prize.amount_minor,
                "offer": prize.offer_id,
            }
            for prize in prizes
        ],
    }


def draw_view(draw: "Draw", prizes: Sequence["DrawPrize"], state: str | None = None) -> DrawView:
    return DrawView(
        id=draw.id,
        title=draw.title,
        state=state or draw.state,
        prizes=[prize_view(prize) for prize in prizes],
        condition=draw.condition,
        keyword=draw.keyword,
        closes_at=_text(draw.closes_at) if draw.closes_at else None,
        rules_hash=draw.rules_hash,
        commitment=draw.commitment,
        entrants=draw.entrants,
    )


def prize_view(prize: "DrawPrize") -> PrizeView:
    return PrizeView(kind=prize.kind, name=prize.name, count=prize.unit_count, amount_minor=prize.amount_minor, offer=prize.offer_id)
