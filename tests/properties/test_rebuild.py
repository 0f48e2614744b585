"""Rebuilding a room's records from any two beginnings of one history, the engine's and SQL's: nothing known is undone, nothing oversold.

A history is a random walk of a few holds over the steps that there are. The engine survives with its first part, SQL has read some first
part of it, shorter or longer, and notes of the holds in it.
"""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.domains.inventory.rules import Hold, Known, Record, RoomBooks, Stock, Survivors, find_faults, rebuild

OFFERS = {"o1": 6, "o2": 4}
NEXT = {"": ["held"], "held": ["released", "expired", "ordered"], "ordered": ["cancelled", "lapsed", "sold"], "lapsed": ["sold"]}
IN_SQL = {"ordered", "cancelled", "lapsed", "sold"}
DEADLINE = 1000

Step = tuple[int, int]  # which hold, which of its next steps


@dataclass
class History:
    states: list[dict[int, str]] = field(default_factory=lambda: [{}])  # after each step

    def take(self, number: int, choice: int) -> None:
        state = self.states[-1].get(number, "")
        steps = NEXT.get(state, [])
        if not steps:
            return
        to = steps[choice % len(steps)]
        takes_stock = to == "held" or (state == "lapsed" and to == "sold")
        if takes_stock and self.left(offer_of(number)) < quantity_of(number):
            return
        self.states.append({**self.states[-1], number: to})

    def left(self, offer: str) -> int:
        taken = [number for number, state in self.states[-1].items() if state in {"held", "ordered", "sold"} and offer_of(number) == offer]
        return OFFERS[offer] - sum(map(quantity_of, taken))


def offer_of(number: int) -> str:
    return f"o{number % 2 + 1}"


def quantity_of(number: int) -> int:
    return number % 3 + 1


def record(number: int, state: str, **more: Any) -> Record:
    deadline = DEADLINE if state in {"held", "ordered"} else 0
    record = {"offer": offer_of(number), "viewer": f"v{number % 3}", "quantity": quantity_of(number), "state": state, "escrow": False}
    shared = {"session": "s", "price": 100, "version": 1, "policy": "p", "currency": "CNY"}
    return record | shared | {"deadline": deadline} | more


def terms(offer: str) -> Record:
    return {"session": "s", "version": 1, "total": OFFERS[offer], "price": 100, "policy": "p", "currency": "CNY", "state": "listed"}


def engine_at(states: dict[int, str]) -> Survivors:
    """As the scripts would have left it; checked by `find_faults` below."""
    holds = {f"h{number}": record(number, state, expires=DEADLINE) for number, state in states.items()}
    sums = {offer: dict.fromkeys(("held", "ordered", "sold"), 0) for offer in OFFERS}
    counts: dict[str, int] = {}
    for hold in holds.values():
        if hold["state"] in {"held", "ordered", "sold"}:
            sums[hold["offer"]][hold["state"]] += hold["quantity"]
            name = f"{hold['offer']}|{hold['viewer']}"
            counts[name] = counts.get(name, 0) + hold["quantity"]
    offers = {
        offer: terms(offer) | sums[offer] | {"available": total - sum(sums[offer].values()), "short": 0, "holds": 0, "out": False}
        for offer, total in OFFERS.items()
    }
    deadlines = {name: hold["deadline"] for name, hold in holds.items() if hold["deadline"]}
    return Survivors(offers=offers, holds=holds, counts=counts, deadlines=deadlines)


def books_of(before: Survivors, rebuilt: Any) -> RoomBooks:
    holds = {name: _read(hold, Hold) for name, hold in (before.holds | rebuilt.holds).items()}
    offers = {name: _read(offer, Stock) for name, offer in (before.offers | rebuilt.offers).items()}
    counts = {name: units for name, units in (before.counts | rebuilt.counts).items() if units}
    deadlines = {name: at_ms for name, at_ms in (before.deadlines | rebuilt.deadlines).items() if at_ms}
    return RoomBooks(offers=offers, holds=holds, counts=counts, deadlines=deadlines)


def _read(raw: Record, kind: Any) -> Any:
    return kind(**{name: value for name, value in raw.items() if name in kind.__struct_fields__})


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2)), max_size=40), st.integers(0, 60), st.integers(0, 60), st.booleans())
def test_nothing_known_is_undone_and_nothing_oversold(steps: list[Step], kept: int, read: int, vanished: bool) -> None:
    history = History()
    for step in steps:
        history.take(*step)
    survived = history.states[min(kept, len(history.states) - 1)]
    in_sql = history.states[min(read, len(history.states) - 1)]
    before = Survivors(offers={}, holds={}, counts={}, deadlines={}) if vanished else engine_at(survived)
    if vanished:
        survived = {}
    assert find_faults("r", books_of(before, rebuild(before, _known({}, is_cut=False), 0))) == []
    is_cut = read > kept or vanished
    rebuilt = rebuild(before, _known(in_sql, is_cut=is_cut), 0)
    books = books_of(before, rebuilt)
    assert find_faults("r", books) == []
    rank = {"held": 0, "released": 0, "expired": 0, "ordered": 1, "cancelled": 2, "lapsed": 2, "sold": 3}
    for number, state in in_sql.items():
        if state in IN_SQL:
            assert rank[books.holds[f"h{number}"].state] >= rank[state], "what SQL knows stands"
    for number, state in survived.items():
        assert rank[books.holds[f"h{number}"].state] >= rank[state], "what survived stands"
    for offer, stock in books.offers.items():
        promised = sum(quantity_of(n) for n, state in in_sql.items() if state in {"ordered", "sold"} and offer_of(n) == offer)
        assert stock.available + promised <= stock.total + stock.short, "no unit is for sale that an order in SQL has"
    open_in_sql = {f"h{number}" for number, state in in_sql.items() if state == "held"}
    assert set(rebuilt.void) == open_in_sql - books.holds.keys(), "exactly the noted holds that are gone are void"
    if in_sql.items() <= survived.items():
        assert rebuilt == rebuild(before, _known({}, is_cut=is_cut), 0), "where the engine has all that is known, nothing changes"


