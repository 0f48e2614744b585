"""Do the engine of sales and SQL agree? Says what differs in words, exactly, while sales go on; and mends what follows from the rest.

Exact: what is under way is no difference. The engine is read in one step together with its unread outbox, SQL afterwards in one snapshot.
An order that the outbox names has yet to arrive. For all others SQL can only be newer, so where it is ahead the hold is read again: one
that has moved since was under way. Where the engine is ahead and the outbox does not say why, something was lost or set aside.

What is mended: counters, counts, deadlines and holds of the engine, from its holds and the orders (renewal.py); orders and sold units of
SQL, from the holds and the orders. What nobody can derive is left to whoever reads it, and so is what waits as a dead letter.
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.metrics import BOOKS_DIFFERENCES
from app.core.runtime import at_text
from app.domains.catalogue import service as catalogue
from app.domains.inventory import service as inventory
from app.domains.inventory.rules import Hold, HoldState, RoomBooks, find_faults
from app.domains.orders import store
from app.domains.orders.aftersales import take_in_orders
from app.domains.orders.rules import Difference, OrderFacts, OrderState, Remedy, find_order_differences
from app.protocol.channels import staff_channel
from app.protocol.events import AlertRaised
from app.storage.dead_letters import list_letters
from app.storage.intake import OutboxEntry, list_rooms
from app.storage.work import Engines, Work

log = structlog.get_logger()

REPAIR_ROUNDS_MAX = 5
REST_TIMES = 30  # as long as the pass before it
ROOM_HOLDS_MAX = 50_000  # a larger room is left to the command: reading it would hold the engine up for longer than a batch of sales


async def reconcile(engines: Engines, room_ids: Sequence[str] | None = None) -> list[str]:
    """What differs, one sentence each; empty when all is well."""
    rooms = room_ids if room_ids is not None else await list_rooms(engines)
    return [difference.text for room_id in rooms for difference in await find_differences(engines, room_id)]


async def find_differences(engines: Engines, room_id: str) -> list[Difference]:
    if not await inventory.is_open(engines, room_id):
        text = f"{room_id}: the room is closed until a worker has compared its records after a restart of the engine"
        return [Difference(room=room_id, subject=room_id, text=text, remedy=Remedy.REBUILD)]
    books, unread = await inventory.read_books_and_outbox(engines, room_id)
    under_way = {str(entry["order"]) for entry in unread if "order" in entry}
    orders, sold = await _read_sql(engines, books)
    found = find_order_differences(room_id, orders, sold, books, under_way)
    return [*_of_engine(room_id, books), *await _without_moved(engines, books, found)]


async def _read_sql(engines: Engines, books: RoomBooks) -> tuple[dict[str, OrderFacts], dict[str, int]]:
    async with engines.sql.read(snapshot=True) as session:
        orders = await store.list_facts(session, sorted(books.offers))
        offers = await catalogue.list_offers_of(session, (), books.offers)
    return orders, {offer.id: offer.sold for offer in offers}


def _of_engine(room_id: str, books: RoomBooks) -> Iterable[Difference]:
    for text in find_faults(room_id, books):
        yield Difference(room=room_id, subject=room_id, text=text, remedy=Remedy.REBUILD)


async def _without_moved(engines: Engines, books: RoomBooks, found: Sequence[Difference]) -> list[Difference]:
    """Without those whose hold is no longer as it was read: SQL had heard of the step in between."""
    ahead = {difference.subject for difference in found if difference.remedy is Remedy.REBUILD}
    now = await inventory.read_holds(engines, sorted(ahead))
    return [one for one in found if one.subject not in ahead or now.get(one.subject) == books.holds.get(one.subject)]


# --- because time passed -------------------------------------------------------------------------------------------------------------


async def reconcile_next(engines: Engines, rooms: Sequence[str]) -> None:
    """One pass of the worker: one room, the next of its own, and then a rest that is long beside it, as a large room is megabytes.

    A difference is told to the team once, until it changes.
    """
    now_ms = engines.runtime.monotonic_ms()
    if now_ms < engines.local.get("books.rest_until_ms", 0.0):
        return
    await _reconcile_one(engines, rooms)
    took_ms = engines.runtime.monotonic_ms() - now_ms
    engines.local["books.rest_until_ms"] = now_ms + took_ms * (1 + REST_TIMES)


async def _reconcile_one(engines: Engines, rooms: Sequence[str]) -> None:
    known: dict[str, list[str]] = engines.local.setdefault("books.differences", {})
    for room_id in known.keys() - set(rooms):
        del known[room_id]
    if not rooms:
        return
    last = engines.local.get("books.last", "")
    room_id = engines.local["books.last"] = min((room for room in rooms if room > last), default=min(rooms))
    if not await inventory.is_open(engines, room_id) or await inventory.count_holds(engines, room_id) > ROOM_HOLDS_MAX:
        return
    if await inventory.outbox_length(engines, room_id) > engines.settings.intake_batch_max:
        return  # intake is behind and needs the core; most of the room would be under way
    texts = [difference.text for difference in await find_differences(engines, room_id)]
    if texts and texts != known.get(room_id):
        log.error("the books differ", room=room_id, count=len(texts), first=texts[0])
        async with engines.work() as work:
            more = f", and {len(texts) - 1} more" if len(texts) > 1 else ""
            alert = AlertRaised(at=at_text(engines.runtime.now_ms()), word="books_differ", text=f"{texts[0]}{more}: see `jishi reconcile`")
            work.emit(room_id, [staff_channel(room_id)], alert)
    known[room_id] = texts
    BOOKS_DIFFERENCES.set(sum(map(len, known.values())))


# --- repairing -----------------------------------------------------------------------------------------------------------------------


async def repair(engines: Engines, room_id: str) -> list[str]:
    """What differs, each with what was done about it. Again, while that brings other differences to light."""
    lines: list[str] = []
    for _ in range(REPAIR_ROUNDS_MAX):
        found = await _repair_once(engines, room_id)
        if not set(found) - set(lines):
            break
        lines += [line for line in found if line not in lines]
    return lines


async def _repair_once(engines: Engines, room_id: str) -> list[str]:
    """SQL first: what the engine is worked out from."""
    found = await find_differences(engines, room_id)
    async with engines.sql.read() as session:
        set_aside = await _set_aside(session, room_id)
    lines: list[str] = []
    for one in found:
        match one.remedy:
            case Remedy.WRITE if one.subject in set_aside:
                done = f"left: dead letter {set_aside[one.subject]} holds it, see `jishi dead-letters show {set_aside[one.subject]}`"
            case Remedy.WRITE:
                done = await _write_order(engines, room_id, one.subject)
            case Remedy.COUNT:
                done = await _count_again(engines, one.subject)
            case Remedy.REBUILD:
                done = "the engine's records were worked out again"
            case Remedy.NONE:
                done = "left: it cannot be derived, an operator must decide"
        lines.append(f"{one.text} -> {done}")
    if any(one.remedy is Remedy.REBUILD for one in found):
        await inventory.rebuild_room(engines, room_id)
    return lines


async def _set_aside(session: AsyncSession, room_id: str) -> dict[str, int]:
    """order -> the dead letter that tells of it."""
    letters = [letter for letter in await list_letters(session, room_id) if letter.source == "intake"]
    told = ((msgspec.json.decode(letter.payload), letter.id) for letter in reversed(letters))
    return {str(data["order"]): letter_id for data, letter_id in told if isinstance(data, dict) and "order" in data}


async def _write_order(engines: Engines, room_id: str, order_id: str) -> str:
    hold = (await inventory.read_holds(engines, [order_id])).get(order_id)
    if hold is None:
        return "left: the hold is gone by now"
    async with engines.work() as work:
        order = await store.fetch_order(work.session, order_id)
        entries = [entry async for entry in _steps(work, room_id, order_id, hold, None if order is None else OrderState(order.state))]
        await take_in_orders(work, entries)
    return f"written from the engine's hold: {', '.join(entry.type for entry in entries)}" + ("" if order else ", without its address")


async def _steps(work: Work, room_id: str, order_id: str, hold: Hold, state: OrderState | None) -> AsyncGenerator[OutboxEntry]:
    """What the outbox would have told of this hold, as far as SQL does not know it. The address was in the entry alone."""

    def entry(kind: str, **data: Any) -> OutboxEntry:
        return OutboxEntry("0-0", room_id, kind, hold.placed or work.now_ms, {"order": order_id, "viewer": hold.viewer, **data})

    shared = {"session": hold.session, "offer": hold.offer, "quantity": hold.quantity, "currency": hold.currency}
    shared |= {"version": hold.version, "policy": hold.policy}
    if state is None and hold.escrow:
        yield entry("order.awarded", **shared | {"viewer": hold.winner, "prize": hold.prize, "at": work.now_ms})
        return
    if state is None:
        named = {"name": hold.name, "buyer": hold.buyer, "price": hold.price, "placed": hold.placed, "pay_by": hold.pay_by, "address": None}
        yield entry("order.placed", **shared, **named)
    if hold.state is HoldState.SOLD:
        payment = await store.fetch_payment(work.session, hold.payment)
        provider = payment.provider if payment else "unknown"
        amount = hold.price * hold.quantity
        yield entry("order.paid", payment=hold.payment, provider=provider, amount=amount, late=False, at=work.now_ms)
    elif hold.state in {HoldState.CANCELLED, HoldState.LAPSED}:
        yield entry("order.ended", outcome="cancelled" if hold.state is HoldState.CANCELLED else "expired")


async def _count_again(engines: Engines, offer_id: str) -> str:
    async with engines.work() as work:
        (offer,) = await catalogue.list_offers_of(work.session, (), [offer_id])
        sold = await store.count_units(work.session, offer_id)
        if not await catalogue.count_sold(work.session, offer_id, sold - offer.sold):
            return f"left: its orders say {sold}, and the total is {offer.total}: add stock or refund"
    return f"counted again: {sold}"
