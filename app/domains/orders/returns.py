"""Return requests: a viewer wants money back, with or without sending the goods back; the team answers; time decides for who does not.

Invariants
- An order has one open return request at most. What a state leads to is a table in rules.py; every step is announced and audited.
- Money goes back by the one way there is (aftersales.send_back), once: the step to `refunded` is in the same transaction.
- Deadlines are kept and compared by the database's clock. Where the money cannot go back yet (an empty wallet, an open dispute), the
  request stays as it is, the team is told, and it is tried again later.

The return policy is the one that the buyer confirmed at purchase; the order has it from the hold. The team may refund without any request.
"""

from datetime import UTC, datetime, timedelta

import msgspec

from app.core.errors import AppError
from app.core.ids import derived_tail
from app.core.runtime import at_text
from app.core.settings import Settings
from app.domains.orders import store
from app.domains.orders.aftersales import lock_order, send_back
from app.domains.orders.rules import (
    OrderState,
    ReturnAct,
    ReturnCase,
    ReturnDays,
    ReturnState,
    act_when_due,
    days_in,
    decide_return,
    next_return_state,
    restocks,
    return_request_id,
)
from app.domains.orders.tables import Order, ReturnRequest
from app.protocol.channels import staff_channel, user_channel
from app.protocol.codes import CONFLICT, KEY_REUSED, NOT_FOUND
from app.protocol.events import AlertRaised, ReturnChanged, ReturnRequestedEvent
from app.protocol.return_commands import Evidence, ReturnOutcome, ReturnPage, ReturnRequested, ReturnStepOutcome, ReturnStepped, ReturnView
from app.protocol.return_commands import ReturnRequest as Asked
from app.rest.pages import decode_moment_cursor, encode_moment_cursor
from app.storage.sql import sql_now_ms
from app.storage.work import Engines, Work

DUE_BATCH_MAX = 50
AGAIN_AFTER = timedelta(hours=1)
BY_ITSELF = {ReturnAct.APPROVE: "not answered in time", ReturnAct.CANCEL: "nothing was sent back in time"}


# --- the viewer ----------------------------------------------------------------------------------------------------------------------


async def request(engines: Engines, *, viewer_id: str, asked: Asked) -> ReturnRequested:
    """Makes a return request. The same key again: the same answer."""
    request_id = return_request_id(asked.order, viewer_id, asked.key)
    digest = derived_tail(asked.order, asked.kind, asked.reason, str(asked.quantity), asked.text, *_flat(asked.evidence))
    async with engines.work() as work:
        order = await store.lock_order(work.session, asked.order)
        before = await store.fetch_return(work.session, request_id)
        if before is not None:
            if before.digest != digest:
                raise AppError(KEY_REUSED, "this key has already made another return request; take a new key")
            return _requested(before, repeated=True)
        if order is None or order.viewer_id != viewer_id:
            return ReturnRequested(outcome=ReturnOutcome.UNKNOWN, order=asked.order)
        now_ms = await sql_now_ms(work.session, work.runtime.script_now_ms())
        outcome = await _decide(work, order, asked, now_ms)
        if outcome is not ReturnOutcome.REQUESTED:
            return ReturnRequested(outcome=outcome, order=order.id)
        return _requested(await _insert(work, order, asked, request_id=request_id, digest=digest, now_ms=now_ms))


def _flat(evidence: list[Evidence]) -> list[str]:
    return [part for item in evidence for part in (item.url, item.sha256)]


def _requested(row: ReturnRequest, *, repeated: bool = False) -> ReturnRequested:
    return ReturnRequested(
        outcome=ReturnOutcome.REQUESTED,
        order=row.order_id,
        request=row.id,
        amount_minor=row.amount_minor,
        currency=row.currency,
        due_at=_text(row.due_at),
        repeated=repeated,
    )


