"""SQL of the catalogue."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import exists, func, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.domains.catalogue.tables import Offer, Product
from app.storage.due import ENGINE_NOW, Condition


async def fetch_product(session: AsyncSession, product_id: str) -> Product | None:
    return await session.get(Product, product_id)


async def lock_product(session: AsyncSession, product_id: str) -> Product | None:
    return await session.get(Product, product_id, with_for_update=True, populate_existing=True)


async def list_products(session: AsyncSession, *, after: tuple[object, str] | None, limit: int) -> list[Product]:
    """Newest first. `after` is (created_at, id) of the last one seen."""
    query = select(Product).order_by(Product.created_at.desc(), Product.id.desc()).limit(limit)
    if after is not None:
        query = query.where(tuple_(Product.created_at, Product.id) < after)
    return list(await session.scalars(query))


async def fetch_offer(session: AsyncSession, offer_id: str) -> Offer | None:
    return await session.get(Offer, offer_id)


async def lock_offer(session: AsyncSession, offer_id: str) -> Offer | None:
    return await session.get(Offer, offer_id, with_for_update=True, populate_existing=True)


async def list_offers(session: AsyncSession, session_id: str) -> list[Offer]:
    """The whole shelf, withdrawn ones too, in its order; bounded by OFFERS_PER_SESSION_MAX where offers are made."""
    query = select(Offer).where(Offer.session_id == session_id).order_by(Offer.position, Offer.id)
    return list(await session.scalars(query))


async def list_due_steps(session: AsyncSession, at: datetime, limit: int) -> list[str]:
    """Ids of offers whose next price step is due, the one that waits longest first."""
    query = select(Offer.id).where(Offer.next_step_at <= at).order_by(Offer.next_step_at, Offer.id).limit(limit)
    return list(await session.scalars(query))


STEP_IS_DUE: Condition = exists().where(Offer.next_step_at <= ENGINE_NOW)


async def list_keywords(session: AsyncSession, session_id: str) -> list[tuple[str, str]]:
    """(offer, keyword) of the offers that are on the shelf and have one."""
    query = select(Offer.id, Offer.keyword).where(Offer.session_id == session_id, Offer.keyword != "", Offer.state != "withdrawn")
    return [(offer_id, keyword) for offer_id, keyword in (await session.execute(query)).all()]


async def list_offers_of(session: AsyncSession, session_ids: Collection[str], offer_ids: Collection[str]) -> list[Offer]:
    query = select(Offer).where(or_(Offer.session_id.in_(session_ids), Offer.id.in_(offer_ids))).order_by(Offer.id)
    return list(await session.scalars(query.execution_options(populate_existing=True)))


async def list_rooms_of(session: AsyncSession, session_ids: Collection[str]) -> list[str]:
    return list(await session.scalars(select(Offer.room_id).where(Offer.session_id.in_(session_ids)).distinct()))


async def shelf_size(session: AsyncSession, session_id: str) -> int:
    return await session.scalar(select(func.count()).select_from(Offer).where(Offer.session_id == session_id)) or 0


async def next_position(session: AsyncSession, session_id: str) -> int:
    return (await session.scalar(select(func.max(Offer.position)).where(Offer.session_id == session_id)) or 0) + 1


async def move_sold(session: AsyncSession, offer_id: str, quantity: int) -> bool:
    """Moves `sold` in one guarded statement; False when it would leave 0..total, or there is no such offer."""
    sold = Offer.sold + quantity
    statement = update(Offer).where(Offer.id == offer_id, sold >= 0, sold <= Offer.total).values(sold=sold).returning(Offer.id)
    return await session.scalar(statement, execution_options={"synchronize_session": False}) is not None
