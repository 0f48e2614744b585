"""RPC methods and REST routes of orders, payments and after-sales."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import AwareDatetime, BaseModel, Field
from starlette.responses import StreamingResponse

from app.core.caller import Caller
from app.core.errors import AppError
from app.core.registry import Command, Domain
from app.domains.inventory.service import scope
from app.domains.orders import aftersales, books, exports, payments, returns_endpoints, service, store
from app.domains.orders.rules import DisputeState, OrderState
from app.domains.orders.tables import Order
from app.protocol.codes import NOT_FOUND
from app.protocol.order_commands import (
    OrderAddressed,
    OrderCancel,
    OrderCancelled,
    OrderGet,
    OrderList,
    OrderPage,
    OrderPay,
    OrderPaying,
    OrderPlace,
    OrderPlaced,
    OrderSetAddress,
    OrderView,
)
from app.rest.access import EnginesDep, check_right, public, require
from app.rest.pages import CursorParam, LimitParam, Page, decode_moment_cursor, encode_moment_cursor
from app.storage.work import Engines

router = APIRouter(prefix="/api/v1", tags=["orders"])


# --- RPC methods ---------------------------------------------------------------------------------------------------------------------


async def place(engines: Engines, caller: Caller, request: OrderPlace) -> OrderPlaced:
    check_right(caller, "order.place", scope(request.hold, "hold"))
    return await service.place(engines, viewer_id=caller.id, name=caller.name, request=request)


async def cancel(engines: Engines, caller: Caller, request: OrderCancel) -> OrderCancelled:
    check_right(caller, "order.place", scope(request.order, "order"))
    return await service.cancel(engines, viewer_id=caller.id, order_id=request.order)


async def pay(engines: Engines, caller: Caller, request: OrderPay) -> OrderPaying:
    check_right(caller, "order.place", scope(request.order, "order"))
    return await payments.pay(engines, viewer_id=caller.id, request=request)


async def set_address(engines: Engines, caller: Caller, request: OrderSetAddress) -> OrderAddressed:
    check_right(caller, "order.place", scope(request.order, "order"))
    return await aftersales.set_address(engines, viewer_id=caller.id, request=request)


async def get(engines: Engines, caller: Caller, request: OrderGet) -> OrderView:
    check_right(caller, "order.place", scope(request.order, "order"))
    order = await service.find_order(engines, request.order, caller.id)
    if order is None:
        raise AppError(NOT_FOUND, f"you have no order {request.order}")
    return order


async def list_own(engines: Engines, caller: Caller, request: OrderList) -> OrderPage:
    return await service.list_orders(engines, viewer_id=caller.id, room_id=request.room, cursor=request.cursor, limit=request.limit)


# --- REST ----------------------------------------------------------------------------------------------------------------------------


class OrderOut(BaseModel):
    """An order as the team sees it. Where it goes is for those alone who ship (`order.fulfil`)."""

    id: str = Field(examples=["4f7k2m9q0x-0f3a9c51d2e87b6a4c10"])
    room: str
    session: str
    offer: str
    name: str = Field(examples=["Anxi Tieguanyin, spring, 250 g"])
    viewer: str
    buyer: str
    quantity: int
    price_minor: int
    amount_minor: int
    currency: str = Field(examples=["CNY"])
    state: OrderState
    prize: bool
    placed_at: str
    pay_by: str | None
    paid_at: str | None
    shipped_at: str | None
    delivered_at: str | None
    carrier: str | None
    tracking: str | None
    refunded_minor: int
    returned: int
    reason: str
    return_policy: str
    address: dict[str, Any] | None


def _out(row: Order, *, with_address: bool = True) -> OrderOut:
    view = service.view_order(row)
    fields = {name: getattr(view, name) for name in view.__struct_fields__}
    return OrderOut(
        **fields,
        viewer=row.viewer_id,
        buyer=row.buyer,
        prize=row.prize,
        returned=row.returned,
        address=row.address if with_address else None,
    )


class ShipIn(BaseModel):
    carrier: str = Field(min_length=1, max_length=60, examples=["SF Express"])
    tracking: str = Field(min_length=1, max_length=80, examples=["SF1234567890"])


class RefundIn(BaseModel):
    amount_minor: int | None = Field(None, gt=0, description="nothing: all that is left of the payment")
    reason: str = Field(min_length=1, max_length=200, examples=["arrived damaged"])
    restock: bool = Field(False, description="put the units back on the shelf; of a part, as many whole ones as it pays for")


class NoticeOut(BaseModel):
    outcome: str = Field(examples=["paid"])


@router.get("/rooms/{room_id}/orders")
async def list_room_orders(
    room_id: str,
    engines: EnginesDep,
    caller: Annotated[Caller, require("order.view")],
    state: OrderState | None = None,
    session: Annotated[str, Query(max_length=64)] = "",
    offer: Annotated[str, Query(max_length=64)] = "",
    cursor: CursorParam = "",
    limit: LimitParam = 50,
) -> Page[OrderOut]:
    """A room's orders, newest first."""
    check_right(caller, "order.view", room_id)
    wanted = {"state": state.value if state else "", "session_id": session, "offer_id": offer}
    filters = {name: value for name, value in wanted.items() if value}
    async with engines.sql.read() as sql:
        rows = await store.list_room_orders(sql, room_id, filters=filters, after=decode_moment_cursor(cursor), limit=limit + 1)
    with_address = caller.may("order.fulfil", room_id)
    items = [_out(row, with_address=with_address) for row in rows[:limit]]
    return Page(items=items, next_cursor=service.next_cursor(rows, limit))