async def _decide(work: Work, order: Order, asked: Asked, now_ms: int) -> ReturnOutcome:
    earlier = await store.list_order_returns(work.session, order.id)
    settings = work.engines.settings
    case = ReturnCase(
        state=OrderState(order.state),
        policy=order.return_policy,
        left_minor=order.amount_minor - order.refunded_minor,
        units_left=order.quantity - sum(row.quantity for row in earlier if row.state == ReturnState.REFUNDED),
        delivered_ms=_ms(order.delivered_at) if order.delivered_at else None,
        requests=len(earlier),
        is_open=any(row.due_at is not None for row in earlier),
        kind=asked.kind,
        reason=asked.reason,
        quantity=asked.quantity,
        explained=bool(asked.text.strip() or asked.evidence),
    )
    return decide_return(case, now_ms=now_ms, days=_days(settings), requests_max=settings.returns_per_order_max)


async def _insert(work: Work, order: Order, asked: Asked, *, request_id: str, digest: str, now_ms: int) -> ReturnRequest:
    row = ReturnRequest(
        id=request_id,
        digest=digest,
        order_id=order.id,
        room_id=order.room_id,
        viewer_id=order.viewer_id,
        kind=asked.kind,
        reason=asked.reason,
        quantity=asked.quantity,
        amount_minor=min(asked.quantity * order.price_minor, order.amount_minor - order.refunded_minor),
        currency=order.currency,
        text=asked.text,
        evidence=msgspec.to_builtins(asked.evidence),
        state=ReturnState.REQUESTED,
        answer="",
        due_at=_due(work, ReturnState.REQUESTED, asked.kind, now_ms),
        requested_at=_at(now_ms),
    )
    work.session.add(row)
    await work.session.flush()
    event = ReturnRequestedEvent(
        at=work.at,
        request=row.id,
        order=row.order_id,
        viewer=row.viewer_id,
        kind=row.kind,
        reason=row.reason,
        quantity=row.quantity,
        amount_minor=row.amount_minor,
        currency=row.currency,
        due_at=_text(row.due_at) or "",
    )
    work.emit(row.room_id, [user_channel(row.viewer_id), staff_channel(row.room_id)], event)
    await work.audit(row.room_id, row.viewer_id, "return.request", row.id, order=row.order_id, kind=row.kind, reason=row.reason)
    return row


async def cancel(engines: Engines, *, viewer_id: str, request_id: str) -> ReturnStepped:
    return await _step_of_viewer(engines, viewer_id, request_id, ReturnAct.CANCEL)


async def ship_back(engines: Engines, *, viewer_id: str, request_id: str, carrier: str, tracking: str) -> ReturnStepped:
    return await _step_of_viewer(engines, viewer_id, request_id, ReturnAct.SHIP_BACK, carrier=carrier, tracking=tracking)


async def _step_of_viewer(engines: Engines, viewer_id: str, request_id: str, act: ReturnAct, **parcel: str) -> ReturnStepped:
    """Again in the state that it led to: the same answer, with no second effect."""
    async with engines.work() as work:
        row = await _lock(work, request_id)
        if row is None or row[1].viewer_id != viewer_id:
            return ReturnStepped(outcome=ReturnStepOutcome.UNKNOWN, request=request_id)
        order, found = row
        outcome = ReturnStepOutcome.DONE
        target = next_return_state(ReturnState(found.state), act, found.kind)
        if target is not None:
            await _go(work, order, found, target, by=viewer_id, answer="taken back" if act is ReturnAct.CANCEL else "", parcel=parcel)
        elif (found.state != ReturnState.CLOSED) if act is ReturnAct.CANCEL else (found.carrier, found.tracking) != tuple(parcel.values()):
            outcome = ReturnStepOutcome.NOT_POSSIBLE
        return ReturnStepped(outcome=outcome, request=found.id, state=found.state)


