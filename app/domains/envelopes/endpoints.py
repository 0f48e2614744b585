"""RPC methods and REST routes of red envelopes."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.core.caller import Caller
from app.core.errors import AppError
from app.core.ids import room_of
from app.core.money import AMOUNT_MINOR_MAX
from app.core.registry import Command, Domain
from app.core.runtime import at_text
from app.domains.envelopes import service
from app.domains.envelopes.rules import SHARES_MAX, EnvelopeDraft, Mode
from app.domains.envelopes.tables import Envelope, EnvelopeShare
from app.domains.rooms import service as rooms
from app.protocol.codes import BAD_REQUEST, CONFLICT, NOT_FOUND
from app.protocol.commands import EnvelopeGrab, EnvelopeGrabbed
from app.rest.access import EnginesDep, check_right, public, require
from app.rest.pages import CursorParam, LimitParam, Page, decode_cursor, encode_cursor
from app.storage.work import Engines, Work

router = APIRouter(prefix="/api/v1", tags=["envelopes"])

TTL_S_DEFAULT = 24 * 3600
TTL_S_MAX = 7 * 24 * 3600


async def grab(engines: Engines, caller: Caller, request: EnvelopeGrab) -> EnvelopeGrabbed:
    room_id = room_of(request.envelope)
    if not room_id:
        raise AppError(NOT_FOUND, "no such envelope")
    check_right(caller, "envelope.grab", room_id)
    return await service.grab(engines, envelope_id=request.envelope, viewer_id=caller.id, key=request.key, is_staff=caller.is_staff)


class EnvelopeIn(BaseModel):
    title: str = Field(min_length=1, max_length=80, examples=["Good harvest!"])
    mode: Mode = Field(Mode.LUCKY, description="`lucky`: a fair random split; `equal`: all shares alike")
    total_minor: int = Field(gt=0, le=AMOUNT_MINOR_MAX, examples=[10_000], description="taken from the room's account at once")
    count: int = Field(gt=0, le=SHARES_MAX, examples=[50], description="shares; each viewer can open one")
    ttl_s: int = Field(TTL_S_DEFAULT, gt=0, le=TTL_S_MAX, description="afterwards the rest returns to the room's account")


class EnvelopeOut(BaseModel):
    id: str = Field(examples=["k7qz0m4w2a-3v8n1c5xtd"])
    room: str
    session: str
    title: str
    mode: str
    state: str = Field(examples=["open"], description="`open`, or `settled`")
    ended_by: str = Field(examples=["emptied"], description="empty while open; `emptied`, `expired` or `ended`")
    total_minor: int
    currency: str
    count: int
    remaining: int
    opened_minor: int
    refunded_minor: int
    commitment: str = Field(description="Merkle root (RFC 6962, SHA-256, hex) over the shares, fixed before anyone could grab")
    opened_at: str
    expires_at: str
    settled_at: str | None


class ShareOut(BaseModel):
    position: int
    amount_minor: int
    salt: str = Field(description="hex; the leaf is the text `jishi-share-1|<envelope>|<position>|<amount_minor>|<salt>`")
    opened: bool


class EnvelopeDetailOut(EnvelopeOut):
    shares: list[ShareOut] = Field(description="the whole split, once the envelope is settled; until then it is secret and this is empty")


@router.post("/sessions/{session_id}/envelopes", status_code=201)
async def open_envelope(
    session_id: str, body: EnvelopeIn, engines: EnginesDep, caller: Annotated[Caller, require("envelope.run")]
) -> EnvelopeOut:
    """Opens an envelope in a live session, funded from the room's account."""
    room_id = room_of(session_id)
    check_right(caller, "envelope.run", room_id)
    draft = EnvelopeDraft(title=body.title, mode=body.mode, total_minor=body.total_minor, count=body.count, ttl_s=body.ttl_s)
    async with engines.work() as work:
        await _check_live(work, session_id)
        envelope = await service.open_envelope(work, draft, room_id=room_id, session_id=session_id, by=caller.id)
    return _out(envelope)


async def _check_live(work: Work, session_id: str) -> None:
    session = await rooms.fetch_session(work.session, session_id)
    if session is None:
        raise AppError(NOT_FOUND, "no such session")
    if session.state != "live":
        raise AppError(CONFLICT, "envelopes open in a live session: go live first")


