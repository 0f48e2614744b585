"""The line to the sales engine breaks in every way, under every command that moves stock or money: safe while it is broken, and after it
is whole again each retry gives the final answer, with one effect.

All commands go out at once, each on a hold of its own, so that a batch fails as a whole; the effects must add up to the unit.
"""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis.exceptions import RedisError
from sqlalchemy import select

from app.domains.catalogue import service as catalogue
from app.domains.inventory import service as inventory
from app.domains.orders import aftersales, payments, reconciliation
from app.domains.orders import service as orders
from app.domains.orders.tables import Refund
from app.domains.wallet import service as wallet
from app.protocol.channels import room_channel
from app.protocol.events import OfferUpdated
from app.protocol.order_commands import OrderPay
from app.storage.announcements import announce_room
from app.storage.intake import take_in_room
from app.storage.work import Work, is_away
from tests.faults.lines import Line
from tests.support.auditor.ledger import audit_ledger
from tests.support.auditor.stock import audit_stock
from tests.support.shelf import Shelf
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

PRICE = 500
STEPS_MAX = 40  # turns of the loop after which a command is cancelled; it is done in fewer
WORDS = {
    "reserve": "held",
    "release": "released",
    "place": "placed",
    "cancel": "cancelled",
    "pay": "paid",
    "pay_late": "paid",
    "award": "done",
    "restock": "given_back",
    "announce": "done",  # what SQL has committed: the refund that restocks a unit, and five units more
}
# 30 units: 3 held, 2 ordered, 2 sold. Then each command of one unit but `reserve`, of two.
BEFORE = {"total": 30, "available": 23, "held": 3, "ordered": 2, "sold": 2}
AFTER = {"total": 35, "available": 28, "held": 2, "ordered": 1, "sold": 4}

Command = Callable[[], Awaitable[str]]


async def commands_of(line: Line) -> dict[str, Command]:
    """Each command that moves stock or money, ready to be sent over the line that will break."""
    there, shelf = Shelf(line.direct), line.shelf
    offer = await there.offer(total=30, price_minor=PRICE)
    late = await there.order(offer, key="late")
    late_payment = await _started(line, late, "late")
    line.runtime.advance(line.direct.settings.payment_ttl_s * 1000 + 1)
    await inventory.expire_sales(line.direct)
    back = await there.order(offer, quantity=2, key="back")
    assert await line.post_webhook(await _started(line, back, "back")) == "paid"
    held, to_place = (await there.reserve(offer, key="held")).hold or "", (await there.reserve(offer, key="to place")).hold or ""
    escrow = (await there.reserve(offer, viewer="draw", key="prize", escrow=True)).hold or ""
    to_cancel, to_pay = await there.order(offer, key="to cancel"), await there.order(offer, key="to pay")
    payment = await _started(line, to_pay, "pay")
    await there.intake()

    async def reserve() -> str:
        return (await shelf.reserve(offer, key="new", quantity=2)).outcome

    async def release() -> str:
        return (await inventory.release(shelf.engines, viewer_id="lin", hold_id=held)).outcome

    async def place() -> str:
        return (await shelf.place(to_place)).outcome

    async def cancel() -> str:
        return (await orders.cancel(shelf.engines, viewer_id="lin", order_id=to_cancel)).outcome

    async def award() -> str:
        await orders.award_prize(shelf.engines, hold_id=escrow, holder_id="draw", viewer_id="mei", prize_name="Tea")
        return "done"

    async def announce() -> str:
        await announce_room(shelf.engines, "room1")
        return "done"

    refund = await _change_in_sql(line, back, offer)

    async def restock() -> str:
        return (await inventory.give_back(shelf.engines, hold_id=back, quantity=1, refund_id=refund)).word

    return {
        "reserve": reserve,
        "release": release,
        "place": place,
        "cancel": cancel,
        "pay": lambda: line.post_webhook(payment),
        "pay_late": lambda: line.post_webhook(late_payment),
        "award": award,
        "restock": restock,
        "announce": announce,
    }


async def _change_in_sql(line: Line, order: str, offer_id: str) -> str:
    """Committed, and not announced yet: as a process leaves it that dies right after its commit. The refund's id."""
    async with line.direct.sql.begin() as session:
        work = Work(line.direct, session)
        await aftersales.refund(work, order, amount_minor=PRICE, reason="damaged", restock=True, by="host")
        offer = await catalogue.add_stock(work, offer_id, 5)
        work.emit("room1", [room_channel("room1")], OfferUpdated(at=work.at, offer=catalogue.offer_view(offer)))
        await work.flush()
        return (await session.scalars(select(Refund.id))).one()


async def _started(line: Line, order: str, key: str) -> str:
    return (await payments.pay(line.direct, viewer_id="lin", request=OrderPay(order=order, key=key))).payment or ""


