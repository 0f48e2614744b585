"""Do the books of sales add up? Reads raw records from both engines; knows nothing of the scripts that wrote them.

total + short = available + held + ordered + sold          of every offer, none below zero; a first-paid hold takes units when it is sold
the counters are the sums over the holds' records          each hold in one known state
a deadline for every open hold, and for nothing else       a viewer's count is what they wait for, hold, ordered and bought
a place in its offer's line for every hold that waits      nobody waits for what could be theirs, and SQL's notes are of who waits
orders in SQL <-> holds ordered or sold, one to one        offers.sold = units of paid orders, less what was returned
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import text

from app.storage.work import Engines

OPEN = {"held", "ordered"}
HOLDING = {"held", "ordered", "sold"}
COUNTED = HOLDING | {"waiting"}
STATES = COUNTED | {"released", "expired", "cancelled", "lapsed", "closed"}
HOLD_STATE_OF = {
    "placed": "ordered",
    "paid": "sold",
    "shipped": "sold",
    "delivered": "sold",
    "refunded": "sold",
    "cancelled": "cancelled",
    "expired": "lapsed",
}


async def audit_stock(engines: Engines, room_ids: Sequence[str], *, after_intake: bool = True) -> list[str]:
    """Problems, one sentence each; empty when all adds up. `after_intake`: the outboxes are empty, so SQL is compared too."""
    problems: list[str] = []
    for room_id in room_ids:
        offers, holds, counts, deadlines, line = await _read(engines, room_id)
        problems += _sums(offers, holds) + _open_ends(holds, counts, deadlines) + _lines(offers, holds, line)
        if after_intake:
            problems += await _against_sql(engines, room_id, offers, holds)
    return problems


async def _read(engines: Engines, room_id: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, int], dict[str, int], list[str]]:
    tag = f"{{{room_id}}}"
    async with engines.sales.pipeline(transaction=True) as pipeline:
        for name in ("offers", "holds", "counts"):
            pipeline.hgetall(f"{tag}:{name}")
        pipeline.zrange(f"{tag}:deadlines", 0, -1, withscores=True)
        pipeline.zrange(f"{tag}:line", 0, -1)
        offers, holds, counts, deadlines, line = await pipeline.execute()
    return (
        {name.decode(): msgspec.json.decode(raw) for name, raw in offers.items()},
        {name.decode(): msgspec.json.decode(raw) for name, raw in holds.items()},
        {name.decode(): int(raw) for name, raw in counts.items()},
        {name.decode(): int(score) for name, score in deadlines},
        [name.decode() for name in line],
    )


def _sums(offers: dict[str, Any], holds: dict[str, Any]) -> list[str]:
    problems: list[str] = []
    units: Counter[tuple[str, str]] = Counter()
    for hold_id, hold in holds.items():
        if hold["state"] not in STATES:
            problems.append(f"hold {hold_id} is in no known state: {hold['state']}")
        if hold["state"] == "sold" or not hold.get("first_paid"):
            units[hold["offer"], hold["state"]] += hold["quantity"] - hold.get("returned", 0)
    for offer_id, offer in offers.items():
        if min(offer[name] for name in ("available", "held", "ordered", "sold", "short")) < 0:
            problems.append(f"offer {offer_id} has a counter below zero: {offer}")
        if offer["total"] + offer["short"] != offer["available"] + offer["held"] + offer["ordered"] + offer["sold"]:
            problems.append(f"offer {offer_id} does not add up: {offer}")
        if offer["short"] and offer["available"]:
            problems.append(f"offer {offer_id} sells what it owes: {offer}")
        wrong = [state for state in sorted(HOLDING) if offer[state] != units[offer_id, state]]
        problems += [f"offer {offer_id} counts {offer[state]} {state}, its holds {units[offer_id, state]}" for state in wrong]
    return problems


def _open_ends(holds: dict[str, Any], counts: dict[str, int], deadlines: dict[str, int]) -> list[str]:
    due = {hold_id: hold["deadline"] for hold_id, hold in holds.items() if hold["state"] in OPEN and not hold["escrow"]}
    theirs: Counter[str] = Counter()
    for hold in holds.values():
        if hold["state"] in COUNTED and not hold["escrow"]:
            theirs[f"{hold['offer']}|{hold['viewer']}"] += hold["quantity"]
    problems = [] if due == deadlines else [f"deadlines differ from open holds: {sorted(due.items() ^ deadlines.items())}"]
    return problems if theirs == counts else [*problems, f"viewers' counts differ: {sorted(theirs.items() ^ counts.items())}"]


def _lines(offers: dict[str, Any], holds: dict[str, Any], line: list[str]) -> list[str]:
    waits = sorted(f"{hold['offer']}|{hold['turn']:012d}|{name}" for name, hold in holds.items() if hold["state"] == "waiting")
    problems = [] if waits == line else [f"lines differ from holds that wait: {sorted(set(waits) ^ set(line))}"]
    for offer_id, offer in offers.items():
        mine = [name.rpartition("|")[2] for name in waits if name.startswith(f"{offer_id}|")]
        if offer.get("waiting", 0) != len(mine):
            problems.append(f"offer {offer_id} counts {offer.get('waiting')} who wait, they are {len(mine)}")
        if mine and offer["state"] == "listed" and holds[mine[0]]["quantity"] <= offer["available"]:
            problems.append(f"offer {offer_id} has units for {mine[0]}, who still waits")
    return problems


async def _against_sql(engines: Engines, room_id: str, offers: dict[str, Any], holds: dict[str, Any]) -> list[str]:
    query = text("select id, offer_id, state, quantity, returned from orders where room_id = :room")
    sold_query = text("select id, sold from offers where room_id = :room")
    noted_query = text("select id from wait_notes where room_id = :room")
    async with engines.sql.read() as session:
        rows = (await session.execute(query, {"room": room_id})).all()
        sold = {row.id: row.sold for row in await session.execute(sold_query, {"room": room_id})}
        noted = (await session.scalars(noted_query, {"room": room_id})).all()
    problems = [f"SQL has a note of the wait {name}, which is over" for name in noted if holds.get(name, {}).get("state") != "waiting"]
    orders = {row.id: row for row in rows}
    if len(orders) != len(rows):
        problems.append(f"room {room_id} has an order twice")
    units: Counter[str] = Counter()
    for row in rows:
        expected = HOLD_STATE_OF[row.state]
        if expected == "sold":
            units[row.offer_id] += row.quantity - row.returned
        hold = holds.get(row.id)
        if hold is None:
            problems += [f"order {row.id} has no hold"] if row.offer_id in offers else []
        elif (hold["state"], hold["quantity"], hold.get("returned", 0)) != (expected, row.quantity, row.returned):
            problems.append(f"order {row.id} is {row.state} x {row.quantity} in SQL, its hold {hold}")
    for name, hold in holds.items():
        if hold["state"] in {"ordered", "sold"} and name not in orders:
            problems.append(f"hold {name} is {hold['state']} without an order")
    differs = {name: count for name, count in sold.items() if count != units[name]}
    return problems + [f"offer {name} sold {count} in SQL, its orders {units[name]}" for name, count in differs.items()]
