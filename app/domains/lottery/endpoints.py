"""RPC methods and REST routes of draws."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from app.core.caller import Caller
from app.core.errors import AppError
from app.core.ids import room_of
from app.core.money import AMOUNT_MINOR_MAX
from app.core.registry import Command, Domain
from app.core.runtime import at_text
from app.domains.lottery import escrow, service
from app.domains.lottery.rules import ENTRANTS_MAX, UNITS_MAX, Condition, DrawDraft, PrizeDraft, PrizeKind, shorten_name
from app.domains.lottery.tables import Draw, DrawPrize
from app.domains.rooms import service as rooms
from app.protocol.codes import BAD_REQUEST, CONFLICT, NOT_FOUND
from app.protocol.commands import DrawEnter, DrawEntered
from app.rest.access import EnginesDep, check_right, public, require
from app.rest.pages import CursorParam, LimitParam, Page, decode_cursor, encode_cursor
from app.storage.work import Engines

router = APIRouter(prefix="/api/v1", tags=["draws"])


async def enter(engines: Engines, caller: Caller, request: DrawEnter) -> DrawEntered:
    room_id = room_of(request.draw)
    if not room_id:
        raise AppError(NOT_FOUND, "no such draw")
    check_right(caller, "draw.enter", room_id)
    return await service.enter(
        engines,
        draw_id=request.draw,
        viewer_id=caller.id,
        name=caller.name,
        key=request.key,
        keyword=request.keyword,
        is_staff=caller.is_staff,
    )


class PrizeIn(BaseModel):
    kind: PrizeKind
    name: str = Field(min_length=1, max_length=80, examples=["Spring tea, 250 g"])
    count: int = Field(1, gt=0, le=UNITS_MAX)
    amount_minor: int = Field(0, ge=0, le=AMOUNT_MINOR_MAX, description="money: what each winner gets")
    offer: str | None = Field(None, max_length=64, description="product: the offer that each winner gets one unit of")


class DrawIn(BaseModel):
    title: str = Field(min_length=1, max_length=80, examples=["Thank-you draw"])
    condition: Condition = Condition.EVERYONE
    keyword: str = Field("", max_length=60, examples=["spring tea"], description="what `draw.enter` must carry; not case-sensitive")
    prizes: list[PrizeIn] = Field(min_length=1, max_length=20)
    duration_s: int | None = Field(60, gt=0, le=24 * 3600, description="null: closed by hand")
    entrants_max: int = Field(ENTRANTS_MAX, gt=0, le=ENTRANTS_MAX)


class CancelIn(BaseModel):
    reason: str = Field(min_length=1, max_length=200, examples=["The prize arrived damaged."])


class PrizeOut(BaseModel):
    kind: str
    name: str
    count: int
    amount_minor: int
    offer: str | None


class DrawOut(BaseModel):
    id: str = Field(examples=["k7qz0m4w2a-9d2w6r1ybn"])
    room: str
    session: str
    title: str
    state: str = Field(examples=["open"], description="preparing, open, drawn, cancelled")
    condition: str
    keyword: str
    prizes: list[PrizeOut]
    entrants: int = Field(description="counted when the draw closes")
    opened_at: str | None
    closes_at: str | None
    ended_at: str | None
    rules_hash: str = Field(description="SHA-256 of `rules`, hex")
    commitment: str = Field(description="SHA-256 of the seed, hex, published before the first entry")
    reason: str


class EntrantOut(BaseModel):
    pseudonym: str = Field(description="HMAC-SHA-256(salt, viewer id), hex")
    evidence_hash: str


class WinnerOut(BaseModel):
    unit: int
    prize: str
    index: int = Field(description="place in `entrants`")
    pseudonym: str
    viewer: str
    name: str = Field(description="shortened")
    delivered: bool


class DrawProofOut(DrawOut):
    algorithm: str = Field("jishi-draw-1")
    rules: str = Field(description="the rules in canonical JSON (RFC 8785): exactly what was hashed")
    seed: str = Field(description="empty until drawn")
    salt: str = Field(description="empty until drawn; its SHA-256 stands in the rules")
    root: str = Field(description="Merkle root (RFC 6962) over the sorted entrants")
    leaves: list[EntrantOut] = Field(description="the entrants in their order, once drawn")
    winners: list[WinnerOut]


@router.post("/sessions/{session_id}/draws", status_code=201)
async def open_draw(session_id: str, body: DrawIn, engines: EnginesDep, caller: Annotated[Caller, require("draw.run")]) -> DrawOut:
    """Opens a draw in a live session. Every prize is set aside first: money from the room's account, products from the shelf."""
    room_id = room_of(session_id)
    check_right(caller, "draw.run", room_id)
    await _check_live(engines, session_id)
    draw_id = await service.open_draw(engines, _draft(body), room_id=room_id, session_id=session_id, by=caller.id)
    return await _read(engines, draw_id)


async def _check_live(engines: Engines, session_id: str) -> None:
    async with engines.sql.read() as session:
        show = await rooms.fetch_session(session, session_id)
    if show is None:
        raise AppError(NOT_FOUND, "no such session")
    if show.state != "live":
        raise AppError(CONFLICT, "draws open in a live session: go live first")


def _draft(body: DrawIn) -> DrawDraft:
    prizes = tuple(PrizeDraft(prize.kind, prize.name, prize.count, prize.amount_minor, prize.offer) for prize in body.prizes)
    return DrawDraft(
        title=body.title,
        condition=body.condition,
        keyword=body.keyword,
        prizes=prizes,
        duration_s=body.duration_s,
        entrants_max=body.entrants_max,
    )


