"""Use cases of orders: place, cancel, look up, and what intake writes of them.

The engine decides; SQL follows through the outbox. So an order may be answered, cancelled and paid before SQL has heard of it: whoever
looks one up here reads SQL first and lets the engine's record speak where it is newer.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from app.core.errors import AppError
from app.core.ids import derived_tail, room_of
from app.core.runtime import at_text
from app.domains.catalogue import service as catalogue
from app.domains.inventory import service as inventory
from app.domains.inventory.rules import PLACE_WORDS, Hold
from app.domains.orders import store
from app.domains.orders.rules import OrderState, newest_state, short_name, state_of_hold
from app.domains.orders.tables import Order
from app.domains.wallet import service as wallet
from app.domains.wallet.rules import Movement
from app.protocol.channels import room_channel, staff_channel, user_channel
from app.protocol.codes import CONFLICT, KEY_REUSED, NOT_FOUND
from app.protocol.events import AlertRaised, OrderChanged, OrderPaid, OrderPlacedEvent, PurchaseAnnounced
from app.protocol.order_commands import OrderCancelled, OrderPage, OrderPlace, OrderPlaced, OrderView, PlaceOutcome
from app.rest.pages import decode_moment_cursor, encode_moment_cursor
from app.storage.intake import OutboxEntry
from app.storage.work import Engines, Work

ANNOUNCED_PER_BATCH_MAX = 5  # purchases named in the room: it is for the mood, and the stage lane is never shed

log = structlog.get_logger()


# --- commands ------------------------------------------------------------------------------------------------------------------------


async def place(engines: Engines, *, viewer_id: str, name: str, request: OrderPlace) -> OrderPlaced:
    """Turns a hold into an order, at the price and terms of the hold. The same key again: the same answer."""
    address = msgspec.to_builtins(request.address)
    answer = await inventory.place_hold(
        engines,
        hold_id=request.hold,
        viewer_id=viewer_id,
        buyer=name,
        key=request.key,
        digest=derived_tail(request.hold, str(request.policy_accepted), *address.values()),
        policy_accepted=request.policy_accepted,
        address=address,
    )
    if answer.word == "key_reused":
        raise AppError(KEY_REUSED, "this key has already placed this order with another address; take a new key")
    outcome = PLACE_WORDS[answer.word]
    if outcome is not PlaceOutcome.PLACED:
        return OrderPlaced(outcome=outcome)
    return OrderPlaced(
        outcome=outcome,
        order=request.hold,
        amount_minor=answer.price * answer.quantity,
        currency=answer.currency,
        pay_by=at_text(answer.pay_by),
        repeated=answer.repeated,
    )


async def cancel(engines: Engines, *, viewer_id: str, order_id: str) -> OrderCancelled:
    return OrderCancelled(outcome=await inventory.cancel_hold(engines, hold_id=order_id, viewer_id=viewer_id), order=order_id)


async def find_order(engines: Engines, order_id: str, viewer_id: str | None = None) -> OrderView | None:
    """The order as it stands now, also before intake wrote it. With a viewer: only if it is theirs."""
    room_id = room_of(order_id)
    if not room_id:
        return None
    async with engines.sql.read() as session:
        row = await store.fetch_order(session, order_id)
    hold = await inventory.read_hold(engines, order_id) if row is None or row.state in {OrderState.PLACED, OrderState.EXPIRED} else None
    now_ms = await engines.sales_now_ms(room_id)
    state = state_of_hold(hold.state, overdue=hold.deadline <= now_ms) if hold and hold.placed else None
    if row is not None:
        mine = viewer_id is None or row.viewer_id == viewer_id
        return view_order(row, newest_state(OrderState(row.state), state)) if mine else None
    if hold is None or state is None or viewer_id not in {None, hold.viewer}:
        return None
    return _view_hold(room_id, order_id, hold, state)


async def list_orders(engines: Engines, *, viewer_id: str, room_id: str | None, cursor: str, limit: int) -> OrderPage:
    """The viewer's orders, newest first, as far as intake has come."""
    async with engines.sql.read() as session:
        rows = await store.list_viewer_orders(session, viewer_id, room_id=room_id, after=decode_moment_cursor(cursor), limit=limit + 1)
    return OrderPage(orders=[view_order(row) for row in rows[:limit]], next_cursor=next_cursor(rows, limit))


