"""RPC methods and REST routes of rooms. Reads of what viewers see are public; what the team prepares needs `staff.watch`."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from app.core.caller import Caller
from app.core.errors import AppError
from app.core.ids import room_of
from app.core.registry import Command, Domain
from app.domains.rooms import audience, service, shelf_endpoints, show
from app.domains.rooms.rules import CheckItem
from app.domains.rooms.tables import Room, ShowSession
from app.protocol.codes import BAD_REQUEST, NOT_FOUND, PERMISSION_DENIED
from app.protocol.commands import Done, DoneOutcome, RoomLike, RoomSnapshot
from app.protocol.views import RoomState
from app.rest.access import EnginesDep, check_right, public, require
from app.rest.pages import CursorParam, LimitParam, Page, decode_cursor, decode_moment_cursor, encode_cursor, encode_moment_cursor
from app.storage import presence
from app.storage.tables import AuditEntry
from app.storage.work import Engines

router = APIRouter(prefix="/api/v1")

Runner = Annotated[Caller, require("session.run")]
Watcher = Annotated[Caller, require("staff.watch")]


# --- commands -----------------------------------------------------------------------------------------------------------------------


async def room_snapshot(engines: Engines, caller: Caller, request: RoomSnapshot) -> dict[str, Any]:
    check_right(caller, "room.watch", request.room)
    return await service.snapshot(engines, request.room)


async def room_like(engines: Engines, caller: Caller, request: RoomLike) -> Done:
    check_right(caller, "room.watch", request.room)
    return Done(outcome=DoneOutcome(await service.like(engines, caller.id, request.room, request.count)))


# --- rooms --------------------------------------------------------------------------------------------------------------------------


class RoomIn(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"title": "Tea hills live", "host_name": "Mei", "description": "From the garden.", "language": "zh"}]
        },
    )

    title: str = Field(min_length=1, max_length=120)
    host_name: str = Field("", max_length=80)
    host_id: str | None = Field(None, max_length=64, description="the host's staff account; rights come from its grants")
    description: str = Field("", max_length=2000)
    currency: str | None = Field(None, pattern="^[A-Z]{3}$", description="ISO 4217; left out: the product's")
    language: str = Field("zh", pattern="^[a-zA-Z]{2,3}(-[a-zA-Z0-9]{2,8})*$", description="BCP 47")


class RoomPatch(BaseModel):
    """Fields that are left out stay as they are."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"title": "Tea hills live, day 2"}]})

    title: str = Field("", min_length=1, max_length=120)
    host_name: str = Field("", max_length=80)
    host_id: str | None = Field(None, max_length=64)
    description: str = Field("", max_length=2000)
    language: str = Field("zh", pattern="^[a-zA-Z]{2,3}(-[a-zA-Z0-9]{2,8})*$")


class OnAirOut(BaseModel):
    id: str
    title: str
    state: str = Field(examples=["live"], description="`live` or `interrupted`")
    went_live_at: datetime


class RoomOut(BaseModel):
    id: str = Field(examples=["k7qz0m4w2a"])
    title: str = Field(examples=["Tea hills live"])
    host_name: str = Field(examples=["Mei"])
    description: str
    currency: str = Field(examples=["CNY"])
    language: str = Field(examples=["zh"])
    created_at: datetime
    live_session: OnAirOut | None = Field(description="the session on air, if there is one")
    viewers: int = Field(description="in the room now")

    @classmethod
    def of(cls, room: Room, show: ShowSession | None, viewers: int) -> "RoomOut":
        on_air = None
        if show and show.went_live_at:
            on_air = OnAirOut(id=show.id, title=show.title, state=show.state, went_live_at=show.went_live_at)
        return cls(
            id=room.id,
            title=room.title,
            host_name=room.host_name,
            description=room.description,
            currency=room.currency,
            language=room.language,
            created_at=room.created_at,
            live_session=on_air,
            viewers=viewers,
        )


@router.get("/rooms", tags=["rooms"])
@public
async def list_rooms(engines: EnginesDep, cursor: CursorParam = "", limit: LimitParam = 50) -> Page[RoomOut]:
    """Newest first, each with its session on air and its viewers."""
    async with engines.sql.read() as session:
        rows = await service.list_rooms(session, after=decode_moment_cursor(cursor), limit=limit + 1)
    next_cursor = encode_moment_cursor(rows[limit - 1][0].created_at, rows[limit - 1][0].id) if len(rows) > limit else ""
    counts = await service.count_viewers(engines, [room.id for room, _ in rows[:limit]])
    items = [RoomOut.of(room, show, count) for (room, show), count in zip(rows[:limit], counts, strict=True)]
    return Page(items=items, next_cursor=next_cursor)


