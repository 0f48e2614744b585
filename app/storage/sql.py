"""PostgreSQL: the engine, the declarative base of every domain's `tables.py`, and how a transaction is opened.

Constraints get their names from one convention, so that migrations can name what they drop. Relationships are not used across
domains; instances do not expire at commit, since nothing may be loaded behind the reader's back in asyncio.
"""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, ClassVar

import msgspec
from sqlalchemy import BigInteger, DateTime, MetaData, Text, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Table(DeclarativeBase):
    """Base of all tables. `str` is text, `int` is 64 bits, `datetime` is with time zone, `dict` and `list` are JSONB."""

    metadata = MetaData(naming_convention=_NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text(),
        int: BigInteger(),
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(),
        list[Any]: JSONB(),
    }


def async_url(database_url: str) -> str:
    """Accepts the addresses that platforms hand out (`postgres://`, `postgresql://`) and names the driver."""
    scheme, separator, rest = database_url.partition("://")
    return f"postgresql+asyncpg{separator}{rest}" if scheme in {"postgres", "postgresql", "postgresql+asyncpg"} else database_url


async def sql_now_ms(session: AsyncSession, script_now_ms: int) -> int:
    """The database's clock, for deadlines that SQL keeps: no node's clock decides. `script_now_ms` wins where it is not 0 (Runtime)."""
    query = select(func.extract("epoch", func.now()) * 1000)
    return script_now_ms or int(await session.scalar(query) or 0)


def _json_text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


class Sql:
    """A connection pool. One a process."""

    def __init__(self, database_url: str, *, pool_size: int = 10) -> None:
        self.engine: AsyncEngine = create_async_engine(
            async_url(database_url),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            pool_timeout=10,
            json_serializer=_json_text,
            json_deserializer=json.loads,
        )
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[AsyncSession]:
        """A transaction: committed at the end of the block, rolled back if it raises. Services flush, they never commit."""
        async with self._sessions() as session, session.begin():
            yield session

    @asynccontextmanager
    async def read(self, *, snapshot: bool = False) -> AsyncGenerator[AsyncSession]:
        """A read-only view: PostgreSQL itself refuses a write in it. `snapshot`: all its readings are of one moment."""
        isolation = {"isolation_level": "REPEATABLE READ"} if snapshot else {}
        async with self._sessions() as session, session.begin():
            await session.connection(execution_options={"postgresql_readonly": True, **isolation})
            yield session

    async def close(self) -> None:
        await self.engine.dispose()
