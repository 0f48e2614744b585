"""SQL of staff and API keys, and the rate counters of sign-in."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import delete, func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.domains.accounts.rules import OPERATOR, Grant
from app.domains.accounts.tables import ApiKey, Staff, StaffGrant
from app.storage.redis import Redis

_OPERATORS_LOCK = "select pg_advisory_xact_lock(hashtextextended('accounts:operators', 0))"


async def fetch_staff(session: AsyncSession, staff_id: str) -> Staff | None:
    return await session.get(Staff, staff_id)


async def fetch_staff_by_login(session: AsyncSession, login: str) -> Staff | None:
    return (await session.scalars(select(Staff).where(Staff.login == login))).one_or_none()


async def list_staff(session: AsyncSession, *, after_login: str, limit: int) -> Sequence[Staff]:
    query = select(Staff).where(Staff.login > after_login).order_by(Staff.login).limit(limit)
    return (await session.scalars(query)).all()


async def list_grants(session: AsyncSession, staff_ids: Iterable[str]) -> dict[str, list[Grant]]:
    """Staff id -> grants, in the order they were given; each id asked for is there."""
    ids = list(staff_ids)
    query = select(StaffGrant).where(StaffGrant.staff_id.in_(ids)).order_by(StaffGrant.id)
    grants: dict[str, list[Grant]] = {staff_id: [] for staff_id in ids}
    for row in await session.scalars(query):
        grants[row.staff_id].append((row.role, row.room_id))
    return grants


async def insert_grants(session: AsyncSession, staff_id: str, grants: Iterable[Grant]) -> None:
    session.add_all(StaffGrant(staff_id=staff_id, role=role, room_id=room_id) for role, room_id in dict.fromkeys(grants))
    await session.flush()


async def delete_grants(session: AsyncSession, staff_id: str) -> None:
    await session.execute(delete(StaffGrant).where(StaffGrant.staff_id == staff_id))


async def delete_staff(session: AsyncSession, staff_id: str) -> None:
    await session.execute(delete(Staff).where(Staff.id == staff_id))


async def lock_operators(session: AsyncSession) -> None:
    """Two operators who remove each other at once wait here, so that one of them is refused."""
    await session.execute(text(_OPERATORS_LOCK))


async def count_other_operators(session: AsyncSession, staff_id: str) -> int:
    query = (
        select(func.count())
        .select_from(StaffGrant)
        .where(StaffGrant.role == OPERATOR, StaffGrant.room_id.is_(None), StaffGrant.staff_id != staff_id)
    )
    return await session.scalar(query) or 0


async def fetch_api_key(session: AsyncSession, key_id: str) -> ApiKey | None:
    return await session.get(ApiKey, key_id)


async def list_api_keys(session: AsyncSession, *, after_id: str, limit: int) -> Sequence[ApiKey]:
    query = select(ApiKey).where(ApiKey.id > after_id).order_by(ApiKey.id).limit(limit)
    return (await session.scalars(query)).all()


async def mark_api_key_used(session: AsyncSession, key_id: str, *, now: datetime, before: datetime) -> None:
    """At most one write a key and minute: `before` is a minute ago."""
    stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < before)
    await session.execute(update(ApiKey).where(ApiKey.id == key_id, stale).values(last_used_at=now))


async def count_attempt(client: Redis, bucket: str, window_s: int) -> int:
    """How often this bucket was counted in its window, this time included. The window begins with the first."""
    key = f"jishi:attempts:{bucket}"
    async with client.pipeline(transaction=True) as pipeline:
        pipeline.set(key, 0, ex=window_s, nx=True)
        pipeline.incr(key)
        replies = await pipeline.execute()
    return int(replies[1])