FILE_TYPES = {"csv": "text/csv; charset=utf-8", "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"}


@router.get("/rooms/{room_id}/orders/export", response_class=StreamingResponse)
async def export_room_orders(
    room_id: str,
    engines: EnginesDep,
    caller: Annotated[Caller, require("order.view")],
    format: Literal["csv", "xlsx"] = "csv",  # noqa: A002 - the word that a client writes
    state: OrderState | None = None,
    session: Annotated[str, Query(max_length=64)] = "",
    since: Annotated[AwareDatetime | None, Query(description="placed at this moment or later")] = None,
    until: Annotated[AwareDatetime | None, Query(description="placed before this moment")] = None,
) -> StreamingResponse:
    """A room's orders as a file for spreadsheets, newest first. Addresses are in it for those alone who ship (`order.fulfil`)."""
    check_right(caller, "order.view", room_id)
    wanted = {"state": state.value if state else "", "session_id": session}
    choice = exports.Choice(room_id, {name: value for name, value in wanted.items() if value}, since, until)
    with_address = caller.may("order.fulfil", room_id)
    await exports.begin(engines, choice, by=caller.id, file_type=format, with_address=with_address)
    write = exports.csv_lines if format == "csv" else exports.xlsx_bytes
    headers = {"Content-Disposition": f'attachment; filename="orders-{room_id}.{format}"', "Cache-Control": "no-store"}
    return StreamingResponse(write(engines, choice, with_address=with_address), media_type=FILE_TYPES[format], headers=headers)


@router.get("/orders/{order_id}")
async def get_order(order_id: str, engines: EnginesDep, caller: Annotated[Caller, require("order.view")]) -> OrderOut:
    room_id = scope(order_id, "order")
    check_right(caller, "order.view", room_id)
    return _out(await service.fetch_order(engines, order_id), with_address=caller.may("order.fulfil", room_id))


@router.post("/orders/{order_id}/ship")
async def ship_order(order_id: str, body: ShipIn, engines: EnginesDep, caller: Annotated[Caller, require("order.fulfil")]) -> OrderOut:
    """Says that a paid order is on its way; its viewer is told."""
    check_right(caller, "order.fulfil", scope(order_id, "order"))
    async with engines.work() as work:
        return _out(await aftersales.ship(work, order_id, carrier=body.carrier, tracking=body.tracking, by=caller.id))


@router.post("/orders/{order_id}/deliver")
async def deliver_order(order_id: str, engines: EnginesDep, caller: Annotated[Caller, require("order.fulfil")]) -> OrderOut:
    """Says that a shipped order has arrived, as the carrier reports; its viewer may say so too (`order.confirm_receipt`)."""
    check_right(caller, "order.fulfil", scope(order_id, "order"))
    async with engines.work() as work:
        return _out(await aftersales.deliver(work, order_id, by=caller.id))


@router.post("/orders/{order_id}/refund")
async def refund_order(order_id: str, body: RefundIn, engines: EnginesDep, caller: Annotated[Caller, require("order.fulfil")]) -> OrderOut:
    """Sends money back, whole or in part. Send an `Idempotency-Key`: a part refunded twice is two refunds."""
    check_right(caller, "order.fulfil", scope(order_id, "order"))
    async with engines.work() as work:
        order = await aftersales.refund(
            work, order_id, amount_minor=body.amount_minor, reason=body.reason, restock=body.restock, by=caller.id
        )
        return _out(order)


