"""Orders from the hold to the parcel: what is answered, what SQL and the channels say, how money comes and goes."""

import msgspec
import pytest
from sqlalchemy import text

from app.core.errors import AppError
from app.core.ids import scoped_id
from app.domains.catalogue import service as catalogue
from app.domains.inventory import service as inventory
from app.domains.orders import aftersales, payments, reconciliation, sandbox
from app.domains.orders import service as orders
from app.domains.orders.rules import sign
from app.domains.orders.tables import SandboxCharge
from app.domains.wallet import service as wallet
from app.protocol.channels import room_channel, staff_channel, user_channel
from app.protocol.codes import KEY_REUSED
from app.protocol.events import OfferUpdated, decode_event, event_type
from app.protocol.order_commands import OrderAddressed, OrderPay, OrderSetAddress
from app.storage.work import Engines
from tests.support.auditor.stock import audit_stock
from tests.support.runtime import TestRuntime
from tests.support.shelf import ADDRESS, Shelf, open_shelf


@pytest.fixture
async def shelf(engines: Engines) -> Shelf:
    return await open_shelf(engines)


async def heard(engines: Engines, channel: str) -> list[str]:
    publications, _ = await engines.streams.history(channel)
    return [event_type(decode_event(publication.data)) for publication in publications]


async def pay(engines: Engines, order_id: str, viewer: str = "lin", key: str = "m1", method: str = "sandbox_ok") -> str:
    request = OrderPay(order=order_id, key=key, method=method)
    return (await payments.pay(engines, viewer_id=viewer, request=request)).outcome


async def notify(engines: Engines, runtime: TestRuntime, payment: str) -> str:
    """Posts what the sandbox has to say, without waiting for its time."""
    async with engines.sql.read() as session:
        charge = await session.get(SandboxCharge, payment)
    assert charge
    body, header = sandbox.sandbox_notice(engines.settings, charge, now_ms=runtime.now_ms())
    return await payments.receive_webhook(engines, "sandbox", {"Jishi-Signature": header}, body)


async def paid_order(shelf: Shelf, runtime: TestRuntime, offer: str, quantity: int = 1) -> str:
    order = await shelf.order(offer, quantity=quantity)
    attempt = await payments.pay(shelf.engines, viewer_id="lin", request=OrderPay(order=order, key="m1"))
    assert await notify(shelf.engines, runtime, attempt.payment or "") == "paid"
    await shelf.intake()
    return order


async def balance(engines: Engines, account: str) -> int:
    async with engines.sql.read() as session:
        return await wallet.balance(session, account, "CNY")


