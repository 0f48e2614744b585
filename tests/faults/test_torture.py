"""The short version of `make torture`: a few thousand random operations while each kind of process is killed or sleeps, then the books. And
that its tester notices what it is there to notice."""

import hashlib
import hmac
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from loadtests.torture.book import Book, OfferBook, Purchase
from loadtests.torture.fairness import places, problems_of_draw, problems_of_envelope, root
from loadtests.torture.journal import Journal
from loadtests.torture.plays import DrawBook, EnvelopeBook, PlayBook
from loadtests.torture.report import Teller
from loadtests.torture.run import Plan, run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("up"), pytest.mark.timeout(300)]

HELD: dict[str, object] = {"outcome": "held", "hold": "r-1", "expires_at": "t", "price_minor": 5}


def test_what_was_acknowledged_is_there_after_the_death_of_every_process(tmp_path: Path) -> None:
    said: list[str] = []
    plan = Plan(
        operations=1_000_000,
        seed=7,
        kill_every_s=0.9,
        seconds_max=6,
        viewers=30,
        rooms=2,
        hold_s=1,
        payment_s=2,
        report_dir=tmp_path,
        say=said.append,
    )
    verdict = run(plan)
    assert verdict.holds, said[-1]
    killed = said[-1].split("kills")[1].splitlines()[0]
    assert all(fate in killed for fate in ("engines", "postgres", "sleep", "valkey", "web", "worker")), killed
    assert list(tmp_path.iterdir()) == []


def purchase_held() -> tuple[Book, Purchase]:
    book, purchase = Book(offers={"r-o": OfferBook(1, 0, {5})}), Purchase("lin", "r-o", 1, "k")
    book.held(purchase, HELD)
    return book, purchase


def test_the_tester_notices_a_hold_that_was_made_again() -> None:
    book, purchase = purchase_held()
    book.held(purchase, HELD | {"repeated": True})
    assert (book.lost, book.duplicates) == ([], [])
    book.held(purchase, HELD)
    book.held(purchase, HELD | {"repeated": True, "expires_at": "later"})
    book.held(purchase, HELD | {"repeated": True, "hold": "r-2"})
    book.bought_by_word(purchase, {"outcome": "exhausted"})
    assert (len(book.lost), len(book.duplicates)) == (3, 1)


def test_the_tester_notices_a_price_that_nobody_asked_for() -> None:
    book, _ = purchase_held()
    book.held(Purchase("bo", "r-o", 1, "k2"), HELD | {"hold": "r-2", "price_minor": 4})
    assert book.lost == ["hold r-2 was acknowledged for 4, a price that r-o never had"]


@pytest.mark.parametrize(
    ("answers", "is_possible"),
    [
        ([("order.place", "placed"), ("order.cancel", "cancelled"), ("order.get", "cancelled")], True),
        ([("order.place", "placed"), ("order.cancel", "cancelled"), ("order.get", "paid")], False),
        ([("order.place", "placed"), ("order.get", "expired"), ("order.get", "paid")], True),
        ([("order.place", "placed"), ("order.get", "paid"), ("order.cancel", "expired")], False),
        ([("inventory.release", "released"), ("order.place", "placed")], False),
        ([("inventory.release", "unknown")], False),
        ([("inventory.wait", "waiting")], False),
    ],
)
def test_the_tester_notices_an_answer_that_takes_back_another(answers: list[tuple[str, str]], is_possible: bool) -> None:
    book, purchase = purchase_held()
    for method, outcome in answers:
        book.says(purchase, method, outcome)
        if outcome == "placed":
            book.placed(purchase, {"amount_minor": 5, "pay_by": "t"})
    assert (book.lost == []) is is_possible


@pytest.mark.parametrize(("answers", "is_possible"), [(("paid", "expired"), True), (("paid", "cancelled"), False)])
def test_two_answers_to_a_command_sent_twice_at_once_may_come_in_either_order(answers: tuple[str, ...], is_possible: bool) -> None:
    """The money came after the deadline: `expired`, then `paid`. In the order of their arrival it used to be called a broken promise."""
    book, purchase = purchase_held()
    book.placed(purchase, {"amount_minor": 5, "pay_by": "t"})
    book.says(purchase, "order.pay", *answers)
    assert (book.lost == []) is is_possible
    book.says(purchase, "order.pay", answers[1])
    assert book.lost, "one after the other there is one order"


def test_the_tester_notices_what_a_return_request_cannot_become() -> None:
    book, purchase = purchase_held()
    asked: dict[str, object] = {"outcome": "requested", "request": "r-q"}
    book.asked_back(purchase, "k", {}, asked)
    book.asked_back(purchase, "k", {}, asked | {"repeated": True})
    for state in ("approved", "received", "refunded"):
        book.return_is(book.returns["r-q"], state, "its host was told")
    assert (book.lost, book.duplicates) == ([], [])
    book.return_is(book.returns["r-q"], "approved", "its host was told")
    book.asked_back(purchase, "k", {}, asked)
    book.asked_back(purchase, "k", {}, asked | {"repeated": True, "request": "r-p"})
    assert (len(book.lost), len(book.duplicates)) == (2, 1)


def test_the_tester_notices_an_entry_that_is_gone_or_too_late() -> None:
    plays, draw = PlayBook(), DrawBook("r-d", "r", "", closes_ms=1000)
    for key, outcome in (("k1", "closed"), ("k1", "entered"), ("k1", "entered"), ("k2", "again"), ("k2", "frozen")):
        plays.entered(draw, "lin", key, outcome, 10)
    plays.entered(draw, "bo", "k", "closed", 1001)
    assert (plays.lost, plays.duplicates, draw.entries) == ([], [], {"lin": "k1"})
    plays.entered(draw, "lin", "k1", "closed", 10)
    plays.entered(draw, "lin", "k2", "entered", 10)
    plays.entered(draw, "bo", "k", "again", 10)
    plays.entered(draw, "bo", "k", "entered", 1001)
    assert (len(plays.lost), len(plays.duplicates)) == (2, 2)


