"""A unit of work: what it audits is written at its end, so that the audit log is the last lock of all. And what counts as an outage."""

import asyncio

import asyncpg
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from app.core.errors import AppError
from app.protocol.codes import CONFLICT, SERVICE_UNAVAILABLE
from app.storage.audit import verify_chain
from app.storage.tables import AuditEntry
from app.storage.work import Engines, is_away


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


def of_postgres(cause: Exception) -> DBAPIError:
    """As SQLAlchemy's adapter wraps what asyncpg raised."""
    orig = RuntimeError(str(cause))
    orig.sqlstate = getattr(cause, "sqlstate", None)  # type: ignore[attr-defined]
    return DBAPIError("select 1", {}, orig)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (RedisConnectionError("gone"), True),
        (ConnectionRefusedError(), True),
        (AppError(SERVICE_UNAVAILABLE), True),
        (AppError(CONFLICT), False),
        (of_postgres(asyncpg.CannotConnectNowError("the database system is starting up")), True),
        (of_postgres(asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")), True),
        (of_postgres(asyncpg.AdminShutdownError("terminating connection")), True),
        (of_postgres(asyncpg.UniqueViolationError("duplicate key")), False),
        (asyncpg.InterfaceError("connection is closed"), True),
        (ValueError("no such order"), False),
    ],
    ids=str,
)
def test_an_outage_is_told_from_a_fault(failure: Exception, expected: bool) -> None:
    """A PostgreSQL that was starting up, and a connection that went in the middle of BEGIN, once counted against the entry at hand, and
    were an internal error to the caller."""
    assert is_away(failure) is expected


async def test_a_backend_that_is_ended_in_the_middle_is_an_outage(engines: Engines) -> None:
    with pytest.raises((DBAPIError, asyncpg.InterfaceError)) as failure:
        async with engines.sql.begin() as session:
            own = await session.scalar(text("select pg_backend_pid()"))
            async with engines.sql.begin() as other:
                await other.execute(text("select pg_terminate_backend(:pid)"), {"pid": own})
            await session.execute(text("select 1"))
    assert is_away(failure.value)