@router.get("/sessions/{session_id}/draws")
async def list_draws(
    session_id: str,
    engines: EnginesDep,
    caller: Annotated[Caller, require("draw.run")],
    cursor: CursorParam = "",
    limit: LimitParam = 50,
) -> Page[DrawOut]:
    """A session's draws, newest first."""
    check_right(caller, "draw.run", room_of(session_id))
    async with engines.sql.read() as session:
        rows = await service.list_draws(session, session_id, limit=limit + 1, before=_decode(cursor))
        items = [_out(row, await service.list_prizes(session, row.id)) for row in rows[:limit]]
    last = rows[limit - 1] if len(rows) > limit else None
    return Page[DrawOut](items=items, next_cursor=encode_cursor(last.created_at.isoformat(), last.id) if last else "")


@router.get("/draws/{draw_id}")
@public
async def read_draw(
    draw_id: str, engines: EnginesDep, leaves: Annotated[bool, Query(description="false leaves the list of entrants out")] = True
) -> DrawProofOut:
    """A draw; once it is drawn, with everything that is needed to compute its winners again."""
    async with engines.sql.read() as session:
        draw = await service.fetch_draw(session, draw_id)
        prizes = await service.list_prizes(session, draw_id)
        entrants, winners = await service.read_outcome(session, draw, with_leaves=leaves)
    drawn = draw.state == "drawn"
    return DrawProofOut(
        **_out(draw, prizes).model_dump(),
        algorithm=msgspec.json.decode(draw.rules_json)["algorithm"],
        rules=draw.rules_json,
        seed=draw.seed if drawn else "",
        salt=draw.salt if drawn else "",
        root=draw.entrants_root,
        leaves=[EntrantOut(pseudonym=leaf.pseudonym, evidence_hash=leaf.evidence_hash) for leaf in entrants],
        winners=[
            WinnerOut(
                unit=winner.unit,
                prize=prizes[winner.prize_position].name,
                index=winner.entrant_index,
                pseudonym=winner.pseudonym,
                viewer=winner.viewer_id,
                name=shorten_name(winner.name),
                delivered=winner.delivered_at is not None,
            )
            for winner in winners
        ],
    )


@router.post("/draws/{draw_id}/close")
async def close_draw(draw_id: str, engines: EnginesDep, caller: Annotated[Caller, require("draw.run")]) -> DrawOut:
    """Closes the draw now and draws the winners. A draw that is drawn stays as it is."""
    check_right(caller, "draw.run", room_of(draw_id))
    await _check_known(engines, draw_id)
    await service.close_draw(engines, draw_id, by=caller.id)
    return await _read(engines, draw_id)


@router.post("/draws/{draw_id}/cancel")
async def cancel_draw(draw_id: str, body: CancelIn, engines: EnginesDep, caller: Annotated[Caller, require("draw.run")]) -> DrawOut:
    """Cancels an open draw and returns its prizes; the reason is public."""
    check_right(caller, "draw.run", room_of(draw_id))
    await _check_known(engines, draw_id)
    await service.cancel_draw(engines, draw_id, by=caller.id, reason=body.reason)
    return await _read(engines, draw_id)


async def _check_known(engines: Engines, draw_id: str) -> None:
    async with engines.sql.read() as session:
        await service.fetch_draw(session, draw_id)


async def _read(engines: Engines, draw_id: str) -> DrawOut:
    async with engines.sql.read() as session:
        draw = await service.fetch_draw(session, draw_id)
        return _out(draw, await service.list_prizes(session, draw_id))


def _decode(cursor: str) -> tuple[datetime, str] | None:
    key = decode_cursor(cursor, 2)
    if key is None:
        return None
    try:
        return datetime.fromisoformat(str(key[0])), str(key[1])
    except ValueError as failure:
        raise AppError(BAD_REQUEST, "cursor: not one that this server gave out") from failure


def _text(at: datetime | None) -> str | None:
    return at_text(round(at.timestamp() * 1000)) if at else None


def _out(draw: Draw, prizes: Sequence[DrawPrize]) -> DrawOut:
    return DrawOut(
        id=draw.id,
        room=draw.room_id,
        session=draw.session_id,
        title=draw.title,
        state=draw.state,
        condition=draw.condition,
        keyword=draw.keyword,
        prizes=[_prize_out(prize) for prize in prizes],
        entrants=draw.entrants,
        opened_at=_text(draw.opened_at),
        closes_at=_text(draw.closes_at),
        ended_at=_text(draw.ended_at),
        rules_hash=draw.rules_hash,
        commitment=draw.commitment,
        reason=draw.reason,
    )


def _prize_out(prize: DrawPrize) -> PrizeOut:
    return PrizeOut(kind=prize.kind, name=prize.name, count=prize.unit_count, amount_minor=prize.amount_minor, offer=prize.offer_id)


DOMAIN = Domain(
    name="lottery",
    rights={"draw.enter": "take part in draws", "draw.run": "open, close and cancel draws"},
    commands=(
        Command(
            method="draw.enter",
            request=DrawEnter,
            reply=DrawEntered,
            handler=enter,
            right="draw.enter",
            summary="Take part in a draw; once a viewer.",
            example={"draw": "k7qz0m4w2a-9d2w6r1ybn", "key": "01JTZ8Q4D0A1B2C3D4E5F6G7H8", "keyword": "spring tea"},
        ),
    ),
    routers=(router,),
    snapshot={"draws": service.snapshot_draws},
    intake={
        "draw.entered": service.take_in_entries,
        "draw.closed": service.take_in_closed,
        "draw.cancelled": service.take_in_cancelled,
    },
    standing_holds=escrow.standing_holds,
    rooms_in_play=service.list_rooms_in_play,
    renew_room=service.renew_room,
    reactions={"draw.opened": service.on_draw_opened},
)