class DisputeOut(BaseModel):
    """A buyer asks the bank for the money of an order back."""

    id: str = Field(examples=["4f7k2m9q0x-2b9d51c0e87f6a3c1044"])
    order: str = Field(validation_alias="order_id")
    provider: str = Field(examples=["stripe"])
    reference: str = Field(description="the provider's own id of it: evidence is handed in there", examples=["dp_1Q2w3e"])
    amount_minor: int
    currency: str = Field(examples=["CNY"])
    reason: str = Field(examples=["product_not_received"])
    state: DisputeState
    covered: bool = Field(description="the room's wallet had the amount to set aside or to pay; else it owes it")
    answer_by: datetime | None = Field(description="until then the provider takes evidence")
    opened_at: datetime
    closed_at: datetime | None


@router.get("/rooms/{room_id}/disputes")
async def list_room_disputes(
    room_id: str, engines: EnginesDep, caller: Annotated[Caller, require("order.view")], cursor: CursorParam = "", limit: LimitParam = 50
) -> Page[DisputeOut]:
    """A room's disputes, newest first."""
    check_right(caller, "order.view", room_id)
    async with engines.sql.read() as sql:
        rows = await store.list_room_disputes(sql, room_id, after=decode_moment_cursor(cursor), limit=limit + 1)
    items = [DisputeOut.model_validate(row, from_attributes=True) for row in rows[:limit]]
    return Page(items=items, next_cursor=encode_moment_cursor(rows[limit - 1].opened_at, rows[limit - 1].id) if len(rows) > limit else "")


@router.post("/payments/{provider}/webhook")
@public
async def receive_webhook(provider: str, request: Request, engines: EnginesDep) -> NoticeOut:
    """Where a payment provider reports. Open to all, trusted by the provider's signature and its time alone.

    The sandbox signs with `Jishi-Signature: t=<seconds>,v1=<hex HMAC-SHA256>`, Stripe with `Stripe-Signature`.
    """
    return NoticeOut(outcome=await payments.receive_webhook(engines, provider, request.headers, await request.body()))


_ORDER = "4f7k2m9q0x-0f3a9c51d2e87b6a4c10"
_KEY = "01JZ8Q4T0N"
_ORDER_AND_KEY = {"order": _ORDER, "key": _KEY}
_ADDRESS = {"name": "Lin", "phone": "13800000000", "region": "Fujian", "line": "8 Tea Street, Anxi", "postcode": "362400"}

DOMAIN = Domain(
    name="orders",
    rights={
        "order.place": "order what one holds, cancel and pay it, say where to send it, follow it, and ask for returns",
        "order.view": "see a room's orders, return requests, disputes and stock",
        "order.fulfil": "ship and refund a room's orders, and decide its return requests",
    },
    commands=(
        Command(
            "order.place",
            OrderPlace,
            OrderPlaced,
            place,
            "order.place",
            "Turn a hold into an order",
            {"hold": _ORDER, "address": _ADDRESS, "key": _KEY},
        ),
        Command(
            "order.cancel",
            OrderCancel,
            OrderCancelled,
            cancel,
            "order.place",
            "Cancel an unpaid order",
            {"order": _ORDER, "key": _KEY},
            is_open_to_banned=True,
        ),
        Command(
            "order.pay",
            OrderPay,
            OrderPaying,
            pay,
            "order.place",
            "Pay an order",
            {"order": _ORDER, "key": _KEY, "method": "sandbox_ok"},
            is_open_to_banned=True,
        ),
        Command(
            "order.set_address",
            OrderSetAddress,
            OrderAddressed,
            set_address,
            "order.place",
            "Say where to send an order of yours that is not on its way yet",
            {"order": _ORDER, "address": _ADDRESS, "key": _KEY},
            is_open_to_banned=True,
        ),
        Command("order.get", OrderGet, OrderView, get, "order.place", "One of your orders", {"order": _ORDER}, is_open_to_banned=True),
        Command(
            "order.list",
            OrderList,
            OrderPage,
            list_own,
            "order.place",
            "Your orders, newest first",
            {"limit": 20},
            calls_per_s_max=2,
            is_open_to_banned=True,
        ),
        *returns_endpoints.COMMANDS,
    ),
    routers=(router, returns_endpoints.router),
    intake=dict.fromkeys(("order.placed", "order.awarded", "order.paid", "order.ended", "order.refund_due"), aftersales.take_in_orders),
    standing_holds=books.standing_holds,
    reactions={"order.changed": aftersales.on_order_changed},
)
