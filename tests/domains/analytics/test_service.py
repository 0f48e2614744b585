"""A small scripted show, figure by figure; late payments; events that come twice."""

from typing import Any

import msgspec
import pytest
from sqlalchemy import func, select

from app.core.caller import Caller
from app.core.errors import AppError
from app.domains.analytics import service, store
from app.domains.analytics.rules import Report
from app.domains.analytics.tables import OrderFact
from app.domains.chat import service as chat
from app.domains.envelopes import service as envelopes
from app.domains.envelopes.rules import EnvelopeDraft, Mode
from app.domains.inventory import service as inventory
from app.domains.lottery import service as lottery
from app.domains.lottery.rules import Condition, DrawDraft, PrizeDraft, PrizeKind
from app.domains.orders import aftersales, payments, sandbox
from app.domains.orders.tables import SandboxCharge
from app.domains.rooms import service as rooms
from app.domains.wallet import service as wallet
from app.protocol.channels import staff_channel
from app.protocol.events import OrderChanged, OrderPaid, OrderPlacedEvent
from app.protocol.order_commands import OrderPay
from app.storage import presence
from app.storage.redis import blocking_client
from app.storage.streams import parse_push, push_channel
from app.storage.work import Engines
from tests.support.builders import OpenRoom, open_room
from tests.support.runtime import TestRuntime
from tests.support.shelf import Shelf

MINUTES = ["2025-06-15T15:06:00Z", "2025-06-15T15:07:00Z", "2025-06-15T15:08:00Z"]
EMPTY_MINUTE = {"viewers": 0, "messages": 0, "orders": 0, "paid_orders": 0, "gmv_minor": 0}


class Show:
    """A live room that sells tea (1990, 10 units) and rice (500, 2 units)."""

    def __init__(self, engines: Engines, runtime: TestRuntime, room: OpenRoom) -> None:
        self.engines, self.runtime, self.id, self.session = engines, runtime, room.room_id, room.session_id
        self.tea, self.rice = room.offer_ids
        self.shelf = Shelf(engines, room.room_id, room.session_id)

    async def watch(self, count: int, *unique: str) -> None:
        await presence.record(self.engines, self.id, "node1", count, unique)
        await rooms.pulse_room(self.engines, self.id)
        await service.sample_figures(self.engines)

    async def say(self, viewer: str, *texts: str) -> None:
        caller = Caller(id=viewer, name=viewer.title(), kind="viewer")
        for index, text in enumerate(texts):
            await chat.send(self.engines, caller, self.id, text=text, key=f"{text}{index}")
        await chat.archive_chat(self.engines)

    async def order(self, offer: str, viewer: str, quantity: int = 1) -> str:
        order = await self.shelf.order(offer, viewer, quantity)
        await self.shelf.intake()
        return order

    async def pay(self, order: str, viewer: str) -> None:
        attempt = await payments.pay(self.engines, viewer_id=viewer, request=OrderPay(order=order, key="pay"))
        async with self.engines.sql.read() as session:
            charge = await session.get(SandboxCharge, attempt.payment)
        assert charge
        body, header = sandbox.sandbox_notice(self.engines.settings, charge, now_ms=self.runtime.now_ms())
        assert await payments.receive_webhook(self.engines, "sandbox", {"Jishi-Signature": header}, body) == "paid"
        await self.shelf.intake()

    async def end(self) -> None:
        async with self.engines.work() as work:
            await rooms.end_session(work, self.session, "system")

    async def figures(self) -> dict[str, Any]:
        return (await service.figures(self.engines, self.session)).model_dump(mode="json")

    async def report(self) -> dict[str, Any]:
        report = await service.report(self.engines, self.session)
        Report.model_validate(report)
        return report


@pytest.fixture
async def show(engines: Engines, runtime: TestRuntime) -> Show:
    return Show(engines, runtime, await open_room(engines, offers=[("Tea", 1990, 10), ("Rice", 500, 2)]))


