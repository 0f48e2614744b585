"""The books beside the sale at the end: return requests, disputes, the chat, money that was paid in, draws and envelopes."""

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Any

import httpx2
from sqlalchemy import text

from app.storage.work import Engines
from loadtests.torture.book import Book
from loadtests.torture.fairness import problems_of_draw, problems_of_envelope
from loadtests.torture.line import Unanswered, post
from loadtests.torture.plays import PlayBook
from loadtests.torture.verdict import Verdict

READ_TRIES = 10
DISPUTED = {"sandbox_dispute": "lost", "sandbox_dispute_won": "won"}


async def compare_side_books(engines: Engines, book: Book, deposits: list[tuple[str, str]], verdict: Verdict) -> None:
    async with engines.sql.read() as session:
        returns = {row.id: row for row in await session.execute(text("select id, order_id, state from return_requests"))}
        by_return = (await session.execute(text("select order_id from refunds where reason like 'return: %'"))).scalars().all()
        disputes = (await session.execute(text("select payment_id, state from disputes"))).all()
        payments = {row.id: row.state for row in await session.execute(text("select id, state from payments"))}
        messages = set((await session.execute(text("select id from chat_messages"))).scalars())
        paid_in = set((await session.execute(text("select id from transfers where kind = 'deposit'"))).scalars())
    _compare_returns(book, returns, Counter(by_return), verdict)
    _compare_disputes(book, Counter((row.payment_id, row.state) for row in disputes), payments, verdict)
    verdict.lost += [f"line {name} of the chat was acknowledged, and is not in the archive" for name in sorted(book.messages - messages)]
    names = [f"deposit:{room}:{reference}" for room, reference in deposits]
    verdict.lost += [f"{name} was acknowledged, and is not in the ledger" for name in names if name not in paid_in]
    verdict.figures["lines of the chat"] = len(messages)


def _compare_returns(book: Book, returns: dict[str, Any], by_return: Counter[str], verdict: Verdict) -> None:
    refunded: Counter[str] = Counter()
    for row in returns.values():
        verdict.figures[f"return requests {row.state}"] += 1
        refunded[row.order_id] += row.state == "refunded"
    for order, count in by_return.items():
        if count > refunded[order]:
            verdict.duplicates.append(f"{refunded[order]} return requests of {order} were refunded, and {count} refunds were made for them")
    for asked in book.returns.values():
        row = returns.get(asked.id)
        if row is None:
            verdict.lost.append(f"return request {asked.id} of {asked.purchase.hold} was acknowledged and is not in SQL")
        else:
            book.return_is(asked, row.state, "SQL ended with")


def _compare_disputes(book: Book, disputes: Counter[tuple[str, str]], payments: dict[str, str], verdict: Verdict) -> None:
    """A buyer who goes to the bank gets its word, once."""
    for (_, state), count in disputes.items():
        verdict.figures[f"disputes {state}"] += count
    for purchase in book.purchases.values():
        for payment, method in purchase.payments.values():
            end = DISPUTED.get(method)
            if end and payments.get(payment) in {"succeeded", "refunded"} and disputes[payment, end] != 1:
                verdict.problems.append(f"payment {payment} of {purchase.hold} by {method} has no dispute that was {end}")


async def compare_plays(engines: Engines, http: httpx2.AsyncClient, url: str, plays: PlayBook, verdict: Verdict) -> None:
    """By their public records, and in SQL who has which share."""
    for draw in plays.draws.values():
        said = await _read(http, f"{url}/api/v1/draws/{draw.id}")
        verdict.figures[f"draws {said['state']}"] += 1
        verdict.figures["entries in drawn draws"] += said["entrants"] if said["state"] == "drawn" else 0
        verdict.problems += problems_of_draw(draw, said)
    for envelope in plays.envelopes.values():
        said = await _read(http, f"{url}/api/v1/envelopes/{envelope.id}")
        verdict.figures["envelopes"] += 1
        verdict.figures["shares that were opened"] += sum(one["opened"] for one in said["shares"])
        verdict.problems += problems_of_envelope(envelope, said)
    async with engines.sql.read() as session:
        rows = await session.execute(text("select envelope_id, position, viewer_id from envelope_shares where viewer_id is not null"))
        holders = {(row.envelope_id, row.position): row.viewer_id for row in rows}
        transfers = set((await session.execute(text("select id from transfers where kind = 'envelope.share'"))).scalars())
    for envelope in plays.envelopes.values():
        for viewer, (_, position, amount) in envelope.shares.items():
            if holders.get((envelope.id, position)) != viewer or f"share:{envelope.id}:{viewer}" not in transfers:
                verdict.lost.append(
                    f"share {position} of envelope {envelope.id}, {amount} minor, was acknowledged to {viewer} and is not theirs"
                )


async def _read(http: httpx2.AsyncClient, url: str) -> dict[str, Any]:
    """Raises Unanswered when nobody answers at all: every process is there again by now."""
    for _ in range(READ_TRIES):
        with suppress(Unanswered):
            return await post(http, url, "", None, method="GET")
        await asyncio.sleep(1)
    raise Unanswered(url)
