"""The product prizes of draws as holds of inventory: one of quantity 1 a unit, so that each winner's becomes an order of its own.

A hold's id follows from its holder, the draw, and the unit, so a crash between holding and noting it loses nothing, and an engine that has
lost the hold gets the same one back.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import AppError
from app.core.ids import room_of
from app.domains.inventory import service as inventory
from app.domains.inventory.rules import HoldState, hold_id
from app.domains.lottery import store
from app.domains.lottery.rules import product_units
from app.domains.lottery.tables import DrawPrize
from app.protocol.codes import CONFLICT
from app.protocol.commands import ReserveOutcome
from app.storage.work import Engines


def account_of(draw_id: str) -> str:
    """Also the holder of escrowed products: a colon stands in no viewer's id."""
    return f"draw:{draw_id}"


def escrow_key(draw_id: str, unit: int) -> str:
    return f"{draw_id}:{unit}"


def escrow_hold(draw_id: str, unit: int) -> str:
    return hold_id(room_of(draw_id), account_of(draw_id), escrow_key(draw_id, unit))


async def escrow_products(engines: Engines, draw_id: str, prizes: Sequence[DrawPrize]) -> None:
    """Raises AppError `conflict` where the stock is not there."""
    for unit, prize in product_units(prizes):
        assert prize.offer_id is not None
        reserved = await inventory.reserve(
            engines,
            viewer_id=account_of(draw_id),
            offer_id=prize.offer_id,
            quantity=1,
            key=escrow_key(draw_id, unit),
            escrow=True,
        )
        if reserved.outcome is not ReserveOutcome.HELD:
            raise AppError(CONFLICT, f"prize {prize.name!r}: its stock cannot be set aside ({reserved.outcome.value})")


async def standing_holds(session: AsyncSession, room_id: str, offer_ids: Sequence[str]) -> dict[str, Any]:
    """What draws that are open, or not settled yet, keep in escrow. A prize that was delivered is an order too, and that speaks last."""
    found: dict[str, Any] = {}
    for draw_id in await store.list_in_escrow(session, room_id):
        for unit, prize in product_units(await store.list_prizes(session, draw_id)):
            if prize.offer_id in offer_ids:
                found[escrow_hold(draw_id, unit)] = {
                    "offer": prize.offer_id,
                    "viewer": account_of(draw_id),
                    "quantity": 1,
                    "escrow": True,
                    "state": HoldState.HELD,
                    "deadline": 0,
                }
    return found
