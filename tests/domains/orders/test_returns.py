"""Return requests and delivery: who may ask, what leads where, what time decides, and that the money goes back once."""

import itertools
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from app.core.errors import AppError
from app.domains.catalogue import service as catalogue
from app.domains.inventory import service as inventory
from app.domains.orders import aftersales, returns
from app.domains.orders.rules import (
    DAY_MS,
    OrderState,
    ReturnAct,
    ReturnCase,
    ReturnDays,
    ReturnState,
    act_when_due,
    days_in,
    decide_return,
    next_return_state,
    restocks,
)
from app.domains.orders.tables import Dispute, ReturnRequest
from app.domains.wallet import service as wallet
from app.protocol.channels import staff_channel, user_channel
from app.protocol.return_commands import Evidence, ReturnRequested
from app.protocol.return_commands import ReturnRequest as Asked
from app.storage.work import Engines
from tests.domains.orders.test_payments import balance, check_books, heard, paid, view
from tests.rest.people import as_
from tests.support.auditor.ledger import audit_ledger
from tests.support.runtime import TestRuntime
from tests.support.shelf import Shelf, open_shelf

KINDS = ("refund_only", "return_goods")
DAYS = ReturnDays(answer=3, ship=7, receive=10, inspect=3, fault=30, fresh_fault=2)


@pytest.fixture
async def shelf(engines: Engines) -> Shelf:
    return await open_shelf(engines)


# --- rules ---------------------------------------------------------------------------------------------------------------------------

LEADS = {
    ("requested", "approve"): "approved",
    ("requested", "reject"): "rejected",
    ("requested", "cancel"): "closed",
    ("approved", "cancel"): "closed",
    ("received", "refund"): "refunded",
    ("received", "refuse"): "closed",
}
LEADS_OF = {
    "refund_only": {("approved", "refund"): "refunded"},
    "return_goods": {
        ("approved", "ship_back"): "shipped_back",
        ("approved", "receive"): "received",
        ("shipped_back", "receive"): "received",
        ("shipped_back", "refund"): "refunded",
    },
}


def test_every_step_that_there_is_and_no_other() -> None:
    for state, act, kind in itertools.product(ReturnState, ReturnAct, KINDS):
        assert next_return_state(state, act, kind) == (LEADS | LEADS_OF[kind]).get((state.value, act.value)), (state, act, kind)


def test_time_leads_every_open_request_to_an_end() -> None:
    for kind in KINDS:
        state, steps = ReturnState.REQUESTED, 0
        while days_in(state, kind, DAYS) is not None:
            target = next_return_state(state, act_when_due(state, kind), kind)
            assert target, state
            state, steps = target, steps + 1
        assert (state, steps) == (("refunded", 2) if kind == "refund_only" else ("closed", 2))
    for state in (ReturnState.SHIPPED_BACK, ReturnState.RECEIVED):  # who has sent the goods is not left without the money
        assert next_return_state(state, act_when_due(state, "return_goods"), "return_goods") == "refunded"


FINE: dict[str, Any] = {
    "state": OrderState.DELIVERED,
    "policy": "no_reason_7_days",
    "left_minor": 100,
    "units_left": 2,
    "delivered_ms": 0,
    "requests": 0,
    "is_open": False,
    "kind": "return_goods",
    "reason": "no_reason",
    "quantity": 2,
    "explained": False,
}
LAST_MS = 7 * DAY_MS
FAULT = {"reason": "damaged", "explained": True}
FRESH = {"policy": "fresh_no_return"}


