"""RPC methods and REST routes of inventory."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel

from app.core.caller import Caller
from app.core.registry import Command, Domain
from app.domains.inventory import renewal, service
from app.protocol.commands import Leave, Left, Release, Released, Reserve, Reserved, Wait, Waiting
from app.rest.access import EnginesDep, check_right, require
from app.rest.pages import CursorParam, LimitParam, Page, decode_cursor, encode_cursor
from app.storage.work import Engines

router = APIRouter(prefix="/api/v1", tags=["inventory"])


async def reserve(engines: Engines, caller: Caller, request: Reserve) -> Reserved:
    check_right(caller, "inventory.reserve", service.scope(request.offer, "offer"))
    return await service.reserve(engines, viewer_id=caller.id, offer_id=request.offer, quantity=request.quantity, key=request.key)


async def release(engines: Engines, caller: Caller, request: Release) -> Released:
    check_right(caller, "inventory.reserve", service.scope(request.hold, "hold"))
    return await service.release(engines, viewer_id=caller.id, hold_id=request.hold)


async def wait(engines: Engines, caller: Caller, request: Wait) -> Waiting:
    check_right(caller, "inventory.reserve", service.scope(request.offer, "offer"))
    return await service.wait(engines, viewer_id=caller.id, offer_id=request.offer, quantity=request.quantity, key=request.key)


async def leave(engines: Engines, caller: Caller, request: Leave) -> Left:
    check_right(caller, "inventory.reserve", service.scope(request.wait, "place in a line"))
    return await service.leave(engines, viewer_id=caller.id, wait_id=request.wait)


class StockOut(BaseModel):
    """Units of an offer: total + short = available + held + ordered + sold. `expired`: of holds and orders whose time ran out, so far.
    `waiting`: how many viewers stand in its line."""

    offer: str
    total: int
    available: int
    held: int
    ordered: int
    sold: int
    short: int
    expired: int
    waiting: int


@router.get("/sessions/{session_id}/stock")
async def read_session_stock(session_id: str, engines: EnginesDep, caller: Annotated[Caller, require("order.view")]) -> list[StockOut]:
    """Where every unit of a session's offers is, now. Empty once the session is long over: then the orders tell."""
    room_id = service.scope(session_id, "session")
    check_right(caller, "order.view", room_id)
    return [
        StockOut(
            offer=offer_id,
            total=stock.total,
            available=stock.available,
            held=stock.held,
            ordered=stock.ordered,
            sold=stock.sold,
            short=stock.short,
            expired=stock.expired,
            waiting=stock.waiting,
        )
        for offer_id, stock in sorted((await service.read_stock(engines, room_id)).items())
        if stock.session == session_id
    ]


class WaitOut(BaseModel):
    wait: str
    viewer: str
    quantity: int
    since: datetime


def _turn(cursor: str) -> int:
    key = decode_cursor(cursor, 1)
    return int(key[0]) if key else 0


@router.get("/offers/{offer_id}/line")
async def read_line(
    offer_id: str, engines: EnginesDep, caller: Annotated[Caller, require("order.view")], cursor: CursorParam = "", limit: LimitParam = 50
) -> Page[WaitOut]:
    """Who waits for an offer, in turn. Its length is `waiting` in the session's stock."""
    check_right(caller, "order.view", service.scope(offer_id, "offer"))
    rows = await service.list_line(engines, offer_id, after_turn=_turn(cursor), limit=limit + 1)
    next_cursor = encode_cursor(rows[limit - 1][1].turn) if len(rows) > limit else ""
    items = [
        WaitOut(wait=wait_id, viewer=hold.viewer, quantity=hold.quantity, since=datetime.fromtimestamp(hold.since / 1000, UTC))
        for wait_id, hold in rows[:limit]
    ]
    return Page(items=items, next_cursor=next_cursor)


_KEY = "01JZ8Q4T0M"

DOMAIN = Domain(
    name="inventory",
    rights={"inventory.reserve": "hold stock of an offer and give it back"},
    commands=(
        Command(
            "inventory.reserve",
            Reserve,
            Reserved,
            reserve,
            "inventory.reserve",
            "Set stock aside for yourself until a deadline",
            {"offer": "4f7k2m9q0x-8c1v5n3b7z", "quantity": 1, "key": _KEY},
            calls_per_s_max=5,
        ),
        Command(
            "inventory.release",
            Release,
            Released,
            release,
            "inventory.reserve",
            "Give a hold back",
            {"hold": "4f7k2m9q0x-0f3a9c51d2e87b6a4c10", "key": _KEY},
            is_open_to_banned=True,
        ),
        Command(
            "inventory.wait",
            Wait,
            Waiting,
            wait,
            "inventory.reserve",
            "Stand in the line for an offer that is exhausted",
            {"offer": "4f7k2m9q0x-8c1v5n3b7z", "quantity": 1, "key": _KEY},
            calls_per_s_max=5,
        ),
        Command(
            "inventory.leave",
            Leave,
            Left,
            leave,
            "inventory.reserve",
            "Give a place in a line up",
            {"wait": "4f7k2m9q0x-0f3a9c51d2e87b6a4c10", "key": _KEY},
            is_open_to_banned=True,
        ),
    ),
    routers=(router,),
    snapshot={"stock": service.stock_reading},
    pulse={"stock": service.stock_reading},
    intake={
        "hold.placed": service.take_in_holds,
        "hold.ended": service.take_in_holds,
        "wait.joined": service.take_in_waits,
        "wait.ended": service.take_in_waits,
        "offer.sold_out": service.take_in_shelf,
        "offer.restocked": service.take_in_shelf,
        "sales.reopened": renewal.take_in_reopened,
    },
    reactions={
        "offer.listed": service.on_offer_changed,
        "offer.updated": service.on_offer_changed,
        "offer.withdrawn": service.on_offer_changed,
        "session.went_live": service.on_session_changed,
        "session.interrupted": service.on_session_changed,
        "session.resumed": service.on_session_changed,
        "session.ended": service.on_session_changed,
        "session.archived": service.on_session_archived,
    },
)
