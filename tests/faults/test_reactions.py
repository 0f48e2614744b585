"""What SQL has committed reaches the engine, however long the engine was away."""

import pytest
from sqlalchemy import select

from app.core.errors import AppError
from app.domains.inventory import service as inventory
from app.domains.orders import aftersales, payments
from app.protocol.order_commands import OrderPay
from app.storage.announcements import announce_room
from app.storage.tables import DeadLetter
from tests.faults.lines import Line
from tests.support.auditor.stock import audit_stock
from tests.support.shelf import Shelf

pytestmark = pytest.mark.slow


async def test_units_of_a_refund_come_back_after_an_outage(line: Line) -> None:
    """What went through group commit told of the outage by an AppError, which counted against the event: after eight passes of the
    worker, some ten seconds, the refund's units were set aside with it and nobody could ever buy them."""
    engines = line.shelf.engines
    engines.settings = engines.settings.model_copy(update={"outbox_attempts_max": 1})
    offer = await line.shelf.offer(total=3)
    order = await line.shelf.order(offer, quantity=2)
    attempt = await payments.pay(engines, viewer_id="lin", request=OrderPay(order=order, key="m"))
    assert await line.post_webhook(attempt.payment or "") == "paid"
    await Shelf(line.direct).intake()
    line.proxy.mode = "cut_request"
    async with engines.work() as work:
        await aftersales.refund(work, order, amount_minor=None, reason="damaged", restock=True, by="host")
    with pytest.raises(AppError) as failure:
        await announce_room(engines, "room1")
    assert failure.value.code.word == "service_unavailable"
    line.proxy.heal()
    await announce_room(engines, "room1")
    stock = (await inventory.read_stock(line.direct, "room1"))[offer]
    assert (stock.available, stock.sold) == (3, 0)
    async with line.direct.sql.read() as session:
        assert list(await session.scalars(select(DeadLetter.type))) == []
    assert await audit_stock(line.direct, ["room1"]) == []
