"""Figures of a show, live and afterwards: projections of other domains' events, readings of the engines, the report.

Invariants
- Reactions run at least once, in the SQL transaction that deletes the announcement, so an effect happens once; besides, an order is
  one row that states what became of it, so that seeing an event again changes nothing.
- The report is computed from SQL alone, and so gives the same figures to whoever computes it, whenever.
- A live figure is a reading: it may be a second or two behind. The report is computed again until the session is archived.

Nothing depends on these figures: losing them all loses no order. Deliberately not here: comparing shows, and any figure about one viewer.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import AppError
from app.core.ids import room_of
from app.core.runtime import at_text
from app.domains.analytics import rules, store
from app.domains.analytics.rules import (
    ChatReport,
    DrawReport,
    DrawWinner,
    EnvelopesReport,
    Figures,
    MinuteFigures,
    OfferFigures,
    PaymentsReport,
    Report,
    Summary,
)
from app.domains.analytics.store import Sales
from app.domains.analytics.tables import OfferReading, SessionFigures
from app.domains.catalogue import service as catalogue
from app.domains.chat import service as chat
from app.domains.envelopes import service as envelopes
from app.domains.inventory import service as inventory
from app.domains.inventory.rules import Stock
from app.domains.lottery import service as lottery
from app.domains.rooms import service as rooms
from app.domains.rooms.tables import ShowSession
from app.protocol.channels import staff_channel
from app.protocol.codes import NOT_FOUND
from app.protocol.events import (
    FiguresUpdated,
    OrderChanged,
    OrderPaid,
    OrderPlacedEvent,
    SessionArchived,
    SessionEnded,
    SessionWentLive,
    encode_event,
)
from app.storage import presence
from app.storage.gathering import gather_each, raise_first
from app.storage.work import Engines, Work

LIVE_SESSIONS_MAX = 500
REPORTS_MAX = 20  # in one pass
PUSH_MS = 2000
PUSH_CLAIM_MS = 1900  # less than the interval, or one worker's jitter would skip every other
REPORT_EVERY = timedelta(seconds=30)  # while holds and payments of an ended show run out
SETTLING_MARGIN_S = 60
DRAWS_MAX = 200
ENVELOPES_MAX = 200

LIVE_STATES = ("live", "interrupted")


# --- reactions ---------------------------------------------------------------------------------------------------------------------------


async def on_went_live(work: Work, room_id: str, events: list[SessionWentLive]) -> None:
    for event in events:
        await store.open_session(work.session, event.session, room_id)


async def on_ended(work: Work, room_id: str, events: list[SessionEnded]) -> None:
    """Keeps the last readings of the stock; the worker computes the report, when chat's archive has caught up."""
    for event in events:
        stock = await _session_stock(work.engines, event.session)
        await store.set_readings(work.session, stock)
        await store.end_session(work.session, event.session, datetime.fromisoformat(event.at))


async def on_archived(work: Work, room_id: str, events: list[SessionArchived]) -> None:
    """The report stands as it is from now on."""
    for event in events:
        figures = await store.fetch_session(work.session, event.session)
        if figures is not None and not figures.final:
            await _store_report(work.session, event.session, work.now)
            await store.close_session(work.session, event.session)


async def on_orders(work: Work, room_id: str, events: list[OrderPlacedEvent | OrderPaid | OrderChanged]) -> None:
    """An order is placed before all else that becomes of it, so that may go first; the rest keeps its order."""
    placed = [event for event in events if isinstance(event, OrderPlacedEvent)]
    if placed:
        await store.note_placed(work.session, [_fact(event) for event in placed])
    later = [event for event in events if not isinstance(event, OrderPlacedEvent)]
    for are_paid, run in groupby(later, key=lambda event: isinstance(event, OrderPaid)):
        await (_note_paid if are_paid else _note_changed)(work.session, list(run))
    for session_id in sorted({event.session for event in events}):
        await store.mark_stale(work.session, session_id)


async def _note_paid(session: AsyncSession, events: Sequence[OrderPaid | OrderChanged]) -> None:
    await store.note_paid(session, [_fact(event) for event in events if isinstance(event, OrderPaid)])


