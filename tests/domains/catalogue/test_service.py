"""Products and offers in SQL."""

import asyncio
from datetime import UTC, date, datetime

import pytest

from app.core.errors import AppError
from app.domains.catalogue import service as catalogue
from app.domains.catalogue.tables import Offer
from app.storage.work import Engines


async def new_offer(engines: Engines, **terms: object) -> Offer:
    async with engines.work() as work:
        fields = {"name": "Tea", "price_minor": 1990, "total": 10} | terms
        return await catalogue.create_offer(work, room_id="r1", session_id="r1-s1", **fields)  # type: ignore[arg-type]


async def test_an_offer_copies_what_its_product_is_then(engines: Engines) -> None:
    async with engines.work() as work:
        draft = catalogue.ProductDraft(
            name="First flush",
            return_policy="fresh_no_return",
            village="Longwu",
            lot="LW-1",
            harvested_on=date(2026, 4, 2),
            unit="250 g",
            image="/t.svg",
        )
        product = await catalogue.create_product(work, draft)
    offer = await new_offer(engines, name="", product_id=product.id)
    async with engines.work() as work:
        await catalogue.change_product(work, product.id, {"lot": "LW-2", "name": "Second flush"})
    async with engines.sql.read() as session:
        stored = await catalogue.fetch_offer(session, offer.id)
    assert stored is not None
    view = catalogue.offer_view(stored)
    assert (view.name, view.lot, view.harvested_on, view.return_policy) == ("First flush", "LW-1", "2026-04-02", "fresh_no_return")
    assert (view.unit, view.image, view.village, view.list_price_minor, view.position, view.version) == (
        "250 g",
        "/t.svg",
        "Longwu",
        1990,
        1,
        1,
    )


async def test_times_are_told_as_they_are_stored(engines: Engines) -> None:
    offer = await new_offer(engines, opens_at=datetime(2026, 4, 3, 12, 0, 0, 123999, tzinfo=UTC), closes_at=datetime(2026, 4, 3, 13, 0))  # noqa: DTZ001 - naive on purpose: it is taken as UTC
    view = catalogue.offer_view(offer)
    async with engines.sql.read() as session:
        stored = await catalogue.fetch_offer(session, offer.id)
    assert stored is not None
    assert catalogue.offer_view(stored) == view
    assert (view.opens_at, view.closes_at) == ("2026-04-03T12:00:00.123Z", "2026-04-03T13:00:00.000Z")


async def test_the_shelf_keeps_its_order(engines: Engines) -> None:
    offers = [await new_offer(engines, name=name) for name in ("Tea", "Honey", "Rice")]
    async with engines.sql.read() as session:
        shelf = await catalogue.list_offers(session, "r1-s1")
    assert [(offer.id, offer.position) for offer in shelf] == [(offer.id, place) for place, offer in enumerate(offers, 1)]


async def test_bad_terms_and_an_unknown_product_are_refused(engines: Engines) -> None:
    with pytest.raises(AppError, match="name: give the offer a name") as refused:
        await new_offer(engines, name="", price_minor=-1)
    assert refused.value.code.word == "bad_request"
    with pytest.raises(AppError, match="no such product"):
        await new_offer(engines, product_id="nothing")
    async with engines.sql.read() as session:
        assert await catalogue.list_offers(session, "r1-s1") == []


async def test_a_price_above_the_list_price_lifts_it(engines: Engines) -> None:
    offer = await new_offer(engines, list_price_minor=2500)
    async with engines.work() as work:
        changed = await catalogue.change_price(work, offer.id, 2600)
    assert (changed.price_minor, changed.list_price_minor, changed.version) == (2600, 2600, 2)


async def test_sold_stays_within_the_total(engines: Engines) -> None:
    offer = await new_offer(engines, total=10)

    async def sell(quantity: int) -> bool:
        async with engines.work() as work:
            return await catalogue.count_sold(work.session, offer.id, quantity)

    assert sorted(await asyncio.gather(*[sell(3) for _ in range(5)])) == [False, False, True, True, True]
    assert [await sell(quantity) for quantity in (1, 1, -11, -10, -1)] == [True, False, False, True, False]
    async with engines.work() as work:
        assert not await catalogue.count_sold(work.session, "r1-nothing", 1)
    async with engines.sql.read() as session:
        stored = await catalogue.fetch_offer(session, offer.id)
    assert stored is not None
    assert (stored.sold, stored.version) == (0, 1)
