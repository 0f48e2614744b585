"""Rooms as most tests need them, made by the real services."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.domains.rooms import service as rooms
from app.storage.work import Engines

HOST_ID = "host-mei"


@dataclass(frozen=True, slots=True)
class OpenRoom:
    room_id: str
    session_id: str
    offer_ids: list[str]
    host_id: str


async def open_room(
    engines: Engines,
    *,
    title: str = "Spring tea from Longwu",
    offers: Sequence[tuple[str, int, int] | tuple[str, int, int, int]] = (("Tea", 1990, 10),),
    live: bool = True,
    host_id: str = HOST_ID,
) -> OpenRoom:
    """A room with one session, live unless told otherwise. An offer is (name, price_minor, stock[, limit_per_viewer]).

    Offers without price or stock, with which a session cannot go live, are listed right after.
    """
    async with engines.work() as work:
        room = await rooms.create_room(work, title=title, host_name="Mei", host_id=host_id, by=host_id)
        session = await rooms.create_session(work, room.id, title=title, by=host_id)
    offer_ids = {name: "" for name, *_ in offers}
    assert len(offer_ids) == len(offers), "name the offers apart"
    sound = [offer for offer in offers if offer[1] > 0 and offer[2] > 0]
    await _list(engines, session.id, sound, offer_ids, host_id)
    if live:
        async with engines.work() as work:
            await rooms.go_live(work, session.id, host_id, empty_shelf_accepted=True)
    await _list(engines, session.id, [offer for offer in offers if offer not in sound], offer_ids, host_id)
    return OpenRoom(room.id, session.id, list(offer_ids.values()), host_id)


async def _list(engines: Engines, session_id: str, offers: Sequence[Sequence[str | int]], offer_ids: dict[str, str], by: str) -> None:
    for name, price_minor, total, *limit in offers:
        limit_per_viewer = int(limit[0]) if limit else 0
        draft = rooms.OfferDraft(name=str(name), price_minor=int(price_minor), total=int(total), limit_per_viewer=limit_per_viewer)
        async with engines.work() as work:
            offer_ids[str(name)] = (await rooms.list_offer(work, session_id, draft, by)).id
