"""The ledger's decisions, pure: what each movement's outcome is, given the accounts and transfers that are there.

Order of checks, which is part of the contract: the same id again (repeated, or a conflict when its content differs), then funds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from app.core.money import AMOUNT_MINOR_MAX

EXTERNAL = "external:"


class TransferOutcome(StrEnum):
    DONE = "done"
    REPEATED = "repeated"  # this id was done before, with the same content: no second effect
    INSUFFICIENT_FUNDS = "insufficient_funds"
    CONFLICT = "conflict"  # this id was done before with other content; services raise it as an error


class ResolveOutcome(StrEnum):
    """How posting or voiding a pending transfer went."""

    DONE = "done"
    REPEATED = "repeated"
    ALREADY_POSTED = "already_posted"  # so it cannot be voided
    ALREADY_VOIDED = "already_voided"  # so it cannot be posted
    UNKNOWN = "unknown"
    CONFLICT = "conflict"  # posted before with another amount; services raise it as an error


class TransferState(StrEnum):
    POSTED = "posted"
    PENDING = "pending"
    VOIDED = "voided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """A transfer asked for. `pending` only reserves the amount."""

    transfer_id: str
    from_account: str
    to_account: str
    amount_minor: int
    currency: str
    kind: str
    reference: str = ""
    pending: bool = False


@dataclass(frozen=True, slots=True)
class Funds:
    """What an account holds before the movements."""

    balance_minor: int = 0
    pending_minor: int = 0
    may_go_negative: bool = False


@dataclass(slots=True)
class Decision:
    outcomes: list[TransferOutcome] = field(default_factory=list[TransferOutcome])
    done: list[Movement] = field(default_factory=list[Movement])
    balance_changes: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])  # (account, currency) -> change
    pending_changes: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])


def may_go_negative(account: str) -> bool:
    """Only accounts of the outside world: what came in from a provider is that provider's minus."""
    return account.startswith(EXTERNAL)


def check_movement(movement: Movement) -> None:
    """Raises ValueError for a movement that no caller may ask for: a bug, not an outcome."""
    if not 0 < movement.amount_minor <= AMOUNT_MINOR_MAX:
        raise ValueError(f"transfer {movement.transfer_id}: amount {movement.amount_minor} is not between 1 and {AMOUNT_MINOR_MAX}")
    if movement.from_account == movement.to_account:
        raise ValueError(f"transfer {movement.transfer_id}: both sides are {movement.from_account}")
    for account in (movement.from_account, movement.to_account):
        kind, colon, owner = account.partition(":")
        if not (kind and colon and owner):
            raise ValueError(f"transfer {movement.transfer_id}: {account!r} is no account name")


def decide_movements(movements: Sequence[Movement], funds: Mapping[tuple[str, str], Funds], existing: Mapping[str, Movement]) -> Decision:
    """Decides the movements one after another, each seeing what those before it did. An id may come twice in one list."""
    decision = Decision()
    seen = dict(existing)
    for movement in movements:
        outcome = _decide(movement, decision, funds, seen)
        decision.outcomes.append(outcome)
        if outcome is TransferOutcome.DONE:
            seen[movement.transfer_id] = movement
            _apply(movement, decision)
    return decision


def _decide(
    movement: Movement, decision: Decision, funds: Mapping[tuple[str, str], Funds], seen: Mapping[str, Movement]
) -> TransferOutcome:
    before = seen.get(movement.transfer_id)
    if before is not None:
        return TransferOutcome.REPEATED if before == movement else TransferOutcome.CONFLICT
    key = (movement.from_account, movement.currency)
    held = funds.get(key, Funds(may_go_negative=may_go_negative(movement.from_account)))
    spendable = held.balance_minor - held.pending_minor + decision.balance_changes.get(key, 0) - decision.pending_changes.get(key, 0)
    if not held.may_go_negative and spendable < movement.amount_minor:
        return TransferOutcome.INSUFFICIENT_FUNDS
    return TransferOutcome.DONE


def _apply(movement: Movement, decision: Decision) -> None:
    decision.done.append(movement)
    debit, credit = (movement.from_account, movement.currency), (movement.to_account, movement.currency)
    if movement.pending:
        decision.pending_changes[debit] = decision.pending_changes.get(debit, 0) + movement.amount_minor
    else:
        decision.balance_changes[debit] = decision.balance_changes.get(debit, 0) - movement.amount_minor
        decision.balance_changes[credit] = decision.balance_changes.get(credit, 0) + movement.amount_minor


def decide_post(state: TransferState, amount_minor: int, posted_minor: int, post_minor: int, *, was_pending: bool) -> ResolveOutcome:
    """`post_minor` of a pending transfer of `amount_minor` is asked for; the rest returns to the debited account."""
    if state is TransferState.VOIDED:
        return ResolveOutcome.ALREADY_VOIDED
    if state is TransferState.POSTED:
        return ResolveOutcome.REPEATED if was_pending and posted_minor == post_minor else ResolveOutcome.CONFLICT
    return ResolveOutcome.DONE if 0 < post_minor <= amount_minor else ResolveOutcome.CONFLICT


def decide_void(state: TransferState) -> ResolveOutcome:
    if state is TransferState.VOIDED:
        return ResolveOutcome.REPEATED
    return ResolveOutcome.ALREADY_POSTED if state is TransferState.POSTED else ResolveOutcome.DONE


def accounts_of(movements: Iterable[Movement]) -> list[tuple[str, str]]:
    """Every (account, currency) touched, in the one order in which accounts are locked."""
    return sorted({(account, m.currency) for m in movements for account in (m.from_account, m.to_account)})