def test_the_tester_notices_a_share_that_two_have_or_that_changes() -> None:
    plays, envelope = PlayBook(), EnvelopeBook("r-e", "r", "", closes_ms=1000)
    share: dict[str, Any] = {"outcome": "opened", "position": 1, "amount_minor": 7}
    for key, answer in (("k1", {"outcome": "empty"}), ("k1", share), ("k1", share), ("k2", share | {"outcome": "already"})):
        plays.grabbed(envelope, "lin", key, answer, 10)
    assert (plays.lost, plays.duplicates) == ([], [])
    plays.grabbed(envelope, "bo", "k", share, 10)
    plays.grabbed(envelope, "lin", "k1", share | {"amount_minor": 8}, 10)
    plays.grabbed(envelope, "lin", "k1", {"outcome": "empty"}, 10)
    plays.grabbed(envelope, "fei", "k", share | {"position": 2}, 1001)
    assert (len(plays.lost), len(plays.duplicates)) == (2, 2)


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def drawn() -> tuple[DrawBook, dict[str, Any]]:
    """A draw as the product publishes it, made by hand."""
    seed, salt, evidence = b"s" * 32, b"t" * 32, sha256_hex(b"{}")
    names = sorted(hmac.new(salt, viewer.encode(), hashlib.sha256).hexdigest() for viewer in ("lin", "bo", "fei"))
    rules = json.dumps(
        {
            "algorithm": "jishi-draw-1",
            "seed_hash": sha256_hex(seed),
            "salt_hash": sha256_hex(salt),
            "entrants_max": 9,
            "prizes": [{"name": "Tea", "count": 2}],
        }
    )
    top = root([bytes.fromhex(name + evidence) for name in names])
    randomness = hashlib.sha256(b"jishi-draw-1\x00" + bytes.fromhex(sha256_hex(rules.encode())) + top + seed).digest()
    winners = [{"unit": unit, "prize": "Tea", "index": place, "delivered": True} for unit, place in enumerate(places(randomness, 3, 2))]
    told = DrawBook("r-d", "r", sha256_hex(seed), 0, rules_hash=sha256_hex(rules.encode()), entries={"lin": "k", "bo": "k"})
    leaves = [{"pseudonym": name, "evidence_hash": evidence} for name in names]
    said = {"state": "drawn", "rules": rules, "rules_hash": told.rules_hash, "commitment": told.commitment, "entrants": 3}
    return told, said | {"seed": seed.hex(), "salt": salt.hex(), "root": top.hex(), "leaves": leaves, "winners": winners}


def test_the_tester_computes_a_draw_again() -> None:
    told, said = drawn()
    assert problems_of_draw(told, said) == []
    told.entries["mei"] = "k"
    assert "every acknowledged entry is in it (mei missing)" in problems_of_draw(told, said)[0]
    other = [dict(winner, index=(winner["index"] + 1) % 3) for winner in said["winners"]]
    for change in ({"state": "open"}, {"seed": "00" * 32}, {"winners": other}, {"root": "00" * 32}, {"rules": said["rules"] + " "}):
        assert problems_of_draw(*drawn()[:1], said | change), change


def test_the_tester_computes_an_envelope_again() -> None:
    shares = [{"position": at, "amount_minor": at, "salt": f"{at:032x}", "opened": at == 1} for at in (1, 2, 3)]
    top = root([f"jishi-share-1|r-e|{one['position']}|{one['amount_minor']}|{one['salt']}".encode() for one in shares]).hex()
    told = EnvelopeBook("r-e", "r", top, 0, shares={"lin": ("k", 1, 1)})
    said = {"state": "settled", "commitment": top, "total_minor": 6, "opened_minor": 1, "refunded_minor": 5, "shares": shares}
    assert problems_of_envelope(told, said) == []
    for change in ({"state": "open"}, {"refunded_minor": 4}, {"shares": [dict(shares[0], opened=False), *shares[1:]]}):
        assert problems_of_envelope(told, said | change), change


def test_what_broke_is_told_once_with_its_history(tmp_path: Path) -> None:
    said: list[str] = []
    book = Book(lost=["hold 0123456789-a was acknowledged and is not in the engine"])
    with closing(Journal(tmp_path / "torture.jsonl")) as journal:
        journal.note(kill="web")
        journal.note(method="inventory.reserve", data={"key": "k1"}, unanswered="cut")
        journal.note(method="inventory.reserve", data={"key": "k1"}, answer={"hold": "0123456789-a"})
        journal.note(method="inventory.reserve", data={"key": "k2"}, answer={"hold": "0123456789-b"})
        teller = Teller(said.append, journal, tmp_path / "build" / "report.json", {"seed": 1})
        teller.tell(book, 3)
        teller.tell(book, 4)
    assert said == ["     3 s  BROKEN (lost): hold 0123456789-a was acknowledged and is not in the engine"]
    teller.complete({book.lost[0]: {"order": None}})
    (broken,) = json.loads((tmp_path / "build" / "report.json").read_text())["broken"]
    assert [note.get("unanswered") or note.get("kill") or note["answer"]["hold"] for note in broken["history"]] == [
        "web",
        "cut",
        "0123456789-a",
    ]
    assert broken["records"] == {"order": None}
