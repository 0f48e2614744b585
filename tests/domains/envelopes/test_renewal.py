"""Envelopes in a new life of the engine: nothing is handed out before it is known what was given."""

import pytest

from app.core.errors import AppError
from app.domains.envelopes import service
from app.domains.envelopes.rules import CommittedShare, Mode, commitment
from app.protocol.codes import NOT_FOUND, SERVICE_UNAVAILABLE
from app.protocol.events import SalesReopened
from app.storage.intake import outbox_key
from app.storage.work import Engines
from tests.domains.envelopes.test_service import ROOM, deposit, events, funds, grab, opened, take_in
from tests.support.auditor.ledger import audit_ledger
from tests.support.lives import fail_over, remember, renew
from tests.support.runtime import TestRuntime


async def settled(engines: Engines, envelope_id: str) -> tuple[str, str, dict[str, int]]:
    """State, what ended it, and who has which share; whoever trusts nobody computes the commitment again."""
    async with engines.sql.read() as session:
        envelope = await service.fetch_envelope(session, envelope_id)
        rows = await service.list_shares(session, envelope)
    assert commitment(envelope_id, [CommittedShare(row.position, row.amount_minor, row.salt) for row in rows]) == envelope.commitment
    return envelope.state, envelope.ended_by, {row.viewer_id: row.position for row in rows if row.viewer_id}


async def test_an_engine_that_lacks_the_last_grabs_gives_no_share_twice(engines: Engines) -> None:
    envelope_id = await opened(engines, 1000, 8)
    first = await grab(engines, envelope_id, "v1")
    await take_in(engines)
    unread = await grab(engines, envelope_id, "v2")  # still in the outbox of both
    memory = await remember(engines)
    known = await grab(engines, envelope_id, "v3")  # SQL has it, the replica does not
    await take_in(engines)
    await grab(engines, envelope_id, "v4")  # nobody has it
    await fail_over(engines, memory, ROOM)

    assert await grab(engines, envelope_id, "v1") == first
    assert await grab(engines, envelope_id, "v2") == unread
    for viewer in ("v3", "v4", "v5"):
        assert (await grab(engines, envelope_id, viewer)).outcome == "frozen"
    with pytest.raises(AppError) as refused:
        await service.end_envelope(engines, envelope_id, by="host")
    assert refused.value.code is SERVICE_UNAVAILABLE

    await renew(engines)
    assert await grab(engines, envelope_id, "v3") == known
    assert (await grab(engines, envelope_id, "v3", "k2")).outcome == "already"
    assert [(await grab(engines, envelope_id, viewer)).position for viewer in ("v5", "v4")] == [4, 5]
    assert [event.lost for event in await events(engines, f"room:{ROOM}") if isinstance(event, SalesReopened)] == [True]
    await service.end_envelope(engines, envelope_id, by="host")
    assert await settled(engines, envelope_id) == ("settled", "ended", {"v1": 1, "v2": 2, "v3": 3, "v5": 4, "v4": 5})
    assert await funds(engines, "viewer:v3") == known.amount_minor
    assert await audit_ledger(engines) == []


async def test_an_empty_engine_gets_every_open_envelope_back(engines: Engines, runtime: TestRuntime) -> None:
    envelope_id = await opened(engines, 20, 2, mode=Mode.EQUAL)
    await grab(engines, envelope_id, "a")
    await take_in(engines)
    await fail_over(engines, {})
    assert (await grab(engines, envelope_id, "b")).outcome == "frozen"
    runtime.advance(60_000)
    await service.end_due_envelopes(engines)  # it is due, and has to wait
    await renew(engines)
    assert (await grab(engines, envelope_id, "a", "k9")).amount_minor == 10
    assert (await grab(engines, envelope_id, "b")).outcome == "closed"
    await service.end_due_envelopes(engines)
    await take_in(engines)
    assert await settled(engines, envelope_id) == ("settled", "expired", {"a": 1})
    assert (await grab(engines, envelope_id, "a", "k9")).position == 1
    assert await audit_ledger(engines) == []


async def test_what_was_settled_in_the_lost_tail_stays_settled(engines: Engines) -> None:
    envelope_id = await opened(engines, 100, 4)
    memory = await remember(engines)
    mine = await grab(engines, envelope_id, "a")
    await service.end_envelope(engines, envelope_id, by="host")
    await fail_over(engines, memory, ROOM)
    for _ in range(2):  # also while the room is closed: SQL knows that it is over
        assert (await grab(engines, envelope_id, "b")).outcome == "closed"
        told = await grab(engines, envelope_id, "a", "k2")
        assert (told.outcome, told.amount_minor) in {("already", mine.amount_minor), ("closed", None)}
        await renew(engines)
    await take_in(engines)
    assert await settled(engines, envelope_id) == ("settled", "ended", {"a": 1})
    assert await audit_ledger(engines) == []


async def test_a_share_whose_entry_was_set_aside_is_not_given_again(engines: Engines) -> None:
    """Intake could not write it: only the engine knows of it until an operator has seen to the dead letter."""
    envelope_id = await opened(engines, 100, 3)
    mine = await grab(engines, envelope_id, "a")
    await engines.sales.xtrim(outbox_key(ROOM), maxlen=0)
    await fail_over(engines, await remember(engines), ROOM)
    await renew(engines)
    assert [(await grab(engines, envelope_id, viewer)).position for viewer in ("b", "c", "d")] == [2, 3, None]
    assert await grab(engines, envelope_id, "a") == mine


async def test_an_emptied_envelope_whose_end_was_lost_is_settled(engines: Engines) -> None:
    """Once it stood open for ever: the engine took it for emptied, and so for announced."""
    envelope_id = await opened(engines, 20, 2)
    for viewer in ("a", "b"):
        await grab(engines, envelope_id, viewer)
    *_, (last, fields) = await engines.sales.xrange(outbox_key(ROOM))
    assert fields[b"t"] == b"envelope.closed"
    await engines.sales.xdel(outbox_key(ROOM), last)
    await take_in(engines)
    await fail_over(engines, {})
    await renew(engines)
    assert await settled(engines, envelope_id) == ("settled", "emptied", {"a": 1, "b": 2})
    assert await audit_ledger(engines) == []


async def test_a_closed_room_knows_no_envelope_that_sql_does_not(engines: Engines) -> None:
    await opened(engines, 100, 4)
    await fail_over(engines, {})
    with pytest.raises(AppError) as refused:
        await grab(engines, f"{ROOM}-nothing", "a")
    assert refused.value.code is NOT_FOUND


async def test_an_envelope_opens_the_closed_room_in_which_nothing_waits(engines: Engines) -> None:
    await deposit(engines, 100, "bank-0")
    first = await opened(engines, 100, 4)
    await fail_over(engines, {})
    assert (await grab(engines, first, "a")).outcome == "frozen"
    second = await opened(engines, 100, 4)
    assert (await grab(engines, second, "a")).outcome == "opened"
    assert (await grab(engines, first, "a")).outcome == "opened"