async def _note_changed(session: AsyncSession, events: Sequence[OrderPaid | OrderChanged]) -> None:
    changes = [(event.order, event.state, event.refunded_minor) for event in events if isinstance(event, OrderChanged)]
    await store.note_changed(session, changes)


def _fact(event: OrderPlacedEvent | OrderPaid) -> dict[str, Any]:
    return {
        "order_id": event.order,
        "session_id": event.session,
        "offer_id": event.offer,
        "viewer_id": event.viewer,
        "quantity": event.quantity,
        "amount_minor": event.amount_minor,
        "at": datetime.fromisoformat(event.at),
    }


# --- live figures ------------------------------------------------------------------------------------------------------------------------


async def figures(engines: Engines, session_id: str) -> Figures:
    """Raises AppError not_found."""
    async with engines.sql.read() as session:
        show = await _get_show(session, session_id)
    live = show.state in LIVE_STATES
    readings = {name: await _reading(engines, name, show.room_id) for name in ("viewers", "likes", "peak_viewers")} if live else {}
    unique = await presence.unique_viewers(engines, show.room_id) if live else show.unique_viewers
    stock = await _session_stock(engines, session_id)
    async with engines.sql.read() as session:
        room = await rooms.get_room(session, show.room_id)
        offers, sales = await _offers(session, session_id, stock)
        minutes = await _minutes(session, show, engines.runtime.now())
        summary = await _summary(
            session,
            session_id,
            offers=offers,
            sales=sales,
            unique_viewers=unique,
            peak_viewers=max(readings.get("peak_viewers", show.peak_viewers), *(minute.viewers for minute in minutes), 0),
            likes=readings.get("likes", show.likes),
        )
    return Figures(
        **summary.model_dump(),
        session=session_id,
        room=show.room_id,
        currency=room.currency,
        at=engines.runtime.now(),
        live=live,
        viewers=readings.get("viewers", 0),
        offers=offers,
        minutes=minutes,
    )


async def _reading(engines: Engines, name: str, room_id: str) -> int:
    """What the pulse says."""
    return int(await engines.registry.pulse[name](engines, room_id))


async def _get_show(session: AsyncSession, session_id: str) -> ShowSession:
    show = await rooms.fetch_session(session, session_id)
    if show is None:
        raise AppError(NOT_FOUND, "no such session")
    return show


async def _session_stock(engines: Engines, session_id: str) -> dict[str, Stock]:
    stock = await inventory.read_stock(engines, room_of(session_id))
    return {offer_id: reading for offer_id, reading in stock.items() if reading.session == session_id}


async def _offers(session: AsyncSession, session_id: str, stock: Mapping[str, Stock]) -> tuple[list[OfferFigures], dict[str, Sales]]:
    """Every offer of the shelf. The engine's stock where it is known, else the last reading."""
    sales = await store.sum_sales(session, session_id)
    kept = await store.list_readings(session, session_id)
    offers: list[OfferFigures] = []
    for offer in await catalogue.list_offers(session, session_id):
        reading: Stock | OfferReading | None = stock.get(offer.id) or kept.get(offer.id)
        sold = sales.get(offer.id, Sales())
        offers.append(
            OfferFigures(
                offer=offer.id,
                name=offer.name,
                price_minor=offer.price_minor,
                total=offer.total,
                available=reading.available if reading else offer.total,
                held=reading.held if reading else 0,
                ordered=reading.ordered if reading else 0,
                sold=reading.sold if reading else 0,
                holds=reading.holds if reading else 0,
                orders=sold.orders,
                paid_orders=sold.paid_orders,
                gmv_minor=sold.gmv_minor,
            )
        )
    return offers, sales


