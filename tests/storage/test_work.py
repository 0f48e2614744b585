"""A unit of work: what it audits is written at its end, so that the audit log is the last lock of all."""

import asyncio

from sqlalchemy import select

from app.storage.audit import verify_chain
from app.storage.tables import AuditEntry
from app.storage.work import Engines


async def test_an_act_does_not_lock_the_audit_log_before_the_end(engines: Engines) -> None:
    """Whoever asks for an audit and then waits for a row must not keep the row's holder from auditing: they would wait in a circle."""
    async with asyncio.timeout(5), engines.work() as first:
        await first.audit("room1", "mei", "envelope.settled", "e1")
        async with engines.work() as second:
            await second.audit("room1", "mei", "order.shipped", "o1")
        await first.audit("room1", "mei", "draw.drawn", "d1")
        await first.audit("another", "mei", "order.refunded", "o2")
    async with engines.sql.read() as session:
        entries = list(await session.scalars(select(AuditEntry).order_by(AuditEntry.id)))
        assert [await verify_chain(session, room_id) for room_id in ("room1", "another")] == [None, None]
    assert [entry.subject for entry in entries] == ["o1", "o2", "e1", "d1"]


async def test_an_act_that_is_rolled_back_leaves_no_entry(engines: Engines) -> None:
    try:
        async with engines.work() as work:
            await work.audit("room1", "mei", "order.shipped", "o1")
            raise ValueError("changed my mind")
    except ValueError:
        pass
    async with engines.sql.read() as session:
        assert list(await session.scalars(select(AuditEntry))) == []