@router.post("/rooms", status_code=201, tags=["rooms"])
async def create_room(engines: EnginesDep, caller: Annotated[Caller, require("room.create")], body: RoomIn) -> RoomOut:
    """A new room. Give its host's account the role `host` in it through the staff routes."""
    if not caller.may("room.create"):
        raise AppError(PERMISSION_DENIED, "making a room needs the right `room.create` everywhere, not in one room")
    async with engines.work() as work:
        room = await service.create_room(work, by=caller.id, **body.model_dump())
    return RoomOut.of(room, None, 0)


@router.get("/rooms/{room_id}", tags=["rooms"])
@public
async def get_room(room_id: str, engines: EnginesDep) -> RoomOut:
    async with engines.sql.read() as session:
        room = await service.get_room(session, room_id)
        show = await service.fetch_on_air(session, room_id)
    return RoomOut.of(room, show, await presence.viewers(engines, room_id))


@router.patch("/rooms/{room_id}", tags=["rooms"])
async def change_room(room_id: str, engines: EnginesDep, caller: Runner, body: RoomPatch) -> RoomOut:
    check_right(caller, "session.run", room_id)
    async with engines.work() as work:
        room = await service.change_room(work, room_id, body.model_dump(exclude_unset=True), caller.id)
        show = await service.fetch_on_air(work.session, room_id)
    return RoomOut.of(room, show, await presence.viewers(engines, room_id))


@router.get(
    "/rooms/{room_id}/snapshot",
    tags=["rooms"],
    response_class=Response,
    responses={200: {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/RoomState"}}}}},
)
@public
async def get_snapshot(room_id: str, engines: EnginesDep) -> Response:
    """What the subscribe reply of `room:<id>` carries: the whole state of the room as viewers see it."""
    return Response(msgspec.json.encode(await service.snapshot(engines, room_id)), media_type="application/json")


class AuditOut(BaseModel):
    id: int
    at: datetime
    actor: str = Field(examples=["host-mei"])
    action: str = Field(examples=["offer.repriced"])
    subject: str
    detail: dict[str, Any]
    previous_hash: str = Field(description="hash of the room's entry before this one; empty for the first")
    hash: str = Field(description="SHA-256 over the previous hash and the entry: changing or removing an entry breaks all after it")

    @classmethod
    def of(cls, entry: AuditEntry) -> "AuditOut":
        return cls.model_validate(entry, from_attributes=True)


@router.get("/rooms/{room_id}/audit", tags=["rooms"])
async def list_audit(
    room_id: str, engines: EnginesDep, caller: Annotated[Caller, require("audit.view")], cursor: CursorParam = "", limit: LimitParam = 50
) -> Page[AuditOut]:
    """What the room's team did, newest first: a hash chain that only grows."""
    check_right(caller, "audit.view", room_id)
    key = decode_cursor(cursor, 1)
    if key is not None and not isinstance(key[0], int):
        raise AppError(BAD_REQUEST, "cursor: belongs to another listing")
    async with engines.sql.read() as session:
        await service.get_room(session, room_id)
        rows = await service.list_audit(session, room_id, after_id=int(key[0]) if key else None, limit=limit + 1)
    next_cursor = encode_cursor(rows[limit - 1].id) if len(rows) > limit else ""
    return Page(items=[AuditOut.of(row) for row in rows[:limit]], next_cursor=next_cursor)


# --- sessions -----------------------------------------------------------------------------------------------------------------------


class SessionIn(BaseModel):
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"title": "First flush, from the hill", "starts_at": "2026-04-03T19:30:00+08:00"}]}
    )

    title: str = Field(min_length=1, max_length=120)
    starts_at: AwareDatetime | None = None


