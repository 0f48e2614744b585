"""The waiting line of an offer: in turn, in the same step as units come back, and nobody jumps it."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from app.core.errors import AppError
from app.domains.inventory import renewal
from app.domains.inventory import service as inventory
from app.domains.orders import reconciliation
from app.domains.orders import service as orders
from app.protocol.channels import user_channel
from app.protocol.commands import Waiting
from app.protocol.events import HoldPlaced, WaitEnded, decode_event
from app.storage.work import Engines
from tests.support.auditor.stock import audit_stock
from tests.support.lives import fail_over, remember, renew
from tests.support.runtime import TestRuntime
from tests.support.shelf import Shelf, open_shelf


@pytest.fixture
async def shelf(engines: Engines) -> Shelf:
    return await open_shelf(engines)


async def line_offer(shelf: Shelf, *, total: int = 1, limit: int = 5, **terms: Any) -> str:
    return await shelf.offer(total=total, limit=limit, selling_policy="waitlist", **terms)


async def wait(shelf: Shelf, offer: str, viewer: str, quantity: int = 1, key: str = "w1") -> Waiting:
    return await inventory.wait(shelf.engines, viewer_id=viewer, offer_id=offer, quantity=quantity, key=key)


async def leave(shelf: Shelf, viewer: str, place: str | None) -> str:
    return (await inventory.leave(shelf.engines, viewer_id=viewer, wait_id=place or "")).outcome


async def release(shelf: Shelf, viewer: str, hold: str | None) -> str:
    return (await inventory.release(shelf.engines, viewer_id=viewer, hold_id=hold or "")).outcome


async def told(shelf: Shelf, viewer: str) -> list[Any]:
    publications, _ = await shelf.engines.streams.history(user_channel(viewer))
    return [decode_event(publication.data) for publication in publications]


async def in_line(shelf: Shelf, offer: str, after: int = 0, limit: int = 50) -> list[str]:
    return [hold.viewer for _, hold in await inventory.list_line(shelf.engines, offer, after_turn=after, limit=limit)]


async def test_what_comes_back_goes_to_the_first_in_line(shelf: Shelf, engines: Engines) -> None:
    offer = await line_offer(shelf)
    first = await shelf.reserve(offer)
    refused = await shelf.reserve(offer, "mei")
    assert (refused.outcome, refused.waiting) == ("exhausted", 0)
    mei, hua, wei = [await wait(shelf, offer, viewer) for viewer in ("mei", "hua", "wei")]
    assert [(place.outcome, place.ahead) for place in (mei, hua, wei)] == [("waiting", 0), ("waiting", 1), ("waiting", 2)]
    assert (await shelf.reserve(offer, "bo")).waiting == 3
    assert await in_line(shelf, offer) == ["mei", "hua", "wei"]
    assert [await in_line(shelf, offer, after, 1) for after in (0, 1, 3)] == [["mei"], ["hua"], []]
    assert await leave(shelf, "bo", hua.wait) == "unknown"
    assert [await leave(shelf, "hua", hua.wait) for _ in range(2)] == ["left", "left"]
    assert (await wait(shelf, offer, "hua")).outcome == "left"
    again = await wait(shelf, offer, "wei")
    assert (again.outcome, again.ahead, again.repeated, again.wait) == ("waiting", 1, True, wei.wait)

    assert await release(shelf, "mei", mei.wait) == "unknown"  # it is no hold yet
    assert (await shelf.place(mei.wait or "", "mei")).outcome == "unknown"
    assert await release(shelf, "lin", first.hold) == "released"
    stock = (await inventory.read_stock(engines, "room1"))[offer]
    assert (stock.available, stock.held, stock.waiting) == (0, 1, 1)
    assert (await shelf.reserve(offer, "bo")).outcome == "exhausted"
    served = await wait(shelf, offer, "mei")
    assert (served.outcome, served.price_minor, served.expires_at) == ("held", 1990, "2025-06-15T15:11:40.000Z")
    assert await leave(shelf, "mei", mei.wait) == "served"
    assert (await shelf.place(mei.wait or "", "mei")).outcome == "placed"
    await orders.cancel(engines, viewer_id="mei", order_id=mei.wait or "")
    assert (await wait(shelf, offer, "wei")).outcome == "held"

    await shelf.intake()
    placed = (await told(shelf, "mei"))[0]
    expected = HoldPlaced(
        at=placed.at,
        hold=mei.wait or "",
        offer=offer,
        quantity=1,
        expires_at="2025-06-15T15:11:40.000Z",
        promoted=True,
        price_minor=1990,
    )
    assert placed == expected
    assert [(event.wait, event.outcome) for event in await told(shelf, "hua")] == [(hua.wait, "left")]
    assert await audit_stock(engines, ["room1"]) == []
    assert await reconciliation.reconcile(engines) == []


async def test_a_deadline_serves_the_line_before_a_newcomer_of_the_same_batch(shelf: Shelf, runtime: TestRuntime) -> None:
    offer = await line_offer(shelf)
    await shelf.reserve(offer)
    place = await wait(shelf, offer, "mei")
    runtime.advance(300_000)
    newcomer, joins = await asyncio.gather(shelf.reserve(offer, "bo"), wait(shelf, offer, "bo"))
    assert (newcomer.outcome, newcomer.available, newcomer.waiting) == ("exhausted", 0, 0)
    assert (joins.outcome, joins.ahead) == ("waiting", 0)
    assert (await wait(shelf, offer, "mei")).outcome == "held"
    assert await leave(shelf, "mei", place.wait) == "served"
    assert await in_line(shelf, offer) == ["bo"]


async def test_who_wants_more_is_not_overtaken_and_goes_when_it_cannot_come(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    offer = await line_offer(shelf, total=3)
    holds = [(await shelf.reserve(offer, "lin", key=f"k{number}")).hold or "" for number in range(3)]
    mei = await wait(shelf, offer, "mei", quantity=2)
    await wait(shelf, offer, "hua")
    await release(shelf, "lin", holds[0])
    assert (await inventory.stock_reading(engines, "room1"))[offer] == 1
    assert (await shelf.reserve(offer, "bo")).outcome == "exhausted"
    for hold in holds[1:]:
        await shelf.place(hold)
        await inventory.confirm_hold(engines, hold_id=hold, payment_id=f"room1-{hold[-8:]}", provider="sandbox", amount_minor=1990)
    assert (await wait(shelf, offer, "mei", quantity=2)).outcome == "closed"  # one unit is left that is not sold for good
    assert (await wait(shelf, offer, "hua")).outcome == "held"
    assert await leave(shelf, "mei", mei.wait) == "closed"
    assert (await wait(shelf, offer, "bo", quantity=2)).outcome == "exhausted"
    await shelf.intake()
    assert await audit_stock(engines, ["room1"]) == []


async def test_a_top_up_serves_a_bounded_number_at_once_and_the_sweep_the_rest(shelf: Shelf, engines: Engines) -> None:
    offer = await line_offer(shelf, total=1, limit=1)
    await shelf.reserve(offer)
    await asyncio.gather(*[wait(shelf, offer, f"v{number}") for number in range(130)])
    await shelf.add_stock(offer, 131)
    stock = (await inventory.read_stock(engines, "room1"))[offer]
    assert (stock.held, stock.available, stock.waiting) == (101, 31, 30)
    assert (await shelf.reserve(offer, "bo")).outcome == "exhausted"
    await inventory.expire_sales(engines)
    stock = (await inventory.read_stock(engines, "room1"))[offer]
    assert (stock.held, stock.available, stock.waiting) == (131, 1, 0)
    assert (await shelf.reserve(offer, "bo")).outcome == "held"
    assert await audit_stock(engines, ["room1"], after_intake=False) == []


@pytest.mark.parametrize("end", ["withdrawn", "session", "window"])
async def test_the_line_ends_with_what_it_waits_for(shelf: Shelf, engines: Engines, runtime: TestRuntime, end: str) -> None:
    offer = await line_offer(shelf, closes_at=runtime.now() + timedelta(minutes=1))
    hold = await shelf.reserve(offer)
    place = await wait(shelf, offer, "mei")
    if end == "withdrawn":
        await shelf.set_state(offer, "withdrawn")
    elif end == "session":
        await shelf.end()
    else:
        runtime.advance(60_000)
    await release(shelf, "lin", hold.hold)
    assert (await wait(shelf, offer, "bo")).outcome == "closed"
    await inventory.expire_sales(engines)
    await shelf.intake()
    assert next(event for event in await told(shelf, "mei") if isinstance(event, WaitEnded)).outcome == "closed"
    assert await leave(shelf, "mei", place.wait) == "closed"
    stock = (await inventory.read_stock(engines, "room1"))[offer]
    assert (stock.available, stock.waiting) == (1, 0)
    assert await audit_stock(engines, ["room1"]) == []


async def test_the_line_stands_still_while_nothing_is_sold(shelf: Shelf, engines: Engines) -> None:
    offer = await line_offer(shelf, total=2)
    holds = [(await shelf.reserve(offer, key=key)).hold for key in ("k1", "k2")]
    for viewer in ("mei", "hua"):
        await wait(shelf, offer, viewer)
    await shelf.set_state(offer, "paused")
    await release(shelf, "lin", holds[0])
    await inventory.expire_sales(engines)
    assert await in_line(shelf, offer) == ["mei", "hua"]
    await shelf.set_state(offer, "listed")
    assert await in_line(shelf, offer) == ["hua"]
    await inventory.freeze_sales(engines, "room1", frozen=True)
    await release(shelf, "lin", holds[1])
    assert await in_line(shelf, offer) == ["hua"]
    await inventory.freeze_sales(engines, "room1", frozen=False)
    await inventory.expire_sales(engines)
    assert await in_line(shelf, offer) == []


REFUSALS = ["key_reused", "not_found", "frozen", "closed", "not_open", "no_line", "order_limit", "limit", "line_full", "exhausted", "held"]


@pytest.mark.parametrize("healed", range(len(REFUSALS)))
async def test_the_first_reason_speaks(shelf: Shelf, engines: Engines, healed: int) -> None:
    wrong: dict[str, bool] = {name: index >= healed for index, name in enumerate(REFUSALS)}
    owner = shelf if not wrong["not_open"] else Shelf(engines, "room1", "room1-show2")
    policy = "hold" if wrong["no_line"] else "waitlist"
    limits = {"limit": 1 if wrong["limit"] else 9, "limit_per_order": 2 if wrong["order_limit"] else 0}
    offer = await owner.offer(total=2 if wrong["exhausted"] else 10, selling_policy=policy, **limits)
    await wait(shelf, await line_offer(shelf), "mei", key="used")
    if wrong["closed"]:
        await shelf.set_state(offer, "paused")
    if wrong["line_full"]:
        engines.settings.waitlist_length_max = 0
    await inventory.freeze_sales(engines, "room1", frozen=wrong["frozen"])
    asked = "room1-nothing" if wrong["not_found"] else offer
    try:
        word: str = (await wait(shelf, asked, "mei", quantity=3, key="used" if wrong["key_reused"] else "w1")).outcome
    except AppError as refused:
        word = refused.code.word
    assert word == REFUSALS[healed]


async def test_who_waits_uses_up_the_limit(shelf: Shelf) -> None:
    offer = await line_offer(shelf, limit=2)
    await shelf.reserve(offer, "bo")
    assert [(await wait(shelf, offer, "mei", key=key)).outcome for key in ("w1", "w2", "w3")] == ["waiting", "waiting", "limit"]
    assert (await shelf.reserve(offer, "mei")).outcome == "limit"
    assert await leave(shelf, "mei", (await wait(shelf, offer, "mei", key="w1")).wait) == "left"
    assert (await wait(shelf, offer, "mei", key="w3")).outcome == "waiting"


async def noted(engines: Engines) -> list[str]:
    async with engines.sql.read() as session:
        return list(await session.scalars(text("select viewer_id from wait_notes order by turn")))


async def test_sql_notes_who_stands_in_line_and_no_longer(shelf: Shelf, engines: Engines) -> None:
    offer = await line_offer(shelf)
    assert (await wait(shelf, offer, "lin")).outcome == "held", "a turn at once is no place"
    mei, hua, _ = [await wait(shelf, offer, viewer) for viewer in ("mei", "hua", "wei")]
    await shelf.intake()
    assert await noted(engines) == ["mei", "hua", "wei"]
    await leave(shelf, "mei", mei.wait)
    await shelf.add_stock(offer, 1)
    await shelf.intake()
    assert await noted(engines) == ["wei"]
    await shelf.end()
    await inventory.expire_sales(engines)
    await shelf.intake()
    assert await noted(engines) == []
    assert hua.wait
    assert await audit_stock(engines, ["room1"]) == []


async def test_a_line_that_the_engine_lost_goes_on_in_its_order(shelf: Shelf, engines: Engines) -> None:
    offer = await line_offer(shelf)
    held = await shelf.reserve(offer)
    mei, hua = [await wait(shelf, offer, viewer) for viewer in ("mei", "hua")]
    memory = await remember(engines)  # with both of them unread in the outbox
    await wait(shelf, offer, "wei")
    await leave(shelf, "mei", mei.wait)
    await shelf.intake()
    await wait(shelf, offer, "bo")  # nobody else ever hears of it
    await fail_over(engines, memory, "room1")
    assert (await wait(shelf, offer, "zoe")).outcome == "frozen"
    await renew(engines)
    assert await in_line(shelf, offer) == await noted(engines) == ["hua", "wei"]
    assert await leave(shelf, "mei", mei.wait) == "left"
    assert [(await wait(shelf, offer, viewer)).ahead for viewer in ("bo", "wei")] == [2, 1]
    assert await audit_stock(engines, ["room1"]) == []
    assert await release(shelf, "lin", held.hold) == "released"
    await shelf.intake()
    assert await in_line(shelf, offer) == await noted(engines) == ["wei", "bo"]
    assert [event.hold for event in await told(shelf, "hua") if isinstance(event, HoldPlaced)] == [hua.wait]
    assert await audit_stock(engines, ["room1"]) == []


async def test_who_waits_for_an_offer_that_is_gone_is_told(shelf: Shelf, engines: Engines) -> None:
    offer = await line_offer(shelf)
    await shelf.reserve(offer)
    place = await wait(shelf, offer, "mei")
    await shelf.intake()
    await fail_over(engines, {})  # SQL knows no session that would bring the offer back
    await renewal.renew_room(engines, "room1")
    await shelf.intake()
    assert [(event.wait, event.outcome) for event in await told(shelf, "mei") if isinstance(event, WaitEnded)] == [(place.wait, "closed")]
    assert await noted(engines) == []