async def play(show: Show) -> dict[str, str]:
    """Minute 15:06: five watch, three lines, three orders, one of them paid. 15:07: seven watch, one more is paid."""
    await show.watch(5, "ann", "bob", "cat", "dan")
    await show.say("ann", "hello", "是甜的吗")
    await show.say("bob", "hi")
    await rooms.like(show.engines, "ann", show.id, 3)
    orders = {"ann": await show.order(show.tea, "ann", 2), "bob": await show.order(show.rice, "bob", 2)}
    orders["dan"] = await show.order(show.tea, "dan")
    await show.pay(orders["ann"], "ann")
    await show.shelf.reserve(show.tea, "cat")
    await inventory_cancel(show, orders["dan"], "dan")
    show.runtime.advance(60_000)
    await show.watch(7, "eve")
    await show.watch(6)
    orders["eve"] = await show.order(show.tea, "eve")
    await show.pay(orders["eve"], "eve")
    return orders


async def inventory_cancel(show: Show, order: str, viewer: str) -> None:
    assert await inventory.cancel_hold(show.engines, hold_id=order, viewer_id=viewer) == "cancelled"
    await show.shelf.intake()


SUMMARY = {
    "peak_viewers": 7,
    "unique_viewers": 5,
    "messages": 3,
    "chatters": 2,
    "likes": 3,
    "holds": 5,
    "orders": 4,
    "paid_orders": 2,
    "units_sold": 3,
    "gmv_minor": 5970,
    "refunded_minor": 0,
    "conversion": 0.4,
    "average_order_minor": 2985,
}
MINUTE_FIGURES = [
    {"at": MINUTES[0], "viewers": 5, "messages": 3, "orders": 3, "paid_orders": 1, "gmv_minor": 3980},
    {"at": MINUTES[1], "viewers": 7, "messages": 0, "orders": 1, "paid_orders": 1, "gmv_minor": 1990},
]


def offer_figures(show: Show) -> list[dict[str, Any]]:
    tea = {"offer": show.tea, "name": "Tea", "price_minor": 1990, "total": 10, "available": 6, "held": 1, "ordered": 0, "sold": 3}
    rice = {"offer": show.rice, "name": "Rice", "price_minor": 500, "total": 2, "available": 0, "held": 0, "ordered": 2, "sold": 0}
    return [
        tea | {"holds": 4, "orders": 3, "paid_orders": 2, "gmv_minor": 5970},
        rice | {"holds": 1, "orders": 1, "paid_orders": 0, "gmv_minor": 0},
    ]


async def test_live_figures_of_a_small_show(show: Show) -> None:
    await play(show)
    assert await show.figures() == {
        **SUMMARY,
        "session": show.session,
        "room": show.id,
        "currency": "CNY",
        "at": "2025-06-15T15:07:40Z",
        "live": True,
        "viewers": 6,
        "offers": offer_figures(show),
        "minutes": MINUTE_FIGURES,
    }


async def test_the_report_says_the_same_after_the_end(show: Show) -> None:
    await play(show)
    await show.end()
    report = await show.report()
    assert report["summary"] == SUMMARY
    assert report["offers"] == offer_figures(show)
    assert report["minutes"] == MINUTE_FIGURES
    assert report["peak_minute"] == MINUTE_FIGURES[0]
    assert report["top_offers"] == [show.tea]
    assert (report["state"], report["started_at"], report["ended_at"], report["duration_s"]) == (
        "ended",
        "2025-06-15T15:06:40Z",
        "2025-06-15T15:07:40Z",
        60,
    )
    assert [(step["step"], step["count"]) for step in report["funnel"]] == [
        ("viewers", 5),
        ("chatters", 2),
        ("holds", 5),
        ("orders", 4),
        ("paid", 2),
    ]
    assert report["payments"] == {
        "waiting": 1,
        "paid": 2,
        "cancelled": 1,
        "expired": 0,
        "refunded": 0,
        "refunds": 0,
        "refunded_minor": 0,
    }
    assert report["chat"] == {"sent": 3, "chatters": 2, "deleted": 0, "waiting": 0, "rejected": 0, "mutes": 0, "bans": 0}


async def test_the_report_survives_the_loss_of_the_engine(show: Show) -> None:
    await play(show)
    await show.end()
    first = await show.report()
    await show.engines.sales.flushall()
    async with show.engines.sql.read() as session:
        again = await service.build_report(session, show.session, now=show.runtime.now())
    assert again == first