@router.get("/sessions/{session_id}/envelopes")
async def list_envelopes(
    session_id: str,
    engines: EnginesDep,
    caller: Annotated[Caller, require("envelope.run")],
    cursor: CursorParam = "",
    limit: LimitParam = 50,
) -> Page[EnvelopeOut]:
    """A session's envelopes, newest first."""
    check_right(caller, "envelope.run", room_of(session_id))
    async with engines.sql.read() as session:
        rows = await service.list_envelopes(session, session_id, limit=limit + 1, before=_decode(cursor))
    last = rows[limit - 1] if len(rows) > limit else None
    return Page[EnvelopeOut](
        items=[_out(row) for row in rows[:limit]], next_cursor=encode_cursor(last.opened_at.isoformat(), last.id) if last else ""
    )


@router.get("/envelopes/{envelope_id}")
@public
async def read_envelope(envelope_id: str, engines: EnginesDep) -> EnvelopeDetailOut:
    """An envelope; once it is settled, with every share and salt, so that anyone can recompute the commitment."""
    async with engines.sql.read() as session:
        envelope = await service.fetch_envelope(session, envelope_id)
        shares = await service.list_shares(session, envelope)
    return EnvelopeDetailOut(**_out(envelope).model_dump(), shares=[_share_out(share) for share in shares])


@router.post("/envelopes/{envelope_id}/end")
async def end_envelope(envelope_id: str, engines: EnginesDep, caller: Annotated[Caller, require("envelope.run")]) -> EnvelopeOut:
    """Ends an envelope now; what is left returns to the room's account. Ending one that is over changes nothing."""
    check_right(caller, "envelope.run", room_of(envelope_id))
    async with engines.sql.read() as session:
        await service.fetch_envelope(session, envelope_id)
    return _out(await service.end_envelope(engines, envelope_id, by=caller.id))


def _decode(cursor: str) -> tuple[datetime, str] | None:
    key = decode_cursor(cursor, 2)
    if key is None:
        return None
    try:
        return datetime.fromisoformat(str(key[0])), str(key[1])
    except ValueError as failure:
        raise AppError(BAD_REQUEST, "cursor: not one that this server gave out") from failure


def _text(at: datetime) -> str:
    return at_text(round(at.timestamp() * 1000))


def _out(envelope: Envelope) -> EnvelopeOut:
    return EnvelopeOut(
        id=envelope.id,
        room=envelope.room_id,
        session=envelope.session_id,
        title=envelope.title,
        mode=envelope.mode,
        state=envelope.state,
        ended_by=envelope.ended_by,
        total_minor=envelope.total_minor,
        currency=envelope.currency,
        count=envelope.share_count,
        remaining=envelope.remaining,
        opened_minor=envelope.opened_minor,
        refunded_minor=envelope.refunded_minor,
        commitment=envelope.commitment,
        opened_at=_text(envelope.opened_at),
        expires_at=_text(envelope.expires_at),
        settled_at=_text(envelope.settled_at) if envelope.settled_at else None,
    )


def _share_out(share: EnvelopeShare) -> ShareOut:
    return ShareOut(position=share.position, amount_minor=share.amount_minor, salt=share.salt, opened=share.viewer_id is not None)


DOMAIN = Domain(
    name="envelopes",
    rights={"envelope.grab": "open a share of a red envelope", "envelope.run": "fund, open and end red envelopes"},
    commands=(
        Command(
            method="envelope.grab",
            request=EnvelopeGrab,
            reply=EnvelopeGrabbed,
            handler=grab,
            right="envelope.grab",
            summary="Try to open a share of an envelope; one share a viewer.",
            example={"envelope": "k7qz0m4w2a-3v8n1c5xtd", "key": "01JTZ8Q4D0A1B2C3D4E5F6G7H8"},
        ),
    ),
    routers=(router,),
    snapshot={"envelopes": service.snapshot_envelopes},
    intake={"share.opened": service.take_in_shares, "envelope.closed": service.take_in_closed},
    rooms_in_play=service.list_rooms_in_play,
    renew_room=service.renew_room,
    reactions={"envelope.opened": service.on_envelope_opened},
)
