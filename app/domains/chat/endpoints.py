"""RPC methods and REST routes of chat."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from app.core.caller import Caller
from app.core.errors import AppError
from app.core.ids import room_of
from app.core.registry import Command, Domain
from app.domains.chat import rules, service, store
from app.domains.chat.rules import TextRefusal
from app.domains.chat.tables import ChatMessageRow, ChatReview, ChatSanction
from app.protocol.codes import BAD_REQUEST, FORCE_DISCONNECT
from app.protocol.commands import (
    ChatBan,
    ChatDelete,
    ChatHistory,
    ChatLines,
    ChatMute,
    ChatNotice,
    ChatSend,
    ChatSent,
    ChatSlowMode,
    Done,
    Request,
)
from app.protocol.commands import ChatReview as ChatReviewRequest
from app.rest.access import EnginesDep, check_right, require
from app.rest.pages import CursorParam, LimitParam, Page, decode_cursor, encode_cursor
from app.storage.work import Engines, Work

_REFUSALS = {
    TextRefusal.EMPTY: "text: say something; only spaces or invisible characters were left",
    TextRefusal.TOO_LONG: "text: longer than a message may be",
    TextRefusal.CONTROL_CHARACTERS: "text: holds control characters (a line break, for instance); send one plain line",
}

Moderator = Annotated[Caller, require("chat.moderate")]


# --- RPC -------------------------------------------------------------------------------------------------------------------------------


async def send(engines: Engines, caller: Caller, request: ChatSend) -> ChatSent:
    check_right(caller, "chat.send", request.room)
    text = _checked(engines, request.text)
    if request.reply_to is not None and room_of(request.reply_to) != request.room:
        raise AppError(BAD_REQUEST, "reply_to: the id of a message in this room")
    return await service.send(engines, caller, request.room, text=text, key=request.key, reply_to=request.reply_to)


def _checked(engines: Engines, text: str) -> str:
    checked = rules.check_text(text, engines.settings.chat_text_chars_max)
    if isinstance(checked, TextRefusal):
        raise AppError(BAD_REQUEST, _REFUSALS[checked])
    return checked


async def history(engines: Engines, caller: Caller, request: ChatHistory) -> ChatLines:
    check_right(caller, "room.watch", request.room)
    await service.refuse_banned(engines, caller, request.room)
    return await service.history(engines, request.room, request.limit)


async def delete(engines: Engines, caller: Caller, request: ChatDelete) -> Done:
    check_right(caller, "chat.send", request.room)
    await service.archive_room(engines, request.room)  # a message of this very moment may not be in SQL yet

    async def do(work: Work) -> str:
        return await service.delete_message(work, caller, request.room, request.message, request.reason)

    return await service.once(engines, service.act_of(caller, request.room, "chat.delete", request.key, request), do)


async def mute(engines: Engines, caller: Caller, request: ChatMute) -> Done:
    async def do(work: Work) -> str:
        return await service.mute(work, caller, request.room, viewer_id=request.viewer, seconds=request.seconds, reason=request.reason)

    return await _moderate(engines, caller, request.room, "chat.mute", request.key, request, do)


async def ban(engines: Engines, caller: Caller, request: ChatBan) -> Done:
    async def do(work: Work) -> str:
        return await service.ban(work, caller, request.room, viewer_id=request.viewer, lift=request.lift, reason=request.reason)

    return await _moderate(engines, caller, request.room, "chat.ban", request.key, request, do)


async def set_slow_mode(engines: Engines, caller: Caller, request: ChatSlowMode) -> Done:
    async def do(work: Work) -> str:
        return await service.set_slow_mode(work, caller, request.room, request.interval_s)

    return await _moderate(engines, caller, request.room, "chat.set_slow_mode", request.key, request, do)


async def pin_notice(engines: Engines, caller: Caller, request: ChatNotice) -> Done:
    text = _checked(engines, request.text) if request.text.strip() else ""

    async def do(work: Work) -> str:
        return await service.pin_notice(work, caller, request.room, text)

    return await _moderate(engines, caller, request.room, "chat.pin_notice", request.key, request, do)


async def review(engines: Engines, caller: Caller, request: ChatReviewRequest) -> Done:
    async def do(work: Work) -> str:
        return await service.review(work, caller, request.room, request.message, request.approve)

    return await _moderate(engines, caller, request.room, "chat.review", request.key, request, do)


async def _moderate(
    engines: Engines, caller: Caller, room_id: str, method: str, key: str, request: Request, do: Callable[[Work], Awaitable[str]]
) -> Done:
    check_right(caller, "chat.moderate", room_id)
    await service.check_room(engines, room_id)
    await service.archive_room(engines, room_id)  # what was just said is about to be judged, and shows its writer's standing
    return await service.once(engines, service.act_of(caller, room_id, method, key, request), do)


# --- REST ------------------------------------------------------------------------------------------------------------------------------

router = APIRouter(prefix="/api/v1", tags=["chat"])


class MessageOut(BaseModel):
    id: str
    session: str
    viewer: str
    name: str
    role: str = Field(description="`host`, `moderator`, ... for the team's lines; empty for viewers")
    text: str
    reply_to: str | None
    at: datetime
    state: str = Field(description="`sent`, `held` (waits for a moderator) or `rejected`", examples=["sent"])
    deleted_at: datetime | None
    deleted_by: str | None

    @classmethod
    def of(cls, row: ChatMessageRow) -> "MessageOut":
        return cls(
            id=row.id,
            session=row.session_id,
            viewer=row.viewer_id,
            name=row.name,
            role=row.role,
            text=row.text,
            reply_to=row.reply_to,
            at=row.at,
            state=row.state,
            deleted_at=row.deleted_at,
            deleted_by=row.deleted_by,
        )


class ReviewOut(BaseModel):
    message: MessageOut
    words: list[str] = Field(description="the listed words that were found", examples=[["加微信"]])
    state: str = Field(examples=["waiting"])
    decided_by: str | None
    decided_at: datetime | None

    @classmethod
    def of(cls, review: ChatReview, message: ChatMessageRow) -> "ReviewOut":
        return cls(
            message=MessageOut.of(message),
            words=review.words,
            state=review.state,
            decided_by=review.decided_by,
            decided_at=review.decided_at,
        )


class SanctionOut(BaseModel):
    id: int
    viewer: str
    kind: str = Field(description="`mute` or `ban`", examples=["mute"])
    until: datetime | None = Field(description="null: until it is lifted")
    reason: str
    by: str
    at: datetime
    lifted_at: datetime | None
    lifted_by: str | None

    @classmethod
    def of(cls, row: ChatSanction) -> "SanctionOut":
        return cls(
            id=row.id,
            viewer=row.viewer_id,
            kind=row.kind,
            until=row.until,
            reason=row.reason,
            by=row.by,
            at=row.at,
            lifted_at=row.lifted_at,
            lifted_by=row.lifted_by,
        )


Word = Annotated[str, Field(min_length=1, max_length=rules.WORD_CHARS_MAX)]


class Words(BaseModel):
    words: list[Word] = Field(max_length=rules.WORDS_MAX, examples=[["加微信", "fake tea"]])
    platform: list[str] = Field(default_factory=list[str], description="the platform's own list, which holds in every room")


class NewWords(BaseModel):
    words: list[Word] = Field(max_length=rules.WORDS_MAX, examples=[["加微信", "fake tea"]])


@router.get("/rooms/{room_id}/chat/messages", summary="What was said, newest first")
async def list_messages(
    room_id: str,
    engines: EnginesDep,
    caller: Moderator,
    viewer: Annotated[str, Query(max_length=64, description="only this viewer's messages")] = "",
    limit: LimitParam = 50,
    cursor: CursorParam = "",
) -> Page[MessageOut]:
    """The archive: also messages that wait for a decision, were rejected or deleted. It lags the live channel by about a second."""
    check_right(caller, "chat.moderate", room_id)
    async with engines.sql.read() as session:
        rows = await store.list_messages(session, room_id, viewer_id=viewer, before=_position(cursor), limit=limit)
    return Page(items=[MessageOut.of(row) for row in rows], next_cursor=_cursor(rows, limit))


def _position(cursor: str) -> tuple[datetime, str] | None:
    key = decode_cursor(cursor, 2)
    if key is None:
        return None
    try:
        return datetime.fromisoformat(str(key[0])), str(key[1])
    except ValueError as failure:
        raise AppError(BAD_REQUEST, "cursor: not one that this server gave out") from failure


def _cursor(rows: list[ChatMessageRow], limit: int) -> str:
    return encode_cursor(rows[-1].at.isoformat(), rows[-1].id) if len(rows) == limit else ""


@router.get("/rooms/{room_id}/chat/reviews", summary="Messages with a listed word, who waited longest first")
async def list_reviews(
    room_id: str,
    engines: EnginesDep,
    caller: Moderator,
    state: Annotated[str, Query(pattern="^(waiting|approved|rejected)$")] = "waiting",
    limit: LimitParam = 50,
    cursor: CursorParam = "",
) -> Page[ReviewOut]:
    check_right(caller, "chat.moderate", room_id)
    async with engines.sql.read() as session:
        rows = await store.list_reviews(session, room_id, state=state, after=_position(cursor), limit=limit)
    next_cursor = _cursor([message for _, message in rows], limit)
    return Page(items=[ReviewOut.of(row, message) for row, message in rows], next_cursor=next_cursor)


@router.get("/rooms/{room_id}/chat/sanctions", summary="Mutes and bans, newest first")
async def list_sanctions(
    room_id: str,
    engines: EnginesDep,
    caller: Moderator,
    in_force: Annotated[bool, Query(description="only those that hold now")] = False,
    limit: LimitParam = 50,
    cursor: CursorParam = "",
) -> Page[SanctionOut]:
    check_right(caller, "chat.moderate", room_id)
    key = decode_cursor(cursor, 1)
    if key is not None and not isinstance(key[0], int):
        raise AppError(BAD_REQUEST, "cursor: not one that this server gave out")
    before_id = None if key is None else int(key[0])
    now = engines.runtime.now() if in_force else None
    async with engines.sql.read() as session:
        rows = await store.list_sanctions(session, room_id, before_id=before_id, limit=limit, in_force_at=now)
    next_cursor = encode_cursor(rows[-1].id) if len(rows) == limit else ""
    return Page(items=[SanctionOut.of(row) for row in rows], next_cursor=next_cursor)


@router.post("/rooms/{room_id}/viewers/{viewer_id}/disconnect", status_code=204, summary="Close a viewer's connections to the room")
async def disconnect_viewer(room_id: str, viewer_id: str, engines: EnginesDep, caller: Moderator) -> None:
    """3503, after which client libraries do not come back by themselves. Who is to stay out is banned instead."""
    check_right(caller, "chat.moderate", room_id)
    await service.check_room(engines, room_id)
    async with engines.work() as work:
        await work.audit(room_id, caller.id, "chat.disconnect", viewer_id)
    await engines.streams.control({"do": "disconnect", "user": viewer_id, "room": room_id, "code": str(FORCE_DISCONNECT.number)})


@router.get("/rooms/{room_id}/chat/words", summary="The words that hold a message for review")
async def get_words(room_id: str, engines: EnginesDep, caller: Moderator) -> Words:
    check_right(caller, "chat.moderate", room_id)
    async with engines.sql.read() as session:
        return Words(words=await service.list_words(session, room_id), platform=await service.list_words(session, store.PLATFORM))


@router.put("/rooms/{room_id}/chat/words", summary="Replace the room's word list")
async def put_words(room_id: str, body: NewWords, engines: EnginesDep, caller: Moderator) -> Words:
    """Holds from the next message on. Case, full-width forms and, for Chinese, spaces between the characters make no difference."""
    check_right(caller, "chat.moderate", room_id)
    await service.check_room(engines, room_id)
    async with engines.work() as work:
        words = await service.set_words(work, caller, room_id, body.words)
        return Words(words=words, platform=await service.list_words(work.session, store.PLATFORM))


@router.get("/chat/words", summary="The platform's word list")
async def get_platform_words(engines: EnginesDep, caller: Moderator) -> NewWords:
    check_right(caller, "chat.moderate", "*")
    async with engines.sql.read() as session:
        return NewWords(words=await service.list_words(session, store.PLATFORM))


@router.put("/chat/words", summary="Replace the platform's word list")
async def put_platform_words(body: NewWords, engines: EnginesDep, caller: Moderator) -> NewWords:
    """Holds in every room, beside the room's own list. Needs the right to moderate everywhere."""
    check_right(caller, "chat.moderate", "*")
    async with engines.work() as work:
        return NewWords(words=await service.set_words(work, caller, store.PLATFORM, body.words))


