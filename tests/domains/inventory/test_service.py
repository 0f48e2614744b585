"""Holding stock: the order of the checks, idempotency, deadlines, and what SQL's changes do to the shelf."""

import asyncio

import pytest

from app.core.errors import AppError
from app.domains.inventory import service as inventory
from app.storage.work import Engines
from tests.support.auditor.stock import audit_stock
from tests.support.runtime import TestRuntime
from tests.support.shelf import Shelf, open_shelf


@pytest.fixture
async def shelf(engines: Engines) -> Shelf:
    return await open_shelf(engines)


async def test_a_hold_sets_stock_aside_until_its_deadline(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    offer = await shelf.offer(total=3)
    held = await shelf.reserve(offer, quantity=2)
    assert (held.outcome, held.available, held.price_minor, held.expires_at) == ("held", 1, 1990, "2025-06-15T15:11:40.000Z")
    stock = (await inventory.read_stock(engines, shelf.room_id))[offer]
    assert (stock.total, stock.available, stock.held, stock.holds) == (3, 1, 2, 1)
    runtime.advance(300_000 - 1)
    await inventory.expire_sales(engines)
    assert (await inventory.stock_reading(engines, shelf.room_id))[offer] == 1
    runtime.advance(1)
    await inventory.expire_sales(engines)
    assert (await inventory.stock_reading(engines, shelf.room_id))[offer] == 3
    assert (await inventory.release(engines, viewer_id="lin", hold_id=held.hold or "")).outcome == "expired"
    assert await audit_stock(engines, [shelf.room_id]) == []


async def test_the_same_key_gives_the_same_answer_and_another_body_is_an_error(shelf: Shelf, engines: Engines) -> None:
    offer, other = await shelf.offer(total=5), await shelf.offer(total=5)
    first = await shelf.reserve(offer, quantity=2)
    again = await shelf.reserve(offer, quantity=2)
    assert (again.hold, again.expires_at, again.price_minor, again.repeated) == (first.hold, first.expires_at, first.price_minor, True)
    for offer_id, quantity in ((offer, 1), (other, 2)):
        with pytest.raises(AppError) as refused:
            await shelf.reserve(offer_id, quantity=quantity)
        assert refused.value.code.word == "key_reused"
    assert await inventory.stock_reading(engines, shelf.room_id) == {offer: 3, other: 5}


async def test_a_double_click_in_one_batch_holds_once(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer(total=1)
    first, second, other = await asyncio.gather(shelf.reserve(offer), shelf.reserve(offer), shelf.reserve(offer, viewer="mei"))
    assert (first.hold, first.repeated, second.hold, second.repeated) == (first.hold, False, first.hold, True)
    assert (other.outcome, other.available) == ("exhausted", 0)
