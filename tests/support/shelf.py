"""A room with a live session and offers on its shelf, made through catalogue and the events that rooms would emit."""

from dataclasses import dataclass
from typing import Any

from app.core.caller import Caller
from app.core.ids import scoped_id
from app.domains.catalogue import service as catalogue
from app.domains.inventory import service as inventory
from app.domains.orders import service as orders
from app.protocol.channels import room_channel
from app.protocol.commands import Reserved
from app.protocol.events import OfferListed, OfferUpdated, OfferWithdrawn, SessionArchived, SessionEnded, SessionWentLive
from app.protocol.order_commands import Address, OrderPlace, OrderPlaced
from app.storage.intake import take_in_room
from app.storage.work import Engines

ADDRESS = Address(name="Lin", phone="13800000000", region="Fujian", line="8 Tea Street, Anxi", postcode="362400")


@dataclass(slots=True)
class Shelf:
    """One room and its session; `offer()` lists offers."""

    engines: Engines
    room_id: str = "room1"
    session_id: str = "room1-show1"

    async def go_live(self) -> None:
        async with self.engines.work() as work:
            event = SessionWentLive(at=work.at, room=self.room_id, session=self.session_id, title="Tea")
            work.emit(self.room_id, [room_channel(self.room_id)], event)

    async def end(self) -> None:
        async with self.engines.work() as work:
            work.emit(self.room_id, [room_channel(self.room_id)], SessionEnded(at=work.at, room=self.room_id, session=self.session_id))

    async def archive(self) -> None:
        """For inventory alone: other domains look for the session's row, which this room does not have."""
        async with self.engines.work() as work:
            event = SessionArchived(at=work.at, room=self.room_id, session=self.session_id)
            await inventory.on_session_archived(work, self.room_id, [event])

    async def offer(self, *, total: int = 10, price_minor: int = 1990, limit: int = 0, **terms: Any) -> str:
        async with self.engines.work() as work:
            offer = await catalogue.create_offer(
                work,
                room_id=self.room_id,
                session_id=self.session_id,
                name="Spring tea",
                price_minor=price_minor,
                total=total,
                limit_per_viewer=limit,
                **terms,
            )
            work.emit(self.room_id, [room_channel(self.room_id)], OfferListed(at=work.at, offer=catalogue.offer_view(offer)))
        return offer.id

    async def set_state(self, offer_id: str, state: str) -> None:
        async with self.engines.work() as work:
            offer = await catalogue.set_offer_state(work, offer_id, state)
            if state == "withdrawn":
                work.emit(self.room_id, [room_channel(self.room_id)], OfferWithdrawn(at=work.at, offer=offer.id))
            else:
                work.emit(self.room_id, [room_channel(self.room_id)], OfferUpdated(at=work.at, offer=catalogue.offer_view(offer)))

    async def add_stock(self, offer_id: str, add: int) -> None:
        async with self.engines.work() as work:
            offer = await catalogue.add_stock(work, offer_id, add)
            work.emit(self.room_id, [room_channel(self.room_id)], OfferUpdated(at=work.at, offer=catalogue.offer_view(offer)))

    async def reserve(self, offer_id: str, viewer: str = "lin", quantity: int = 1, key: str = "k1", **more: Any) -> Reserved:
        return await inventory.reserve(self.engines, viewer_id=viewer, offer_id=offer_id, quantity=quantity, key=key, **more)

    async def place(self, hold_id: str, viewer: str = "lin", key: str = "p1", **more: Any) -> OrderPlaced:
        request = OrderPlace(hold=hold_id, address=more.pop("address", ADDRESS), key=key, **more)
        return await orders.place(self.engines, viewer_id=viewer, name=viewer.title(), request=request)

    async def order(self, offer_id: str, viewer: str = "lin", quantity: int = 1, key: str = "k1") -> str:
        """Reserved and placed; the order's id."""
        hold = (await self.reserve(offer_id, viewer, quantity, key)).hold
        assert hold
        placed = await self.place(hold, viewer, key)
        assert placed.outcome == "placed", placed
        return hold

    async def intake(self) -> None:
        """Until the outbox is empty."""
        while await take_in_room(self.engines, self.room_id):
            pass


async def open_shelf(engines: Engines, room_id: str = "room1") -> Shelf:
    shelf = Shelf(engines, room_id, scoped_id(room_id, "show1"))
    await shelf.go_live()
    return shelf


def viewer_caller(viewer_id: str) -> Caller:
    rights = ("inventory.reserve", "order.place", "room.watch")
    return Caller(id=viewer_id, name=viewer_id.title(), kind="viewer", grants=dict.fromkeys(rights, frozenset({"*"})))
