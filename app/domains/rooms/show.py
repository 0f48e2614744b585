"""Rooms, and the life cycle of their sessions: part of the rooms service (service.py says what the whole owns).

Every change takes the room's row lock first, and a step of the life cycle is taken only when its checklist allows it.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import AppError
from app.core.ids import room_of, scoped_id
from app.core.runtime import at_text
from app.domains.catalogue import service as catalogue
from app.domains.catalogue.rules import CURRENCIES, OfferState
from app.domains.rooms import store
from app.domains.rooms.rules import (
    ON_AIR,
    UPCOMING_MAX,
    CheckItem,
    Readiness,
    SessionState,
    ShelfOffer,
    Step,
    checklist,
    missing,
    next_state,
    next_step,
)
from app.domains.rooms.tables import Room, ShowSession
from app.protocol.channels import room_channel, staff_channel
from app.protocol.codes import BAD_REQUEST, CONFLICT, LIMIT_EXCEEDED, NOT_FOUND
from app.protocol.events import (
    Event,
    OfferListed,
    RoomUpdated,
    SessionArchived,
    SessionEnded,
    SessionInterrupted,
    SessionResumed,
    SessionScheduled,
    SessionWentLive,
)
from app.protocol.views import RoomView
from app.storage.tables import AuditEntry
from app.storage.work import Work

# --- rooms --------------------------------------------------------------------------------------------------------------------------


async def create_room(
    work: Work,
    *,
    title: str,
    by: str = "system",
    host_name: str = "",
    host_id: str | None = None,
    description: str = "",
    currency: str | None = None,
    language: str = "zh",
) -> Room:
    currency = currency or work.engines.settings.currency
    if currency not in CURRENCIES:
        raise AppError(BAD_REQUEST, f"currency: {currency!r} is not an ISO 4217 code that this product knows")
    room = Room(
        id=work.runtime.new_short_id(),
        title=clean_title(title),
        host_name=host_name,
        host_id=host_id,
        description=description,
        currency=currency,
        language=language,
        created_at=work.now,
    )
    work.session.add(room)
    await work.session.flush()
    await work.audit(room.id, by, "room.created", room.id, title=room.title, host=host_name)
    return room


async def change_room(work: Work, room_id: str, changes: dict[str, str | None], by: str) -> Room:
    """`changes` holds any of title, host_name, host_id, description, language. The currency stays: offers have prices in it."""
    room = await lock_room(work, room_id)
    for name, value in changes.items():
        setattr(room, name, value)
    room.title = clean_title(room.title)
    await work.session.flush()
    work.emit(room_id, [room_channel(room_id), staff_channel(room_id)], RoomUpdated(at=work.at, room=room_view(room)))
    await work.audit(room_id, by, "room.changed", room_id, **changes)
    return room


async def get_room(session: AsyncSession, room_id: str) -> Room:
    room = await store.fetch_room(session, room_id)
    if room is None:
        raise AppError(NOT_FOUND, "no such room")
    return room


async def list_rooms(session: AsyncSession, *, after: tuple[datetime, str] | None, limit: int) -> list[tuple[Room, ShowSession | None]]:
    """Newest first, each with its session on air."""
    return await store.list_rooms(session, after=after, limit=limit)


def room_view(room: Room) -> RoomView:
    return RoomView(
        id=room.id,
        title=room.title,
        host=room.host_name,
        description=room.description,
        currency=room.currency,
        language=room.language,
    )


def clean_title(title: str) -> str:
    if not title.strip():
        raise AppError(BAD_REQUEST, "title: give it a title")
    return title.strip()


async def lock_room(work: Work, room_id: str) -> Room:
    room = await store.lock_room(work.session, room_id)
    if room is None:
        raise AppError(NOT_FOUND, "no such room")
    return room


# --- sessions -----------------------------------------------------------------------------------------------------------------------


async def create_session(work: Work, room_id: str, *, title: str, starts_at: datetime | None = None, by: str = "system") -> ShowSession:
    """A draft. Nobody but the team knows of it until it is scheduled or live."""
    await lock_room(work, room_id)
    show = ShowSession(
        id=scoped_id(room_id, work.runtime.new_short_id()),
        room_id=room_id,
        title=clean_title(title),
        state=SessionState.DRAFT,
        starts_at=catalogue.whole_ms(starts_at),
        created_at=work.now,
    )
    work.session.add(show)
    await work.session.flush()
    await work.audit(room_id, by, "session.created", show.id, title=show.title)
    return show


async def fetch_session(session: AsyncSession, session_id: str) -> ShowSession | None:
    return await store.fetch_session(session, session_id)


async def get_session(session: AsyncSession, session_id: str) -> ShowSession:
    show = await store.fetch_session(session, session_id)
    if show is None:
        raise AppError(NOT_FOUND, "no such session")
    return show


async def list_sessions(session: AsyncSession, room_id: str, *, after: tuple[datetime, str] | None, limit: int) -> list[ShowSession]:
    """Newest first."""
    return await store.list_sessions(session, room_id, after=after, limit=limit)


async def change_session(work: Work, session_id: str, changes: dict[str, Any], by: str) -> ShowSession:
    """`changes` holds title or starts_at. Only before the session is live: from then on viewers know it under its title."""
    _, show = await lock_session(work, session_id)
    if show.state not in {SessionState.DRAFT, SessionState.SCHEDULED}:
        raise AppError(CONFLICT, f"the session is {show.state}; title and start can be changed before it is live")
    show.title = clean_title(changes.get("title", show.title))
    show.starts_at = catalogue.whole_ms(changes.get("starts_at", show.starts_at))
    if show.state == SessionState.SCHEDULED:
        _announce_schedule(work, show)
    await work.session.flush()
    await work.audit(show.room_id, by, "session.changed", show.id, title=show.title, starts_at=time_text(show.starts_at))
    return show


async def schedule(work: Work, session_id: str, by: str, *, starts_at: datetime | None = None) -> ShowSession:
    """Announces the session to viewers; again: at another time."""
    _, show = await lock_session(work, session_id)
    show.starts_at = catalogue.whole_ms(starts_at) or show.starts_at
    if show.state == SessionState.DRAFT and len(await store.list_scheduled(work.session, show.room_id)) >= UPCOMING_MAX:
        raise AppError(LIMIT_EXCEEDED, f"a room has at most {UPCOMING_MAX} scheduled sessions; end those that will not take place")
    await _take(work, show, Step.SCHEDULE, by, starts_at=time_text(show.starts_at))
    _announce_schedule(work, show)
    return show


def _announce_schedule(work: Work, show: ShowSession) -> None:
    starts_at = time_text(show.starts_at)
    if starts_at is None:
        raise AppError(BAD_REQUEST, "starts_at: a scheduled session has a start")
    emit(work, show, SessionScheduled(at=work.at, room=show.room_id, session=show.id, title=show.title, starts_at=starts_at))


async def go_live(work: Work, session_id: str, by: str, *, empty_shelf_accepted: bool = False) -> ShowSession:
    """Opens the show: viewers see the session, then every offer on its shelf. Raises AppError `conflict` with what is missing."""
    room, show = await lock_session(work, session_id)
    await _take(work, show, Step.GO_LIVE, by, empty_shelf_accepted=empty_shelf_accepted)
    show.went_live_at = work.now
    room.pinned_offer_id = None
    emit(work, show, SessionWentLive(at=work.at, room=show.room_id, session=show.id, title=show.title))
    for offer in await catalogue.list_offers(work.session, show.id):
        if offer.state != OfferState.WITHDRAWN:
            emit(work, show, OfferListed(at=work.at, offer=catalogue.offer_view(offer)))
    return show


async def interrupt(work: Work, session_id: str, by: str, *, reason: str = "") -> ShowSession:
    _, show = await lock_session(work, session_id)
    await _take(work, show, Step.INTERRUPT, by, reason=reason)
    show.reason = reason
    show.interrupted_at = work.now
    emit(work, show, SessionInterrupted(at=work.at, room=show.room_id, session=show.id, reason=reason))
    return show


async def resume(work: Work, session_id: str, by: str) -> ShowSession:
    _, show = await lock_session(work, session_id)
    await _take(work, show, Step.RESUME, by)
    _close_interruption(work, show)
    emit(work, show, SessionResumed(at=work.at, room=show.room_id, session=show.id))
    return show


async def end_session(work: Work, session_id: str, by: str) -> ShowSession:
    """The end of a show, or of a plan for one. Its shelf closes; orders that were placed go on."""
    room, show = await lock_session(work, session_id)
    was = show.state
    await _take(work, show, Step.END, by, was=was)
    if was in ON_AIR:
        room.pinned_offer_id = None
    _close_interruption(work, show)
    show.ended_at = work.now
    channels = [staff_channel(show.room_id)] if was == SessionState.DRAFT else [room_channel(show.room_id), staff_channel(show.room_id)]
    work.emit(show.room_id, channels, SessionEnded(at=work.at, room=show.room_id, session=show.id))
    return show


async def archive(work: Work, session_id: str, by: str) -> ShowSession:
    """What must last is in SQL: the hot keys of the session get a time to live."""
    _, show = await lock_session(work, session_id)
    await _take(work, show, Step.ARCHIVE, by)
    show.archived_at = work.now
    work.emit(show.room_id, [staff_channel(show.room_id)], SessionArchived(at=work.at, room=show.room_id, session=show.id))
    return show


def _close_interruption(work: Work, show: ShowSession) -> None:
    if show.interrupted_at is not None:
        show.interrupted_ms += round((work.now - show.interrupted_at).total_seconds() * 1000)
    show.interrupted_at = None
    show.reason = ""


async def _take(work: Work, show: ShowSession, step: Step, by: str, *, empty_shelf_accepted: bool = False, **detail: Any) -> None:
    """Takes one step of the life cycle if its checklist allows it, and writes it to the audit log."""
    in_the_way = missing(await session_checklist(work.session, show, step), empty_shelf_accepted=empty_shelf_accepted)
    if in_the_way:
        raise AppError(CONFLICT, "; ".join(item.text for item in in_the_way))
    new_state = next_state(show.state, step)
    assert new_state is not None, "the checklist begins with the state"
    show.state = new_state
    await work.session.flush()
    await work.audit(show.room_id, by, f"session.{step}", show.id, **detail)


async def session_checklist(session: AsyncSession, show: ShowSession, step: Step) -> list[CheckItem]:
    """What a step needs, and whether it is so."""
    room = await get_room(session, show.room_id)
    on_air = await store.fetch_on_air(session, show.room_id)
    offers = await catalogue.list_offers(session, show.id)
    look = Readiness(
        state=show.state,
        title=show.title,
        host=room.host_name or room.host_id or "",
        starts_at=show.starts_at,
        shelf=[ShelfOffer(offer.name, offer.state, offer.price_minor, offer.total, offer.sold) for offer in offers],
        on_air_elsewhere=on_air is not None and on_air.id != show.id,
    )
    return checklist(step, look)


async def next_checklist(session: AsyncSession, show: ShowSession) -> tuple[Step | None, list[CheckItem]]:
    """The step that comes next in the session's state, and what it needs. (None, []) when nothing is left to do."""
    step = next_step(show.state)
    return step, [] if step is None else await session_checklist(session, show, step)