class SessionPatch(BaseModel):
    """Fields that are left out stay as they are. Only before the session is live."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"starts_at": "2026-04-03T20:00:00+08:00"}]})

    title: str = Field("", min_length=1, max_length=120)
    starts_at: AwareDatetime | None = None


class ScheduleIn(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"starts_at": "2026-04-03T19:30:00+08:00"}]})

    starts_at: AwareDatetime | None = Field(None, description="left out: the start that the session has")


class GoLiveIn(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"empty_shelf_accepted": False}]})

    empty_shelf_accepted: bool = Field(False, description="go live with no offer on the shelf, on purpose")


class InterruptIn(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "the host's network"}]})

    reason: str = Field("", max_length=200, description="viewers read it")


class SessionOut(BaseModel):
    id: str = Field(examples=["k7qz0m4w2a-3v8n1c5xtd"])
    room: str = Field(validation_alias="room_id")
    title: str
    state: str = Field(examples=["live"], description="`draft`, `scheduled`, `live`, `interrupted`, `ended` or `archived`")
    reason: str = Field(description="why it is interrupted")
    starts_at: datetime | None
    went_live_at: datetime | None
    interrupted_at: datetime | None
    interrupted_ms: int = Field(description="all interruptions that are over")
    ended_at: datetime | None
    archived_at: datetime | None
    created_at: datetime
    likes: int = Field(description="set when the session has ended, as are the two counts below")
    peak_viewers: int
    unique_viewers: int

    @classmethod
    def of(cls, show: ShowSession) -> "SessionOut":
        return cls.model_validate(show, from_attributes=True)


class CheckItemOut(BaseModel):
    word: str = Field(examples=["shelf"])
    ok: bool
    text: str = Field(examples=["3 offers on the shelf"])


class ChecklistOut(BaseModel):
    step: str | None = Field(examples=["go_live"], description="the step that it is for; null when the session is archived")
    ready: bool
    items: list[CheckItemOut]


@router.post("/rooms/{room_id}/sessions", status_code=201, tags=["sessions"])
async def create_session(room_id: str, engines: EnginesDep, caller: Runner, body: SessionIn) -> SessionOut:
    """A draft: nobody but the team knows of it."""
    check_right(caller, "session.run", room_id)
    async with engines.work() as work:
        show = await service.create_session(work, room_id, title=body.title, starts_at=body.starts_at, by=caller.id)
    return SessionOut.of(show)


@router.get("/rooms/{room_id}/sessions", tags=["sessions"])
async def list_sessions(
    room_id: str, engines: EnginesDep, caller: Watcher, cursor: CursorParam = "", limit: LimitParam = 50
) -> Page[SessionOut]:
    """Newest first."""
    check_right(caller, "staff.watch", room_id)
    async with engines.sql.read() as session:
        await service.get_room(session, room_id)
        rows = await service.list_sessions(session, room_id, after=decode_moment_cursor(cursor), limit=limit + 1)
    next_cursor = encode_moment_cursor(rows[limit - 1].created_at, rows[limit - 1].id) if len(rows) > limit else ""
    return Page(items=[SessionOut.of(row) for row in rows[:limit]], next_cursor=next_cursor)


@router.get("/sessions/{session_id}", tags=["sessions"])
async def get_session(session_id: str, engines: EnginesDep, caller: Watcher) -> SessionOut:
    check_session(caller, "staff.watch", session_id)
    async with engines.sql.read() as session:
        return SessionOut.of(await service.get_session(session, session_id))


@router.patch("/sessions/{session_id}", tags=["sessions"])
async def change_session(session_id: str, engines: EnginesDep, caller: Runner, body: SessionPatch) -> SessionOut:
    check_session(caller, "session.run", session_id)
    async with engines.work() as work:
        return SessionOut.of(await service.change_session(work, session_id, body.model_dump(exclude_unset=True), caller.id))


@router.get("/sessions/{session_id}/checklist", tags=["sessions"])
async def get_checklist(session_id: str, engines: EnginesDep, caller: Watcher) -> ChecklistOut:
    """What the session's next step needs, and whether it is so."""
    check_session(caller, "staff.watch", session_id)
    async with engines.sql.read() as session:
        step, items = await service.next_checklist(session, await service.get_session(session, session_id))
    return ChecklistOut(step=step, ready=step is not None and all(item.ok for item in items), items=[_check_item(item) for item in items])


def _check_item(item: CheckItem) -> CheckItemOut:
    return CheckItemOut(word=item.word, ok=item.ok, text=item.text)


