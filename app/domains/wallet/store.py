"""SQL of the ledger. The one place where accounts are locked: always by (name, currency) in order, so that no two transactions wait
for each other as long as each asks for all its movements in one call."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import and_, insert, or_, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from app.domains.wallet.rules import Funds, Movement, TransferState, may_go_negative
from app.domains.wallet.tables import LedgerAccount, Transfer

AccountKey = tuple[str, str]  # name, currency


async def lock_accounts(session: AsyncSession, keys: Sequence[AccountKey]) -> dict[AccountKey, Funds]:
    """Makes the accounts that are missing and locks all of them. `keys` are sorted."""
    rows = [
        {"name": name, "currency": currency, "balance_minor": 0, "pending_minor": 0, "may_go_negative": may_go_negative(name)}
        for name, currency in keys
    ]
    await session.execute(upsert(LedgerAccount).on_conflict_do_nothing(), rows)
    query = (
        select(
            LedgerAccount.name,
            LedgerAccount.currency,
            LedgerAccount.balance_minor,
            LedgerAccount.pending_minor,
            LedgerAccount.may_go_negative,
        )
        .where(LedgerAccount.name.in_([name for name, _ in keys]), LedgerAccount.currency.in_({currency for _, currency in keys}))
        .order_by(LedgerAccount.name, LedgerAccount.currency)
        .with_for_update()
    )
    found = (await session.execute(query)).all()
    wanted = set(keys)
    return {(row[0], row[1]): Funds(row[2], row[3], row[4]) for row in found if (row[0], row[1]) in wanted}


async def fetch_movements(session: AsyncSession, transfer_ids: Sequence[str]) -> dict[str, Movement]:
    """The transfers of these ids that are there, as the movements that asked for them."""
    found = await session.scalars(select(Transfer).where(Transfer.id.in_(transfer_ids)))
    return {row.id: _as_movement(row) for row in found}


def _as_movement(row: Transfer) -> Movement:
    return Movement(
        transfer_id=row.id,
        from_account=row.debit_account,
        to_account=row.credit_account,
        amount_minor=row.amount_minor,
        currency=row.currency,
        kind=row.kind,
        reference=row.reference,
        pending=row.two_phase,
    )


async def insert_transfers(session: AsyncSession, movements: Sequence[Movement], at: datetime) -> None:
    """Raises IntegrityError when another transaction has just used an id for other accounts: nothing of this one stands then."""
    rows = [
        {
            "id": movement.transfer_id,
            "debit_account": movement.from_account,
            "credit_account": movement.to_account,
            "currency": movement.currency,
            "amount_minor": movement.amount_minor,
            "posted_minor": 0 if movement.pending else movement.amount_minor,
            "kind": movement.kind,
            "reference": movement.reference,
            "two_phase": movement.pending,
            "state": TransferState.PENDING if movement.pending else TransferState.POSTED,
            "at": at,
            "resolved_at": None,
        }
        for movement in movements
    ]
    await session.execute(insert(Transfer), rows)


_CHANGE = text(
    "update ledger_accounts a set balance_minor = a.balance_minor + c.balance, pending_minor = a.pending_minor + c.pending"
    " from unnest(cast(:names as text[]), cast(:currencies as text[]), cast(:balances as bigint[]), cast(:pendings as bigint[]))"
    " as c(name, currency, balance, pending) where a.name = c.name and a.currency = c.currency"
)


async def change_balances(session: AsyncSession, balances: Mapping[AccountKey, int], pendings: Mapping[AccountKey, int]) -> None:
    """One statement for all accounts. The table's checks refuse an overdraft even if a rule were wrong."""
    keys = sorted({*balances, *pendings})
    await session.execute(
        _CHANGE,
        {
            "names": [name for name, _ in keys],
            "currencies": [currency for _, currency in keys],
            "balances": [balances.get(key, 0) for key in keys],
            "pendings": [pendings.get(key, 0) for key in keys],
        },
    )


async def lock_transfer(session: AsyncSession, transfer_id: str) -> Transfer | None:
    """Accounts are locked before transfers, here as in `transfer_all`: read the accounts' names, lock them, then the row."""
    query = select(Transfer).where(Transfer.id == transfer_id)
    found = (await session.scalars(query)).one_or_none()
    if found is None:
        return None
    await lock_accounts(session, sorted([(found.debit_account, found.currency), (found.credit_account, found.currency)]))
    return (await session.scalars(query.with_for_update().execution_options(populate_existing=True))).one()


async def fetch_account(session: AsyncSession, name: str, currency: str) -> Funds:
    query = select(LedgerAccount.balance_minor, LedgerAccount.pending_minor, LedgerAccount.may_go_negative).where(
        LedgerAccount.name == name, LedgerAccount.currency == currency
    )
    row = (await session.execute(query)).one_or_none()
    return Funds(row[0], row[1], row[2]) if row else Funds(may_go_negative=may_go_negative(name))


async def list_transfers(
    session: AsyncSession, account: str, *, limit: int, before: tuple[datetime, str] | None = None
) -> Sequence[Transfer]:
    """Transfers in or out of an account, newest first, after the sort key `before`."""
    query = select(Transfer).where(or_(Transfer.debit_account == account, Transfer.credit_account == account))
    if before is not None:
        at, transfer_id = before
        query = query.where(or_(Transfer.at < at, and_(Transfer.at == at, Transfer.id < transfer_id)))
    return (await session.scalars(query.order_by(Transfer.at.desc(), Transfer.id.desc()).limit(limit))).all()