async def _minutes(session: AsyncSession, show: ShowSession, now: datetime) -> list[MinuteFigures]:
    known: dict[datetime, MinuteFigures] = {}

    def at(minute: datetime) -> MinuteFigures:
        return known.setdefault(minute, MinuteFigures(at=minute))

    for minute, viewers in (await store.list_minutes(session, show.id)).items():
        at(minute).viewers = viewers
    for minute, messages in (await chat.count_by_minute(session, show.id)).items():
        at(minute).messages = messages
    orders, paid = await store.sales_by_minute(session, show.id)
    for minute, count in orders.items():
        at(minute).orders = count
    for minute, (count, amount_minor) in paid.items():
        at(minute).paid_orders, at(minute).gmv_minor = count, amount_minor
    return rules.fill_minutes(known, start=show.went_live_at, end=show.ended_at or now)


async def _summary(
    session: AsyncSession,
    session_id: str,
    *,
    offers: list[OfferFigures],
    sales: dict[str, Sales],
    unique_viewers: int,
    peak_viewers: int,
    likes: int,
) -> Summary:
    said = await chat.count_messages(session, session_id)
    total = store.total_sales(sales.values())
    return Summary(
        peak_viewers=peak_viewers,
        unique_viewers=unique_viewers,
        messages=said["sent"],
        chatters=said["chatters"],
        likes=likes,
        holds=sum(offer.holds for offer in offers),
        orders=total.orders,
        paid_orders=total.paid_orders,
        units_sold=total.units,
        gmv_minor=total.gmv_minor,
        refunded_minor=total.refunded_minor,
        conversion=rules.ratio(total.paid_orders, unique_viewers),
        average_order_minor=rules.average(total.gmv_minor, total.paid_orders),
    )


# --- worker loops ------------------------------------------------------------------------------------------------------------------------


async def sample_figures(engines: Engines) -> None:
    """Notes how many watch every show that is live, and where its stock stands."""
    async with engines.sql.read() as session:
        live = await store.list_live(session, LIVE_SESSIONS_MAX)

    async def one(show: SessionFigures) -> None:
        viewers = await _reading(engines, "viewers", show.room_id)
        stock = await _session_stock(engines, show.session_id)
        async with engines.sql.begin() as session:
            await store.note_viewers(session, show.session_id, rules.minute_of(engines.runtime.now()), viewers)
            await store.set_readings(session, stock)

    raise_first(await gather_each(live, one))


async def push_figures(engines: Engines) -> None:
    """Sends the figures of every live show to its team. A reading, so it is not kept in the channel's history."""
    async with engines.sql.read() as session:
        live = await store.list_live(session, LIVE_SESSIONS_MAX)

    async def one(show: SessionFigures) -> None:
        if await store.claim_push(engines, show.room_id, PUSH_CLAIM_MS):
            reading = await figures(engines, show.session_id)
            event = FiguresUpdated(at=at_text(engines.runtime.now_ms()), session=show.session_id, figures=reading.model_dump(mode="json"))
            await engines.streams.publish(staff_channel(show.room_id), encode_event(event), transient=True)

    raise_first(await gather_each(live, one))


async def refresh_reports(engines: Engines) -> None:
    """Computes the reports of ended shows where something came in, or where holds and payments are still running out."""
    settings = engines.settings
    settling = timedelta(seconds=settings.hold_ttl_s + settings.payment_ttl_s + SETTLING_MARGIN_S)
    async with engines.sql.read() as session:
        due = await store.list_reports_due(session, now=engines.runtime.now(), settling=settling, every=REPORT_EVERY, limit=REPORTS_MAX)
    for show in due:
        await refresh_report(engines, show.session_id)


# --- the report --------------------------------------------------------------------------------------------------------------------------


async def refresh_report(engines: Engines, session_id: str) -> dict[str, Any]:
    """Takes in what is still on its way, then computes and keeps the report."""
    await chat.archive_room(engines, room_of(session_id))
    stock = await _session_stock(engines, session_id)
    async with engines.sql.begin() as session:
        await store.set_readings(session, stock)
        return await _store_report(session, session_id, engines.runtime.now())


async def _store_report(session: AsyncSession, session_id: str, now: datetime) -> dict[str, Any]:
    """Locks the row first: whatever comes in while the report is computed marks it stale again afterwards."""
    await store.lock_session(session, session_id)
    report = await build_report(session, session_id, now=now)
    await store.set_report(session, session_id, report, now)
    return report