async def test_what_comes_late_is_in_the_report_until_it_is_archived(show: Show) -> None:
    orders = await play(show)
    await show.end()
    await service.refresh_reports(show.engines)
    assert (await show.report())["payments"]["waiting"] == 1
    show.runtime.advance(show.engines.settings.payment_ttl_s * 1000)
    await inventory.expire_sales(show.engines)
    await show.shelf.intake()
    async with show.engines.work() as work:
        await aftersales.refund(work, orders["eve"], amount_minor=990, reason="bruised", restock=False, by="host")
    await service.refresh_reports(show.engines)
    async with show.engines.sql.read() as session:
        kept = await store.fetch_session(session, show.session)
    assert kept and kept.report and not kept.stale
    assert kept.report["payments"] == {
        "waiting": 0,
        "paid": 2,
        "cancelled": 1,
        "expired": 1,
        "refunded": 0,
        "refunds": 1,
        "refunded_minor": 990,
    }
    assert (kept.report["summary"]["gmv_minor"], kept.report["summary"]["refunded_minor"]) == (5970, 990)
    rice = kept.report["offers"][1]
    assert (rice["available"], rice["ordered"]) == (2, 0)
    async with show.engines.work() as work:
        await rooms.archive(work, show.session, "system")
    archived = await show.report()
    async with show.engines.work() as work:
        await aftersales.refund(work, orders["ann"], amount_minor=None, reason="late", restock=False, by="host")
    await service.refresh_reports(show.engines)
    assert await show.report() == archived
    assert archived["state"] == "archived"


async def test_a_report_is_kept_and_not_computed_again_without_need(show: Show) -> None:
    await play(show)
    await show.end()
    first = await show.report()
    show.runtime.advance(1000)
    assert await show.report() == first  # computed_at too
    async with show.engines.work() as work:
        await service.on_orders(work, show.id, [OrderChanged(at=work.at, order="x", session=show.session, offer=show.tea, state="paid")])
    assert (await show.report())["computed_at"] != first["computed_at"]


async def test_events_that_come_twice_change_nothing(show: Show) -> None:
    orders = await play(show)
    async with show.engines.work() as work:
        await aftersales.refund(work, orders["eve"], amount_minor=990, reason="bruised", restock=False, by="host")
    before = await show.figures()
    terms = {"session": show.session, "offer": show.tea, "viewer": "eve", "quantity": 1, "amount_minor": 1990, "currency": "CNY"}
    show.runtime.advance(5_000)
    async with show.engines.work() as work:
        placed = OrderPlacedEvent(at=work.at, order=orders["eve"], pay_by=work.at, **terms)  # type: ignore[arg-type]
        paid = OrderPaid(at=work.at, order=orders["eve"], **terms)  # type: ignore[arg-type]
        for _ in range(2):
            await service.on_orders(work, show.id, [placed, paid, placed, paid])
    cancelled = OrderChanged(at=placed.at, order=orders["dan"], session=show.session, offer=show.tea, state="cancelled")
    async with show.engines.work() as work:
        await service.on_orders(work, show.id, [cancelled])
    after = await show.figures()
    assert after | {"at": ""} == before | {"at": ""}
    assert after["refunded_minor"] == 990


async def test_a_late_payment_turns_expired_into_paid(show: Show) -> None:
    order = await show.order(show.tea, "ann")
    async with show.engines.work() as work:
        await service.on_orders(work, show.id, [OrderChanged(at=work.at, order=order, session=show.session, offer="", state="expired")])
    await show.pay(order, "ann")
    await show.end()
    payments = (await show.report())["payments"]
    assert (payments["paid"], payments["expired"]) == (1, 0)


async def test_a_prize_is_no_sale(show: Show) -> None:
    async with show.engines.work() as work:
        event = OrderPaid(
            at=work.at, order=f"{show.id}-p", session=show.session, offer=show.tea, viewer="ann", quantity=1, amount_minor=0, currency="CNY"
        )
        await service.on_orders(work, show.id, [event])
    figures = await show.figures()
    assert (figures["orders"], figures["paid_orders"], figures["units_sold"]) == (0, 0, 0)


