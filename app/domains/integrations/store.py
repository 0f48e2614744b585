"""SQL of webhooks. Endpoints are read by whoever announces an event; deliveries are leased by whoever sends them."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, exists, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.domains.integrations.tables import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from app.storage.bulk import BulkInsert
from app.storage.due import NOW, Condition

_ENDPOINTS_LOCK = "select pg_advisory_xact_lock(hashtextextended('integrations:endpoints', 0))"


async def lock_endpoints(session: AsyncSession) -> None:
    """Two who add an endpoint at once wait here, so that the limit holds."""
    await session.execute(text(_ENDPOINTS_LOCK))


async def count_endpoints(session: AsyncSession) -> int:
    return await session.scalar(select(func.count()).select_from(WebhookEndpoint)) or 0


async def fetch_endpoint(session: AsyncSession, endpoint_id: str) -> WebhookEndpoint | None:
    return await session.get(WebhookEndpoint, endpoint_id)


async def list_endpoints(session: AsyncSession, *, after_id: str = "", limit: int = 1000) -> Sequence[WebhookEndpoint]:
    query = select(WebhookEndpoint).where(WebhookEndpoint.id > after_id).order_by(WebhookEndpoint.id).limit(limit)
    return (await session.scalars(query)).all()


async def delete_endpoint(session: AsyncSession, endpoint_id: str) -> bool:
    found = await session.scalar(delete(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id).returning(WebhookEndpoint.id))
    return found is not None


_insert_deliveries = BulkInsert(
    WebhookDelivery,
    *("id", "endpoint_id", "identity", "event", "body", "state", "attempts", "next_attempt_at", "created_at"),
    after="on conflict do nothing",
)


async def insert_deliveries(session: AsyncSession, deliveries: Sequence[dict[str, object]]) -> None:
    """Without those whose endpoint has their identity already."""
    await _insert_deliveries(session, deliveries)


async def list_deliveries(session: AsyncSession, endpoint_id: str, *, before_id: str, limit: int) -> Sequence[WebhookDelivery]:
    """The newest first."""
    query = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id)
    if before_id:
        query = query.where(WebhookDelivery.id < before_id)
    return (await session.scalars(query.order_by(WebhookDelivery.id.desc()).limit(limit))).all()


async def list_attempts(session: AsyncSession, delivery_ids: Iterable[str]) -> dict[str, list[WebhookAttempt]]:
    ids = list(delivery_ids)
    attempts: dict[str, list[WebhookAttempt]] = {delivery_id: [] for delivery_id in ids}
    query = select(WebhookAttempt).where(WebhookAttempt.delivery_id.in_(ids)).order_by(WebhookAttempt.id)
    for row in await session.scalars(query):
        attempts[row.delivery_id].append(row)
    return attempts


async def lease_due(
    session: AsyncSession, *, now: datetime, lease: timedelta, limit: int, per_endpoint: int
) -> list[tuple[WebhookDelivery, WebhookEndpoint]]:
    """Takes due deliveries for the time of the lease, and counts the attempt. A few an endpoint, so that a dead one holds up no other."""
    rank = func.row_number().over(partition_by=WebhookDelivery.endpoint_id, order_by=WebhookDelivery.next_attempt_at)
    due = (
        select(WebhookDelivery.id, rank.label("rank"))
        .where(WebhookDelivery.state == "pending", WebhookDelivery.next_attempt_at <= now)
        .subquery()
    )
    query = (
        select(WebhookDelivery, WebhookEndpoint)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(
            WebhookDelivery.id.in_(select(due.c.id).where(due.c.rank <= per_endpoint)),
            # Read again under the lock: another worker may have taken it since the subquery looked.
            WebhookDelivery.state == "pending",
            WebhookDelivery.next_attempt_at <= now,
        )
        .order_by(WebhookDelivery.next_attempt_at, WebhookDelivery.id)
        .limit(limit)
        .with_for_update(of=WebhookDelivery, skip_locked=True)
    )
    leased = [(delivery, endpoint) for delivery, endpoint in await session.execute(query)]
    for delivery, _ in leased:
        delivery.attempts += 1
        delivery.next_attempt_at = now + lease
    await session.flush()
    return leased


DELIVERY_IS_DUE: Condition = exists().where(WebhookDelivery.state == "pending", WebhookDelivery.next_attempt_at <= NOW)


async def finish_attempt(
    session: AsyncSession, *, delivery_id: str, attempt: int, state: str, next_attempt_at: datetime, record: WebhookAttempt
) -> None:
    """Records the attempt; moves the delivery on unless a later attempt has taken it over meanwhile."""
    ours = (WebhookDelivery.id == delivery_id, WebhookDelivery.attempts == attempt, WebhookDelivery.state == "pending")
    change = update(WebhookDelivery).where(*ours).values(state=state, next_attempt_at=next_attempt_at)
    await session.execute(change)
    found = await session.scalar(select(WebhookDelivery.id).where(WebhookDelivery.id == delivery_id).with_for_update(key_share=True))
    if found:  # else the endpoint was deleted while this was under way
        session.add(record)


async def delete_old_deliveries(session: AsyncSession, *, before: datetime, limit: int) -> None:
    old = select(WebhookDelivery.id).where(WebhookDelivery.created_at < before, WebhookDelivery.state != "pending").limit(limit)
    await session.execute(delete(WebhookDelivery).where(WebhookDelivery.id.in_(old)))
