"""Products and offers: what is on a shelf, at which terms.

Invariants: an offer's terms have passed `problems_of_terms`; `version` grows by one with every change that viewers see; `sold` moves
only by `count_sold` and stays within 0..total; a withdrawn offer never comes back.

These functions change rows and say nothing to anybody. Whoever changes an offer that viewers may be looking at goes through
`rooms.service` (`list_offer`, `reprice_offer`, `top_up_offer`, ...), which locks the room, emits the event and writes the audit log.
Live stock is not here: it is a reading of the engine that `inventory` owns.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import AppError
from app.core.ids import scoped_id
from app.core.runtime import at_text
from app.domains.catalogue import store
from app.domains.catalogue.rules import (
    OFFERS_PER_SESSION_MAX,
    OfferState,
    OfferTerms,
    PriceDecision,
    PriceStep,
    ReturnPolicy,
    SellingPolicy,
    decide_price_change,
    fold_keyword,
    lowest_price,
    offer_may_become,
    price_at,
    problem_of_top_up,
    problems_of_terms,
    steps_after,
    window_is_valid,
)
from app.domains.catalogue.tables import Offer, Product
from app.protocol.codes import BAD_REQUEST, CONFLICT, LIMIT_EXCEEDED, NOT_FOUND, OVER_LIMIT
from app.protocol.views import OfferView
from app.storage.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductDraft:
    name: str
    description: str = ""
    unit: str = ""
    image: str = ""
    village: str = ""
    lot: str = ""
    harvested_on: date | None = None
    return_policy: str = ReturnPolicy.NO_REASON_7_DAYS


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferDraft:
    """An offer before it stands on a shelf. What is None or empty comes from the product, the room or a default."""

    price_minor: int
    total: int
    name: str = ""
    limit_per_viewer: int = 0
    limit_per_order: int = 0
    list_price_minor: int | None = None
    product_id: str | None = None
    opens_at: datetime | None = None
    closes_at: datetime | None = None
    return_policy: str | None = None
    selling_policy: str = SellingPolicy.HOLD
    price_min_minor: int | None = None
    price_max_minor: int | None = None
    total_max: int | None = None
    discount_percent_max: int | None = None
    price_steps: Sequence[PriceStep] = ()
    keyword: str = ""


# --- products -----------------------------------------------------------------------------------------------------------------------


async def create_product(work: Work, draft: ProductDraft, *, owner_id: str = "system") -> Product:
    _check_product(draft.name, draft.return_policy)
    product = Product(
        id=work.runtime.new_id(),
        owner_id=owner_id,
        created_at=work.now,
        **{name: getattr(draft, name) for name in ProductDraft.__dataclass_fields__},
    )
    work.session.add(product)
    await work.session.flush()
    return product


async def change_product(work: Work, product_id: str, changes: dict[str, str | date | None]) -> Product:
    """`changes` holds fields of ProductDraft. Offers that stand on shelves keep what they were listed with."""
    product = await store.lock_product(work.session, product_id)
    if product is None:
        raise AppError(NOT_FOUND, "no such product")
    for name, value in changes.items():
        assert name in ProductDraft.__dataclass_fields__, name
        setattr(product, name, value)
    _check_product(product.name, product.return_policy)
    await work.session.flush()
    return product


async def get_product(session: AsyncSession, product_id: str) -> Product:
    product = await store.fetch_product(session, product_id)
    if product is None:
        raise AppError(NOT_FOUND, "no such product")
    return product


async def list_products(session: AsyncSession, *, after: tuple[datetime, str] | None, limit: int) -> list[Product]:
    return await store.list_products(session, after=after, limit=limit)


def _check_product(name: str, return_policy: str) -> None:
    if not name.strip():
        raise AppError(BAD_REQUEST, "name: give the product a name")
    if return_policy not in set(ReturnPolicy):
        raise AppError(BAD_REQUEST, f"return_policy: one of {', '.join(ReturnPolicy)}")


# --- offers -------------------------------------------------------------------------------------------------------------------------


async def create_offer(work: Work, *, room_id: str, session_id: str, currency: str | None = None, **terms: Any) -> Offer:
    """A new offer at the end of the shelf. `terms` are fields of OfferDraft; what is not given comes from the product or a default.

    Raises AppError: not_found (product), bad_request (terms), limit_exceeded (the shelf is full).
    """
    draft = OfferDraft(**terms)
    product = await get_product(work.session, draft.product_id) if draft.product_id else None
    if await store.shelf_size(work.session, session_id) >= OFFERS_PER_SESSION_MAX:
        raise AppError(LIMIT_EXCEEDED, f"a session holds at most {OFFERS_PER_SESSION_MAX} offers")
    offer = Offer(
        id=scoped_id(room_id, work.runtime.new_short_id()),
        room_id=room_id,
        session_id=session_id,
        product_id=draft.product_id,
        name=draft.name or (product.name if product else ""),
        currency=currency or work.engines.settings.currency,
        price_minor=draft.price_minor,
        list_price_minor=draft.price_minor if draft.list_price_minor is None else draft.list_price_minor,
        price_min_minor=draft.price_min_minor,
        price_max_minor=draft.price_max_minor,
        total_max=draft.total_max,
        discount_percent_max=draft.discount_percent_max,
        total=draft.total,
        sold=0,
        limit_per_viewer=draft.limit_per_viewer,
        limit_per_order=draft.limit_per_order,
        opens_at=whole_ms(draft.opens_at),
        closes_at=whole_ms(draft.closes_at),
        return_policy=draft.return_policy or (product.return_policy if product else ReturnPolicy.NO_REASON_7_DAYS),
        selling_policy=draft.selling_policy,
        keyword=draft.keyword.strip(),
        state=OfferState.LISTED,
        position=await store.next_position(work.session, session_id),
        version=1,
        created_at=work.now,
    )
    _set_steps(offer, draft.price_steps)
    _copy_origin(offer, product)
    _check_terms(offer)
    await _check_keyword(work, offer)
    work.session.add(offer)
    await work.session.flush()
    return offer


def _copy_origin(offer: Offer, product: Product | None) -> None:
    offer.image = product.image if product else ""
    offer.village = product.village if product else ""
    offer.lot = product.lot if product else ""
    offer.harvested_on = product.harvested_on if product else None
    offer.unit = product.unit if product else ""


def _problems(offer: Offer) -> list[str]:
    return problems_of_terms(OfferTerms(**{name: getattr(offer, name) for name in OfferTerms.__dataclass_fields__}))


def _check_terms(offer: Offer, known: Sequence[str] = ()) -> None:
    """`known`: what is so already. An operator is not bound by the limits; that must not keep the host from changing something else."""
    problems = [problem for problem in _problems(offer) if problem not in known]
    if problems:
        raise AppError(BAD_REQUEST, "; ".join(problems))


async def _check_keyword(work: Work, offer: Offer) -> None:
    """The caller holds the room's lock: of two offers that want one keyword at once, the second is refused."""
    others = [keyword for offer_id, keyword in await store.list_keywords(work.session, offer.session_id) if offer_id != offer.id]
    if offer.keyword and fold_keyword(offer.keyword) in {fold_keyword(keyword) for keyword in others}:
        raise AppError(CONFLICT, f"keyword: {offer.keyword!r} buys another offer of this session; choose another word")