async def stock_of(line: Line) -> dict[str, int]:
    stock = next(iter((await inventory.read_stock(line.direct, "room1")).values()))
    return {counter: getattr(stock, counter) for counter in BEFORE}


async def send_all(commands: dict[str, Command]) -> dict[str, str | BaseException]:
    return dict(zip(commands, await asyncio.gather(*(command() for command in commands.values()), return_exceptions=True), strict=True))


async def cut(line: Line, commands: dict[str, Command], mode: str) -> None:
    line.proxy.mode, line.proxy.only = mode, b"evalsha"
    for name, answer in (await send_all(commands)).items():
        assert isinstance(answer, Exception), (name, answer)
        assert is_away(answer), (name, answer)
    assert line.proxy.cuts > 0
    if mode == "cut_request":
        assert await stock_of(line) == BEFORE


async def cut_request(line: Line, commands: dict[str, Command]) -> None:
    await cut(line, commands, "cut_request")


async def cut_reply(line: Line, commands: dict[str, Command]) -> None:
    await cut(line, commands, "cut_reply")


async def arrive_after_the_caller_went(line: Line, commands: dict[str, Command]) -> None:
    """The line is deaf, the callers give up; then it heals, and what was on its way is done after all."""
    line.proxy.only = b"evalsha"
    line.proxy.hold()
    tasks = [asyncio.create_task(command()) for command in commands.values()]
    await wait_until(lambda: line.proxy.cuts)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await stock_of(line) == BEFORE
    line.proxy.heal()


async def trickle(line: Line, commands: dict[str, Command]) -> None:
    line.proxy.mode, line.proxy.only = "trickle", b"evalsha"
    assert await send_all(commands) == WORDS
    assert line.proxy.cuts > 0


async def flush_scripts(line: Line, commands: dict[str, Command]) -> None:
    await line.direct.sales.script_flush()
    assert await send_all(commands) == WORDS


async def cancel_at_each_await(_line: Line, commands: dict[str, Command]) -> None:
    for steps in range(STEPS_MAX):
        tasks = [asyncio.create_task(command()) for command in commands.values()]
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def send_many_times_at_once(_line: Line, commands: dict[str, Command]) -> None:
    for answers in await asyncio.gather(*(send_all(commands) for _ in range(6))):
        assert answers == WORDS


@pytest.mark.parametrize(
    "fault",
    [cut_request, cut_reply, arrive_after_the_caller_went, trickle, flush_scripts, cancel_at_each_await, send_many_times_at_once],
    ids=lambda fault: fault.__name__,
)
async def test_a_broken_line_and_a_retry_give_one_effect(
    line: Line, fault: Callable[[Line, dict[str, Command]], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault is arrive_after_the_caller_went:
        monkeypatch.setattr("app.storage.resp.ANSWER_S_MAX", 1.0)  # what a deaf line is waited for, again and again
    commands = await commands_of(line)
    assert commands.keys() == WORDS.keys()
    assert await stock_of(line) == BEFORE
    await fault(line, commands)
    assert await audit_stock(line.direct, ["room1"], after_intake=False) == []
    line.proxy.heal()
    for _ in range(2):
        assert await send_all(commands) == WORDS
    assert await stock_of(line) == AFTER
    await Shelf(line.direct).intake()
    await announce_room(line.direct, "room1")
    assert await audit_stock(line.direct, ["room1"]) == []
    assert await audit_ledger(line.direct) == []
    assert await reconciliation.reconcile(line.direct) == []
    async with line.direct.sql.read() as session:
        assert await wallet.balance(session, "room:room1", "CNY") == 3 * PRICE  # three units were paid for: 2 + 1 + 1 - 1
    publications, _ = await line.direct.streams.history("user:lin")
    assert len([row for row in publications if b'"order.paid"' in row.data]) == 3


@pytest.mark.parametrize("mode", ["cut_request", "cut_reply"])
async def test_intake_that_cannot_acknowledge_repeats_without_effect(line: Line, mode: str) -> None:
    """SQL has committed, the entries are still in the outbox: the mark skips them."""
    offer = await line.shelf.offer()
    placed = [await line.shelf.order(offer, key=f"k{number}") for number in range(3)]
    line.proxy.mode, line.proxy.only = mode, b"xdel"
    with pytest.raises((RedisError, OSError)):
        await take_in_room(line.shelf.engines, "room1")
    line.proxy.heal()
    await line.shelf.intake()
    page = await orders.list_orders(line.direct, viewer_id="lin", room_id=None, cursor="", limit=10)
    assert sorted(order.id for order in page.orders) == sorted(placed)
    publications, _ = await line.direct.streams.history("user:lin")
    assert len([row for row in publications if b'"order.placed"' in row.data]) == 3
    assert await audit_stock(line.direct, ["room1"]) == []
