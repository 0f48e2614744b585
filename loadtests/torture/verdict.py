"""The end: wait until everything has converged, then hold every acknowledged answer against the books of both engines.

oversold: units sold beyond an offer's total. undersold: units that nobody has and that nobody can hold. lost: an acknowledged hold, order,
payment, refund or top-up that is not there. duplicates: an effect that is there twice. Everything else that does not add up is a problem.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import text

from app.storage.intake import outbox_key
from app.storage.work import Engines, rooms_to_announce
from loadtests.torture.book import PLACED, Book, Purchase
from tests.support.auditor.ledger import audit_ledger
from tests.support.auditor.stock import audit_stock

CONVERGE_S_MAX = 240.0
POLL_S = 0.25
SAY_EVERY_S = 10
ORDERS = "select id, prize, state, amount_minor, refunded_minor, quantity, returned, offer_id, payment_id from orders"
RECORDS = (
    ("orders", "id"),
    ("offers", "id"),
    ("payments", "order_id"),
    ("payments", "id"),
    ("refunds", "order_id"),
    ("return_requests", "order_id"),
    ("disputes", "order_id"),
    ("draws", "id"),
    ("envelopes", "id"),
)
BOUGHT_STATES = ("paid", "shipped", "delivered", "refunded")


@dataclass(slots=True)
class Verdict:
    converged_s: float = 0.0
    oversold: int = 0
    undersold: int = 0
    lost: list[str] = field(default_factory=list[str])
    duplicates: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])
    figures: Counter[str] = field(default_factory=Counter[str])

    @property
    def holds(self) -> bool:
        return not (self.oversold or self.undersold or self.lost or self.duplicates or self.problems)


async def judge(engines: Engines, book: Book, rooms: Sequence[str], say: Callable[[str], None]) -> Verdict:
    verdict = Verdict(lost=book.lost, duplicates=book.duplicates, problems=book.problems)
    began = time.monotonic()
    waits = await converge(engines, rooms, say)
    verdict.converged_s = time.monotonic() - began
    verdict.problems += [f"not converged after {CONVERGE_S_MAX:.0f} s: {wait}" for wait in waits]
    verdict.problems += [*await audit_stock(engines, rooms), *await audit_ledger(engines)]
    await _compare_holds(engines, book, rooms, verdict)
    await _compare_sql(engines, book, verdict)
    return verdict


async def converge(engines: Engines, rooms: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Until nothing is under way any more. What still is, when the time is over."""
    now = said = time.monotonic()
    until = now + CONVERGE_S_MAX
    while True:
        waits, now = await _under_way(engines, rooms), time.monotonic()
        if not waits or now > until:
            return waits
        if now - said > SAY_EVERY_S:
            said = now
            say(f"still under way: {'; '.join(waits)}")
        await asyncio.sleep(POLL_S)


async def _under_way(engines: Engines, rooms: Sequence[str]) -> list[str]:
    waits: list[str] = []
    for room in rooms:
        if entries := await engines.sales.xlen(outbox_key(room)):
            waits.append(f"{entries} outbox entries of {room}")
        if open_holds := await engines.sales.zcard(f"{{{room}}}:deadlines"):
            waits.append(f"{open_holds} deadlines of {room}")
        if lines := await engines.fanout.xlen(f"{{{room}}}:chat:archive"):
            waits.append(f"{lines} lines of the chat of {room}")
    waits += [f"announcements of {room}" for room in await rooms_to_announce(engines)]
    queries = {
        "payments without an end": "select count(*) from payments where state = 'pending'",
        "webhooks to send": "select count(*) from sandbox_charges where left_to_send > 0",
        "calls to the provider": "select count(*) from provider_calls where state = 'due'",
        "draws that are not over": "select count(*) from draws where state in ('preparing', 'open') or settled_at is null",
        "envelopes that are not settled": "select count(*) from envelopes where state = 'open'",
        "price steps to take": "select count(*) from offers where next_step_at < now()",
        "units to give back": "select count(*) from refunds where restock > 0 and not restocked",
    }
    async with engines.sql.read() as session:
        for name, query in queries.items():
            if count := await session.scalar(text(query)):
                waits.append(f"{count} {name}")
    return waits


