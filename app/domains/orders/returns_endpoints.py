"""RPC methods and REST routes of receipt and of return requests. endpoints.py puts them into the domain."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from app.core.caller import Caller
from app.core.errors import AppError
from app.core.registry import Command
from app.domains.inventory.service import scope
from app.domains.orders import aftersales, returns, store
from app.domains.orders.rules import ReturnAct, ReturnState
from app.domains.orders.tables import ReturnRequest as Row
from app.protocol.codes import NOT_FOUND
from app.protocol.return_commands import (
    OrderConfirmReceipt,
    ReceiptConfirmed,
    ReturnCancel,
    ReturnGet,
    ReturnList,
    ReturnPage,
    ReturnRequest,
    ReturnRequested,
    ReturnShipBack,
    ReturnStepped,
    ReturnView,
)
from app.rest.access import EnginesDep, check_right, require
from app.rest.pages import CursorParam, LimitParam, Page, decode_moment_cursor
from app.storage.work import Engines

router = APIRouter(prefix="/api/v1", tags=["orders"])

Fulfiller = Annotated[Caller, require("order.fulfil")]


# --- RPC methods ---------------------------------------------------------------------------------------------------------------------


async def confirm_receipt(engines: Engines, caller: Caller, request: OrderConfirmReceipt) -> ReceiptConfirmed:
    check_right(caller, "order.place", scope(request.order, "order"))
    outcome = await aftersales.confirm_receipt(engines, viewer_id=caller.id, order_id=request.order)
    return ReceiptConfirmed(outcome=outcome, order=request.order)


async def ask(engines: Engines, caller: Caller, request: ReturnRequest) -> ReturnRequested:
    check_right(caller, "order.place", scope(request.order, "order"))
    return await returns.request(engines, viewer_id=caller.id, asked=request)


async def cancel(engines: Engines, caller: Caller, request: ReturnCancel) -> ReturnStepped:
    check_right(caller, "order.place", scope(request.request, "return request"))
    return await returns.cancel(engines, viewer_id=caller.id, request_id=request.request)


async def ship_back(engines: Engines, caller: Caller, request: ReturnShipBack) -> ReturnStepped:
    check_right(caller, "order.place", scope(request.request, "return request"))
    return await returns.ship_back(
        engines, viewer_id=caller.id, request_id=request.request, carrier=request.carrier, tracking=request.tracking
    )


async def get(engines: Engines, caller: Caller, request: ReturnGet) -> ReturnView:
    check_right(caller, "order.place", scope(request.request, "return request"))
    return await returns.find_return(engines, viewer_id=caller.id, request_id=request.request)


async def list_own(engines: Engines, caller: Caller, request: ReturnList) -> ReturnPage:
    return await returns.list_own(engines, viewer_id=caller.id, order_id=request.order, cursor=request.cursor, limit=request.limit)


# --- REST ----------------------------------------------------------------------------------------------------------------------------


class EvidenceOut(BaseModel):
    url: str = Field(description="kept by the viewer's app; look at it with the same care as at any stranger's link")
    sha256: str = ""


class ReturnOut(BaseModel):
    """A return request as the team sees it."""

    id: str = Field(examples=["4f7k2m9q0x-61b8d0f3a7c29e5b4d12"])
    order: str
    room: str
    viewer: str
    kind: str = Field(examples=["return_goods"])
    reason: str = Field(examples=["damaged"])
    quantity: int
    amount_minor: int
    currency: str = Field(examples=["CNY"])
    state: ReturnState
    text: str
    evidence: list[EvidenceOut]
    answer: str
    carrier: str | None
    tracking: str | None
    requested_at: str
    due_at: str | None = Field(description="what happens then: requested → approved, approved → closed, else → refunded")
    closed_at: str | None


def _out(row: Row) -> ReturnOut:
    return ReturnOut.model_validate(msgspec.to_builtins(returns.view_return(row)) | {"viewer": row.viewer_id})


class AnswerIn(BaseModel):
    answer: str = Field("", max_length=500, description="what the viewer reads", examples=["Send it to the farm, 8 Tea Street, Anxi"])


class ReasonedIn(BaseModel):
    answer: str = Field(min_length=1, max_length=500, description="why; the viewer reads it", examples=["The picture shows another parcel"])


class RefundReturnIn(BaseModel):
    restock: bool | None = Field(None, description="put the units back on the shelf; nothing: as its reason and the return policy say")


@router.get("/rooms/{room_id}/returns")
async def list_room_returns(
    room_id: str,
    engines: EnginesDep,
    caller: Annotated[Caller, require("order.view")],
    state: ReturnState | None = None,
    order: Annotated[str, Query(max_length=64)] = "",
    cursor: CursorParam = "",
    limit: LimitParam = 50,
) -> Page[ReturnOut]:
    """A room's return requests, newest first."""
    check_right(caller, "order.view", room_id)
    wanted = {"room_id": room_id, "state": state.value if state else "", "order_id": order}
    filters = {name: value for name, value in wanted.items() if value}
    async with engines.sql.read() as sql:
        rows = await store.list_returns(sql, filters, after=decode_moment_cursor(cursor), limit=limit + 1)
    return Page(items=[_out(row) for row in rows[:limit]], next_cursor=returns.next_cursor(rows, limit))


