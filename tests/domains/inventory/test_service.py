"""Holding stock: the order of the checks, idempotency, deadlines, and what SQL's changes do to the shelf."""

import asyncio
from collections import Counter
from datetime import timedelta

import pytest

from app.core.errors import AppError
from app.domains.inventory import service as inventory
from app.domains.inventory import store
from app.protocol.events import decode_event, event_type
from app.storage.intake import list_rooms
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
    assert (held.outcome, held.available, held.price_minor, held.expires_at) == ("held", None, 1990, "2025-06-15T15:11:40.000Z")
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


REFUSALS = ["key_reused", "not_found", "frozen", "closed", "not_open", "order_limit", "limit", "exhausted"]


@pytest.mark.parametrize("healed", range(len(REFUSALS)))
async def test_the_first_reason_speaks(shelf: Shelf, engines: Engines, healed: int) -> None:
    """All reasons to refuse at once, then without the first, the first two, ... : the order of the checks is part of the contract."""
    late = Shelf(engines, "room1", "room1-show2")
    wrong: dict[str, bool] = {name: index >= healed for index, name in enumerate(REFUSALS)}
    owner = shelf if not wrong["not_open"] else late  # its session has not begun
    limits = {"limit": 1 if wrong["limit"] else 0, "limit_per_order": 2 if wrong["order_limit"] else 0}
    offer = await owner.offer(total=2 if wrong["exhausted"] else 10, **limits)
    await shelf.reserve(await shelf.offer(), key="used")
    if wrong["closed"]:
        await shelf.set_state(offer, "paused")
    await inventory.freeze_sales(engines, "room1", frozen=wrong["frozen"])
    asked = "room1-nothing" if wrong["not_found"] else offer
    key = "used" if wrong["key_reused"] else "k1"
    try:
        word: str = (await shelf.reserve(asked, quantity=3, key=key)).outcome
    except AppError as refused:
        word = refused.code.word
    assert word == REFUSALS[healed]


@pytest.mark.parametrize(
    ("opens_ms", "closes_ms", "word"),
    [(1, None, "not_open"), (0, None, "held"), (None, 1, "held"), (None, 0, "closed"), (None, -1, "closed"), (None, None, "held")],
)
async def test_the_window_opens_and_closes_to_the_millisecond(
    shelf: Shelf, runtime: TestRuntime, opens_ms: int | None, closes_ms: int | None, word: str
) -> None:
    now = runtime.now()
    opens_at = None if opens_ms is None else now + timedelta(milliseconds=opens_ms)
    closes_at = None if closes_ms is None else now + timedelta(milliseconds=closes_ms)
    assert (await shelf.reserve(await shelf.offer(opens_at=opens_at, closes_at=closes_at))).outcome == word


