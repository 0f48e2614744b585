"""RPC methods and REST routes of inventory."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel

from app.core.caller import Caller
from app.core.registry import Command, Domain
from app.domains.inventory import service
from app.protocol.commands import Release, Released, Reserve, Reserved
from app.rest.access import EnginesDep, check_right, require
from app.storage.work import Engines

router = APIRouter(prefix="/api/v1", tags=["inventory"])


async def reserve(engines: Engines, caller: Caller, request: Reserve) -> Reserved:
    check_right(caller, "inventory.reserve", service.scope(request.offer, "offer"))
    return await service.reserve(engines, viewer_id=caller.id, offer_id=request.offer, quantity=request.quantity, key=request.key)


async def release(engines: Engines, caller: Caller, request: Release) -> Released:
    check_right(caller, "inventory.reserve", service.scope(request.hold, "hold"))
    return await service.release(engines, viewer_id=caller.id, hold_id=request.hold)


class StockOut(BaseModel):
    """Units of an offer: total + short = available + held + ordered + sold."""

    offer: str
    total: int
    available: int
    held: int
    ordered: int
    sold: int
    short: int


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
        )
        for offer_id, stock in sorted((await service.read_stock(engines, room_id)).items())
        if stock.session == session_id
    ]


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
    ),
    routers=(router,),
    snapshot={"stock": service.stock_reading},
    pulse={"stock": service.stock_reading},
    intake={
        "hold.placed": service.take_in_holds,
        "hold.ended": service.take_in_holds,
        "offer.sold_out": service.take_in_shelf,
        "offer.restocked": service.take_in_shelf,
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
