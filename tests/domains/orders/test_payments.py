"""Providers: calls that are owed and repeated, notices in any order, refunds that fail, disputes. The books hold through all of it."""

from dataclasses import dataclass, field

import msgspec
import pytest
from sqlalchemy import select

from app.core.errors import AppError
from app.domains.inventory import service as inventory
from app.domains.orders import aftersales, disputes, payments, reconciliation, sandbox, store
from app.domains.orders import service as orders
from app.domains.orders.providers import ProviderAway, ProviderRefused, Taken
from app.domains.orders.tables import Dispute, Payment, PaymentEvent, ProviderCall, Refund, SandboxCharge
from app.domains.wallet import service as wallet
from app.protocol.channels import staff_channel, user_channel
from app.protocol.events import decode_event, event_type
from app.protocol.order_commands import OrderPay, OrderPaying, OrderView
from app.storage.work import Engines
from tests.support.auditor.ledger import audit_ledger
from tests.support.auditor.stock import audit_stock
from tests.support.runtime import TestRuntime
from tests.support.shelf import Shelf, open_shelf


@pytest.fixture
async def shelf(engines: Engines) -> Shelf:
    return await open_shelf(engines)


async def pay(engines: Engines, order: str, method: str = "", key: str = "m1") -> OrderPaying:
    return await payments.pay(engines, viewer_id="lin", request=OrderPay(order=order, key=key, method=method))


async def hear_all(engines: Engines, runtime: TestRuntime, payment: str) -> list[str]:
    """The outcomes of all that the sandbox has to say, in its own order."""
    outcomes: list[str] = []
    while True:
        async with engines.sql.read() as session:
            charge = await session.get(SandboxCharge, payment)
        assert charge
        if charge.left_to_send == 0:
            return outcomes
        body, header = sandbox.sandbox_notice(engines.settings, charge, now_ms=runtime.now_ms())
        outcomes.append(await payments.receive_webhook(engines, "sandbox", {"Jishi-Signature": header}, body))
        await sandbox._note_sent(engines, charge, heard=True)


async def paid(shelf: Shelf, runtime: TestRuntime, method: str = "") -> tuple[str, str]:
    """Order and payment; what the sandbox says after the money is left to be heard."""
    order = await shelf.order(await shelf.offer(total=3))
    payment = (await pay(shelf.engines, order, method)).payment or ""
    async with shelf.engines.sql.read() as session:
        charge = await session.get(SandboxCharge, payment)
    assert charge
    body, header = sandbox.sandbox_notice(shelf.engines.settings, charge, now_ms=runtime.now_ms())
    assert await payments.receive_webhook(shelf.engines, "sandbox", {"Jishi-Signature": header}, body) == "paid"
    await sandbox._note_sent(shelf.engines, charge, heard=True)
    await shelf.intake()
    return order, payment


async def refund(engines: Engines, order: str, amount_minor: int | None = None) -> None:
    async with engines.work() as work:
        await aftersales.refund(work, order, amount_minor=amount_minor, reason="damaged", restock=False, by="host")


async def balance(engines: Engines) -> tuple[int, int]:
    """The room's money, and how much of it is set aside."""
    async with engines.sql.read() as session:
        funds = await wallet.fetch_funds(session, "room:room1", "CNY")
    return funds.balance_minor, funds.pending_minor


async def view(engines: Engines, order: str) -> OrderView:
    found = await orders.find_order(engines, order)
    assert found
    return found


async def heard(engines: Engines, channel: str) -> list[str]:
    publications, _ = await engines.streams.history(channel)
    return [event_type(decode_event(publication.data)) for publication in publications]


async def check_books(engines: Engines) -> None:
    assert await audit_ledger(engines) == []
    assert await audit_stock(engines, ["room1"]) == []
    assert await reconciliation.reconcile(engines) == []


async def test_the_sandbox_knows_its_methods_alone(shelf: Shelf, engines: Engines) -> None:
    order = await shelf.order(await shelf.offer())
    with pytest.raises(AppError, match="'card' is none of sandbox_ok, sandbox_decline"):
        await pay(engines, order, "card")
    first = await pay(engines, order)
    assert (first.outcome, first.provider, first.client_secret, first.publishable_key) == ("pending", "sandbox", None, None)
    assert await pay(engines, order, "sandbox_ok") == first  # what it chose by itself