async def test_draws_and_envelopes_are_in_the_report_and_prizes_are_no_sales(show: Show) -> None:
    async with show.engines.work() as work:
        await wallet.deposit(work, room_id=show.id, amount_minor=1000, currency="CNY", reference="bank-1", by="op")
    async with show.engines.work() as work:
        harvest = EnvelopeDraft(title="Harvest", mode=Mode.EQUAL, total_minor=1000, count=2, ttl_s=600)
        envelope = await envelopes.open_envelope(work, harvest, room_id=show.id, session_id=show.session, by="host")
    await envelopes.grab(show.engines, envelope_id=envelope.id, viewer_id="ann", key="k")
    prize = PrizeDraft(PrizeKind.PRODUCT, "A bag of rice", 1, offer_id=show.rice)
    thanks = DrawDraft(title="Thanks", condition=Condition.EVERYONE, keyword="", prizes=(prize,), duration_s=None)
    draw = await lottery.open_draw(show.engines, thanks, room_id=show.id, session_id=show.session, by="host")
    await lottery.enter(show.engines, draw_id=draw, viewer_id="ann", name="Ann", key="k")
    await lottery.close_draw(show.engines, draw, by="host")
    await lottery.close_due_draws(show.engines)
    await show.shelf.intake()
    await show.end()
    report = await show.report()
    assert report["draws"] == [
        {
            "id": draw,
            "title": "Thanks",
            "state": "drawn",
            "entrants": 1,
            "winners": [{"viewer": "ann", "name": "Ann", "prize": "A bag of rice"}],
        }
    ]
    assert report["envelopes"] == {
        "envelopes": 1,
        "shares": 2,
        "opened": 1,
        "funded_minor": 1000,
        "opened_minor": 500,
        "refunded_minor": 0,
    }
    async with show.engines.sql.read() as session:
        assert await session.scalar(select(func.count()).select_from(OrderFact)) == 1  # The prize is known ...
    assert (report["summary"]["orders"], report["summary"]["paid_orders"], report["summary"]["holds"]) == (
        0,
        0,
        0,
    )  # ... and counts nowhere
    assert report["offers"][1]["sold"] == 1


async def test_figures_are_pushed_to_the_team_once_in_two_seconds(show: Show) -> None:
    client = blocking_client(show.engines.fanout.line.options)
    async with client, client.pubsub() as subscriber:
        await subscriber.ssubscribe(push_channel(show.id))
        await subscriber.get_message(timeout=5)
        await service.push_figures(show.engines)
        await service.push_figures(show.engines)  # another worker, in the same two seconds
        await show.engines.streams.publish(staff_channel(show.id), b"{}", transient=True)
        messages: list[dict[str, Any]] = []
        while not messages or b"{}" not in messages[-1]["data"]:
            message = await subscriber.get_message(ignore_subscribe_messages=True, timeout=5)
            assert message
            messages.append(message)
    (pushed,) = [publication for message in messages[:-1] for publication in parse_push(message["data"])]
    event = msgspec.json.decode(pushed.data)
    assert (pushed.channel, pushed.offset, event["type"], event["session"]) == (staff_channel(show.id), 0, "figures.updated", show.session)
    assert event["figures"] == await show.figures()


async def test_nothing_is_pushed_or_sampled_after_the_end(show: Show) -> None:
    await show.end()
    await service.push_figures(show.engines)
    assert not await show.engines.fanout.exists(f"{{{show.id}}}:figures:pushed")
    await show.watch(9)
    assert [minute["viewers"] for minute in (await show.report())["minutes"]] == [0]


async def test_a_show_that_was_never_live_has_an_empty_report(engines: Engines) -> None:
    room = await open_room(engines, live=False)
    report = await service.report(engines, room.session_id)
    assert (report["duration_s"], report["minutes"], report["summary"]["gmv_minor"]) == (0, [], 0)


async def test_an_unknown_session_is_not_found(engines: Engines) -> None:
    for read in (service.figures, service.report):
        with pytest.raises(AppError) as refusal:
            await read(engines, "room1-nothing")
        assert refusal.value.code.word == "not_found"