async def report(engines: Engines, session_id: str) -> dict[str, Any]:
    """The kept report of an ended show if nothing came in since, else a fresh one. Raises AppError not_found."""
    async with engines.sql.read() as session:
        await _get_show(session, session_id)
        kept = await store.fetch_session(session, session_id)
    if kept is None:  # never live: nothing to keep
        async with engines.sql.read() as session:
            return await build_report(session, session_id, now=engines.runtime.now())
    if kept.report is not None and not kept.live and (kept.final or not kept.stale):
        return kept.report
    return await refresh_report(engines, session_id)


async def build_report(session: AsyncSession, session_id: str, *, now: datetime | None = None) -> dict[str, Any]:
    """The report from SQL alone, in the shape of `rules.Report` as JSON values. Raises AppError not_found."""
    show = await _get_show(session, session_id)
    room = await rooms.get_room(session, show.room_id)
    computed_at = now or (await session.scalars(select(func.now()))).one()
    offers, sales = await _offers(session, session_id, {})
    minutes = await _minutes(session, show, computed_at)
    summary = await _summary(
        session,
        session_id,
        offers=offers,
        sales=sales,
        unique_viewers=show.unique_viewers,
        peak_viewers=max(show.peak_viewers, *(minute.viewers for minute in minutes), 0),
        likes=show.likes,
    )
    end = show.ended_at or computed_at
    built = Report(
        session=show.id,
        room=show.room_id,
        title=show.title,
        state=show.state,
        currency=room.currency,
        started_at=show.went_live_at,
        ended_at=show.ended_at,
        duration_s=round((end - show.went_live_at).total_seconds()) if show.went_live_at else 0,
        computed_at=computed_at,
        summary=summary,
        funnel=rules.funnel(summary),
        offers=offers,
        top_offers=rules.top_offers(offers),
        minutes=minutes,
        peak_minute=rules.peak_minute(minutes),
        draws=await _draws(session, session_id),
        envelopes=await _envelopes(session, session_id),
        chat=await _chat(session, session_id),
        payments=await _payments(session, session_id, store.total_sales(sales.values())),
    )
    return built.model_dump(mode="json")


async def _draws(session: AsyncSession, session_id: str) -> list[DrawReport]:
    """In the order in which they were opened."""
    reports: list[DrawReport] = []
    for draw in reversed(await lottery.list_draws(session, session_id, limit=DRAWS_MAX)):
        prizes = {prize.position: prize.name for prize in await lottery.list_prizes(session, draw.id)}
        _, winners = await lottery.read_outcome(session, draw)
        named = [DrawWinner(viewer=winner.viewer_id, name=winner.name, prize=prizes[winner.prize_position]) for winner in winners]
        reports.append(DrawReport(id=draw.id, title=draw.title, state=draw.state, entrants=draw.entrants, winners=named))
    return reports


async def _envelopes(session: AsyncSession, session_id: str) -> EnvelopesReport:
    rows = await envelopes.list_envelopes(session, session_id, limit=ENVELOPES_MAX)
    return EnvelopesReport(
        envelopes=len(rows),
        shares=sum(row.share_count for row in rows),
        opened=sum(row.share_count - row.remaining for row in rows),
        funded_minor=sum(row.total_minor for row in rows),
        opened_minor=sum(row.opened_minor for row in rows),
        refunded_minor=sum(row.refunded_minor for row in rows),
    )


async def _chat(session: AsyncSession, session_id: str) -> ChatReport:
    return ChatReport(**await chat.count_messages(session, session_id), **await chat.count_sanctions(session, session_id))


async def _payments(session: AsyncSession, session_id: str, total: Sales) -> PaymentsReport:
    states = await store.count_states(session, session_id)
    return PaymentsReport(
        waiting=states.get("placed", 0),
        paid=sum(states.get(state, 0) for state in ("paid", "shipped", "delivered")),
        cancelled=states.get("cancelled", 0),
        expired=states.get("expired", 0),
        refunded=states.get("refunded", 0),
        refunds=total.refunds,
        refunded_minor=total.refunded_minor,
    )
