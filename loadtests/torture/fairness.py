"""Draws and envelopes at the end: what was published is computed again by rules written here a second time,
and every acknowledged entry and share is held against it. Nothing of the product's own code decides here."""

import hashlib
import hmac
import json
from collections.abc import Iterator, Sequence
from typing import Any

from loadtests.torture.plays import DrawBook, EnvelopeBook


def root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, section 2.1, as it is written there."""
    if len(leaves) < 2:
        return hashlib.sha256(b"\x00" + leaves[0] if leaves else b"").digest()
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return hashlib.sha256(b"\x01" + root(leaves[:half]) + root(leaves[half:])).digest()


def problems_of_draw(told: DrawBook, said: dict[str, Any]) -> list[str]:
    """`said`: the public record of the draw."""
    rules: dict[str, Any] = json.loads(said["rules"])
    claims = {
        f"it is over (it is {said['state']})": said["state"] in {"drawn", "cancelled"},
        "its rules are those that were published": _sha256(said["rules"].encode()) == said["rules_hash"] == told.rules_hash,
        "its commitment is the one that was published": said["commitment"] == told.commitment == rules["seed_hash"],
    }
    if said["state"] == "drawn":
        claims |= _claims_of_drawn(told, said, rules)
    return [f"draw {told.id}: not so that {claim}" for claim, holds in claims.items() if not holds]


def _claims_of_drawn(told: DrawBook, said: dict[str, Any], rules: dict[str, Any]) -> dict[str, bool]:
    salt, seed = bytes.fromhex(said["salt"]), bytes.fromhex(said["seed"])
    leaves = [bytes.fromhex(leaf["pseudonym"] + leaf["evidence_hash"]) for leaf in said["leaves"]]
    names = {leaf["pseudonym"] for leaf in said["leaves"]}
    in_it = {hmac.new(salt, viewer.encode(), hashlib.sha256).hexdigest(): viewer for viewer in told.entries}
    units = [prize["name"] for prize in rules["prizes"] for _ in range(prize["count"])]
    start = rules["algorithm"].encode() + b"\x00" + bytes.fromhex(said["rules_hash"]) + bytes.fromhex(said["root"]) + seed
    winners = [(unit, units[unit], place) for unit, place in enumerate(places(hashlib.sha256(start).digest(), len(leaves), len(units)))]
    missing = sorted(viewer for name, viewer in in_it.items() if name not in names)
    return {
        "seed and salt fit what was published": (_sha256(seed), _sha256(salt)) == (rules["seed_hash"], rules["salt_hash"]),
        f"every acknowledged entry is in it ({', '.join(missing[:5])} missing)": not missing,
        "each entrant is in it once": len(names) == len(leaves) == said["entrants"],
        "it has no more entrants than it may have": len(leaves) <= rules["entrants_max"],
        "its entrants make the published root": root(sorted(leaves)).hex() == said["root"],
        "the winners are those that seed and entrants make": winners
        == [(one["unit"], one["prize"], one["index"]) for one in said["winners"]],
        "every prize was delivered": all(one["delivered"] for one in said["winners"]),
    }


def places(randomness: bytes, entrants: int, units: int) -> list[int]:
    """Fisher and Yates over the whole list, with words of SHA-256 in counter mode, refused where a modulo would be unfair."""
    order, words = list(range(entrants)), _words(randomness)
    for unit in range(min(units, entrants)):
        size = entrants - unit
        word = next(word for word in words if word < 2**64 - 2**64 % size)
        other = unit + word % size
        order[unit], order[other] = order[other], order[unit]
    return order[: min(units, entrants)]


def _words(randomness: bytes) -> Iterator[int]:
    block = 0
    while True:
        digest = hashlib.sha256(randomness + block.to_bytes(8, "big")).digest()
        yield from (int.from_bytes(digest[start : start + 8], "big") for start in range(0, 32, 8))
        block += 1


def problems_of_envelope(told: EnvelopeBook, said: dict[str, Any]) -> list[str]:
    """`said`: the public record of the envelope."""
    shares = said["shares"]
    leaves = [f"jishi-share-1|{told.id}|{one['position']}|{one['amount_minor']}|{one['salt']}".encode() for one in shares]
    opened = {one["position"]: one["amount_minor"] for one in shares if one["opened"]}
    missing = [f"{viewer}: {position}" for viewer, (_, position, amount) in told.shares.items() if opened.get(position) != amount]
    claims = {
        f"it is settled (it is {said['state']})": said["state"] == "settled",
        "its shares are those that were committed to": root(leaves).hex() == said["commitment"] == told.commitment,
        "its shares are its total": sum(one["amount_minor"] for one in shares) == said["total_minor"],
        "what was opened and what went back are its total": said["opened_minor"] + said["refunded_minor"] == said["total_minor"],
        "what was opened are the shares that are": sum(opened.values()) == said["opened_minor"],
        f"every acknowledged share is opened, as it was told ({', '.join(missing[:5])})": not missing,
    }
    return [f"envelope {told.id}: not so that {claim}" for claim, holds in claims.items() if not holds]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