async def find_return(engines: Engines, *, viewer_id: str, request_id: str) -> ReturnView:
    """Raises AppError `not_found` for another viewer's too."""
    async with engines.sql.read() as session:
        row = await store.fetch_return(session, request_id)
    if row is None or row.viewer_id != viewer_id:
        raise AppError(NOT_FOUND, f"you have no return request {request_id}")
    return view_return(row)


async def list_own(engines: Engines, *, viewer_id: str, order_id: str | None, cursor: str, limit: int) -> ReturnPage:
    filters = {"viewer_id": viewer_id} | ({"order_id": order_id} if order_id else {})
    async with engines.sql.read() as session:
        rows = await store.list_returns(session, filters, after=decode_moment_cursor(cursor), limit=limit + 1)
    return ReturnPage(requests=[view_return(row) for row in rows[:limit]], next_cursor=next_cursor(rows, limit))


def next_cursor(rows: list[ReturnRequest], limit: int) -> str:
    return encode_moment_cursor(rows[limit - 1].requested_at, rows[limit - 1].id) if len(rows) > limit else ""


def view_return(row: ReturnRequest) -> ReturnView:
    return ReturnView(
        id=row.id,
        order=row.order_id,
        room=row.room_id,
        kind=row.kind,
        reason=row.reason,
        quantity=row.quantity,
        amount_minor=row.amount_minor,
        currency=row.currency,
        state=row.state,
        text=row.text,
        evidence=msgspec.convert(row.evidence, list[Evidence]),
        requested_at=_text(row.requested_at) or "",
        answer=row.answer,
        due_at=_text(row.due_at),
        carrier=row.carrier,
        tracking=row.tracking,
        closed_at=_text(row.closed_at),
    )


# --- the team ------------------------------------------------------------------------------------------------------------------------


async def decide(work: Work, request_id: str, act: ReturnAct, *, by: str, answer: str = "", restock: bool | None = None) -> ReturnRequest:
    """A step of the team. Again: nothing more. Raises AppError `not_found`, `conflict` or `insufficient_funds`."""
    found = await _lock(work, request_id)
    if found is None:
        raise AppError(NOT_FOUND, f"there is no return request {request_id}")
    order, row = found
    target = next_return_state(ReturnState(row.state), act, row.kind)
    if target is None:
        if row.state in _AFTER[act]:
            return row
        raise AppError(CONFLICT, f"a return request that is {row.state} cannot be changed by `{act}`")
    await _go(work, order, row, target, by=by, answer=answer, restock=restock)
    if target is ReturnState.APPROVED and row.kind == "refund_only":
        await _go(work, order, row, ReturnState.REFUNDED, by=by, answer=answer, restock=restock)
    return row


# Where a request stands after a step of the team, so that a repetition is told from a step that came too late.
_AFTER = {
    ReturnAct.APPROVE: {ReturnState.APPROVED, ReturnState.REFUNDED},
    ReturnAct.REJECT: {ReturnState.REJECTED},
    ReturnAct.RECEIVE: {ReturnState.RECEIVED, ReturnState.REFUNDED},
    ReturnAct.REFUND: {ReturnState.REFUNDED},
    ReturnAct.REFUSE: {ReturnState.CLOSED},
}


# --- because time passed -------------------------------------------------------------------------------------------------------------


async def run_due_returns(engines: Engines) -> None:
    """One pass of the worker: what nobody answered in time goes on by itself."""
    async with engines.sql.read() as session:
        now_ms = await sql_now_ms(session, engines.runtime.script_now_ms())
        due = await store.list_due_returns(session, _at(now_ms), DUE_BATCH_MAX)
    for request_id in due:
        try:
            async with engines.work() as work:
                await _fall_due(work, request_id, now_ms)
        except AppError as refusal:  # the money cannot go back now
            async with engines.work() as work:
                await _put_off(work, request_id, now_ms, refusal.detail)


