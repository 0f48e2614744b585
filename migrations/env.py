"""How Alembic reaches the database and knows the tables. `jishi migrate` runs it; `make migration NAME=...` writes a new one."""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

import app.composition  # noqa: F401 - makes every domain's tables known
from app.storage.migrate import LOCK_NUMBER, LOCK_WAIT_S
from app.storage.sql import Table, async_url


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Table.metadata, compare_type=True, compare_server_default=True)
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_run() -> None:
    url = context.config.attributes.get("database_url") or os.environ["DATABASE_URL"]
    engine = create_async_engine(async_url(url), poolclass=pool.NullPool)
    try:
        async with engine.connect() as connection:
            await connection.execute(text(f"set lock_timeout = '{LOCK_WAIT_S}s'"))
            await connection.execute(text(f"select pg_advisory_lock({LOCK_NUMBER})"))
            await connection.execute(text("set lock_timeout = default"))
            await connection.commit()  # the lock is the connection's, not the transaction's: it goes when the connection is closed
            await connection.run_sync(run)
            await connection.commit()
    finally:
        await engine.dispose()


if context.is_offline_mode():
    context.configure(url="postgresql+asyncpg://", target_metadata=Table.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(connect_and_run())
