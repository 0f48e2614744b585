"""The published vectors of "jishi-draw-1", and the table of what else the rules say. A change that breaks a vector needs a new name."""

import hashlib

import pytest

from app.domains.lottery.rules import (
    Condition,
    canonical_json,
    draw_places,
    entrants_root,
    evidence_of,
    normal_keyword,
    prize_of_unit,
    pseudonym_of,
    randomness_of,
    sha256_hex,
    shorten_name,
)

RULES = {"algorithm": "jishi-draw-1", "title": "Öffnung 抽奖", "prizes": [{"count": 3, "kind": "money"}], "closes_at": None, "b": True}
CANONICAL = '{"algorithm":"jishi-draw-1","b":true,"closes_at":null,"prizes":[{"count":3,"kind":"money"}],"title":"Öffnung 抽奖"}'
VECTOR = {
    "rules_hash": "f5ab9f903c33415f842c9f7158c57cee1c6b086a6c9a04f2acbcfd0b7326fe9e",
    "pseudonym_0": "1c731d2fbc6effe9838f24e6c69227be45cb20823efe81468860fdb10388192a",
    "root": "b8e90911f6e58740bd3f9d054a8265a4b7b5ed03a3a19109653a7eaddec8f0a3",
    "randomness": "c302d93eb5f78f228f1da02afab4d5a7215aef40fd98f73cf1fe5a8caa566eae",
    "places": [6, 8, 2],
    "all": [6, 8, 2, 1, 7, 9, 0, 4, 3, 5],
}
SALT, SEED = bytes(range(32)), bytes(range(32, 64))
VIEWERS = [f"viewer-{i}" for i in range(10)]


def leaves_of(viewers: list[str], condition: Condition = Condition.EVERYONE, keyword: str = "") -> list[bytes]:
    evidence = hashlib.sha256(evidence_of(condition, keyword)).digest()
    return [pseudonym_of(SALT, viewer) + evidence for viewer in viewers]


def test_published_vectors() -> None:
    assert canonical_json(RULES).decode() == CANONICAL
    rules_hash = bytes.fromhex(sha256_hex(canonical_json(RULES)))
    root = entrants_root(leaves_of(VIEWERS))
    randomness = randomness_of(rules_hash, root, SEED)
    assert {
        "rules_hash": rules_hash.hex(),
        "pseudonym_0": pseudonym_of(SALT, VIEWERS[0]).hex(),
        "root": root.hex(),
        "randomness": randomness.hex(),
        "places": draw_places(randomness, 10, 3),
        "all": draw_places(randomness, 10, 10),
    } == VECTOR


def test_only_the_set_of_entrants_counts() -> None:
    assert entrants_root(leaves_of(VIEWERS)) == entrants_root(leaves_of(VIEWERS[::-1]))


@pytest.mark.parametrize(
    "other",
    [VIEWERS[:-1], [*VIEWERS, "viewer-10"], [*VIEWERS[:-1], "viewer-x"], VIEWERS[1:]],
    ids=["one less", "one more", "one other", "first missing"],
)
def test_any_other_entrant_is_another_root(other: list[str]) -> None:
    assert entrants_root(leaves_of(other)) != entrants_root(leaves_of(VIEWERS))


def test_other_evidence_is_another_root() -> None:
    assert entrants_root(leaves_of(VIEWERS, Condition.KEYWORD, "tea")) != entrants_root(leaves_of(VIEWERS))


@pytest.mark.parametrize(
    ("entrants", "units", "places"),
    [(0, 3, []), (1, 1, [0]), (1, 5, [0])],
)
def test_edges(entrants: int, units: int, places: list[int]) -> None:
    assert draw_places(bytes(32), entrants, units) == places


def test_units_go_through_the_prizes_in_their_order() -> None:
    assert prize_of_unit([1, 3, 2]) == [0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("name", "short"), [("Li Wei", "L**i"), ("王小明", "王**明"), ("Al", "A**"), ("A", "A**"), (" ", "**"), ("", "**")]
)
def test_names_are_shortened(name: str, short: str) -> None:
    assert shorten_name(name) == short


@pytest.mark.parametrize(("typed", "normal"), [(" Spring TEA ", "spring tea"), ("ＴＥＡ", "tea"), ("春茶", "春茶"), ("Straße", "strasse")])
def test_keywords_are_compared_as_people_read_them(typed: str, normal: str) -> None:
    assert normal_keyword(typed) == normal