async def list_keywords(session: AsyncSession, session_id: str) -> dict[str, str]:
    """Folded keyword -> offer, of what is on the shelf."""
    return {fold_keyword(keyword): offer_id for offer_id, keyword in await store.list_keywords(session, session_id)}


def whole_ms(at: datetime | None) -> datetime | None:
    """Whole milliseconds in UTC, as events state time: what is stored and what is told are the same. A naive time is UTC."""
    if at is None:
        return None
    aware = at if at.tzinfo else at.replace(tzinfo=UTC)
    return aware.astimezone(UTC).replace(microsecond=aware.microsecond // 1000 * 1000)


def _set_steps(offer: Offer, steps: Sequence[PriceStep]) -> None:
    offer.price_steps = list(steps)
    offer.next_step_at = datetime.fromtimestamp(steps[0]["at_ms"] / 1000, UTC) if steps else None


async def fetch_offer(session: AsyncSession, offer_id: str) -> Offer | None:
    return await store.fetch_offer(session, offer_id)


async def list_offers(session: AsyncSession, session_id: str) -> list[Offer]:
    """The whole shelf of a session in its order, withdrawn offers too."""
    return await store.list_offers(session, session_id)


async def list_offers_of(session: AsyncSession, session_ids: Collection[str], offer_ids: Collection[str]) -> list[Offer]:
    """The shelves of these sessions, and these offers, as SQL has them now."""
    return await store.list_offers_of(session, session_ids, offer_ids)


async def list_rooms_of(session: AsyncSession, session_ids: Collection[str]) -> list[str]:
    """The rooms in which these sessions have offers."""
    return await store.list_rooms_of(session, session_ids)


def offer_view(offer: Offer) -> OfferView:
    return OfferView(
        id=offer.id,
        name=offer.name,
        price_minor=offer.price_minor,
        list_price_minor=offer.list_price_minor,
        currency=offer.currency,
        total=offer.total,
        limit_per_viewer=offer.limit_per_viewer,
        limit_per_order=offer.limit_per_order,
        state=offer.state,
        selling_policy=offer.selling_policy,
        keyword=offer.keyword,
        opens_at=_text(offer.opens_at),
        closes_at=_text(offer.closes_at),
        return_policy=offer.return_policy,
        image=offer.image,
        village=offer.village,
        lot=offer.lot,
        harvested_on=offer.harvested_on.isoformat() if offer.harvested_on else None,
        unit=offer.unit,
        position=offer.position,
        version=offer.version,
    )


def _text(at: datetime | None) -> str | None:
    return None if at is None else at_text(round(at.timestamp() * 1000))


async def change_price(work: Work, offer_id: str, price_minor: int, *, limits_bind: bool = True) -> Offer:
    """The same price again changes nothing. Raises AppError: not_found, conflict (withdrawn), bad_request, over_limit.

    The list price follows upwards, since it cannot be below the price. Price steps to come stay; one that is due is overtaken.
    """
    offer = await _lock_shown(work, offer_id)
    least = lowest_price(offer.list_price_minor, offer.price_min_minor, offer.discount_percent_max)
    decision = decide_price_change(
        price_minor,
        price_minor=offer.price_minor,
        price_min_minor=least,
        price_max_minor=offer.price_max_minor,
        limits_bind=limits_bind,
    )
    if decision is PriceDecision.INVALID:
        raise AppError(BAD_REQUEST, "price_minor: a price is between 0 and 10^12 minor units")
    if decision is PriceDecision.OVER_LIMIT:
        text = _range(least, offer.price_max_minor)
        raise AppError(OVER_LIMIT, f"price_minor: delegated to the host is {text}; ask an operator for more")
    if decision is PriceDecision.CHANGE:
        offer.price_minor = price_minor
        _set_steps(offer, steps_after(offer.price_steps, round(work.now.timestamp() * 1000)))
        offer.list_price_minor = max(offer.list_price_minor, price_minor)
        await _changed(work, offer)
    return offer


def _range(low: int | None, high: int | None) -> str:
    return f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"


async def list_due_steps(session: AsyncSession, now_ms: int, limit: int) -> list[str]:
    return await store.list_due_steps(session, datetime.fromtimestamp(now_ms / 1000, UTC), limit)


async def take_due_steps(work: Work, offer_id: str, now_ms: int, *, for_sale: bool) -> Offer:
    """The price of the last step that is due becomes the price. Not `for_sale`: there is nothing to come any more."""
    offer = await _lock(work, offer_id)
    if not for_sale or offer.state == OfferState.WITHDRAWN:
        _set_steps(offer, ())
        await work.session.flush()
        return offer
    left = steps_after(offer.price_steps, now_ms)
    if len(left) < len(offer.price_steps):
        offer.price_minor = price_at(offer.price_minor, offer.price_steps, now_ms)
        _set_steps(offer, left)
        await _changed(work, offer)
    return offer


async def add_stock(work: Work, offer_id: str, add: int, *, limits_bind: bool = True) -> Offer:
    """Raises AppError: not_found, conflict (withdrawn), bad_request, over_limit."""
    offer = await _lock_shown(work, offer_id)
    problem = problem_of_top_up(add, offer.total)
    if problem:
        raise AppError(BAD_REQUEST, problem)
    if limits_bind and offer.total_max is not None and offer.total + add > offer.total_max:
        text = f"add: delegated to the host is a total of {offer.total_max}, and it is {offer.total}; ask an operator for more"
        raise AppError(OVER_LIMIT, text)
    offer.total += add
    await _changed(work, offer)
    return offer


async def change_window(work: Work, offer_id: str, *, opens_at: datetime | None, closes_at: datetime | None) -> Offer:
    """Both ends at once; None leaves an end open. The same window again changes nothing."""
    offer = await _lock_shown(work, offer_id)
    window = (whole_ms(opens_at), whole_ms(closes_at))
    if not window_is_valid(*window):
        raise AppError(BAD_REQUEST, "closes_at: the window closes before it opens")
    if window != (offer.opens_at, offer.closes_at):
        offer.opens_at, offer.closes_at = window
        await _changed(work, offer)
    return offer


async def set_offer_state(work: Work, offer_id: str, state: str) -> Offer:
    """Raises AppError `conflict` when the offer may not go there; already being there is no error and no change."""
    offer = await _lock(work, offer_id)
    if offer.state == state:
        return offer
    if not offer_may_become(offer.state, state):
        raise AppError(CONFLICT, f"this offer is {offer.state} and cannot become {state}")
    offer.state = OfferState(state)
    await _changed(work, offer)
    return offer


async def change_terms(work: Work, offer_id: str, changes: dict[str, Any]) -> Offer:
    """Other terms of an offer: those of OfferTerms but the price, the total and the window."""
    offer = await _lock_shown(work, offer_id)
    before, known = {name: getattr(offer, name) for name in changes}, _problems(offer)
    if before != changes:
        for name, value in changes.items():
            setattr(offer, name, value)
        _set_steps(offer, offer.price_steps)
        _check_terms(offer, known)
        await _check_keyword(work, offer)
        await _changed(work, offer)
    return offer


async def count_sold(session: AsyncSession, offer_id: str, quantity: int) -> bool:
    """Counts paid units (negative: gives them back). False when it would leave 0..total: somebody must then refund."""
    return await store.move_sold(session, offer_id, quantity)


async def _lock(work: Work, offer_id: str) -> Offer:
    offer = await store.lock_offer(work.session, offer_id)
    if offer is None:
        raise AppError(NOT_FOUND, "no such offer")
    return offer


async def _lock_shown(work: Work, offer_id: str) -> Offer:
    offer = await _lock(work, offer_id)
    if offer.state == OfferState.WITHDRAWN:
        raise AppError(CONFLICT, "this offer was withdrawn; list a new one")
    return offer


async def _changed(work: Work, offer: Offer) -> None:
    offer.version += 1
    await work.session.flush()