async def list_audit(session: AsyncSession, room_id: str, *, after_id: int | None, limit: int) -> list[AuditEntry]:
    """What the room's team did, newest first."""
    return await store.list_audit(session, room_id, after_id=after_id, limit=limit)


async def fetch_on_air(session: AsyncSession, room_id: str) -> ShowSession | None:
    """The room's session that is live or interrupted, as SQL has it now."""
    return await store.fetch_on_air(session, room_id)


async def read_open_sessions(session: AsyncSession, room_id: str | None, ended_after: datetime) -> Mapping[str, str]:
    """id -> state of the sessions of one room, or of all, whose sales may still go on."""
    return await store.read_open_sessions(session, room_id, ended_after)


async def lock_session(work: Work, session_id: str) -> tuple[Room, ShowSession]:
    """Locks the session's room. Raises AppError `not_found`."""
    room = await store.lock_room(work.session, room_of(session_id))
    show = await store.reload_session(work.session, session_id) if room else None
    if room is None or show is None:
        raise AppError(NOT_FOUND, "no such session")
    return room, show


def emit(work: Work, show: ShowSession, event: Event) -> None:
    """To the team, and to the viewers when the session is one that they see: on air, or announced."""
    seen = show.state in ON_AIR or isinstance(event, SessionScheduled)
    channels = [room_channel(show.room_id)] if seen else []
    work.emit(show.room_id, [*channels, staff_channel(show.room_id)], event)


def time_text(at: datetime | None) -> str | None:
    return None if at is None else at_text(round(at.timestamp() * 1000))