@router.post("/sessions/{session_id}/schedule", tags=["sessions"])
async def schedule(session_id: str, engines: EnginesDep, caller: Runner, body: ScheduleIn | None = None) -> SessionOut:
    """Announces the session to viewers. Again: at another time."""
    check_session(caller, "session.run", session_id)
    async with engines.work() as work:
        return SessionOut.of(await service.schedule(work, session_id, caller.id, starts_at=body.starts_at if body else None))


@router.post("/sessions/{session_id}/go-live", tags=["sessions"])
async def go_live(session_id: str, engines: EnginesDep, caller: Runner, body: GoLiveIn | None = None) -> SessionOut:
    """Opens the show. Error `conflict` says what the checklist misses."""
    check_session(caller, "session.run", session_id)
    accepted = body is not None and body.empty_shelf_accepted
    async with engines.work() as work:
        return SessionOut.of(await service.go_live(work, session_id, caller.id, empty_shelf_accepted=accepted))


@router.post("/sessions/{session_id}/interrupt", tags=["sessions"])
async def interrupt(session_id: str, engines: EnginesDep, caller: Runner, body: InterruptIn | None = None) -> SessionOut:
    """The host is cut off; the room stays open."""
    check_session(caller, "session.run", session_id)
    async with engines.work() as work:
        return SessionOut.of(await service.interrupt(work, session_id, caller.id, reason=body.reason if body else ""))


@router.post("/sessions/{session_id}/resume", tags=["sessions"])
async def resume(session_id: str, engines: EnginesDep, caller: Runner) -> SessionOut:
    check_session(caller, "session.run", session_id)
    async with engines.work() as work:
        return SessionOut.of(await service.resume(work, session_id, caller.id))


@router.post("/sessions/{session_id}/end", tags=["sessions"])
async def end_session(session_id: str, engines: EnginesDep, caller: Runner) -> SessionOut:
    """Ends the show, or calls off one that was planned. It never comes back; orders that were placed go on."""
    check_session(caller, "session.run", session_id)
    async with engines.work() as work:
        show = await service.end_session(work, session_id, caller.id)
    async with engines.sql.read() as session:  # with the counts that the reaction to the end has noted
        return SessionOut.of(await service.get_session(session, show.id))


@router.post("/sessions/{session_id}/archive", tags=["sessions"])
async def archive(session_id: str, engines: EnginesDep, caller: Runner) -> SessionOut:
    """Lets the session's hot keys go, after a while."""
    check_session(caller, "session.run", session_id)
    async with engines.work() as work:
        return SessionOut.of(await service.archive(work, session_id, caller.id))


def check_session(caller: Caller, right: str, session_id: str) -> None:
    room_id = room_of(session_id)
    if not room_id:
        raise AppError(NOT_FOUND, "no such session")
    check_right(caller, right, room_id)


DOMAIN = Domain(
    name="rooms",
    rights={
        "room.watch": "be in a room: its snapshot, its events, likes",
        "room.create": "make rooms, and set the price limits that are delegated to hosts",
        "session.run": "run a session: life cycle, run-of-show, pin",
        "offer.edit": "put offers on the shelf, change price, stock and window",
        "staff.watch": "see what the team prepares, and the team's channel",
        "audit.view": "read the audit log",
    },
    commands=(
        Command(
            "room.snapshot",
            RoomSnapshot,
            RoomState,
            room_snapshot,
            "room.watch",
            "The whole state of a room as viewers see it",
            {"room": "k7qz0m4w2a"},
            calls_per_s_max=2,
        ),
        Command(
            "room.like", RoomLike, Done, room_like, "room.watch", "Send likes, gathered for a second", {"room": "k7qz0m4w2a", "count": 7}
        ),
    ),
    routers=(router, shelf_endpoints.router),
    snapshot={
        "now": audience.read_clock,
        "room": audience.room_part,
        "session": audience.session_part,
        "upcoming": audience.upcoming_part,
        "offers": audience.offers_part,
        "pin": audience.pin_part,
        "likes": audience.read_likes,
        "viewers": presence.viewers,
    },
    pulse={"viewers": presence.viewers, "likes": audience.read_likes, "peak_viewers": audience.read_peak},
    reactions={
        "session.went_live": audience.on_went_live,
        "session.interrupted": audience.on_air_changed,
        "session.resumed": audience.on_air_changed,
        "session.ended": audience.on_ended,
        "session.archived": audience.on_archived,
    },
    admission=(audience.admit,),
    open_sessions=show.read_open_sessions,
)
