"""Prices that are set for later: the engine's clock decides what a hold costs, viewers hear of each step once."""

import asyncio
from typing import Any

import pytest

from app.core.errors import AppError
from app.domains.catalogue.rules import PriceStep
from app.domains.inventory import service as inventory
from app.domains.rooms import service as rooms
from app.protocol.channels import room_channel
from app.protocol.events import OfferUpdated, decode_event
from app.storage.work import Engines
from tests.support.builders import OpenRoom, open_room
from tests.support.runtime import TestRuntime

BY = "host-mei"


async def stepped(engines: Engines, *steps: tuple[int, int], **terms: Any) -> tuple[OpenRoom, str]:
    """An offer at 1990 with steps so many ms from now."""
    room = await open_room(engines)
    now_ms = engines.runtime.now_ms()
    price_steps = [PriceStep(at_ms=now_ms + wait_ms, price_minor=price) for wait_ms, price in steps]
    draft = rooms.OfferDraft(name="Tea", price_minor=1990, total=9, price_steps=price_steps, **terms)
    async with engines.work() as work:
        offer = await rooms.list_offer(work, room.session_id, draft, BY)
    return room, offer.id


async def price_of_hold(engines: Engines, offer: str, key: str) -> int | None:
    return (await inventory.reserve(engines, viewer_id="lin", offer_id=offer, quantity=1, key=key)).price_minor


async def told(engines: Engines, room: OpenRoom) -> list[tuple[int, int]]:
    publications, _ = await engines.streams.history(room_channel(room.room_id))
    events = [decode_event(publication.data) for publication in publications]
    return [(event.offer.price_minor, event.offer.version) for event in events if isinstance(event, OfferUpdated)]


async def test_a_step_holds_from_its_millisecond_on_and_is_told_once(engines: Engines, runtime: TestRuntime) -> None:
    room, offer = await stepped(engines, (1000, 1490), (2000, 990))
    assert await price_of_hold(engines, offer, "k1") == 1990
    runtime.advance(999)
    await rooms.take_price_steps(engines)
    assert (await price_of_hold(engines, offer, "k2"), await told(engines, room)) == (1990, [])
    runtime.advance(1)
    assert await price_of_hold(engines, offer, "k3") == 1490  # no worker has come by
    await asyncio.gather(rooms.take_price_steps(engines), rooms.take_price_steps(engines))
    await rooms.take_price_steps(engines)
    assert await told(engines, room) == [(1490, 2)]
    assert await price_of_hold(engines, offer, "k4") == 1490
    assert await price_of_hold(engines, offer, "k1") == 1990  # what was promised stands
    runtime.advance(60_000)
    await rooms.take_price_steps(engines)
    assert (await price_of_hold(engines, offer, "k5"), await told(engines, room)) == (990, [(1490, 2), (990, 3)])
    async with engines.sql.read() as session:
        stored = await rooms.get_offer(session, offer)
    assert (stored.price_steps, stored.next_step_at, stored.list_price_minor) == ([], None, 1990)


async def test_steps_that_were_missed_are_one_change(engines: Engines, runtime: TestRuntime) -> None:
    room, offer = await stepped(engines, (1000, 1490), (2000, 990), (9000, 490))
    runtime.advance(5000)
    await rooms.take_price_steps(engines)
    assert await told(engines, room) == [(990, 2)]
    runtime.advance(4000)
    assert await price_of_hold(engines, offer, "k1") == 490


async def test_the_host_overtakes_a_step_that_is_due_and_keeps_those_to_come(engines: Engines, runtime: TestRuntime) -> None:
    room, offer = await stepped(engines, (1000, 1490), (2000, 990))
    runtime.advance(1000)
    async with engines.work() as work:
        await rooms.reprice_offer(work, offer, 1790, BY)
    await rooms.take_price_steps(engines)
    assert (await price_of_hold(engines, offer, "k1"), await told(engines, room)) == (1790, [(1790, 2)])
    async with engines.work() as work:
        await rooms.change_offer(work, offer, {"price_steps": []}, BY)
    runtime.advance(1000)
    await rooms.take_price_steps(engines)
    assert await price_of_hold(engines, offer, "k2") == 1790


async def test_nothing_happens_to_an_offer_that_sells_no_more(engines: Engines, runtime: TestRuntime) -> None:
    room, offer = await stepped(engines, (1000, 1490))
    async with engines.work() as work:
        await rooms.end_session(work, room.session_id, BY)
    runtime.advance(1000)
    await rooms.take_price_steps(engines)
    async with engines.sql.read() as session:
        stored = await rooms.get_offer(session, offer)
    assert (stored.price_minor, stored.version, stored.next_step_at, await told(engines, room)) == (1990, 1, None, [])


async def test_who_waits_pays_the_price_of_the_moment_that_serves_them(engines: Engines, runtime: TestRuntime) -> None:
    _, offer = await stepped(engines, (1000, 1490), selling_policy="waitlist", limit_per_viewer=9)
    hold = await inventory.reserve(engines, viewer_id="lin", offer_id=offer, quantity=9, key="k1")
    place = await inventory.wait(engines, viewer_id="mei", offer_id=offer, quantity=1, key="w1")
    runtime.advance(1000)
    await inventory.release(engines, viewer_id="lin", hold_id=hold.hold or "")
    served = await inventory.wait(engines, viewer_id="mei", offer_id=offer, quantity=1, key="w1")
    assert (served.outcome, served.price_minor, served.wait) == ("held", 1490, place.wait)


async def test_no_step_leaves_the_delegated_limits(engines: Engines) -> None:
    with pytest.raises(AppError, match="price_steps: a price is outside the limits"):
        await stepped(engines, (1000, 1490), price_min_minor=1500)
