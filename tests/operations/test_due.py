"""The worker's one look at SQL: each of its loops is begun when there is something for it to do, at the moment, and not before."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from app.domains.catalogue.rules import PriceStep
from app.domains.envelopes import service as envelopes
from app.domains.envelopes.rules import EnvelopeDraft, Mode
from app.domains.integrations import service as integrations
from app.domains.lottery import service as lottery
from app.domains.lottery.rules import Condition, DrawDraft, PrizeDraft, PrizeKind
from app.domains.orders import payments, store
from app.domains.rooms import service as rooms
from app.domains.wallet import service as wallet
from app.protocol.channels import room_channel
from app.protocol.events import NoticePinned, OrderPaid
from app.protocol.order_commands import OrderPay
from app.storage.announcements import ANNOUNCEMENT_WAITS
from app.storage.due import Watch
from app.storage.intake import list_rooms, take_in_room
from app.storage.work import Engines, Work
from app.worker import LOOPS, Loop, run_loops
from tests.support.builders import OpenRoom, open_room
from tests.support.runtime import TestRuntime
from tests.support.shelf import open_shelf
from tests.support.waiting import wait_until

WATCHED = {loop.name: loop for loop in LOOPS if loop.due is not None}
WATCH = Watch({name: loop.due for name, loop in WATCHED.items() if loop.due is not None})
OF_A_SHOW = {"pulse", "push_figures", "sample_figures"}

Prepare = Callable[[Engines], Awaitable[int]]  # to the number of ms until it is due


async def _an_announcement(engines: Engines) -> int:
    async with engines.sql.begin() as session:  # committed, but nobody announces
        work = Work(engines, session)
        work.emit("attic", [room_channel("attic")], NoticePinned(at=work.at, text="closed on Monday"))
        await work.flush()
    return 0


async def _a_price_step(engines: Engines) -> int:
    room = await open_room(engines)
    step = PriceStep(at_ms=engines.runtime.now_ms() + 1000, price_minor=990)
    async with engines.work() as work:
        await rooms.list_offer(work, room.session_id, rooms.OfferDraft(name="Pear", price_minor=1990, total=9, price_steps=[step]), "host")
    return 1000


async def _a_call(engines: Engines) -> int:
    """To a provider that is not set up, so that it is put off."""
    payment = {"id": "room1-p", "provider": "stripe", "amount_minor": 1, "currency": "CNY"}
    async with engines.work() as work:
        await store.insert_calls(work.session, [store.call_row("create", "room1-p", payment, at=work.now)])
    return 0


async def _a_sandbox_charge(engines: Engines) -> int:
    engines.settings = engines.settings.model_copy(update={"public_url": "http://127.0.0.1:1"})  # nobody hears it: it is put off
    shelf = await open_shelf(engines)
    order = await shelf.order(await shelf.offer())
    await payments.pay(engines, viewer_id="lin", request=OrderPay(order=order, key="m1"))
    return engines.settings.sandbox_payment_delay_ms


async def _funded_room(engines: Engines) -> OpenRoom:
    room = await open_room(engines)
    async with engines.work() as work:
        await wallet.deposit(work, room_id=room.room_id, amount_minor=1000, currency="CNY", reference="bank-1", by="op")
    return room


async def _a_draw(engines: Engines) -> int:
    room = await _funded_room(engines)
    prize = PrizeDraft(PrizeKind.MONEY, "Red packet", 2, amount_minor=500)
    draft = DrawDraft(title="Thanks", condition=Condition.EVERYONE, keyword="", prizes=(prize,), duration_s=60)
    await lottery.open_draw(engines, draft, room_id=room.room_id, session_id=room.session_id, by="host")
    return 60_000


async def _an_envelope(engines: Engines) -> int:
    room = await _funded_room(engines)
    await _open_envelope(engines, room)
    return 60_000


async def _open_envelope(engines: Engines, room: OpenRoom) -> str:
    draft = EnvelopeDraft(title="Harvest", mode=Mode.LUCKY, total_minor=1000, count=5, ttl_s=60)
    async with engines.work() as work:
        return (await envelopes.open_envelope(work, draft, room_id=room.room_id, session_id=room.session_id, by="host")).id


async def _shares_to_tell_of(engines: Engines) -> int:
    room = await _funded_room(engines)
    envelope = await _open_envelope(engines, room)
    for viewer in ("lin", "mei"):
        await envelopes.grab(engines, envelope_id=envelope, viewer_id=viewer, key="k1", is_staff=False)
        await take_in_room(engines, room.room_id)
    return 1000


async def _a_webhook(engines: Engines) -> int:
    engines.settings.webhooks_to_private_addresses = True
    money = {"quantity": 2, "amount_minor": 3980, "currency": "CNY"}
    async with engines.work() as work:
        await integrations.create_endpoint(work, url="http://127.0.0.1:1/", events=("order.paid",), by="root")
        paid = OrderPaid(at=work.at, order="a-1", session="a-s", offer="a-f", viewer="anna", **money)
        await integrations.queue_events(work, "a", [paid])
    return 0


@pytest.mark.parametrize(
    ("name", "prepare"),
    [
        ("announce", _an_announcement),
        ("take_price_steps", _a_price_step),
        ("call_providers", _a_call),
        ("settle_sandbox_payments", _a_sandbox_charge),
        ("close_due_draws", _a_draw),
        ("end_due_envelopes", _an_envelope),
        ("end_due_envelopes", _shares_to_tell_of),
        ("deliver_webhooks", _a_webhook),
    ],
)
async def test_a_loop_is_due_from_its_moment_on_until_it_is_done(
    engines: Engines, runtime: TestRuntime, name: str, prepare: Prepare
) -> None:
    assert await WATCH.find_due(engines) == []
    wait_ms = await prepare(engines)
    if wait_ms:
        runtime.advance(wait_ms - 1)
        assert set(await WATCH.find_due(engines)) <= OF_A_SHOW
        runtime.advance(1)
    assert set(await WATCH.find_due(engines)) - OF_A_SHOW == {name}
    for _ in range(2):  # a draw is closed in the engine first, and settled when SQL has read that
        await WATCHED[name].run(engines)
        for room in await list_rooms(engines):
            await take_in_room(engines, room)
    assert set(await WATCH.find_due(engines)) <= OF_A_SHOW


async def test_draws_that_were_cut_off_are_due(engines: Engines, runtime: TestRuntime) -> None:
    """Between escrow and announcement, and between the drawing and the delivery of prizes."""
    runtime.advance(await _a_draw(engines))
    draws = "update draws set {}"
    for changed, is_due in (
        ("state = 'preparing', created_at = '{now}'", False),
        ("state = 'preparing', created_at = timestamptz '{now}' - interval '61 seconds'", True),
        ("state = 'drawn', settled_at = null", True),
        ("state = 'drawn', settled_at = '{now}'", False),
        ("state = 'cancelled', settled_at = null", True),
    ):
        async with engines.sql.begin() as session:
            connection = await session.connection()
            await connection.exec_driver_sql(draws.format(changed.format(now=runtime.now().isoformat())))
        assert ("close_due_draws" in await WATCH.find_due(engines)) is is_due, changed


async def test_what_belongs_to_a_show_is_due_while_it_is_on(engines: Engines) -> None:
    room = await open_room(engines, live=False)
    assert await WATCH.find_due(engines) == []
    async with engines.work() as work:
        await rooms.go_live(work, room.session_id, "host", empty_shelf_accepted=True)
    assert set(await WATCH.find_due(engines)) == OF_A_SHOW
    async with engines.work() as work:
        await rooms.end_session(work, room.session_id, "host")
    assert await WATCH.find_due(engines) == []


async def test_a_loop_begins_when_it_is_due_and_not_before(engines: Engines) -> None:
    """Each pass does what it found; one that waits for nothing ends with the worker."""
    passes: list[int] = []
    looks = 0

    async def one(engines: Engines) -> None:
        async with engines.sql.begin() as session:
            connection = await session.connection()
            deleted = await connection.exec_driver_sql("delete from announcements")
            passes.append(deleted.rowcount)

    async def count(_: Engines) -> None:
        nonlocal looks
        looks += 1

    stopping = asyncio.Event()
    loops = (Loop("one", one, 1, ANNOUNCEMENT_WAITS), Loop("count", count, 1))
    running = asyncio.create_task(run_loops(engines, stopping, owner="me", loops=loops))
    await wait_until(lambda: looks > 5)
    assert passes == []
    for number in range(1, 3):
        await _an_announcement(engines)
        await wait_until(lambda number=number: sum(passes) == number)
    stopping.set()
    await running
    assert sum(passes) == 2
    assert len(passes) <= 4, "a look that comes while a pass runs may begin one more"