@router.get("/returns/{request_id}")
async def get_return(request_id: str, engines: EnginesDep, caller: Annotated[Caller, require("order.view")]) -> ReturnOut:
    check_right(caller, "order.view", scope(request_id, "return request"))
    async with engines.sql.read() as sql:
        row = await store.fetch_return(sql, request_id)
    if row is None:
        raise AppError(NOT_FOUND, f"there is no return request {request_id}")
    return _out(row)


@router.post("/returns/{request_id}/approve")
async def approve_return(request_id: str, body: AnswerIn, engines: EnginesDep, caller: Fulfiller) -> ReturnOut:
    """The viewer sends the goods back; where nothing is sent back, the money goes back at once."""
    return await _decide(engines, caller, request_id, ReturnAct.APPROVE, answer=body.answer)


@router.post("/returns/{request_id}/reject")
async def reject_return(request_id: str, body: ReasonedIn, engines: EnginesDep, caller: Fulfiller) -> ReturnOut:
    return await _decide(engines, caller, request_id, ReturnAct.REJECT, answer=body.answer)


@router.post("/returns/{request_id}/receive")
async def receive_return(request_id: str, engines: EnginesDep, caller: Fulfiller) -> ReturnOut:
    """The goods are here. Look at them, then refund or refuse; after some days the money goes back by itself."""
    return await _decide(engines, caller, request_id, ReturnAct.RECEIVE)


@router.post("/returns/{request_id}/refund")
async def refund_return(request_id: str, body: RefundReturnIn, engines: EnginesDep, caller: Fulfiller) -> ReturnOut:
    """The goods are as promised: the money goes back, once however often this is called."""
    return await _decide(engines, caller, request_id, ReturnAct.REFUND, restock=body.restock)


@router.post("/returns/{request_id}/refuse")
async def refuse_return(request_id: str, body: ReasonedIn, engines: EnginesDep, caller: Fulfiller) -> ReturnOut:
    """What came back is not as promised: the request is closed without a refund."""
    return await _decide(engines, caller, request_id, ReturnAct.REFUSE, answer=body.answer)


async def _decide(
    engines: Engines, caller: Caller, request_id: str, act: ReturnAct, *, answer: str = "", restock: bool | None = None
) -> ReturnOut:
    check_right(caller, "order.fulfil", scope(request_id, "return request"))
    async with engines.work() as work:
        return _out(await returns.decide(work, request_id, act, by=caller.id, answer=answer, restock=restock))


_ORDER = "4f7k2m9q0x-0f3a9c51d2e87b6a4c10"
_REQUEST = "4f7k2m9q0x-61b8d0f3a7c29e5b4d12"
_KEY = "01JZ8Q4T0P"
_EVIDENCE = {"url": "https://shop.example/photos/1.jpg", "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}
_ASKED = {
    "order": _ORDER,
    "kind": "return_goods",
    "reason": "damaged",
    "quantity": 1,
    "text": "The jar was broken",
    "evidence": [_EVIDENCE],
    "key": _KEY,
}


def _command(method: str, request: type[Any], reply: type[Any], handler: Any, summary: str, example: dict[str, Any]) -> Command:
    """Who is banned from a room still looks after what was bought there."""
    return Command(method, request, reply, handler, "order.place", summary, example, is_open_to_banned=True, calls_per_s_max=2)


COMMANDS = (
    _command(
        "order.confirm_receipt",
        OrderConfirmReceipt,
        ReceiptConfirmed,
        confirm_receipt,
        "Say that an order of yours has arrived",
        {"order": _ORDER, "key": _KEY},
    ),
    _command("return.request", ReturnRequest, ReturnRequested, ask, "Ask for the money of an order back", _ASKED),
    _command("return.cancel", ReturnCancel, ReturnStepped, cancel, "Take a return request back", {"request": _REQUEST, "key": _KEY}),
    _command(
        "return.ship_back",
        ReturnShipBack,
        ReturnStepped,
        ship_back,
        "Say how the goods travel back",
        {"request": _REQUEST, "carrier": "SF Express", "tracking": "SF1234567890", "key": _KEY},
    ),
    _command("return.get", ReturnGet, ReturnView, get, "One of your return requests", {"request": _REQUEST}),
    _command("return.list", ReturnList, ReturnPage, list_own, "Your return requests, newest first", {"limit": 20}),
)