async def test_the_limit_is_a_viewers_and_comes_back(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer(total=10, limit=2)
    held = await shelf.reserve(offer, quantity=2)
    assert (await shelf.reserve(offer, key="k2")).outcome == "limit"
    assert (await shelf.reserve(offer, viewer="mei", quantity=3)).outcome == "limit"
    assert (await shelf.reserve(offer, viewer="mei", quantity=2)).outcome == "held"
    assert (await inventory.release(engines, viewer_id="lin", hold_id=held.hold or "")).outcome == "released"
    assert (await shelf.reserve(offer, key="k2", quantity=2)).outcome == "held"


async def test_the_limit_of_an_order_leaves_the_viewer_a_second_one(shelf: Shelf) -> None:
    offer = await shelf.offer(total=10, limit=4, limit_per_order=2)
    asked = (("k1", 3), ("k1", 2), ("k2", 2), ("k3", 1))
    words = [(await shelf.reserve(offer, quantity=units, key=key)).outcome for key, units in asked]
    assert words == ["order_limit", "held", "held", "limit"]


async def test_reserve_releases_what_is_due_without_the_loop(shelf: Shelf, runtime: TestRuntime) -> None:
    offer = await shelf.offer(total=1)
    await shelf.reserve(offer)
    runtime.advance(300_000)
    assert (await shelf.reserve(offer, viewer="mei")).outcome == "held"


async def test_release_is_for_the_owner_and_only_for_holds(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer()
    hold = (await shelf.reserve(offer)).hold or ""
    assert (await inventory.release(engines, viewer_id="mei", hold_id=hold)).outcome == "unknown"
    assert (await inventory.release(engines, viewer_id="lin", hold_id="room1-none")).outcome == "unknown"
    await shelf.place(hold)
    assert (await inventory.release(engines, viewer_id="lin", hold_id=hold)).outcome == "ordered"
    with pytest.raises(AppError):
        await inventory.release(engines, viewer_id="lin", hold_id="nonsense")


async def test_a_top_up_reaches_the_shelf_and_is_told(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer(total=1)
    await shelf.reserve(offer)
    await shelf.intake()
    await shelf.add_stock(offer, 4)
    await shelf.intake()
    assert await inventory.stock_reading(engines, "room1") == {offer: 4}
    publications, _ = await engines.streams.history("room:room1")
    assert [event_type(decode_event(row.data)) for row in publications] == [
        "session.went_live",
        "offer.listed",
        "offer.sold_out",
        "offer.updated",
        "offer.restocked",
    ]


async def test_a_cut_of_the_total_takes_from_the_shelf_and_owes_the_rest(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer(total=10)
    held = await shelf.reserve(offer, quantity=6)

    async def sync(total: int, version: int) -> tuple[int, int, int]:
        member = {"act": "offer", "id": offer, "session": "room1-show1", "version": version, "total": total, "price": 1, "currency": "CNY"}
        terms = {"limit": 0, "state": "listed", "policy": "no_reason_7_days", "name": "Spring tea", "opens": 0, "closes": 0}
        await store.sync_room(engines, "room1", [member | terms])
        stock = (await inventory.read_stock(engines, "room1"))[offer]
        return stock.total, stock.available, stock.short

    assert await sync(7, 2) == (7, 1, 0)
    assert await sync(4, 3) == (4, 0, 2)
    assert await sync(99, 3) == (4, 0, 2)  # a version that is not newer says nothing new
    assert await sync(5, 4) == (5, 0, 1)
    await inventory.release(engines, viewer_id="lin", hold_id=held.hold or "")
    stock = (await inventory.read_stock(engines, "room1"))[offer]
    assert (stock.available, stock.held, stock.short) == (5, 0, 0)


async def test_after_the_end_no_new_holds_but_running_ones_may_be_ordered(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    offer = await shelf.offer()
    hold = (await shelf.reserve(offer)).hold or ""
    await shelf.end()
    await shelf.go_live()  # a late repetition of an old event
    assert (await shelf.reserve(offer, viewer="mei")).outcome == "closed"
    assert (await shelf.place(hold)).outcome == "placed"
    assert await inventory.stock_reading(engines, "room1") == {}
    runtime.advance(engines.settings.hot_keys_ttl_s * 1000 + 1)
    for _ in range(3):
        await pass_a_day(shelf, runtime)
    assert await inventory.read_stock(engines, "room1") == {}  # forgotten, holds and all
    books, _ = await store.read_books_and_outbox(engines, "room1")
    assert (books.holds, books.counts, books.deadlines) == ({}, {}, {})


async def pass_a_day(shelf: Shelf, runtime: TestRuntime) -> None:
    runtime.advance(shelf.engines.settings.hot_keys_ttl_s * 1000 + 1)
    await inventory.expire_sales(shelf.engines)
    await shelf.intake()


async def test_an_archived_session_is_forgotten_and_its_empty_room_with_it(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    offer = await shelf.offer()
    sold = await shelf.order(offer)
    await inventory.confirm_hold(engines, hold_id=sold, payment_id="room1-pay1", provider="sandbox", amount_minor=1990)
    await shelf.intake()
    await shelf.end()
    for _ in range(4):
        await pass_a_day(shelf, runtime)
    assert await engines.sales.hkeys("{room1}:sessions") == [b"life", b"s:room1-show1"]  # an old event could still come
    assert await list_rooms(engines) == ["room1"]

    await shelf.archive()
    await shelf.archive()  # a repetition
    await engines.sales.delete("{room1}:claim")  # its life is of the engine's clock
    await inventory.expire_sales(engines)
    assert await engines.sales.hexists("{room1}:sessions", "s:room1-show1")  # in time, not at once
    await pass_a_day(shelf, runtime)
    assert await list_rooms(engines) == []
    left = [key for key in store.sales_keys("room1") if await engines.sales.exists(key)]
    assert left == ["{room1}:outbox", "{room1}:sessions"], "it remembers its last id, and that it was open"
    assert await engines.sales.hkeys("{room1}:sessions") == [b"life"]

    await shelf.offer(total=3)  # another show begins in the room
    assert await list_rooms(engines) == ["room1"]


async def test_a_session_that_was_archived_while_it_still_holds_stock_is_remembered(
    shelf: Shelf, engines: Engines, runtime: TestRuntime
) -> None:
    prize = await shelf.reserve(await shelf.offer(), viewer="draw:1", escrow=True)
    await shelf.end()
    await shelf.archive()
    for _ in range(3):
        await pass_a_day(shelf, runtime)
    assert await audit_stock(engines, ["room1"], after_intake=False) == []
    assert (await inventory.release(engines, viewer_id="draw:1", hold_id=prize.hold or "")).outcome == "released"
    await engines.sales.delete("{room1}:claim")
    for _ in range(4):
        await pass_a_day(shelf, runtime)
    assert await list_rooms(engines) == []


async def test_nothing_is_forgotten_that_sql_does_not_have(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order = await shelf.order(await shelf.offer())
    await shelf.end()
    await shelf.archive()
    for _ in range(4):
        runtime.advance(engines.settings.hot_keys_ttl_s * 1000 + 1)
        await inventory.expire_sales(engines)
    assert await inventory.read_hold(engines, order)
    await shelf.intake()
    for _ in range(4):
        await pass_a_day(shelf, runtime)
    assert await inventory.read_hold(engines, order) is None


async def test_frozen_rooms_keep_their_promises(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer()
    hold, other = (await shelf.reserve(offer)).hold or "", (await shelf.reserve(offer, key="k2")).hold or ""
    await inventory.freeze_sales(engines, "room1", frozen=True)
    assert (await shelf.reserve(offer, key="k3")).outcome == "frozen"
    assert (await shelf.place(hold)).outcome == "frozen"
    assert (await inventory.release(engines, viewer_id="lin", hold_id=other)).outcome == "released"
    await inventory.freeze_sales(engines, "room1", frozen=False)
    assert (await shelf.place(hold)).outcome == "placed"


async def test_a_full_outbox_refuses_new_sales(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer()
    engines.settings.outbox_entries_max = 1
    assert (await shelf.reserve(offer)).outcome == "held"
    assert (await shelf.reserve(offer, key="k2")).outcome == "frozen"
    await shelf.intake()
    assert (await shelf.reserve(offer, key="k2")).outcome == "held"


async def test_hundreds_at_once_never_oversell(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer(total=100, limit=2)
    answers = await asyncio.gather(*[shelf.reserve(offer, viewer=f"v{number % 150}", key=f"k{number}") for number in range(600)])
    words = Counter(str(answer.outcome) for answer in answers)
    assert words["held"] == 100
    assert words["held"] + words["exhausted"] + words["limit"] == 600
    assert await audit_stock(engines, ["room1"]) == []


async def test_who_asks_once_is_served_before_the_second_wish_of_another(shelf: Shelf) -> None:
    """First come, first served gave all three to the one who had asked ten times in one moment."""
    offer = await shelf.offer(total=3)
    flood = [shelf.reserve(offer, viewer="ann", key=f"k{number}") for number in range(10)]
    *anns, bos = await asyncio.gather(*flood, shelf.reserve(offer, viewer="bo"))
    assert bos.outcome == "held"
    assert [one.outcome for one in anns] == ["held", "held", *["exhausted"] * 8]


async def test_one_bad_member_does_not_fail_its_batch(shelf: Shelf) -> None:
    """An unknown offer once answered `available: false`, which no decoder took, and everybody in the batch got an error."""
    offer = await shelf.offer()
    bad, good = await asyncio.gather(shelf.reserve("room1-none"), shelf.reserve(offer), return_exceptions=True)
    assert isinstance(bad, AppError)
    assert bad.code.word == "not_found"
    assert not isinstance(good, BaseException)
    assert good.outcome == "held"