# --- what chat contributes -------------------------------------------------------------------------------------------------------------


async def _notice(engines: Engines, room_id: str) -> str:
    return (await service.settings_of(engines, room_id)).notice


async def _slow_mode_s(engines: Engines, room_id: str) -> int:
    return (await service.settings_of(engines, room_id)).slow_mode_s


_ROOM = "t000000001"
_MESSAGE = f"{_ROOM}-5c1f0b7a9d3e4f60a1b2"
_KEY = "01jz8e6m3v"

DOMAIN = Domain(
    name="chat",
    rights={"chat.send": "say something in a room", "chat.moderate": "delete, mute, ban, slow down, pin a notice, decide reviews"},
    commands=(
        Command(
            "chat.send",
            ChatSend,
            ChatSent,
            send,
            "chat.send",
            "Say something in a live room",
            {"room": _ROOM, "text": "这个橙子甜吗？", "key": _KEY},
            is_open_to_banned=True,  # its outcome says `banned`
        ),
        Command(
            "chat.history",
            ChatHistory,
            ChatLines,
            history,
            "room.watch",
            "The last lines, oldest first",
            {"room": _ROOM, "limit": 50},
            is_open_to_banned=True,  # it looks itself, as admission does
            calls_per_s_max=2,
        ),
        Command(
            "chat.delete",
            ChatDelete,
            Done,
            delete,
            "chat.send",
            "Take back an own message, or as a moderator delete anybody's",
            {"room": _ROOM, "message": _MESSAGE, "key": _KEY, "reason": "advertising"},
        ),
        Command(
            "chat.mute",
            ChatMute,
            Done,
            mute,
            "chat.moderate",
            "Silence a viewer for some seconds; 0 lifts it",
            {"room": _ROOM, "viewer": "zhang-li", "seconds": 600, "key": _KEY, "reason": "insults"},
        ),
        Command(
            "chat.ban",
            ChatBan,
            Done,
            ban,
            "chat.moderate",
            "Close a viewer's connections and keep them out, or lift that",
            {"room": _ROOM, "viewer": "zhang-li", "key": _KEY, "reason": "fraud", "lift": False},
        ),
        Command(
            "chat.set_slow_mode",
            ChatSlowMode,
            Done,
            set_slow_mode,
            "chat.moderate",
            "Set the least time between two messages of one viewer",
            {"room": _ROOM, "interval_s": 10, "key": _KEY},
        ),
        Command(
            "chat.pin_notice",
            ChatNotice,
            Done,
            pin_notice,
            "chat.moderate",
            "Pin a notice above the chat; an empty text takes it down",
            {"room": _ROOM, "text": "全场包邮", "key": _KEY},
        ),
        Command(
            "chat.review",
            ChatReviewRequest,
            Done,
            review,
            "chat.moderate",
            "Show or reject a message that was held for review",
            {"room": _ROOM, "message": _MESSAGE, "approve": True, "key": _KEY},
        ),
    ),
    routers=(router,),
    snapshot={"notice": _notice, "slow_mode_s": _slow_mode_s},
    pulse={"said": service.said, "shown": service.shown},
    reactions={
        "session.went_live": service.on_room_changed,
        "offer.listed": service.on_room_changed,
        "offer.updated": service.on_room_changed,
        "offer.withdrawn": service.on_room_changed,
        "chat.slow_mode_set": service.on_room_changed,
        "notice.pinned": service.on_room_changed,
        "chat.words_changed": service.on_words_changed,
        "chat.muted": service.on_muted,
        "viewer.banned": service.on_banned,
        "chat.deleted": service.on_deleted,
    },
    admission=(service.refuse_banned,),
    command_admission=(service.refuse_banned_command,),
)