async def _fall_due(work: Work, request_id: str, now_ms: int) -> None:
    found = await _lock(work, request_id)
    if found is None or not found[1].due_at or _ms(found[1].due_at) > now_ms:
        return  # somebody was faster
    order, row = found
    act = act_when_due(ReturnState(row.state), row.kind)
    target = next_return_state(ReturnState(row.state), act, row.kind)
    assert target, "what falls due leads somewhere"
    await _go(work, order, row, target, by="system", answer=BY_ITSELF.get(act, row.answer))


async def _put_off(work: Work, request_id: str, now_ms: int, why: str) -> None:
    row = await store.lock_return(work.session, request_id)
    if row is None or not row.due_at or _ms(row.due_at) > now_ms:
        return
    row.due_at = _at(now_ms) + AGAIN_AFTER
    text = f"Return request {row.id}: {row.amount_minor} {row.currency} are due and cannot go back: {why}"
    work.emit(row.room_id, [staff_channel(row.room_id)], AlertRaised(at=work.at, word="return_stuck", text=text))


# --- steps ---------------------------------------------------------------------------------------------------------------------------


async def _lock(work: Work, request_id: str) -> tuple[Order, ReturnRequest] | None:
    """The order first: refunds and disputes lock it too."""
    row = await store.fetch_return(work.session, request_id)
    if row is None:
        return None
    order = await lock_order(work, row.order_id)
    locked = await store.lock_return(work.session, request_id)
    assert locked, "return requests are never deleted"
    return order, locked


async def _go(
    work: Work,
    order: Order,
    row: ReturnRequest,
    target: ReturnState,
    *,
    by: str,
    answer: str = "",
    parcel: dict[str, str] | None = None,
    restock: bool | None = None,
) -> None:
    now_ms = await sql_now_ms(work.session, work.runtime.script_now_ms())
    row.state = target
    row.answer = answer or row.answer
    row.due_at = _due(work, target, row.kind, now_ms)
    row.closed_at = None if row.due_at else _at(now_ms)
    if parcel:
        row.carrier, row.tracking = parcel["carrier"], parcel["tracking"]
    if target is ReturnState.REFUNDED:
        await _refund(work, order, row, restock, by)
    await work.session.flush()
    changed = ReturnChanged(
        at=work.at,
        request=row.id,
        order=row.order_id,
        state=row.state,
        answer=row.answer,
        carrier=row.carrier or "",
        tracking=row.tracking or "",
        due_at=_text(row.due_at),
    )
    work.emit(row.room_id, [user_channel(row.viewer_id), staff_channel(row.room_id)], changed)
    await work.audit(row.room_id, by, f"return.{target}", row.id, order=row.order_id, answer=answer)


async def _refund(work: Work, order: Order, row: ReturnRequest, restock: bool | None, by: str) -> None:
    wanted = restock
    if wanted is None:
        wanted = restocks(kind=row.kind, reason=row.reason, policy=order.return_policy, shipped=order.shipped_at is not None)
    units = min(row.quantity, order.quantity - order.returned) if wanted else 0
    amount = min(row.amount_minor, order.amount_minor - order.refunded_minor)
    if amount > 0:  # else the team has refunded all of it in the meantime
        await send_back(work, order, amount=amount, units=units, reason=f"return: {row.reason}", by=by)


def _days(settings: Settings) -> ReturnDays:
    return ReturnDays(
        answer=settings.return_answer_days,
        ship=settings.return_ship_days,
        receive=settings.return_receive_days,
        inspect=settings.return_inspect_days,
        fault=settings.return_fault_days,
        fresh_fault=settings.return_fresh_fault_days,
    )


def _due(work: Work, state: ReturnState, kind: str, now_ms: int) -> datetime | None:
    days = days_in(state, kind, _days(work.engines.settings))
    return None if days is None else _at(now_ms) + timedelta(days=days)


def _at(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _text(at: datetime | None) -> str | None:
    return at_text(_ms(at)) if at else None