async def test_amounts_choose_how_the_sandbox_behaves(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    engines.settings.sandbox_amount_patterns = True
    order = await shelf.order(await shelf.offer(price_minor=2001))
    assert await hear_all(engines, runtime, (await pay(engines, order)).payment or "") == ["declined"]
    order = await shelf.order(await shelf.offer(price_minor=2003), key="k3")
    assert await hear_all(engines, runtime, (await pay(engines, order, key="m2")).payment or "") == ["paid", "paid"]
    order = await shelf.order(await shelf.offer(price_minor=2001), key="k2")
    slow = await pay(engines, order, "sandbox_slow", key="m3")
    assert await hear_all(engines, runtime, slow.payment or "") == ["paid"]  # a chosen method wins


async def test_a_decline_that_comes_after_the_money_changes_nothing(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order = await shelf.order(await shelf.offer())
    payment = (await pay(engines, order, "sandbox_reordered")).payment or ""
    assert await hear_all(engines, runtime, payment) == ["paid", "declined"]
    await shelf.intake()
    async with engines.sql.read() as session:
        row = await session.get(Payment, payment)
    assert row
    assert (row.state, row.reason) == ("succeeded", "")
    assert await heard(engines, user_channel("lin")) == ["hold.placed", "order.placed", "order.paid"]
    await check_books(engines)


async def test_money_that_comes_after_a_decline_pays(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    """A second card for the same attempt. The payment used to stay `declined`, although its order was paid."""
    order = await shelf.order(await shelf.offer())
    payment = (await pay(engines, order, "sandbox_reordered")).payment or ""
    async with engines.sql.begin() as session:
        charge = await session.get(SandboxCharge, payment)
        assert charge
        charge.verdict, charge.steps = "payment.declined", [charge.steps[0] | {"type": "payment.succeeded"}]
    assert await hear_all(engines, runtime, payment) == ["declined", "paid"]
    await shelf.intake()
    assert (await view(engines, order)).state == "paid"
    async with engines.sql.read() as session:
        assert (await session.scalars(select(Payment.state))).all() == ["succeeded"]
    await check_books(engines)


@dataclass
class Provider:
    """Answers as it is told, and keeps what it was asked."""

    answers: list[Taken | Exception]
    asked: list[tuple[str, str]] = field(default_factory=list)
    name: str = "sandbox"
    publishable_key: str = ""

    def method_of(self, asked: str) -> str:
        return asked

    async def create(self, engines: Engines, call: ProviderCall) -> Taken:
        self.asked.append((call.kind, call.subject))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def refund(self, engines: Engines, call: ProviderCall, payment: Payment) -> Taken:
        return await self.create(engines, call)

    async def cancel(self, engines: Engines, call: ProviderCall, payment: Payment) -> Taken:
        return await self.create(engines, call)


async def test_a_call_without_an_answer_is_made_again_with_the_same_key(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order = await shelf.order(await shelf.offer())
    provider = Provider([ProviderAway("timeout"), ProviderAway("timeout"), Taken(reference="pi_1", client_secret="s1")])
    engines.local["payment provider sandbox"] = provider
    paying = await pay(engines, order)
    assert (paying.outcome, paying.client_secret) == ("pending", None)  # the viewer does not wait for it
    await payments.call_providers(engines)
    assert len(provider.asked) == 1  # not before its time
    runtime.advance(1000)
    await payments.call_providers(engines)
    runtime.advance(1999)
    await payments.call_providers(engines)
    assert len(provider.asked) == 2  # twice as long the second time
    runtime.advance(1)
    await payments.call_providers(engines)
    await payments.call_providers(engines)
    assert provider.asked == [("create", paying.payment)] * 3
    assert await heard(engines, user_channel("lin")) == ["payment.started"]
    assert (await pay(engines, order)).client_secret == "s1"  # the same key: the same attempt


async def test_a_call_whose_process_died_is_made_again_after_a_while(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    engines.settings.provider_timeout_s, engines.settings.provider_takeover_s = 2, 3
    order = await shelf.order(await shelf.offer())
    provider = Provider([RuntimeError("the end"), Taken(reference="pi_1")])
    engines.local["payment provider sandbox"] = provider
    with pytest.raises(RuntimeError, match="the end"):
        await pay(engines, order)
    runtime.advance(4999)
    await payments.call_providers(engines)
    assert len(provider.asked) == 1
    runtime.advance(1)
    await payments.call_providers(engines)
    assert len(provider.asked) == 2


async def test_a_provider_that_never_answers_or_says_no_is_a_decline(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order = await shelf.order(await shelf.offer())
    engines.settings.provider_attempts_max = 2
    engines.local["payment provider sandbox"] = Provider(
        [ProviderAway("timeout"), ProviderAway("timeout"), ProviderRefused("no such bank")]
    )
    await pay(engines, order)
    runtime.advance(1000)
    await payments.call_providers(engines)
    await pay(engines, order, key="m2")
    async with engines.sql.read() as session:
        rows = (await session.execute(select(Payment.state, Payment.reason).order_by(Payment.reason))).all()
        assert [tuple(row) for row in rows] == [("declined", "no such bank"), ("declined", "the provider does not answer: timeout")]
        assert (await session.scalars(select(ProviderCall.state))).all() == ["failed", "failed"]
    assert await heard(engines, user_channel("lin")) == ["payment.declined", "payment.declined"]


async def test_what_nobody_paid_is_cancelled_when_its_order_ends(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    """At the provider, once, for each attempt that is open: else an app could still take money for an order that is gone."""
    offer = await shelf.offer(total=3)
    abandoned, late, tried = [await shelf.order(offer, key=f"k{number}") for number in range(3)]
    left = (await pay(engines, abandoned, "sandbox_abandoned")).payment or ""
    under_way = (await pay(engines, late, "sandbox_late", key="m2")).payment or ""
    declined = (await pay(engines, tried, "sandbox_decline", key="m3")).payment or ""
    assert await hear_all(engines, runtime, declined) == ["declined"]
    assert await hear_all(engines, runtime, left) == []
    await shelf.intake()
    assert await _cancelled(engines) == {}
    await inventory.cancel_hold(engines, viewer_id="lin", hold_id=abandoned)
    runtime.advance(engines.settings.payment_ttl_s * 1000)
    await inventory.expire_sales(engines)
    await shelf.intake()
    await payments.call_providers(engines)
    await payments.call_providers(engines)
    assert await _cancelled(engines) == {left: ("done", ""), under_way: ("failed", "the sandbox's money is on its way")}
    assert await hear_all(engines, runtime, left) == ["declined"]
    assert await hear_all(engines, runtime, under_way) == ["paid"]  # late, and there is stock left
    await shelf.intake()
    await check_books(engines)


async def _cancelled(engines: Engines) -> dict[str, tuple[str, str]]:
    query = select(ProviderCall.subject, ProviderCall.state, ProviderCall.error).where(ProviderCall.kind == "cancel")
    async with engines.sql.read() as session:
        return {subject: (state, error) for subject, state, error in await session.execute(query)}


async def test_calls_and_webhooks_are_forgotten_and_what_they_came_to_stays(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    """Not before their time, and not what is still to be done: a call that is due, a webhook without an outcome."""
    await paid(shelf, runtime)
    await payments.call_providers(engines)
    payment = {"id": "room1-p", "provider": "stripe", "amount_minor": 1, "currency": "CNY"}
    open_event = {"provider": "sandbox", "event_id": "evt_open", "payment_id": "", "raw": b"{}", "received_at": runtime.now()}
    async with engines.sql.begin() as session:
        await store.insert_calls(session, [store.call_row("create", "room1-p", payment, at=runtime.now())])
        await store.record_event(session, open_event)

    async def kept() -> tuple[list[str], list[str]]:
        async with engines.sql.read() as session:
            calls = await session.scalars(select(ProviderCall.state).order_by(ProviderCall.state))
            return list(calls), list(await session.scalars(select(PaymentEvent.outcome).order_by(PaymentEvent.outcome)))

    runtime.advance(engines.settings.provider_records_days * 24 * 3600 * 1000)
    await payments.forget_provider_records(engines)
    assert await kept() == (["done", "due"], ["", "paid"])
    runtime.advance(60_000)
    await payments.forget_provider_records(engines)
    assert await kept() == (["due"], [""])
    async with engines.sql.read() as session:
        assert (await session.scalars(select(Payment.state))).all() == ["succeeded"]
    await check_books(engines)


async def test_a_refund_is_asked_for_after_its_commit_and_settled_by_webhook(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order, payment = await paid(shelf, runtime)
    with pytest.raises(AppError):
        async with engines.work() as work:
            await aftersales.refund(work, order, amount_minor=500, reason="damaged", restock=False, by="host")
            raise AppError(payments.NOT_FOUND, "rolled back")
    await payments.call_providers(engines)
    assert await hear_all(engines, runtime, payment) == []  # what was rolled back was never asked for
    await refund(engines, order, 500)
    await payments.call_providers(engines)
    await payments.call_providers(engines)
    assert await hear_all(engines, runtime, payment) == ["refund_succeeded"]
    async with engines.sql.read() as session:
        charge = await session.get(SandboxCharge, payment)
        assert charge
        assert charge.refunded_minor == 500
        assert (await session.scalars(select(Refund.state))).all() == ["succeeded"]
    assert await heard(engines, user_channel("lin")) == ["hold.placed", "order.placed", "order.paid", "order.changed", "refund.settled"]
    assert await balance(engines) == (1490, 0)
    await check_books(engines)


async def test_a_refund_that_fails_stands_in_the_books_again(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order, payment = await paid(shelf, runtime, "sandbox_refund_fails")
    await refund(engines, order)
    assert (await view(engines, order)).state == "refunded"
    assert await balance(engines) == (0, 0)
    await payments.call_providers(engines)
    assert await hear_all(engines, runtime, payment) == ["refund_failed"]
    found = await view(engines, order)
    assert (found.state, found.refunded_minor) == ("paid", 0)
    assert await balance(engines) == (1990, 0)
    assert (await heard(engines, staff_channel("room1")))[-3:] == ["order.changed", "alert.raised", "refund.settled"]
    await refund(engines, order, 100)  # by another way it may go out
    assert await balance(engines) == (1890, 0)
    await check_books(engines)


async def test_a_refund_whose_process_died_before_it_was_noted_is_asked_for_once_more(
    shelf: Shelf, engines: Engines, runtime: TestRuntime
) -> None:
    """The sandbox used to add the repetition to what it had sent back, and refused a whole refund that it had made: it stood as failed."""
    order, payment = await paid(shelf, runtime)
    await refund(engines, order)
    async with engines.sql.read() as session:
        call = (await session.scalars(select(ProviderCall).where(ProviderCall.kind == "refund"))).one()
        row = await session.get(Payment, payment)
    assert row
    await sandbox.Sandbox().refund(engines, call, row)
    await payments.call_providers(engines)
    assert await hear_all(engines, runtime, payment) == ["refund_succeeded"]
    async with engines.sql.read() as session:
        assert (await session.scalars(select(Refund.state))).all() == ["succeeded"]
    await check_books(engines)


async def test_a_step_that_two_workers_told_is_counted_once(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    """A delivery that outlasts its lease is made by the other worker too; both counted, and the step behind it was never told."""
    _, payment = await paid(shelf, runtime, "sandbox_dispute_won")
    async with engines.sql.read() as session:
        charge = await session.get(SandboxCharge, payment)
    assert charge
    body, header = sandbox.sandbox_notice(engines.settings, charge, now_ms=runtime.now_ms())
    for _ in range(2):
        assert await payments.receive_webhook(engines, "sandbox", {"Jishi-Signature": header}, body) == "dispute_open"
        await sandbox._note_sent(engines, charge, heard=True)
    await sandbox._note_sent(engines, charge, heard=False)  # nor does a late failure put the next one off
    async with engines.sql.read() as session:
        assert (await session.scalars(select(SandboxCharge.attempts))).all() == [0]
    assert await hear_all(engines, runtime, payment) == ["dispute_won"]


async def test_a_lost_dispute_about_another_payment_leaves_the_order_paid(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    """It came a second time and went back by itself; what the bank then took used to count as refunded of the order."""
    order = await shelf.order(await shelf.offer())
    first, second = [(await pay(engines, order, key=key)).payment or "" for key in ("m1", "m2")]
    assert await hear_all(engines, runtime, first) == ["paid"]
    await shelf.intake()
    async with engines.work() as work:
        await wallet.deposit(work, room_id="room1", amount_minor=1990, currency="CNY", reference="bank-1", by="root")
    paying = {"id": "e1", "type": "payment.succeeded", "payment": second, "amount_minor": 1990, "currency": "CNY"}
    assert await hear(engines, runtime, paying) == "paid_twice"
    await shelf.intake()
    lost = paying | {"id": "e2", "type": "dispute.lost", "subject": "d1"}
    assert await hear(engines, runtime, lost) == "dispute_lost"
    found = await view(engines, order)
    assert (found.state, found.refunded_minor) == ("paid", 0)
    assert await balance(engines) == (1990, 0)
    await check_books(engines)


async def test_a_refund_that_nobody_made_here_is_told_to_the_team(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    _, payment = await paid(shelf, runtime)
    notice = {"id": "e1", "type": "refund.succeeded", "payment": payment, "subject": "elsewhere", "amount_minor": 1, "currency": "CNY"}
    assert await hear(engines, runtime, notice) == "unknown_refund"
    assert await hear(engines, runtime, notice) == "unknown_refund"
    assert (await heard(engines, staff_channel("room1"))).count("alert.raised") == 1
    assert await hear(engines, runtime, notice | {"id": "e2", "payment": "room1-none"}) == "unknown_payment"
    async with engines.sql.read() as session:
        events = (await session.execute(select(PaymentEvent.event_id, PaymentEvent.outcome).order_by(PaymentEvent.event_id))).all()
    assert [tuple(row) for row in events][:2] == [("e1", "unknown_refund"), ("e2", "unknown_payment")]


async def hear(engines: Engines, runtime: TestRuntime, notice: dict[str, object]) -> str:
    body = msgspec.json.encode(notice)
    header = sandbox.sign(sandbox.sandbox_secret(engines.settings), runtime.now_ms() // 1000, body)
    return await payments.receive_webhook(engines, "sandbox", {"Jishi-Signature": header}, body)


async def test_a_dispute_sets_money_aside_and_takes_it_when_lost(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order, payment = await paid(shelf, runtime, "sandbox_dispute")
    async with engines.sql.read() as session:
        charge = await session.get(SandboxCharge, payment)
    assert charge
    body, header = sandbox.sandbox_notice(engines.settings, charge, now_ms=runtime.now_ms())
    for _ in range(2):
        assert await payments.receive_webhook(engines, "sandbox", {"Jishi-Signature": header}, body) == "dispute_open"
    assert await balance(engines) == (1990, 1990)
    with pytest.raises(AppError, match="asked the bank"):
        await refund(engines, order, 1)
    await sandbox._note_sent(engines, charge, heard=True)
    assert await hear_all(engines, runtime, payment) == ["dispute_lost"]
    assert await balance(engines) == (0, 0)
    found = await view(engines, order)
    assert (found.state, found.refunded_minor, found.reason) == ("refunded", 1990, "disputed")
    team = await heard(engines, staff_channel("room1"))
    assert team == ["order.placed", "order.paid", "dispute.opened", "dispute.closed", "order.changed"]
    await check_books(engines)


async def test_a_refund_that_fails_after_a_lost_dispute_leaves_what_the_bank_took(
    shelf: Shelf, engines: Engines, runtime: TestRuntime
) -> None:
    """The bank took all of it; the failure of a part that was sent back before used to make that part refundable a second time."""
    order, payment = await paid(shelf, runtime, "sandbox_refund_fails")
    await refund(engines, order, 500)
    async with engines.work() as work:
        await wallet.deposit(work, room_id="room1", amount_minor=1000, currency="CNY", reference="bank-1", by="root")
    lost = {"id": "e1", "type": "dispute.lost", "payment": payment, "subject": "d1", "amount_minor": 1990, "currency": "CNY"}
    assert await hear(engines, runtime, lost) == "dispute_lost"
    await payments.call_providers(engines)
    assert await hear_all(engines, runtime, payment) == ["refund_failed"]
    found = await view(engines, order)
    assert (found.state, found.refunded_minor) == ("refunded", 1990)
    assert await balance(engines) == (1000, 0)
    await check_books(engines)


async def test_a_dispute_that_is_won_frees_the_money_whatever_the_order_of_notices(
    shelf: Shelf, engines: Engines, runtime: TestRuntime
) -> None:
    order, payment = await paid(shelf, runtime, "sandbox_dispute_won")
    opened = {"id": "e1", "type": "dispute.opened", "payment": payment, "subject": "d1", "amount_minor": 1990, "currency": "CNY"}
    won = opened | {"id": "e2", "type": "dispute.won"}
    assert [await hear(engines, runtime, notice) for notice in (won, opened, won)] == ["dispute_won", "ignored", "dispute_won"]
    assert await balance(engines) == (1990, 0)
    assert await hear_all(engines, runtime, payment) == ["dispute_open", "dispute_won"]
    await refund(engines, order, 1)
    await check_books(engines)


async def test_a_wallet_that_is_empty_owes_a_lost_dispute(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    _, payment = await paid(shelf, runtime, "sandbox_dispute")
    async with engines.work() as work:
        await wallet.transfer(
            work,
            transfer_id="out",
            from_account="room:room1",
            to_account="external:bank",
            amount_minor=1000,
            currency="CNY",
            kind="payout",
        )
    assert await hear_all(engines, runtime, payment) == ["dispute_open", "dispute_lost"]
    assert await balance(engines) == (990, 0)
    assert "alert.raised" in await heard(engines, staff_channel("room1"))
    await disputes.settle_owed_disputes(engines)
    assert await balance(engines) == (990, 0)
    async with engines.work() as work:
        await wallet.deposit(work, room_id="room1", amount_minor=1500, currency="CNY", reference="bank-1", by="root")
    for _ in range(2):
        await disputes.settle_owed_disputes(engines)
        assert await balance(engines) == (500, 0)
    async with engines.sql.read() as session:
        assert (await session.execute(select(Dispute.state, Dispute.covered))).all() == [("lost", True)]
    assert await audit_ledger(engines) == []
