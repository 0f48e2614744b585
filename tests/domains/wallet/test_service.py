"""The ledger against the real PostgreSQL: crowds on one account, retries, and what the tables themselves refuse."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from app.core.errors import AppError
from app.domains.wallet import service as wallet
from app.domains.wallet.rules import Movement, TransferOutcome
from app.protocol.codes import CONFLICT
from app.storage.work import Engines
from tests.support.auditor.ledger import audit_ledger


def movement(transfer_id: str, from_account: str, to_account: str, amount_minor: int) -> Movement:
    return Movement(
        transfer_id=transfer_id, from_account=from_account, to_account=to_account, amount_minor=amount_minor, currency="CNY", kind="test"
    )


async def do(engines: Engines, *movements: Movement) -> list[TransferOutcome]:
    async with engines.work() as work:
        return await wallet.transfer_all(work, movements)


async def funds(engines: Engines, account: str) -> int:
    async with engines.sql.read() as session:
        return await wallet.balance(session, account, "CNY")


async def test_a_crowd_on_one_account_never_overdraws_it(engines: Engines) -> None:
    await do(engines, movement("in", "external:deposit", "room:1", 100))
    outcomes = await asyncio.gather(*(do(engines, movement(f"t{i}", "room:1", f"viewer:{i}", 7)) for i in range(30)))
    words = [outcome for (outcome,) in outcomes]
    assert words.count(TransferOutcome.DONE) == 14
    assert words.count(TransferOutcome.INSUFFICIENT_FUNDS) == 16
    assert await funds(engines, "room:1") == 2
    assert await audit_ledger(engines) == []


async def test_the_same_transfer_at_once_is_done_once(engines: Engines) -> None:
    await do(engines, movement("in", "external:deposit", "room:1", 100))
    outcomes = await asyncio.gather(*(do(engines, movement("once", "room:1", "viewer:1", 60)) for _ in range(10)))
    words = [outcome for (outcome,) in outcomes]
    assert words.count(TransferOutcome.DONE) == 1
    assert words.count(TransferOutcome.REPEATED) == 9
    assert (await funds(engines, "room:1"), await funds(engines, "viewer:1")) == (40, 60)


async def test_transfers_in_both_directions_do_not_wait_for_each_other_for_ever(engines: Engines) -> None:
    await do(engines, movement("a", "external:deposit", "viewer:a", 100), movement("b", "external:deposit", "viewer:b", 100))
    await asyncio.gather(
        *(do(engines, movement(f"ab{i}", "viewer:a", "viewer:b", 1), movement(f"x{i}", "viewer:b", "viewer:c", 1)) for i in range(15)),
        *(do(engines, movement(f"ba{i}", "viewer:b", "viewer:a", 1), movement(f"y{i}", "viewer:a", "viewer:c", 1)) for i in range(15)),
    )
    assert [await funds(engines, f"viewer:{name}") for name in "abc"] == [85, 85, 30]
    assert await audit_ledger(engines) == []


async def test_a_used_id_with_other_content_is_an_error_and_nothing_of_the_list_stands(engines: Engines) -> None:
    await do(engines, movement("in", "external:deposit", "room:1", 100))
    with pytest.raises(AppError) as refused:
        await do(engines, movement("t1", "room:1", "viewer:1", 10), movement("in", "external:deposit", "room:1", 101))
    assert refused.value.code is CONFLICT
    assert await funds(engines, "room:1") == 100


async def test_a_deposit_counts_once_a_reference_and_is_audited(engines: Engines) -> None:
    words = []
    for _ in range(2):
        async with engines.work() as work:
            words.append(await wallet.deposit(work, room_id="r1", amount_minor=500, currency="CNY", reference="bank-7", by="op"))
    assert words == [TransferOutcome.DONE, TransferOutcome.REPEATED]
    async with engines.sql.read() as session:
        acts = (await session.execute(text("select actor, action, detail->>'reference' from audit_entries"))).all()
    assert [tuple(act) for act in acts] == [("op", "wallet.deposited", "bank-7")]


@pytest.mark.parametrize(
    "statement",
    [
        "update ledger_accounts set balance_minor = -1 where name = 'room:1'",
        "update ledger_accounts set pending_minor = 101 where name = 'room:1'",
        "update ledger_accounts set pending_minor = -1 where name = 'room:1'",
        "update transfers set amount_minor = 0",
        "update transfers set posted_minor = amount_minor + 1",
        "update transfers set credit_account = debit_account",
        "update transfers set credit_account = 'viewer:nobody'",
    ],
)
async def test_the_tables_refuse_what_no_rule_would_do(engines: Engines, statement: str) -> None:
    await do(engines, movement("in", "external:deposit", "room:1", 100))
    with pytest.raises(IntegrityError):
        async with engines.sql.begin() as session:
            await session.execute(text(statement))


async def test_the_auditor_sees_a_ledger_that_was_tampered_with(engines: Engines) -> None:
    await do(engines, movement("in", "external:deposit", "room:1", 100))
    async with engines.sql.begin() as session:
        await session.execute(text("update ledger_accounts set balance_minor = 101 where name = 'room:1'"))
    assert sorted(await audit_ledger(engines)) == ["CNY sums to 1", "room:1 says 101 CNY, its transfers say 100"]


async def test_a_reservation_is_posted_in_part_once_and_the_rest_is_free_again(engines: Engines) -> None:
    await do(engines, movement("in", "external:deposit", "room:1", 100))

    async def reserve(transfer_id: str, amount_minor: int) -> TransferOutcome:
        async with engines.work() as work:
            return await wallet.reserve_transfer(
                work,
                transfer_id=transfer_id,
                from_account="room:1",
                to_account="viewer:1",
                amount_minor=amount_minor,
                currency="CNY",
                kind="test",
            )

    async def post(transfer_id: str, amount_minor: int | None = None) -> str:
        async with engines.work() as work:
            return (await wallet.post_transfer(work, transfer_id=transfer_id, amount_minor=amount_minor)).value

    async def void(transfer_id: str) -> str:
        async with engines.work() as work:
            return (await wallet.void_transfer(work, transfer_id=transfer_id)).value

    assert [await reserve("p1", 60), await reserve("p2", 40), await reserve("p3", 1)] == ["done", "done", "insufficient_funds"]
    assert await funds(engines, "room:1") == 0
    assert [await post("p1", 25), await post("p1", 25), await void("p1")] == ["done", "repeated", "already_posted"]
    assert (await funds(engines, "room:1"), await funds(engines, "viewer:1")) == (35, 25)
    assert [await void("p2"), await void("p2"), await post("p2")] == ["done", "repeated", "already_voided"]
    assert (await funds(engines, "room:1"), await funds(engines, "viewer:1")) == (75, 25)
    assert [await post("p3"), await void("p3")] == ["unknown", "unknown"]
    with pytest.raises(AppError) as refused:
        await post("p1", 26)
    assert refused.value.code is CONFLICT
    assert await audit_ledger(engines) == []
