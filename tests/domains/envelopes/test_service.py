"""Envelopes against the real engines: who gets what, who pays, and what a repetition does."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from app.core.errors import AppError
from app.core.merkle import verify_inclusion
from app.domains.envelopes import service, store
from app.domains.envelopes.rules import CommittedShare, EnvelopeDraft, Mode, commitment, share_leaf, share_proof
from app.domains.wallet import service as wallet
from app.protocol.codes import BAD_REQUEST, INSUFFICIENT_FUNDS, NOT_FOUND, SERVICE_UNAVAILABLE
from app.protocol.commands import EnvelopeGrabbed
from app.protocol.events import EnvelopeUpdated, ShareOpened, decode_event
from app.storage.intake import outbox_key, take_in_room
from app.storage.work import Engines
from tests.support.auditor.ledger import audit_ledger
from tests.support.runtime import TestRuntime

ROOM = "room1"
SESSION = "room1-s1"


async def deposit(engines: Engines, amount_minor: int, reference: str = "bank-1") -> None:
    async with engines.work() as work:
        await wallet.deposit(work, room_id=ROOM, amount_minor=amount_minor, currency="CNY", reference=reference, by="op")


async def opened(engines: Engines, total_minor: int, count: int, *, mode: Mode = Mode.LUCKY, ttl_s: int = 60) -> str:
    await deposit(engines, total_minor)
    draft = EnvelopeDraft(title="Harvest", mode=mode, total_minor=total_minor, count=count, ttl_s=ttl_s)
    async with engines.work() as work:
        return (await service.open_envelope(work, draft, room_id=ROOM, session_id=SESSION, by="host")).id


async def grab(engines: Engines, envelope_id: str, viewer: str, key: str = "k1", *, is_staff: bool = False) -> EnvelopeGrabbed:
    return await service.grab(engines, envelope_id=envelope_id, viewer_id=viewer, key=key, is_staff=is_staff)


async def take_in(engines: Engines) -> None:
    while await take_in_room(engines, ROOM):
        pass


async def funds(engines: Engines, account: str) -> int:
    async with engines.sql.read() as session:
        return await wallet.balance(session, account, "CNY")


async def events(engines: Engines, channel: str) -> list[object]:
    publications, _ = await engines.streams.history(channel)
    return [decode_event(publication.data) for publication in publications]


async def test_hundreds_at_once_get_each_share_once_and_no_more_than_was_funded(engines: Engines) -> None:
    envelope_id = await opened(engines, 10_000, 60)
    answers = await asyncio.gather(*(grab(engines, envelope_id, f"v{i % 300}", f"k{i}") for i in range(600)))
    words = [answer.outcome.value for answer in answers]
    got = {answer.position: answer.amount_minor for answer in answers if answer.outcome == "opened"}
    assert words.count("opened") == 60
    assert sorted(got) == list(range(1, 61))
    assert sum(amount for amount in got.values() if amount) == 10_000
    assert set(words) == {"opened", "already", "empty"}
    await take_in(engines)
    async with engines.sql.read() as session:
        envelope = await service.fetch_envelope(session, envelope_id)
        shares = await service.list_shares(session, envelope)
    assert (envelope.state, envelope.ended_by, envelope.remaining, envelope.opened_minor) == ("settled", "emptied", 0, 10_000)
    assert {share.position: share.amount_minor for share in shares} == got
    assert await funds(engines, f"envelope:{envelope_id}") == 0
    winners = {f"v{i % 300}": answer.amount_minor for i, answer in enumerate(answers) if answer.outcome == "opened"}
    assert {share.viewer_id: share.amount_minor for share in shares} == winners
    for viewer, amount in list(winners.items())[:5]:
        assert await funds(engines, f"viewer:{viewer}") == amount
    assert await audit_ledger(engines) == []


async def test_the_published_split_recomputes_the_commitment(engines: Engines) -> None:
    envelope_id = await opened(engines, 500, 7)
    async with engines.sql.read() as session:
        envelope = await service.fetch_envelope(session, envelope_id)
        assert await service.list_shares(session, envelope) == []  # secret while it can be grabbed
    envelope = await service.end_envelope(engines, envelope_id, by="host")
    async with engines.sql.read() as session:
        rows = await service.list_shares(session, envelope)
    shares = [CommittedShare(row.position, row.amount_minor, row.salt) for row in rows]
    assert commitment(envelope_id, shares) == envelope.commitment
    assert len({share.salt for share in shares}) == 7
    proof = [bytes.fromhex(step) for step in share_proof(envelope_id, shares, 3)]
    root = bytes.fromhex(envelope.commitment)
    assert verify_inclusion(root, share_leaf(envelope_id, shares[2]), index=2, count=7, proof=proof)
    changed = CommittedShare(3, shares[2].amount_minor + 1, shares[2].salt)
    assert not verify_inclusion(root, share_leaf(envelope_id, changed), index=2, count=7, proof=proof)


async def test_order_of_the_checks_and_the_words_of_the_answers(engines: Engines, runtime: TestRuntime) -> None:
    envelope_id = await opened(engines, 20, 2, mode=Mode.EQUAL, ttl_s=60)
    first = await grab(engines, envelope_id, "a")
    assert (first.outcome, first.amount_minor, first.position) == ("opened", 10, 1)
    assert await grab(engines, envelope_id, "a") == first  # the same key, the same answer
    assert (await grab(engines, envelope_id, "a", "k2")).outcome == "already"
    assert (await grab(engines, envelope_id, "host", is_staff=True)).outcome == "not_eligible"
    runtime.advance(60_000 - 1)
    assert (await grab(engines, envelope_id, "b")).outcome == "opened"
    assert (await grab(engines, envelope_id, "c")).outcome == "empty"
    runtime.advance(1)
    assert (await grab(engines, envelope_id, "c")).outcome == "closed"
    assert (await grab(engines, envelope_id, "a", "k3")).amount_minor == 10  # an own share is told even then
    for unknown in ("nowhere", "room1-nothing"):
        with pytest.raises(AppError) as refused:
            await grab(engines, unknown, "a")
        assert refused.value.code is NOT_FOUND


async def test_what_nobody_opened_returns_when_time_is_up(engines: Engines, runtime: TestRuntime) -> None:
    envelope_id = await opened(engines, 1000, 10, ttl_s=60)
    mine = [(await grab(engines, envelope_id, f"v{i}")).amount_minor or 0 for i in range(4)]
    runtime.advance(59_999)
    await service.end_due_envelopes(engines)
    assert (await grab(engines, envelope_id, "late")).outcome == "opened"
    runtime.advance(1)
    await service.end_due_envelopes(engines)
    await service.end_due_envelopes(engines)
    await take_in(engines)
    async with engines.sql.read() as session:
        envelope = await service.fetch_envelope(session, envelope_id)
    assert (envelope.state, envelope.ended_by, envelope.remaining) == ("settled", "expired", 5)
    assert await funds(engines, f"room:{ROOM}") == envelope.refunded_minor == 1000 - envelope.opened_minor
    assert envelope.opened_minor > sum(mine)
    assert await audit_ledger(engines) == []
    states = [event.envelope.state for event in await events(engines, f"room:{ROOM}") if isinstance(event, EnvelopeUpdated)]
    assert states[-2:] == ["expired", "settled"]


async def test_ending_twice_refunds_once(engines: Engines) -> None:
    envelope_id = await opened(engines, 100, 4)
    once = await service.end_envelope(engines, envelope_id, by="host")
    twice = await service.end_envelope(engines, envelope_id, by="host")
    assert (once.state, once.ended_by, once.refunded_minor, twice.refunded_minor) == ("settled", "ended", 100, 100)
    assert await funds(engines, f"room:{ROOM}") == 100
    assert (await grab(engines, envelope_id, "a")).outcome == "closed"
    assert await audit_ledger(engines) == []


async def test_who_ends_one_behind_a_long_outbox_is_told_to_come_again(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """It once waited until everything was in SQL, longer than any client does."""
    monkeypatch.setattr("app.storage.intake.CATCH_UP_MS_MAX", -1)
    monkeypatch.setattr(engines.settings, "intake_batch_max", 1)
    envelope_id = await opened(engines, 100, 3)
    for viewer in ("a", "b"):
        await grab(engines, envelope_id, viewer)
    for _ in range(2):
        with pytest.raises(AppError, match="still being written") as refused:
            await service.end_envelope(engines, envelope_id, by="host")
        assert refused.value.code is SERVICE_UNAVAILABLE
    assert (await grab(engines, envelope_id, "c")).outcome == "closed", "it is ended all the same"
    ended = await service.end_envelope(engines, envelope_id, by="host")
    assert (ended.state, ended.remaining) == ("settled", 1)


async def test_an_envelope_beyond_the_rooms_money_changes_nothing(engines: Engines) -> None:
    await deposit(engines, 99)
    draft = EnvelopeDraft(title="Too much", mode=Mode.LUCKY, total_minor=100, count=3, ttl_s=60)
    with pytest.raises(AppError) as refused:
        async with engines.work() as work:
            await service.open_envelope(work, draft, room_id=ROOM, session_id=SESSION, by="host")
    assert refused.value.code is INSUFFICIENT_FUNDS
    assert await funds(engines, f"room:{ROOM}") == 99
    async with engines.sql.read() as session:
        assert await service.list_envelopes(session, SESSION, limit=10) == []
    assert await engines.streams.history(f"room:{ROOM}") == ([], (await engines.streams.position(f"room:{ROOM}")))


@pytest.mark.parametrize(("mode", "total_minor", "count"), [(Mode.LUCKY, 2, 3), (Mode.EQUAL, 10, 3)])
async def test_a_split_that_cannot_be_made_is_refused(engines: Engines, mode: Mode, total_minor: int, count: int) -> None:
    with pytest.raises(AppError) as refused:
        await opened(engines, total_minor, count, mode=mode)
    assert refused.value.code is BAD_REQUEST


async def test_the_room_hears_once_a_second_and_the_viewer_at_once(engines: Engines, runtime: TestRuntime) -> None:
    envelope_id = await opened(engines, 100, 50, mode=Mode.EQUAL)

    async def told() -> list[int]:
        return [event.envelope.remaining for event in await events(engines, f"room:{ROOM}") if isinstance(event, EnvelopeUpdated)]

    for i in range(3):
        await grab(engines, envelope_id, f"v{i}")
        await take_in(engines)
    assert await told() == []
    assert [view.remaining for view in await service.snapshot_envelopes(engines, ROOM)] == [50]  # what the events said
    runtime.advance(1000)
    await service.end_due_envelopes(engines)
    await service.end_due_envelopes(engines)
    assert await told() == [47]
    assert [view.remaining for view in await service.snapshot_envelopes(engines, ROOM)] == [47]
    assert [event.amount_minor for event in await events(engines, "user:v0") if isinstance(event, ShareOpened)] == [2]


# --- faults ---------------------------------------------------------------------------------------------------------------------------

Fault = Callable[[Engines], Awaitable[object]]


async def _flush_scripts(engines: Engines) -> None:
    await engines.sales.script_flush()


async def _take_in_twice(engines: Engines) -> None:
    """The worst repetition: the same entries under new ids, which the progress mark does not skip."""
    entries = await engines.sales.xrange(outbox_key(ROOM))
    await take_in(engines)
    for _, fields in entries:
        await engines.sales.xadd(outbox_key(ROOM), fields)


@pytest.mark.parametrize("fault", [_flush_scripts, _take_in_twice], ids=["script_flush", "intake_twice"])
async def test_money_is_right_after_a_fault(engines: Engines, fault: Fault) -> None:
    envelope_id = await opened(engines, 1000, 20)
    before = [await grab(engines, envelope_id, f"v{i}") for i in range(12)]
    await fault(engines)
    again = [await grab(engines, envelope_id, f"v{i}") for i in range(12)]
    assert again == before
    await take_in(engines)
    await service.end_envelope(engines, envelope_id, by="host")
    async with engines.sql.read() as session:
        envelope = await service.fetch_envelope(session, envelope_id)
    assert envelope.opened_minor == sum(answer.amount_minor or 0 for answer in before)
    assert envelope.remaining == 8
    assert await audit_ledger(engines) == []
    assert (await engines.sales.xlen(outbox_key(ROOM))) == 0


async def test_after_the_hot_keys_are_gone_a_viewer_still_learns_of_the_share(engines: Engines) -> None:
    envelope_id = await opened(engines, 100, 2)
    mine = await grab(engines, envelope_id, "a")
    await service.end_envelope(engines, envelope_id, by="host")
    await engines.sales.flushall()
    told = await grab(engines, envelope_id, "a", "k9")
    assert (told.outcome, told.amount_minor) == ("already", mine.amount_minor)
    assert (await grab(engines, envelope_id, "b")).outcome == "closed"


async def test_loading_again_changes_nothing(engines: Engines) -> None:
    envelope_id = await opened(engines, 100, 2)
    await grab(engines, envelope_id, "a")
    async with engines.sql.read() as session:
        envelope = await service.fetch_envelope(session, envelope_id)
        rows = await store.list_shares(session, envelope_id)
    assert await store.load_engine(engines, envelope, rows, 0) == "kept"
    assert (await grab(engines, envelope_id, "b")).position == 2


async def test_every_hot_key_of_an_envelope_goes_in_time(engines: Engines) -> None:
    envelope_id = await opened(engines, 100, 3)
    for viewer in ("a", "b"):
        await grab(engines, envelope_id, viewer)
    keys = await engines.sales.keys("*:envelope:*")
    assert len(keys) == 3
    assert [key for key in keys if await engines.sales.pttl(key) <= 0] == []