async def award_prize(engines: Engines, *, hold_id: str, holder_id: str, viewer_id: str, prize_name: str) -> str:
    """An escrow hold becomes a paid order of amount 0 for the winner. Its id; again for the same winner: the same. Else `conflict`."""
    answer = await inventory.award_hold(engines, hold_id=hold_id, holder_id=holder_id, winner_id=viewer_id, prize_name=prize_name)
    if answer.word != "awarded":
        raise AppError(CONFLICT, f"hold {hold_id} cannot be awarded: it is {answer.word}")
    return hold_id


async def fetch_order(engines: Engines, order_id: str) -> Order:
    """The row itself, for the team. Raises `not_found` until intake has written it."""
    async with engines.sql.read() as session:
        row = await store.fetch_order(session, order_id)
    if row is None:
        raise AppError(NOT_FOUND, f"there is no order {order_id}")
    return row


# --- views ---------------------------------------------------------------------------------------------------------------------------


def view_order(row: Order, state: OrderState | None = None) -> OrderView:
    return OrderView(
        id=row.id,
        room=row.room_id,
        session=row.session_id,
        offer=row.offer_id,
        name=row.name,
        quantity=row.quantity,
        price_minor=row.price_minor,
        amount_minor=row.amount_minor,
        currency=row.currency,
        state=state or row.state,
        placed_at=_text(row.placed_at) or "",
        pay_by=_text(row.pay_by),
        paid_at=_text(row.paid_at),
        shipped_at=_text(row.shipped_at),
        delivered_at=_text(row.delivered_at),
        carrier=row.carrier,
        tracking=row.tracking,
        refunded_minor=row.refunded_minor,
        reason=row.reason,
        return_policy=row.return_policy,
        has_address=row.address is not None,
    )


def _view_hold(room_id: str, order_id: str, hold: Hold, state: OrderState) -> OrderView:
    return OrderView(
        id=order_id,
        room=room_id,
        session=hold.session,
        offer=hold.offer,
        name=hold.name,
        quantity=hold.quantity,
        price_minor=hold.price,
        amount_minor=hold.price * hold.quantity,
        currency=hold.currency,
        state=state,
        placed_at=at_text(hold.placed),
        pay_by=at_text(hold.pay_by),
        return_policy=hold.policy,
    )


def next_cursor(rows: Sequence[Order], limit: int) -> str:
    """Rows were asked for with one more than the limit: whether it came says whether there is a next page."""
    if len(rows) <= limit:
        return ""
    last = rows[limit - 1]
    return encode_moment_cursor(last.placed_at, last.id)


def _text(at: datetime | None) -> str | None:
    return at_text(round(at.timestamp() * 1000)) if at else None


