"""The ledger: transfers, pending transfers, balances.

A transfer is balanced by construction, unique by its id and never changed; a mistake is set right by another transfer. Not enough money
is an outcome, a used id with other content is an error. Whoever moves several amounts in one unit of work asks for them in one
`transfer_all`: accounts are then locked in one order and nobody waits in a circle.

Not here: who may move money (the callers decide), fees, exchange between currencies, paying out.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import AppError
from app.domains.wallet import store
from app.domains.wallet.rules import (
    Funds,
    Movement,
    ResolveOutcome,
    TransferOutcome,
    TransferState,
    accounts_of,
    check_movement,
    decide_movements,
    decide_post,
    decide_void,
)
from app.domains.wallet.tables import Transfer
from app.protocol.codes import CONFLICT
from app.storage.work import Work


async def transfer(
    work: Work,
    *,
    transfer_id: str,
    from_account: str,
    to_account: str,
    amount_minor: int,
    currency: str,
    kind: str,
    reference: str = "",
) -> TransferOutcome:
    """Moves money now: done, repeated or insufficient_funds. Raises AppError `conflict` when the id was used for something else."""
    movement = Movement(
        transfer_id=transfer_id,
        from_account=from_account,
        to_account=to_account,
        amount_minor=amount_minor,
        currency=currency,
        kind=kind,
        reference=reference,
    )
    return (await transfer_all(work, [movement]))[0]


async def reserve_transfer(
    work: Work,
    *,
    transfer_id: str,
    from_account: str,
    to_account: str,
    amount_minor: int,
    currency: str,
    kind: str,
    reference: str = "",
) -> TransferOutcome:
    """Sets money aside for a transfer that `post_transfer` or `void_transfer` ends, once."""
    movement = Movement(
        transfer_id=transfer_id,
        from_account=from_account,
        to_account=to_account,
        amount_minor=amount_minor,
        currency=currency,
        kind=kind,
        reference=reference,
        pending=True,
    )
    return (await transfer_all(work, [movement]))[0]


async def transfer_all(work: Work, movements: Sequence[Movement]) -> list[TransferOutcome]:
    """Many movements in a handful of statements; each sees what those before it did. One outcome a movement, in order."""
    if not movements:
        return []
    for movement in movements:
        check_movement(movement)
    funds = await store.lock_accounts(work.session, accounts_of(movements))
    existing = await store.fetch_movements(work.session, [movement.transfer_id for movement in movements])
    decision = decide_movements(movements, funds, existing)
    if TransferOutcome.CONFLICT in decision.outcomes:
        used = movements[decision.outcomes.index(TransferOutcome.CONFLICT)].transfer_id
        raise AppError(CONFLICT, f"transfer {used} was made before with other content")
    if decision.done:
        await store.insert_transfers(work.session, decision.done, work.now)
        await store.change_balances(work.session, decision.balance_changes, decision.pending_changes)
    return decision.outcomes


async def post_transfer(work: Work, *, transfer_id: str, amount_minor: int | None = None) -> ResolveOutcome:
    """Carries a pending transfer out, whole or `amount_minor` of it; the rest is free again."""
    row = await store.lock_transfer(work.session, transfer_id)
    if row is None:
        return ResolveOutcome.UNKNOWN
    post_minor = row.amount_minor if amount_minor is None else amount_minor
    outcome = decide_post(TransferState(row.state), row.amount_minor, row.posted_minor, post_minor, was_pending=row.two_phase)
    if outcome is ResolveOutcome.CONFLICT:
        raise AppError(CONFLICT, f"transfer {transfer_id} of {row.amount_minor} cannot be posted with {post_minor}")
    if outcome is ResolveOutcome.DONE:
        _resolve(row, TransferState.POSTED, post_minor, work.now)
        debit, credit = (row.debit_account, row.currency), (row.credit_account, row.currency)
        await work.session.flush()
        await store.change_balances(work.session, {debit: -post_minor, credit: post_minor}, {debit: -row.amount_minor})
    return outcome


async def void_transfer(work: Work, *, transfer_id: str) -> ResolveOutcome:
    """Gives up a pending transfer; what it reserved is free again."""
    row = await store.lock_transfer(work.session, transfer_id)
    if row is None:
        return ResolveOutcome.UNKNOWN
    outcome = decide_void(TransferState(row.state))
    if outcome is ResolveOutcome.DONE:
        _resolve(row, TransferState.VOIDED, 0, work.now)
        await work.session.flush()
        await store.change_balances(work.session, {}, {(row.debit_account, row.currency): -row.amount_minor})
    return outcome


def _resolve(row: Transfer, state: TransferState, posted_minor: int, at: datetime) -> None:
    row.state, row.posted_minor, row.resolved_at = state, posted_minor, at


async def balance(session: AsyncSession, account: str, currency: str) -> int:
    """What the account may spend now, in minor units; 0 for an account that was never used."""
    funds = await store.fetch_account(session, account, currency)
    return funds.balance_minor - funds.pending_minor


async def fetch_funds(session: AsyncSession, account: str, currency: str) -> Funds:
    """Balance and reservations of an account."""
    return await store.fetch_account(session, account, currency)


async def list_transfers(
    session: AsyncSession, account: str, *, limit: int, before: tuple[datetime, str] | None = None
) -> Sequence[Transfer]:
    return await store.list_transfers(session, account, limit=limit, before=before)


async def deposit(work: Work, *, room_id: str, amount_minor: int, currency: str, reference: str, by: str) -> TransferOutcome:
    """Money from outside into a room's account, once a reference (a bank's or a provider's id)."""
    outcome = await transfer(
        work,
        transfer_id=f"deposit:{room_id}:{reference}",
        from_account="external:deposit",
        to_account=f"room:{room_id}",
        amount_minor=amount_minor,
        currency=currency,
        kind="deposit",
        reference=reference,
    )
    if outcome is TransferOutcome.DONE:
        await work.audit(
            room_id, by, "wallet.deposited", f"room:{room_id}", amount_minor=amount_minor, currency=currency, reference=reference
        )
    return outcome