async def _compare_holds(engines: Engines, book: Book, rooms: Sequence[str], verdict: Verdict) -> None:
    """Every acknowledged hold is in the engine, with its terms, in a state that its answers allow."""
    for room in rooms:
        records = {name.decode(): msgspec.json.decode(raw) for name, raw in (await engines.sales.hgetall(f"{{{room}}}:holds")).items()}
        verdict.figures["holds in the engine"] += len(records)
        verdict.figures["holds whose answer was lost"] += sum(name not in book.purchases for name in records)
        for hold, purchase in book.purchases.items():
            if hold.startswith(f"{room}-"):
                _compare_hold(book, purchase, records.get(hold), verdict)


def _compare_hold(book: Book, purchase: Purchase, record: dict[str, Any] | None, verdict: Verdict) -> None:
    if record is None:
        verdict.lost.append(f"hold {purchase.hold} was acknowledged and is not in the engine")
        return
    price = purchase.terms[1] if purchase.terms[0] else record["price"]  # who waits is told the price when their turn comes
    said = (purchase.viewer, purchase.offer, purchase.quantity, price)
    kept = (record["viewer"], record["offer"], record["quantity"], record["price"])
    if said != kept:
        verdict.lost.append(f"hold {purchase.hold} was acknowledged as {said}; the engine has {kept}")
    if book.ends(purchase, record["state"]) and purchase.placed is not None and record["state"] not in PLACED:
        verdict.lost.append(f"order {purchase.hold} was acknowledged, and its hold is {record['state']}")


async def _compare_sql(engines: Engines, book: Book, verdict: Verdict) -> None:
    async with engines.sql.read() as session:
        orders = {row.id: row for row in await session.execute(text(ORDERS))}
        payments = {row.id: row for row in await session.execute(text("select id, order_id, state, method, amount_minor from payments"))}
        refunds = (await session.execute(text("select id, order_id, payment_id, amount_minor, by, reason, state from refunds"))).all()
        moved = (await session.execute(text("select id from transfers where kind = 'payment'"))).scalars().all()
        offers = {row.id: row for row in await session.execute(text("select id, total, sold, state from offers"))}
        dead = await session.scalar(text("select count(*) from dead_letters"))
    if dead:
        verdict.problems.append(f"{dead} dead letters")
    verdict.figures["orders in SQL"] = len(orders)
    _compare_orders(book, orders, verdict)
    _compare_payments(book, orders, payments, set(moved), verdict)
    _compare_refunds(book, refunds, verdict)
    for refund in refunds:
        fails = payments[refund.payment_id].method == "sandbox_refund_fails"
        if (refund.state == "failed") != fails or refund.state == "pending":
            verdict.problems.append(f"refund {refund.id} of {refund.order_id} by {payments[refund.payment_id].method} is {refund.state}")
    _compare_offers(book, orders, offers, verdict)


def _compare_orders(book: Book, orders: dict[str, Any], verdict: Verdict) -> None:
    for purchase in book.purchases.values():
        order = orders.get(purchase.hold)
        if purchase.placed is None:
            continue
        if order is None:
            verdict.lost.append(f"order {purchase.hold} was acknowledged and is not in SQL")
        elif order.amount_minor != purchase.placed[0]:
            verdict.lost.append(f"order {purchase.hold} was acknowledged over {purchase.placed[0]}, in SQL it is {order.amount_minor}")
    for order in orders.values():
        verdict.figures[f"orders {order.state}"] += 1
    for name in book.paid_heard:
        if name not in orders or orders[name].state not in BOUGHT_STATES:
            verdict.lost.append(f"order {name} was told to be paid, in SQL it is {orders[name].state if name in orders else 'missing'}")