def _at(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


# --- intake: the engine has decided, SQL follows ---------------------------------------------------------------------------------------


async def take_in_placed(work: Work, entries: list[OutboxEntry]) -> None:
    rows = [_placed_row(entry) for entry in entries]
    fresh = await store.insert_orders(work.session, rows)
    for row in rows:
        if row["id"] in fresh:
            event = OrderPlacedEvent(
                at=work.at,
                order=row["id"],
                session=row["session_id"],
                offer=row["offer_id"],
                viewer=row["viewer_id"],
                quantity=row["quantity"],
                amount_minor=row["amount_minor"],
                currency=row["currency"],
                pay_by=_text(row["pay_by"]) or "",
            )
            work.emit(row["room_id"], [user_channel(row["viewer_id"]), staff_channel(row["room_id"])], event)


def _placed_row(entry: OutboxEntry) -> dict[str, Any]:
    data = entry.data
    return {
        **_terms(entry),
        "name": data["name"],
        "buyer": data["buyer"],
        "price_minor": data["price"],
        "amount_minor": data["price"] * data["quantity"],
        "address": data["address"],
        "prize": False,
        "state": OrderState.PLACED,
        "placed_at": _at(data["placed"]),
        "pay_by": _at(data["pay_by"]),
        "paid_at": None,
    }


def _terms(entry: OutboxEntry) -> dict[str, Any]:
    data = entry.data
    return {
        "id": data["order"],
        "room_id": entry.room_id,
        "session_id": data["session"],
        "offer_id": data["offer"],
        "offer_version": data["version"],
        "viewer_id": data["viewer"],
        "quantity": data["quantity"],
        "currency": data["currency"],
        "return_policy": data["policy"],
        "reason": "",
        "refunded_minor": 0,
        "returned": 0,
    }


async def take_in_awarded(work: Work, entries: list[OutboxEntry]) -> None:
    """A prize is an order that nobody pays: it waits for the winner's address and for shipping."""
    rows: list[dict[str, Any]] = []
    for entry in entries:
        at = _at(entry.data["at"])
        row = {"name": entry.data["prize"], "buyer": "", "price_minor": 0, "amount_minor": 0, "address": None, "prize": True}
        rows.append({**_terms(entry), **row, "state": OrderState.PAID, "placed_at": at, "pay_by": None, "paid_at": at})
    fresh = await store.insert_orders(work.session, rows)
    orders = await store.fetch_orders(work.session, fresh)
    await _count_sold(work, orders)
    for order in orders:
        _emit_paid(work, order)


async def take_in_paid(work: Work, entries: list[OutboxEntry]) -> None:
    payments = [(entry.data["order"], entry.data["payment"], _at(entry.data["at"])) for entry in entries]
    paid = await store.pay_orders(work.session, payments)
    orders: list[Order] = []
    movements: list[Movement] = []
    for entry in entries:
        data = entry.data
        order = paid.pop(data["order"], None)
        if order is None:
            raise ValueError(f"order {data['order']} is not in SQL, or was paid by another payment")
        orders.append(order)
        if data["amount"] > 0:
            movements.append(money_in(entry.room_id, data["provider"], data["payment"], data["amount"], order))
    await wallet.transfer_all(work, movements)
    await _count_sold(work, orders)
    for index, order in enumerate(orders):
        _emit_paid(work, order)
        if index < ANNOUNCED_PER_BATCH_MAX:
            bought = PurchaseAnnounced(at=work.at, offer=order.offer_id, name=short_name(order.buyer), quantity=order.quantity)
            work.emit(order.room_id, [room_channel(order.room_id)], bought)


def money_in(room_id: str, provider: str, payment: str, amount_minor: int, order: Order) -> Movement:
    return Movement(
        transfer_id=f"payment:{payment}",
        from_account=f"external:{provider}",
        to_account=f"room:{room_id}",
        amount_minor=amount_minor,
        currency=order.currency,
        kind="payment",
        reference=order.id,
    )


async def _count_sold(work: Work, orders: Sequence[Order]) -> None:
    """SQL's own guard against selling more than there is. It never speaks up unless the engine's books were lost or wrong."""
    units: Counter[str] = Counter()
    for order in orders:
        units[order.offer_id] += order.quantity
    for offer_id, quantity in sorted(units.items()):
        if not await catalogue.count_sold(work.session, offer_id, quantity):
            log.error("sold more than the offer's total", offer=offer_id, quantity=quantity)
            text = f"Offer {offer_id} has sold more than its total: check the stock, then add to it or refund"
            room_id = room_of(offer_id)
            work.emit(room_id, [staff_channel(room_id)], AlertRaised(at=work.at, word="oversold", text=text))


def _emit_paid(work: Work, order: Order) -> None:
    event = OrderPaid(
        at=work.at,
        order=order.id,
        session=order.session_id,
        offer=order.offer_id,
        viewer=order.viewer_id,
        quantity=order.quantity,
        amount_minor=order.amount_minor,
        currency=order.currency,
    )
    work.emit(order.room_id, [user_channel(order.viewer_id), staff_channel(order.room_id)], event)


async def take_in_ended(work: Work, entries: list[OutboxEntry]) -> None:
    """Cancelled by the viewer, not paid in time, or paid when nothing was left: then the entry has a reason. Attempts to pay it that are
    still open are to be cancelled at their provider, so that no app takes money for nothing."""
    reasons = {entry.data["order"]: entry.data["reason"] for entry in entries if "reason" in entry.data}
    for state in (OrderState.CANCELLED, OrderState.EXPIRED):
        ids = [entry.data["order"] for entry in entries if entry.data["outcome"] == state]
        for order in await store.end_orders(work.session, ids, state) if ids else ():
            order.reason = reasons.get(order.id, order.reason)
            emit_changed(work, order)
    unpaid = await store.list_unpaid(work.session, [entry.data["order"] for entry in entries])
    if unpaid:
        await store.insert_calls(work.session, [store.call_row("cancel", payment["id"], payment, at=work.now) for payment in unpaid])


def emit_changed(work: Work, order: Order, *, reason: str = "") -> None:
    event = OrderChanged(
        at=work.at,
        order=order.id,
        session=order.session_id,
        offer=order.offer_id,
        state=order.state,
        reason=reason or order.reason,
        carrier=order.carrier or "",
        tracking=order.tracking or "",
        refunded_minor=order.refunded_minor,
    )
    work.emit(order.room_id, [user_channel(order.viewer_id), staff_channel(order.room_id)], event)