@pytest.mark.parametrize(
    ("changes", "now_ms", "outcome"),
    [
        ({}, LAST_MS, "requested"),
        ({}, LAST_MS + 1, "too_late"),
        ({"delivered_ms": None, "state": OrderState.SHIPPED}, 10**15, "requested"),  # not there yet: no time is over
        (FAULT, 30 * DAY_MS, "requested"),
        (FAULT, 30 * DAY_MS + 1, "too_late"),
        (FAULT | FRESH, 2 * DAY_MS, "requested"),
        (FAULT | FRESH, 2 * DAY_MS + 1, "too_late"),
        (FRESH, 10**15, "excluded"),
        ({"reason": "damaged"} | FRESH, 10**15, "evidence_needed"),
        ({"reason": "not_received"}, 0, "requested"),
        ({"state": OrderState.PAID, "reason": "damaged"}, 0, "not_shipped"),
        ({"state": OrderState.PAID, "kind": "refund_only", "delivered_ms": None}, 10**15, "requested"),
        ({"quantity": 3, "state": OrderState.PAID}, 0, "too_many"),
        ({"requests": 5, "quantity": 3}, 0, "limit"),
        ({"is_open": True, "requests": 5}, 0, "open"),
        ({"left_minor": 0, "is_open": True}, 0, "nothing_paid"),
        ({"state": OrderState.PLACED, "is_open": True}, 0, "nothing_paid"),
        ({"state": OrderState.REFUNDED}, 0, "nothing_paid"),
    ],
)
def test_the_order_of_checks(changes: dict[str, Any], now_ms: int, outcome: str) -> None:
    assert decide_return(ReturnCase(**FINE | changes), now_ms=now_ms, days=DAYS, requests_max=5) == outcome


def test_only_what_is_whole_is_sold_again() -> None:
    again = {
        (kind, reason, policy, shipped)
        for kind, reason, policy, shipped in itertools.product(
            KINDS, ("no_reason", "damaged", "wrong_item"), ("no_reason_7_days", "fresh_no_return"), (True, False)
        )
        if restocks(kind=kind, reason=reason, policy=policy, shipped=shipped)
    }
    assert {case for case in again if case[3]} == {
        ("return_goods", "no_reason", "no_reason_7_days", True),
        ("return_goods", "wrong_item", "no_reason_7_days", True),
    }
    assert len([case for case in again if not case[3]]) == 12  # what never left


# --- from delivery to the refund -------------------------------------------------------------------------------------------------------


async def delivered(shelf: Shelf, runtime: TestRuntime) -> str:
    order, _ = await paid(shelf, runtime)
    async with shelf.engines.work() as work:
        await aftersales.ship(work, order, carrier="SF", tracking="1", by="host")
    assert await aftersales.confirm_receipt(shelf.engines, viewer_id="lin", order_id=order) == "confirmed"
    return order


async def ask(engines: Engines, order: str, key: str = "r1", viewer: str = "lin", **how: Any) -> ReturnRequested:
    asked = Asked(**{"order": order, "kind": "return_goods", "reason": "no_reason", "key": key, **how})
    return await returns.request(engines, viewer_id=viewer, asked=asked)


async def decide(engines: Engines, request: str | None, act: str, **how: Any) -> str:
    async with engines.work() as work:
        return (await returns.decide(work, request or "", ReturnAct(act), by="host", **how)).state


async def state(engines: Engines, request: str | None) -> str:
    return (await returns.find_return(engines, viewer_id="lin", request_id=request or "")).state


