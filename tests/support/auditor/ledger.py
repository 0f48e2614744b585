"""An independent reading of the ledger and of what is funded from it: plain SQL and sums, nothing of the product's own rules."""

from collections import defaultdict

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.storage.work import Engines


async def audit_ledger(engines: Engines) -> list[str]:
    """What is wrong, in words; empty when all holds."""
    async with engines.sql.read() as session:
        parts = (_audit_accounts, _audit_envelopes, _audit_draws, _audit_refunds, _audit_disputes)
        return [problem for part in parts for problem in await part(session)]


async def _audit_accounts(session: AsyncSession) -> list[str]:
    accounts = (await session.execute(text("select name, currency, balance_minor, pending_minor from ledger_accounts"))).all()
    transfers = (
        await session.execute(text("select id, debit_account, credit_account, currency, amount_minor, posted_minor, state from transfers"))
    ).all()
    balances: defaultdict[tuple[str, str], int] = defaultdict(int)
    pendings: defaultdict[tuple[str, str], int] = defaultdict(int)
    problems: list[str] = []
    for transfer_id, debit, credit, currency, amount, posted, state in transfers:
        if debit == credit or amount < 1:
            problems.append(f"transfer {transfer_id} moves {amount} from {debit} to {credit}")
        if state == "posted":
            if not 1 <= posted <= amount:
                problems.append(f"transfer {transfer_id} of {amount} posted {posted}")
            balances[debit, currency] -= posted
            balances[credit, currency] += posted
        elif state == "pending":
            pendings[debit, currency] += amount
        elif state != "voided":
            problems.append(f"transfer {transfer_id} is {state}")
    totals: defaultdict[str, int] = defaultdict(int)
    known = set()
    for name, currency, balance, pending in accounts:
        known.add((name, currency))
        totals[currency] += balance
        if balance != balances[name, currency]:
            problems.append(f"{name} says {balance} {currency}, its transfers say {balances[name, currency]}")
        if pending != pendings[name, currency]:
            problems.append(f"{name} says {pending} {currency} pending, its transfers say {pendings[name, currency]}")
        if balance - pending < 0 and not name.startswith("external:"):
            problems.append(f"{name} is overdrawn: {balance} less {pending} pending")
    problems += [f"{currency} sums to {total}" for currency, total in totals.items() if total]
    return problems + [f"transfers name {key}, which is no account" for key in {*balances, *pendings} - known]


async def _audit_envelopes(session: AsyncSession) -> list[str]:
    rows = await session.execute(
        text(
            "select e.id, e.state, e.total_minor, e.share_count, e.remaining, e.opened_minor, e.refunded_minor,"
            " coalesce((select balance_minor from ledger_accounts a where a.name = 'envelope:' || e.id and a.currency = e.currency), 0),"
            " (select sum(amount_minor) from envelope_shares s where s.envelope_id = e.id),"
            " (select count(*) from envelope_shares s where s.envelope_id = e.id),"
            " (select count(*) from envelope_shares s where s.envelope_id = e.id and s.viewer_id is not null),"
            " coalesce((select sum(amount_minor) from envelope_shares s where s.envelope_id = e.id and s.viewer_id is not null), 0),"
            " coalesce((select sum(posted_minor) from transfers t where t.debit_account = 'envelope:' || e.id"
            "   and t.kind = 'envelope.share'), 0),"
            " coalesce((select sum(posted_minor) from transfers t where t.debit_account = 'envelope:' || e.id"
            "   and t.kind = 'envelope.refunded'), 0)"
            " from envelopes e"
        )
    )
    problems: list[str] = []
    for row in rows:
        envelope_id, state, total, count, remaining, opened, refunded, escrow, split_sum, split_count, taken, taken_sum, paid, returned = (
            row
        )
        expected = {
            "the split's sum is the total": split_sum == total,
            "the split has `count` shares": split_count == count,
            "remaining + taken = count": remaining + taken == count,
            "opened = the shares taken": opened == taken_sum,
            "opened = what was paid out": opened == paid,
            "refunded = what was returned": refunded == returned,
            "funded = opened + refunded + open": total == opened + refunded + escrow,
            "nothing is left of a settled one": state != "settled" or escrow == 0,
        }
        problems += [f"envelope {envelope_id}: not so that {claim}" for claim, holds in expected.items() if not holds]
    return problems


async def _audit_draws(session: AsyncSession) -> list[str]:
    rows = await session.execute(
        text(
            "select a.name, a.balance_minor, d.state from ledger_accounts a join draws d on a.name = 'draw:' || d.id"
            " where a.balance_minor <> 0 and d.state in ('drawn', 'cancelled')"
        )
    )
    return [f"{name} still holds {balance} though the draw is {state}" for name, balance, state in rows]


async def _audit_refunds(session: AsyncSession) -> list[str]:
    """Each refund is one movement, and one back if it failed; an order's total is what went back of its payment, at most all of it."""
    rows = await session.execute(
        text(
            "select r.id, r.state, r.amount_minor,"
            " (select posted_minor from transfers t where t.id = 'refund:' || r.id and t.state = 'posted'),"
            " (select posted_minor from transfers t where t.id = 'refund_failed:' || r.id and t.state = 'posted') from refunds r"
        )
    )
    problems = [
        f"refund {refund_id} of {amount} is {state}, but {out} went out and {back} came back"
        for refund_id, state, amount, out, back in rows
        if (out, back) != (amount, amount if state == "failed" else None)
    ]
    orders = await session.execute(
        text(
            "select o.id, o.refunded_minor, least(o.amount_minor,"
            " (select coalesce(sum(amount_minor), 0) from refunds r where r.payment_id = o.payment_id and r.state <> 'failed')"
            " + (select coalesce(sum(amount_minor), 0) from disputes d where d.payment_id = o.payment_id and d.state = 'lost'))"
            " from orders o where o.payment_id is not null"
        )
    )
    return problems + [f"order {order_id} says {said} refunded, its rows {due}" for order_id, said, due in orders if said != due]


async def _audit_disputes(session: AsyncSession) -> list[str]:
    rows = await session.execute(
        text(
            "select d.id, d.state, d.covered, d.amount_minor,"
            " (select sum(amount_minor) from transfers t where t.id in ('dispute:' || d.id, 'dispute:' || d.id || '\\:lost')"
            "   and t.state = case d.state when 'open' then 'pending' else 'posted' end) from disputes d"
        )
    )
    return [
        f"dispute {dispute_id} of {amount} is {state}, but {moved} moved"
        for dispute_id, state, covered, amount, moved in rows
        if moved != (amount if covered and state != "won" else None)
    ]
