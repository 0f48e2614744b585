"""Accounts and transfers. Balances are kept beside the transfers and always equal their sum (audited, and checked by reconcile)."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.storage.sql import Table


class LedgerAccount(Table):
    """One owner's money in one currency. What may be spent is `balance_minor - pending_minor`."""

    __tablename__ = "ledger_accounts"
    __table_args__ = (
        CheckConstraint("pending_minor >= 0", name="pending_not_negative"),
        CheckConstraint("may_go_negative OR balance_minor - pending_minor >= 0", name="not_overdrawn"),
    )

    name: Mapped[str] = mapped_column(primary_key=True)  # viewer:<id>, room:<id>, envelope:<id>, draw:<id>, external:<provider>
    currency: Mapped[str] = mapped_column(primary_key=True)
    balance_minor: Mapped[int] = mapped_column(default=0)
    pending_minor: Mapped[int] = mapped_column(default=0)  # reserved by pending transfers out of this account
    may_go_negative: Mapped[bool] = mapped_column(default=False)  # only the outside world: its minus is what came in


class Transfer(Table):
    """One movement: `amount_minor` leaves `debit_account` and arrives at `credit_account`.

    Never changed but for a pending one, which ends once: posted with `posted_minor` (the whole or a part), or voided.
    """

    __tablename__ = "transfers"
    __table_args__ = (
        ForeignKeyConstraint(["debit_account", "currency"], ["ledger_accounts.name", "ledger_accounts.currency"]),
        ForeignKeyConstraint(["credit_account", "currency"], ["ledger_accounts.name", "ledger_accounts.currency"]),
        CheckConstraint("amount_minor > 0", name="amount_positive"),
        CheckConstraint("debit_account <> credit_account", name="two_accounts"),
        CheckConstraint(
            "(state = 'posted' AND posted_minor BETWEEN 1 AND amount_minor) OR (state IN ('pending', 'voided') AND posted_minor = 0)",
            name="state_fits_posted",
        ),
        Index(None, "debit_account", "at", "id"),
        Index(None, "credit_account", "at", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    debit_account: Mapped[str]
    credit_account: Mapped[str]
    currency: Mapped[str]
    amount_minor: Mapped[int]
    posted_minor: Mapped[int]
    kind: Mapped[str]
    reference: Mapped[str]
    state: Mapped[str]  # posted, pending, voided
    two_phase: Mapped[bool] = mapped_column(default=False)  # it was asked for as a pending one
    at: Mapped[datetime]
    resolved_at: Mapped[datetime | None]  # when a pending one was posted or voided