async def test_receipt(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order, _ = await paid(shelf, runtime)
    assert await aftersales.confirm_receipt(engines, viewer_id="lin", order_id=order) == "not_shipped"
    with pytest.raises(AppError, match="only a shipped order"):
        async with engines.work() as work:
            await aftersales.deliver(work, order, by="host")
    async with engines.work() as work:
        await aftersales.ship(work, order, carrier="SF", tracking="1", by="host")
    assert await aftersales.confirm_receipt(engines, viewer_id="mei", order_id=order) == "unknown"
    runtime.advance(10 * DAY_MS - 1)
    await aftersales.deliver_after_days(engines)
    assert (await view(engines, order)).state == "shipped"
    runtime.advance(1)
    await aftersales.deliver_after_days(engines)
    assert ((await view(engines, order)).state, (await view(engines, order)).delivered_at) == ("delivered", "2025-06-25T15:06:40.000Z")
    assert await aftersales.confirm_receipt(engines, viewer_id="lin", order_id=order) == "confirmed"
    assert (await heard(engines, user_channel("lin"))).count("order.changed") == 2
    await check_books(engines)


async def test_goods_travel_back_and_the_money_goes_back_once(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order = await delivered(shelf, runtime)
    first = await ask(engines, order)
    assert (first.outcome, first.amount_minor, first.due_at) == ("requested", 1990, "2025-06-18T15:06:40.000Z")
    again = await ask(engines, order)
    assert (again.request, again.repeated) == (first.request, True)
    with pytest.raises(AppError) as refused:
        await ask(engines, order, reason="other", text="x")
    assert refused.value.code.word == "key_reused"
    assert (await ask(engines, order, key="r2")).outcome == "open"
    assert (await ask(engines, order, key="r2", viewer="mei")).outcome == "unknown"
    with pytest.raises(AppError, match="you have no"):
        await returns.find_return(engines, viewer_id="mei", request_id=first.request or "")
    request = first.request or ""
    parcel = {"carrier": "SF", "tracking": "9"}
    assert (await returns.ship_back(engines, viewer_id="lin", request_id=request, **parcel)).outcome == "not_possible"
    for _ in range(2):
        assert await decide(engines, request, "approve", answer="8 Tea Street") == "approved"
    assert (await returns.ship_back(engines, viewer_id="mei", request_id=request, **parcel)).outcome == "unknown"
    for _ in range(2):
        shipped = await returns.ship_back(engines, viewer_id="lin", request_id=request, **parcel)
        assert (shipped.outcome, shipped.state) == ("done", "shipped_back")
    assert (await returns.ship_back(engines, viewer_id="lin", request_id=request, carrier="SF", tracking="8")).outcome == "not_possible"
    assert (await returns.cancel(engines, viewer_id="lin", request_id=request)).outcome == "not_possible"
    for _ in range(2):
        assert await decide(engines, request, "receive") == "received"
    for _ in range(2):
        assert await decide(engines, request, "refund") == "refunded"
    assert (await view(engines, order)).state == "refunded"
    assert await balance(engines) == (0, 0)
    stock = next(iter((await inventory.read_stock(engines, "room1")).values()))
    assert (stock.available, stock.sold) == (3, 0)  # whole, so it is on the shelf again
    changes = [event for event in await heard(engines, user_channel("lin")) if event.startswith("return.")]
    assert changes == ["return.requested", *["return.changed"] * 4]
    assert (await ask(engines, order, key="r3")).outcome == "nothing_paid"
    await check_books(engines)


async def test_what_never_left_is_refunded_when_approved(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order, _ = await paid(shelf, runtime)
    assert (await ask(engines, order)).outcome == "not_shipped"
    request = (await ask(engines, order, kind="refund_only")).request
    for _ in range(2):
        assert await decide(engines, request, "approve") == "refunded"
    assert await balance(engines) == (0, 0)
    assert next(iter((await inventory.read_stock(engines, "room1")).values())).available == 3
    await check_books(engines)


async def test_what_is_broken_is_refunded_with_evidence_and_not_sold_again(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order, _ = await paid(shelf, runtime)
    async with engines.work() as work:
        await aftersales.ship(work, order, carrier="SF", tracking="1", by="host")
    assert (await ask(engines, order, reason="damaged")).outcome == "evidence_needed"
    assert (await ask(engines, order, quantity=2)).outcome == "too_many"
    photo = Evidence(url="https://shop.example/1.jpg", sha256="a" * 64)
    request = (await ask(engines, order, kind="refund_only", reason="damaged", evidence=[photo])).request
    found = await returns.find_return(engines, viewer_id="lin", request_id=request or "")
    assert found.evidence == [photo]
    assert await decide(engines, request, "approve") == "refunded"
    stock = next(iter((await inventory.read_stock(engines, "room1")).values()))
    assert (stock.available, stock.sold) == (2, 1)
    await check_books(engines)


async def test_the_team_says_no(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order = await delivered(shelf, runtime)
    engines.settings.returns_per_order_max = 3
    first = (await ask(engines, order)).request
    assert await decide(engines, first, "reject", answer="opened") == "rejected"
    with pytest.raises(AppError, match="rejected cannot be changed by `approve`"):
        await decide(engines, first, "approve")
    second = (await ask(engines, order, key="r2")).request
    assert (await returns.cancel(engines, viewer_id="lin", request_id=second or "")).state == "closed"
    assert (await returns.cancel(engines, viewer_id="lin", request_id=second or "")).outcome == "done"
    third = (await ask(engines, order, key="r3")).request
    await decide(engines, third, "approve")
    await decide(engines, third, "receive")  # handed over
    assert await decide(engines, third, "refuse", answer="another tea") == "closed"
    assert (await ask(engines, order, key="r4")).outcome == "limit"
    page = await returns.list_own(engines, viewer_id="lin", order_id=order, cursor="", limit=2)
    rest = await returns.list_own(engines, viewer_id="lin", order_id=order, cursor=page.next_cursor, limit=2)
    assert {row.answer for row in [*page.requests, *rest.requests]} == {"opened", "taken back", "another tea"}
    assert (len(page.requests), len(rest.requests), rest.next_cursor) == (2, 1, "")
    assert await balance(engines) == (1990, 0)
    await check_books(engines)


async def test_time_decides_for_who_does_not(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order = await delivered(shelf, runtime)

    async def after(days: int, request: str | None) -> tuple[str, str]:
        """The state one millisecond before, and at the deadline."""
        runtime.advance(days * DAY_MS - 1)
        await returns.run_due_returns(engines)
        before = await state(engines, request)
        runtime.advance(1)
        await returns.run_due_returns(engines)
        return before, await state(engines, request)

    first = (await ask(engines, order)).request
    assert await after(3, first) == ("requested", "approved")  # the team was silent
    assert await after(7, first) == ("approved", "closed")  # nothing was sent
    assert await balance(engines) == (1990, 0)
    second = (await ask(engines, order, key="r2", reason="wrong_item", text="green, not black")).request
    await decide(engines, second, "approve")
    await returns.ship_back(engines, viewer_id="lin", request_id=second or "", carrier="SF", tracking="9")
    assert await after(10, second) == ("shipped_back", "refunded")  # the team never said that it came
    assert await balance(engines) == (0, 0)
    assert "return.changed" in await heard(engines, staff_channel("room1"))
    await check_books(engines)


async def test_money_that_cannot_go_back_now_goes_back_later(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order, payment = await paid(shelf, runtime)
    request = (await ask(engines, order, kind="refund_only")).request
    async with engines.work() as work:
        dispute = Dispute(
            id="room1-d1",
            provider="sandbox",
            reference="d1",
            payment_id=payment,
            order_id=order,
            room_id="room1",
            amount_minor=1990,
            currency="CNY",
            reason="",
            state="open",
            covered=False,
            opened_at=work.now,
        )
        work.session.add(dispute)
    with pytest.raises(AppError, match="asked the bank"):
        await decide(engines, request, "approve")
    assert await state(engines, request) == "requested"
    runtime.advance(3 * DAY_MS)
    await returns.run_due_returns(engines)
    await returns.run_due_returns(engines)
    assert await state(engines, request) == "approved"
    assert (await heard(engines, staff_channel("room1"))).count("alert.raised") == 1
    async with engines.sql.begin() as session:
        await session.execute(text("update disputes set state = 'won'"))
    await returns.run_due_returns(engines)
    assert await state(engines, request) == "approved"  # an hour later, not before
    runtime.advance(3600_000)
    await returns.run_due_returns(engines)
    assert await state(engines, request) == "refunded"
    await check_books(engines)


async def test_an_empty_wallet_is_told_to_the_team(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order, _ = await paid(shelf, runtime)
    request = (await ask(engines, order, kind="refund_only")).request
    async with engines.work() as work:
        how = {"from_account": "room:room1", "to_account": "external:bank", "amount_minor": 1, "currency": "CNY", "kind": "payout"}
        await wallet.transfer(work, transfer_id="out", **how)
    with pytest.raises(AppError) as refused:
        await decide(engines, request, "approve")
    assert refused.value.code.word == "insufficient_funds"
    assert (await state(engines, request), await audit_ledger(engines)) == ("requested", [])


async def test_the_databases_clock_decides(shelf: Shelf, engines: Engines, runtime: TestRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose clock is a year behind, as the test's is, must neither keep a deadline back nor set a wrong one."""
    order = await delivered(shelf, runtime)
    monkeypatch.setattr(runtime, "script_now_ms", lambda: 0)
    async with engines.sql.begin() as session:
        await session.execute(text("update orders set delivered_at = now()"))
    request = (await ask(engines, order)).request
    async with engines.sql.read() as session:
        left = await session.scalar(text("select extract(epoch from due_at - now()) from return_requests"))
    assert 3 * 86400 - 60 < float(left) <= 3 * 86400  # type: ignore[arg-type]
    await returns.run_due_returns(engines)
    async with engines.sql.begin() as session:
        row = await session.get(ReturnRequest, request)
        assert row
        assert row.state == "requested"
        await session.execute(text("update return_requests set due_at = now()"))
    await returns.run_due_returns(engines)
    async with engines.sql.read() as session:
        assert await session.scalar(text("select state from return_requests")) == "approved"


async def test_the_policy_that_was_confirmed_at_purchase_counts(shelf: Shelf, engines: Engines, runtime: TestRuntime) -> None:
    order = await delivered(shelf, runtime)
    async with engines.work() as work:
        await catalogue.change_terms(work, (await view(engines, order)).offer, {"return_policy": "fresh_no_return"})
    assert (await view(engines, order)).return_policy == "no_reason_7_days"
    runtime.advance(7 * DAY_MS + 1)
    assert (await ask(engines, order)).outcome == "too_late"
    async with engines.sql.begin() as session:
        await session.execute(text("update orders set return_policy = 'fresh_no_return'"))
    assert (await ask(engines, order)).outcome == "excluded"


async def test_over_rest(client: httpx2.AsyncClient, engines: Engines, shelf: Shelf, runtime: TestRuntime) -> None:
    order = await delivered(shelf, runtime)
    lin, host, stranger = as_(engines, "lin"), as_(engines, "mei", "host@room1"), as_(engines, "bo", "host@room2")
    body = {"order": order, "kind": "return_goods", "reason": "damaged", "text": "broken", "key": "r1"}
    wrong = {"kind": "gift"}, {"reason": "bored"}, {"evidence": [{"url": "javascript:alert(1)"}]}, {"quantity": 0}, {"text": "x" * 501}
    for part in wrong:
        assert (await client.post("/api/v1/return/request", json=body | part, headers=lin)).status_code == 400, part
    asked = (await client.post("/api/v1/return/request", json=body, headers=lin)).json()
    path = f"/api/v1/returns/{asked['request']}"
    assert (await client.get(path, headers=stranger)).status_code == 403
    assert (await client.get("/api/v1/returns/room1-none", headers=host)).status_code == 404
    listed = (await client.get("/api/v1/rooms/room1/returns", params={"state": "requested"}, headers=host)).json()["items"]
    assert [(row["id"], row["viewer"], row["text"]) for row in listed] == [(asked["request"], "lin", "broken")]
    assert (await client.post(path + "/reject", json={"answer": ""}, headers=host)).status_code == 400
    approved = (await client.post(path + "/approve", json={"answer": "send it"}, headers=host)).json()
    assert (approved["state"], approved["answer"]) == ("approved", "send it")
    mine = (await client.post("/api/v1/return/list", json={}, headers=lin)).json()["requests"]
    assert [(row["id"], row["state"], row["answer"]) for row in mine] == [(asked["request"], "approved", "send it")]
    assert (await client.post(path + "/refuse", json={"answer": "no"}, headers=host)).status_code == 409