def _compare_payments(book: Book, orders: dict[str, Any], payments: dict[str, Any], moved: set[str], verdict: Verdict) -> None:
    """One end for each attempt, one transfer for money that came, one payment for an order that is paid."""
    succeeded: Counter[str] = Counter()
    for payment in payments.values():
        verdict.figures[f"payments {payment.state}"] += 1
        came = payment.state in {"succeeded", "refunded"}
        if came != (f"payment:{payment.id}" in moved):
            verdict.problems.append(f"payment {payment.id} is {payment.state}, and its money is {'not ' if came else ''}in the ledger")
        if payment.state == "succeeded":
            succeeded[payment.order_id] += 1
            order = orders.get(payment.order_id)
            if order is None or order.payment_id != payment.id:
                verdict.problems.append(f"payment {payment.id} succeeded, and its order does not say so")
    verdict.duplicates += [f"order {order} was paid {count} times" for order, count in succeeded.items() if count > 1]
    for order in orders.values():
        if order.state in BOUGHT_STATES and not succeeded[order.id] and not order.prize:
            verdict.problems.append(f"order {order.id} is {order.state} without a payment that succeeded")
    for purchase in book.purchases.values():
        for name, method in purchase.payments.values():
            state = payments[name].state if name in payments else "missing"
            if (state == "declined") != (method == "sandbox_decline") or state in {"missing", "pending"}:
                verdict.lost.append(f"payment {name} by {method} was acknowledged; in SQL it is {state}")


def _compare_refunds(book: Book, refunds: Sequence[Any], verdict: Verdict) -> None:
    """As many refunds by hosts as were acknowledged, no more and no fewer."""
    done = Counter(row.order_id for row in refunds if row.by != "system" and not row.reason.startswith("return: "))
    verdict.figures["refunds by hosts"] = done.total()
    verdict.figures["refunds by rule or return request"] = len(refunds) - done.total()
    for purchase in book.purchases.values():
        said, there = len(purchase.refunds), done[purchase.hold]
        if there < said:
            verdict.lost.append(f"{said} refunds of {purchase.hold} were acknowledged, {there} are in SQL")
        elif there > said:
            verdict.duplicates.append(f"{said} refunds of {purchase.hold} were acknowledged, {there} are in SQL")


def _compare_offers(book: Book, orders: dict[str, Any], offers: dict[str, Any], verdict: Verdict) -> None:
    units: Counter[str] = Counter()
    for order in orders.values():
        if order.state in BOUGHT_STATES:
            units[order.offer_id] += order.quantity - order.returned
    for name, offer in book.offers.items():
        row = offers.get(name)
        if row is None:
            verdict.lost.append(f"offer {name} was acknowledged and is not in SQL")
            continue
        if units[name] > row.total:
            verdict.oversold += units[name] - row.total
            verdict.problems.append(f"offer {name} sold {units[name]} units of {row.total}")
        expected = offer.total + offer.added
        if row.total < expected:
            verdict.lost.append(f"offer {name} was topped up to {expected}, in SQL it has {row.total}")
        elif row.total > expected:
            verdict.duplicates.append(f"offer {name} was topped up to {expected}, in SQL it has {row.total}")
        if (row.state == "withdrawn") != offer.is_withdrawn:
            verdict.lost.append(f"offer {name} is {row.state}, its host was told otherwise")


async def records_of(engines: Engines, names: Sequence[str]) -> dict[str, Any]:
    """What both engines have under these ids, for the report of what broke."""
    found: dict[str, Any] = {}
    async with engines.sql.read() as session:
        for name in names:
            tag = f"{{{name.partition('-')[0]}}}"
            for kind in ("holds", "offers"):
                if raw := await engines.sales.hget(f"{tag}:{kind}", name):
                    found[f"{kind} {name} in the engine"] = msgspec.json.decode(raw)
            for table, column in RECORDS:
                rows = await session.execute(text(f"select * from {table} where {column} = :name"), {"name": name})  # noqa: S608 - our own names
                found.update({f"{table} {name} {at}": dict(row) for at, row in enumerate(rows.mappings())})
    return found