def _known(in_sql: dict[int, str], *, is_cut: bool) -> Known:
    orders = {f"h{number}": record(number, state) for number, state in in_sql.items() if state in IN_SQL}
    noted = {f"h{number}": {"viewer": "v", "offer": offer_of(number), "expires": DEADLINE} for number, s in in_sql.items() if s == "held"}
    return Known(terms={offer: terms(offer) for offer in OFFERS}, sessions={"s": "live"}, standing=orders, noted=noted, is_cut=is_cut)


def test_an_order_that_the_engine_forgot_in_good_order_is_no_loss() -> None:
    cancelled = {0: "cancelled"}
    assert rebuild(engine_at({}), _known(cancelled, is_cut=False), 0).holds == {}
    assert "h0" in rebuild(engine_at({}), _known(cancelled, is_cut=True), 0).holds


def test_units_that_were_given_back_stay_given_back_once() -> None:
    """SQL has a refund that the engine gave back in what it lost; one that both know counts once."""
    before = engine_at({1: "sold"})
    before.holds["h1"] |= {"given": {"refund1": 1}, "returned": 1}
    before.offers["o2"] |= {"sold": 1, "available": 3}
    known = _known({}, is_cut=True)
    known.standing["h1"] = record(1, "sold", given={"refund1": 1, "refund2": 1}, returned=2)
    rebuilt = rebuild(before, known, 0)
    assert rebuilt.holds["h1"]["given"] == {"refund1": 1, "refund2": 1}
    assert (rebuilt.offers["o2"]["sold"], rebuilt.offers["o2"]["available"], rebuilt.is_lost) == (0, 4, True)
    again = Survivors(
        offers=before.offers | rebuilt.offers, holds=before.holds | rebuilt.holds, counts=before.counts, deadlines=before.deadlines
    )
    assert rebuild(again, _known({}, is_cut=False), 0).offers == {}


def test_who_waits_goes_on_waiting_and_the_line_follows_from_it() -> None:
    whole = engine_at({})
    waits = record(9, "waiting", turn=3, deadline=0)  # of o2, one unit, for v0
    before = Survivors(offers=whole.offers, holds={"h9": waits}, counts={}, deadlines={}, line=frozenset({"o2|000000000001|gone"}))
    rebuilt = rebuild(before, _known({}, is_cut=False), 0)
    assert rebuilt.line == {"o2|000000000003|h9": True, "o2|000000000001|gone": False}
    assert rebuilt.offers == {"o2": whole.offers["o2"] | {"waiting": 1, "turns": 3}}
    assert (rebuilt.counts, rebuilt.holds, rebuilt.is_lost) == ({"o2|v0": 1}, {}, False)


def test_a_line_that_is_gone_is_put_together_from_what_sql_noted_and_one_without_an_offer_is_void() -> None:
    wait = {"viewer": "v1", "quantity": 1, "turn": 4, "since": 7, "ttl": 9}
    known = Known(
        terms={"o1": terms("o1")},
        sessions={"s": "live"},
        standing={},
        noted={},
        waits={"h1": wait | {"offer": "o1"}, "h2": wait | {"offer": "gone"}},
        is_cut=True,
    )
    rebuilt = rebuild(Survivors(offers={}, holds={}, counts={}, deadlines={}), known, 0)
    assert rebuilt.line == {"o1|000000000004|h1": True}
    hold = rebuilt.holds["h1"]
    assert (hold["state"], hold["since"], hold["ttl"], hold["session"], hold["deadline"]) == ("waiting", 7, 9, "s", 0)
    assert (rebuilt.offers["o1"]["waiting"], rebuilt.offers["o1"]["turns"], rebuilt.counts) == (1, 4, {"o1|v1": 1})
    assert rebuilt.void_waits == {"h2": wait | {"offer": "gone"}}


def test_a_prize_that_no_draw_knows_of_is_given_back_and_no_loss() -> None:
    before = engine_at({})
    for name in ("h1", "h3"):  # of o2
        before.holds[name] = record(1, "held", deadline=0) | {"escrow": True, "quantity": 2}
    before.offers["o2"] |= {"held": 4, "available": 0}
    known = _known({}, is_cut=False)
    known.standing["h1"] = record(1, "held", deadline=0) | {"escrow": True, "quantity": 2}
    rebuilt = rebuild(before, known, 0)
    assert {name: hold["state"] for name, hold in rebuilt.holds.items()} == {"h3": "released"}
    assert (rebuilt.offers["o2"]["held"], rebuilt.offers["o2"]["available"], rebuilt.is_lost) == (2, 2, False)