async def test_from_hold_to_paid(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    offer = await shelf.offer(total=5)
    hold = (await shelf.reserve(offer, quantity=2)).hold or ""
    placed = await shelf.place(hold)
    assert (placed.outcome, placed.order, placed.amount_minor, placed.currency) == ("placed", hold, 3980, "CNY")
    assert placed.pay_by == "2025-06-15T15:21:40.000Z"
    before_intake = await orders.find_order(engines, hold, "lin")
    assert before_intake
    assert (before_intake.state, before_intake.name, before_intake.amount_minor) == ("placed", "Spring tea", 3980)
    assert await orders.find_order(engines, hold, "mei") is None
    assert await pay(engines, hold) == "pending"  # SQL does not know the order yet
    await shelf.intake()
    in_sql = await orders.find_order(engines, hold, "lin")
    assert in_sql == before_intake
    attempt = await payments.pay(engines, viewer_id="lin", request=OrderPay(order=hold, key="m1"))
    assert await notify(engines, runtime, attempt.payment or "") == "paid"
    assert (await orders.find_order(engines, hold, "lin") or in_sql).state == "paid"  # before intake
    await shelf.intake()
    assert await pay(engines, hold, key="m2") == "paid"
    assert await balance(engines, "room:room1") == 3980
    assert await heard(engines, user_channel("lin")) == ["hold.placed", "order.placed", "order.paid"]
    assert await heard(engines, staff_channel("room1")) == ["order.placed", "order.paid"]
    assert (await heard(engines, room_channel("room1")))[-1] == "purchase.announced"
    stock = (await inventory.read_stock(engines, "room1"))[offer]
    assert (stock.available, stock.held, stock.ordered, stock.sold) == (3, 0, 0, 2)
    assert await audit_stock(engines, ["room1"]) == []
    assert await reconciliation.reconcile(engines) == []


async def test_place_again_gives_the_same_answer(shelf: Shelf) -> None:
    offer = await shelf.offer()
    hold = (await shelf.reserve(offer)).hold or ""
    first = await shelf.place(hold)
    for key in ("p1", "p2"):
        again = await shelf.place(hold, key=key)
        assert (again.outcome, again.order, again.pay_by, again.repeated) == ("placed", hold, first.pay_by, True)
    with pytest.raises(AppError) as refused:
        await shelf.place(hold, address=type(ADDRESS)(name="Mei", phone="13900000000", line="1 Rice Road"))
    assert refused.value.code.word == "key_reused"


async def test_fresh_goods_need_the_policy_confirmed(shelf: Shelf) -> None:
    offer = await shelf.offer(return_policy="fresh_no_return")
    hold = (await shelf.reserve(offer)).hold or ""
    assert (await shelf.place(hold, policy_accepted=False)).outcome == "policy_not_accepted"
    assert (await shelf.place(hold, key="p2", policy_accepted=True)).outcome == "placed"


async def test_an_order_keeps_the_price_of_its_hold(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer(price_minor=1000)
    hold = (await shelf.reserve(offer)).hold or ""
    async with engines.work() as work:
        changed = await catalogue.change_price(work, offer, 900)
        work.emit("room1", [room_channel("room1")], OfferUpdated(at=work.at, offer=catalogue.offer_view(changed)))
    assert (await shelf.reserve(offer, key="k2")).price_minor == 900
    assert (await shelf.place(hold)).amount_minor == 1000


async def test_cancelled_and_unpaid_orders_give_their_stock_back(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    offer = await shelf.offer(total=2)
    first, second = await shelf.order(offer), await shelf.order(offer, key="k2")
    assert (await orders.cancel(engines, viewer_id="lin", order_id=first)).outcome == "cancelled"
    assert (await orders.cancel(engines, viewer_id="lin", order_id=first)).outcome == "cancelled"
    assert (await orders.cancel(engines, viewer_id="mei", order_id=second)).outcome == "unknown"
    runtime.advance(900_000)
    assert await pay(engines, second) == "expired"  # also before the loop came by
    await inventory.expire_sales(engines)
    assert (await orders.cancel(engines, viewer_id="lin", order_id=second)).outcome == "expired"
    await shelf.intake()
    page = await orders.list_orders(engines, viewer_id="lin", room_id=None, cursor="", limit=10)
    assert {order.id: order.state for order in page.orders} == {first: "cancelled", second: "expired"}
    assert (await inventory.stock_reading(engines, "room1"))[offer] == 2
    assert (await inventory.read_stock(engines, "room1"))[offer].expired == 1  # the second; the first was cancelled
    assert (await heard(engines, user_channel("lin")))[-2:] == ["order.changed", "order.changed"]
    assert await audit_stock(engines, ["room1"]) == []


async def test_late_money_buys_what_is_left_and_goes_back_otherwise(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    offer = await shelf.offer(total=2)
    lucky, late = await shelf.order(offer), await shelf.order(offer, key="k2")
    attempts = [
        (await payments.pay(engines, viewer_id="lin", request=OrderPay(order=order, key=order[-20:], method="sandbox_late"))).payment or ""
        for order in (lucky, late)
    ]
    runtime.advance(900_000)
    await inventory.expire_sales(engines)
    assert (await shelf.reserve(offer, viewer="mei")).outcome == "held"
    assert await notify(engines, runtime, attempts[0]) == "paid"
    assert await notify(engines, runtime, attempts[1]) == "late_and_sold_out"
    assert await notify(engines, runtime, attempts[1]) == "late_and_sold_out"
    await shelf.intake()
    refunded = await orders.find_order(engines, late, "lin")
    assert refunded
    assert (refunded.state, refunded.refunded_minor, refunded.reason) == ("expired", 1990, "late_and_sold_out")
    assert (await orders.find_order(engines, lucky, "lin") or refunded).state == "paid"
    assert await balance(engines, "room:room1") == 1990
    assert await audit_stock(engines, ["room1"]) == []


async def test_of_a_first_paid_offer_who_pays_first_gets_it(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    offer = await shelf.offer(total=1, limit=1, selling_policy="first_paid")
    held = [await shelf.reserve(offer, viewer) for viewer in ("lin", "mei", "hua", "lin")]
    again = await shelf.reserve(offer)
    assert [(answer.outcome, answer.set_aside) for answer in [*held[:3], again]] == [("held", False)] * 4
    assert (await shelf.reserve(offer, key="k2")).outcome == "limit"
    assert (await inventory.stock_reading(engines, "room1"))[offer] == 1
    for answer, viewer in zip(held[:2], ("lin", "mei"), strict=False):
        assert (await shelf.place(answer.hold or "", viewer)).outcome == "placed"
    requests = [("mei", held[1].hold or ""), ("lin", held[0].hold or "")]
    attempts = [
        (await payments.pay(engines, viewer_id=viewer, request=OrderPay(order=order, key="m1"))).payment or "" for viewer, order in requests
    ]
    assert [await notify(engines, runtime, attempt) for attempt in [*attempts, *attempts]] == ["paid", "sold_out", "paid", "sold_out"]
    assert (await shelf.place(held[2].hold or "", "hua")).outcome == "exhausted"
    assert (await shelf.reserve(offer, "bo")).outcome == "exhausted"
    await shelf.intake()
    refunded = await orders.find_order(engines, held[0].hold or "", "lin")
    assert refunded
    assert (refunded.state, refunded.refunded_minor, refunded.reason) == ("cancelled", 1990, "sold_out")
    assert await balance(engines, "room:room1") == 1990
    stock = (await inventory.read_stock(engines, "room1"))[offer]
    assert (stock.available, stock.held, stock.ordered, stock.sold) == (0, 0, 0, 1)
    runtime.advance(900_000)
    await inventory.expire_sales(engines)
    assert (await inventory.stock_reading(engines, "room1"))[offer] == 0  # what was never taken does not come back
    told, _ = await engines.streams.history(user_channel("hua"))
    assert [getattr(decode_event(row.data), "set_aside", None) for row in told] == [False]
    assert await audit_stock(engines, ["room1"], after_intake=False) == []
    await shelf.intake()
    assert await audit_stock(engines, ["room1"]) == []
    assert await reconciliation.reconcile(engines) == []


async def test_money_for_a_cancelled_order_and_a_second_payment_go_back(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    offer = await shelf.offer(total=2)
    twice, cancelled = await shelf.order(offer), await shelf.order(offer, key="k2")
    requests = [OrderPay(order=twice, key="a"), OrderPay(order=twice, key="b"), OrderPay(order=cancelled, key="c")]
    attempts = [(await payments.pay(engines, viewer_id="lin", request=request)).payment or "" for request in requests]
    await orders.cancel(engines, viewer_id="lin", order_id=cancelled)
    assert [await notify(engines, runtime, attempt) for attempt in attempts] == ["paid", "paid_twice", "order_cancelled"]
    await shelf.intake()
    assert await balance(engines, "room:room1") == 1990
    assert (await orders.find_order(engines, twice, "lin")).refunded_minor == 0  # type: ignore[union-attr]
    assert await audit_stock(engines, ["room1"]) == []


async def test_a_declined_payment_leaves_the_order_open(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    offer = await shelf.offer()
    order = await shelf.order(offer)
    await shelf.intake()
    attempt = await payments.pay(engines, viewer_id="lin", request=OrderPay(order=order, key="m1", method="sandbox_decline"))
    assert await notify(engines, runtime, attempt.payment or "") == "declined"
    assert (await heard(engines, user_channel("lin")))[-1] == "payment.declined"
    assert await pay(engines, order, key="m2") == "pending"


async def test_a_webhook_needs_its_signature_and_its_time(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order = await shelf.order(await shelf.offer())
    attempt = await payments.pay(engines, viewer_id="lin", request=OrderPay(order=order, key="m1"))
    body = b'{"id":"e1","type":"payment.succeeded","payment":"%s","amount_minor":1990,"currency":"CNY"}' % (attempt.payment or "").encode()
    secret = sandbox.sandbox_secret(engines.settings)
    now_s = runtime.now_ms() // 1000
    bad = [
        "",
        "t=,v1=",
        sign(b"other", now_s, body),
        sign(secret, now_s, body + b" "),
        sign(secret, now_s - 301, body),
    ]
    for header in bad:
        with pytest.raises(AppError) as refused:
            await payments.receive_webhook(engines, "sandbox", {"Jishi-Signature": header}, body)
        assert refused.value.code.word == "unauthorized"
    async with engines.sql.read() as session:
        assert (await session.execute(text("select count(*) from payment_events"))).scalar_one() == 0
    good = sign(secret, now_s - 300, body)
    assert await payments.receive_webhook(engines, "sandbox", {"Jishi-Signature": good}, body) == "paid"


async def test_a_wrong_amount_pays_nothing(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order = await shelf.order(await shelf.offer())
    attempt = await payments.pay(engines, viewer_id="lin", request=OrderPay(order=order, key="m1"))
    body = b'{"id":"e1","type":"payment.succeeded","payment":"%s","amount_minor":1,"currency":"CNY"}' % (attempt.payment or "").encode()
    header = sign(sandbox.sandbox_secret(engines.settings), runtime.now_ms() // 1000, body)
    assert await payments.receive_webhook(engines, "sandbox", {"Jishi-Signature": header}, body) == "amount_mismatch"
    assert await heard(engines, staff_channel("room1")) == ["alert.raised"]
    assert (await orders.find_order(engines, order, "lin")).state == "placed"  # type: ignore[union-attr]


async def test_the_same_pay_key_is_one_attempt(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer()
    order, other = await shelf.order(offer), await shelf.order(offer, key="k2")
    first = await payments.pay(engines, viewer_id="lin", request=OrderPay(order=order, key="m1"))
    assert await payments.pay(engines, viewer_id="lin", request=OrderPay(order=order, key="m1")) == first
    with pytest.raises(AppError) as refused:
        await payments.pay(engines, viewer_id="lin", request=OrderPay(order=other, key="m1"))
    assert refused.value.code.word == "key_reused"


async def test_refunds_in_parts_and_restock(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    offer = await shelf.offer(total=4, price_minor=500)
    order = await paid_order(shelf, runtime, offer, quantity=3)

    async def refund(amount_minor: int | None, *, restock: bool) -> str:
        async with engines.work() as work:
            return (await aftersales.refund(work, order, amount_minor=amount_minor, reason="damaged", restock=restock, by="host")).state

    assert await refund(700, restock=True) == "paid"  # one whole unit
    assert (await inventory.read_stock(engines, "room1"))[offer].available == 2
    with pytest.raises(AppError, match="more than is left"):
        await refund(801, restock=False)
    assert await refund(None, restock=True) == "refunded"
    assert await balance(engines, "room:room1") == 0
    stock = (await inventory.read_stock(engines, "room1"))[offer]
    assert (stock.available, stock.sold) == (4, 0)
    with pytest.raises(AppError, match="no payment"):
        await refund(None, restock=False)
    assert await audit_stock(engines, ["room1"]) == []


async def test_ship_once(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    offer = await shelf.offer()
    order = await paid_order(shelf, runtime, offer)
    for _ in range(2):
        async with engines.work() as work:
            shipped = await aftersales.ship(work, order, carrier="SF", tracking="1", by="host")
        assert (shipped.state, shipped.tracking) == ("shipped", "1")
    assert (await heard(engines, user_channel("lin"))).count("order.changed") == 1
    with pytest.raises(AppError, match="only a paid order"):
        async with engines.work() as work:
            await aftersales.ship(work, order, carrier="SF", tracking="2", by="host")


async def test_a_prize_becomes_the_winners_order(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer(total=3)
    hold = (await shelf.reserve(offer, viewer="draw:d1", key="d1", escrow=True)).hold or ""
    for _ in range(2):
        awarded = await orders.award_prize(engines, hold_id=hold, holder_id="draw:d1", viewer_id="mei", prize_name="A tin of tea")
        assert awarded == hold
    with pytest.raises(AppError, match="cannot be awarded"):
        await orders.award_prize(engines, hold_id=hold, holder_id="draw:d1", viewer_id="lin", prize_name="A tin of tea")
    await shelf.intake()
    order = await orders.find_order(engines, hold, "mei")
    assert order
    assert (order.name, order.amount_minor, order.state) == ("A tin of tea", 0, "paid")
    assert await audit_stock(engines, ["room1"]) == []


async def test_the_winner_says_where_to_send_a_prize(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer()
    hold = (await shelf.reserve(offer, viewer="draw:1", escrow=True)).hold or ""
    order_id = await orders.award_prize(engines, hold_id=hold, holder_id="draw:1", viewer_id="mei", prize_name="A tin")
    assert (await address(engines, order_id, "draw:1")).outcome == "unknown"  # SQL has it by now
    order = await orders.find_order(engines, order_id, "mei")
    assert order and not order.has_address
    assert (await address(engines, order_id, "mei", line="1 Hill Road")).outcome == "set"
    order = await orders.find_order(engines, order_id, "mei")
    assert order and order.has_address
    assert ((await orders.fetch_order(engines, order_id)).address or {})["line"] == "1 Hill Road"
    assert (await address(engines, scoped_id("room1", "nothing"), "mei")).outcome == "unknown"


async def test_an_address_changes_until_the_order_is_shipped(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order = await shelf.order(await shelf.offer())
    assert (await address(engines, order, line="first")).outcome == "set"  # intake had not written the order
    assert (await address(engines, order, line="second", key="a2")).outcome == "set"
    assert (await address(engines, order, line="first")).outcome == "set"  # a late retry undoes nothing
    assert ((await orders.fetch_order(engines, order)).address or {})["line"] == "second"
    with pytest.raises(AppError) as reused:
        await address(engines, order, line="third")
    assert reused.value.code is KEY_REUSED
    assert (await address(engines, order, "mei", key="a3")).outcome == "unknown"

    attempt = await payments.pay(engines, viewer_id="lin", request=OrderPay(order=order, key="m1"))
    assert await notify(engines, runtime, attempt.payment or "") == "paid"
    await shelf.intake()
    assert (await address(engines, order, line="third", key="a3")).outcome == "set"
    async with engines.work() as work:
        await aftersales.ship(work, order, carrier="SF", tracking="SF1", by="staff")
    assert (await address(engines, order, line="fourth", key="a4")).outcome == "shipped"
    assert (await address(engines, order, line="third", key="a3")).outcome == "set"  # what it was answered then
    assert ((await orders.fetch_order(engines, order)).address or {})["line"] == "third"


@pytest.mark.parametrize("outcome", ["cancelled", "expired"])
async def test_an_order_that_ended_goes_nowhere(shelf: Shelf, engines: Engines, runtime: TestRuntime, outcome: str) -> None:
    order = await shelf.order(await shelf.offer())
    if outcome == "cancelled":
        await orders.cancel(engines, viewer_id="lin", order_id=order)
    else:
        runtime.advance(engines.settings.payment_ttl_s * 1000 + 1)
        await inventory.expire_sales(engines)
    await shelf.intake()
    assert (await address(engines, order)).outcome == outcome


async def address(engines: Engines, order: str, viewer: str = "lin", *, line: str = "1 Hill Road", key: str = "a1") -> OrderAddressed:
    request = OrderSetAddress(order=order, address=msgspec.structs.replace(ADDRESS, line=line), key=key)
    return await aftersales.set_address(engines, viewer_id=viewer, request=request)


async def test_many_orders_in_one_batch_come_out_as_one_by_one(shelf: Shelf, engines: Engines) -> None:
    offer = await shelf.offer(total=100)
    made = [await shelf.order(offer, f"v{number}") for number in range(30)]
    for number, order in enumerate(made[:20]):
        await inventory.confirm_hold(engines, hold_id=order, payment_id=f"room1-p{number}", provider="sandbox", amount_minor=1990)
    for number, order in enumerate(made[20:], start=20):
        await orders.cancel(engines, viewer_id=f"v{number}", order_id=order)
    engines.settings.intake_batch_max = 1000
    await shelf.intake()  # placed, paid and cancelled in one transaction
    states = [(await orders.fetch_order(engines, order)).state for order in made]
    assert states == ["paid"] * 20 + ["cancelled"] * 10
    assert await reconciliation.reconcile(engines) == []
    async with engines.sql.read() as session:
        assert await wallet.balance(session, "room:room1", "CNY") == 20 * 1990
    assert await heard(engines, user_channel("v3")) == ["hold.placed", "order.placed", "order.paid"]
    assert await heard(engines, user_channel("v25")) == ["hold.placed", "order.placed", "order.changed"]


async def test_orders_are_listed_newest_first_in_pages(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    offer = await shelf.offer()
    placed: list[str] = []
    for key in ("a", "b", "c"):
        placed.insert(0, await shelf.order(offer, key=key))
        runtime.advance(1)
    await shelf.intake()
    first = await orders.list_orders(engines, viewer_id="lin", room_id=None, cursor="", limit=2)
    rest = await orders.list_orders(engines, viewer_id="lin", room_id="room1", cursor=first.next_cursor, limit=2)
    assert ([order.id for order in first.orders], [order.id for order in rest.orders]) == (placed[:2], placed[2:])
    assert rest.next_cursor == ""


async def test_a_batch_of_everything_at_once_keeps_each_orders_own_order(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    """Late money after a lapse, a second payment and a cancellation, all in one transaction with the orders' beginnings."""
    offer = await shelf.offer(total=10)
    late, twice, cancelled = [await shelf.order(offer, viewer) for viewer in ("ann", "bo", "cy")]

    async def confirm(order: str, payment: str) -> None:
        await inventory.confirm_hold(engines, hold_id=order, payment_id=f"room1-{payment}", provider="sandbox", amount_minor=1990)

    await confirm(twice, "p1")
    await confirm(twice, "p2")
    await orders.cancel(engines, viewer_id="cy", order_id=cancelled)
    await confirm(cancelled, "p3")
    runtime.advance(engines.settings.payment_ttl_s * 1000 + 1)
    await inventory.expire_sales(engines)
    await confirm(late, "p4")
    await shelf.intake()
    rows = [await orders.fetch_order(engines, order) for order in (late, twice, cancelled)]
    assert [(row.state, row.refunded_minor) for row in rows] == [("paid", 0), ("paid", 0), ("cancelled", 1990)]
    assert await heard(engines, user_channel("ann")) == ["hold.placed", "order.placed", "order.changed", "order.paid"]
    assert await balance(engines, "room:room1") == 2 * 1990
    assert await audit_stock(engines, ["room1"]) == []
