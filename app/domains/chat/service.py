"""Chat: sending, moderation, archive, and the mirror through which the engine knows a room's settings and sanctions.

Invariants
- A message is admitted once a (viewer, key); its id is derived from both, so neither the archive nor the channel can hold it twice.
- What was admitted reaches SQL: the script that admits also writes the archive stream, and an entry is deleted only after its commit.
- A message with a listed word is seen by nobody but the team until a moderator approves it.
- SQL is the truth about sanctions and settings. Reactions bring the engine's mirror in line after each change; an engine that lost it
  gets it back before the next message is admitted.

Refusals of a message are outcome words and are not remembered: the same key may be tried again when the wait is over.
Deliberately not here: thinning a fast chat (the gateway does, by lane), and any judgement beyond the word list.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.caller import Caller
from app.core.errors import AppError
from app.core.ids import derived_tail, scoped_id
from app.core.runtime import at_text
from app.domains.accounts import service as accounts
from app.domains.catalogue.rules import find_purchase
from app.domains.chat import bans, rules, store
from app.domains.chat.mirror import mirror, mirror_room, room_words
from app.domains.chat.store import Admission, ArchiveEntry, Mirror, Submission
from app.domains.chat.tables import ChatKey, ChatMessageRow, ChatReview, ChatSanction
from app.domains.inventory import service as inventory
from app.domains.rooms import service as rooms
from app.protocol.channels import chat_channel, room_channel, staff_channel, user_channel
from app.protocol.codes import BANNED, KEY_REUSED, NOT_FOUND, PERMISSION_DENIED, SERVICE_UNAVAILABLE
from app.protocol.commands import ChatLine, ChatLines, ChatOutcome, ChatSent, Done, DoneOutcome, Request, Reserved
from app.protocol.events import (
    ChatDeleted,
    ChatMessage,
    ChatMuted,
    Event,
    NoticePinned,
    ReviewRequested,
    ReviewResolved,
    SlowModeSet,
    ViewerBanned,
    WordsChanged,
    decode_event,
    encode_event,
)
from app.storage.gathering import gather_each, raise_first
from app.storage.streams import Delivered
from app.storage.work import Engines, Work

ADMIT_ATTEMPTS_MAX = 3
ARCHIVE_BATCHES_MAX = 20  # of one room in one pass: a flooded room must not keep the others waiting


# --- sending ---------------------------------------------------------------------------------------------------------------------------


async def send(engines: Engines, caller: Caller, room_id: str, *, text: str, key: str, reply_to: str | None = None) -> ChatSent:
    """`text` has passed `rules.check_text`. Raises AppError key_reused, service_unavailable."""
    line = ChatLine(
        id=scoped_id(room_id, derived_tail("chat", caller.id, key)),
        viewer=caller.id,
        name=rules.printable_name(caller.name) or caller.id,
        text=text,
        at="",
        role=rules.shown_role(caller.roles, room_id),
        level=caller.level,
        reply_to=reply_to,
    )
    submission = Submission(
        id=line.id,
        viewer_id=caller.id,
        key=key,
        digest=rules.digest_body(text, reply_to),
        text=text,
        line=msgspec.json.encode(line),
        skips_slow_mode=bool(line.role),
    )
    admission = await engines.group_commit("chat", _admit_batch).submit(room_id, submission, viewer=caller.id)
    sent = await _answer(engines, room_id, line, admission)
    if sent.outcome is ChatOutcome.SENT and not line.role and caller.may("inventory.reserve", room_id):
        return msgspec.structs.replace(sent, reservation=await _buy(engines, room_id, line))
    return sent


async def _buy(engines: Engines, room_id: str, line: ChatLine) -> Reserved | None:
    """A line that is an offer's keyword places a hold, by the same rules; its key is the message's id, so a message holds once."""
    purchase = find_purchase(line.text, room_words(engines, room_id).keywords)
    if purchase is None:
        return None
    offer_id, quantity = purchase
    try:
        return await inventory.reserve(engines, viewer_id=line.viewer, offer_id=offer_id, quantity=quantity, key=line.id)
    except AppError as refusal:
        if refusal.code in {KEY_REUSED, NOT_FOUND}:  # the word has another meaning since this message was first sent
            return None
        raise


async def _answer(engines: Engines, room_id: str, line: ChatLine, admission: Admission) -> ChatSent:
    match admission.word:
        case "key_reused":
            raise AppError(KEY_REUSED, "this key was used for another message; take a new one for each message")
        case "full":
            raise AppError(SERVICE_UNAVAILABLE, "the chat archive is behind; try again in a moment", retry_after_ms=1000)
        case ChatOutcome.SENT:
            event = ChatMessage(at=at_text(admission.at_ms), message=_with_time(line, admission.at_ms))
            # Also for a repeated key: had the first call died before this line, the retry completes it; else `once` makes it a no-op.
            await engines.streams.publish(chat_channel(room_id), encode_event(event), once=f"chat:{line.id}")
            return ChatSent(outcome=ChatOutcome.SENT, message=line.id)
        case ChatOutcome.HELD_FOR_REVIEW:
            return ChatSent(outcome=ChatOutcome.HELD_FOR_REVIEW, message=line.id)
        case word:
            return ChatSent(outcome=ChatOutcome(word), wait_ms=admission.wait_ms)


def _with_time(line: ChatLine, at_ms: int) -> ChatLine:
    return msgspec.structs.replace(line, at=at_text(at_ms))


async def _admit_batch(engines: Engines, room_id: str, batch: Sequence[Submission]) -> list[Admission]:
    session_id = await rooms.live_session(engines, room_id) or ""
    for _ in range(ADMIT_ATTEMPTS_MAX):
        words = room_words(engines, room_id)
        checked = [(submission, words.listed.find(submission.text)) for submission in batch]
        admissions = await store.admit(engines, room_id, session_id, words_digest=words.digest, batch=checked)
        if admissions is not None:
            return admissions
        await mirror_room(engines, room_id)
    raise AppError(SERVICE_UNAVAILABLE, "the room's word list keeps changing; try again", retry_after_ms=500)


# --- the mirror --------------------------------------------------------------------------------------------------------------------------


async def settings_of(engines: Engines, room_id: str) -> Mirror:
    return await store.read_mirror(engines, room_id) or await mirror_room(engines, room_id)


async def check_room(engines: Engines, room_id: str) -> None:
    """Raises AppError not_found: what is set for a room that does not exist would stay for ever."""
    async with engines.sql.read() as session:
        await rooms.get_room(session, room_id)


async def refuse_banned(engines: Engines, caller: Caller, room_id: str) -> None:
    """Raises AppError banned; not_found for a name that somebody made up, which must leave nothing in the engine."""
    banned = await bans.is_banned(engines, room_id, caller.id)
    if banned is None:
        await check_room(engines, room_id)
        await mirror_room(engines, room_id)
        banned = await bans.is_banned(engines, room_id, caller.id)
    if banned:
        raise AppError(BANNED, "you are banned from this room")


async def refuse_banned_command(engines: Engines, caller: Caller, room_id: str) -> None:
    """Raises AppError banned. What a room that does not exist answers is the command's own word."""
    try:
        await refuse_banned(engines, caller, room_id)
    except AppError as refusal:
        if refusal.code is not NOT_FOUND:
            raise


async def on_room_changed(work: Work, room_id: str, events: list[Event]) -> None:
    """A session went live, shelf, slow mode, notice or words changed: all of the room's settings at once, so the order does not matter."""
    await mirror(work.engines, work.session, room_id)


async def on_words_changed(work: Work, room_id: str, events: list[WordsChanged]) -> None:
    for changed in dict.fromkeys(event.room for event in events):
        if changed:
            await mirror(work.engines, work.session, changed)
        else:
            await store.forget_mirrors(work.engines)


async def on_muted(work: Work, room_id: str, events: list[ChatMuted]) -> None:
    for viewer_id in dict.fromkeys(event.viewer for event in events):
        await _mirror_sanction(work, room_id, viewer_id, "mute")


async def on_banned(work: Work, room_id: str, events: list[ViewerBanned]) -> None:
    for viewer_id in dict.fromkeys(event.viewer for event in events):
        if await _mirror_sanction(work, room_id, viewer_id, "ban"):
            await work.engines.streams.control({"do": "disconnect", "user": viewer_id, "room": room_id, "code": "3507"})


async def _mirror_sanction(work: Work, room_id: str, viewer_id: str, kind: str) -> bool:
    """What SQL says now, not what the event said: a repeated event must not undo a newer one."""
    sanction = await store.fetch_sanction_in_force(work.session, room_id, viewer_id, kind, work.now)
    await store.write_sanction(work.engines, room_id, viewer_id, kind, sanction)
    bans.forget(work.engines, room_id)
    return sanction is not None


async def on_deleted(work: Work, room_id: str, events: list[ChatDeleted]) -> None:
    for event in events:
        await store.hide_message(work.engines, room_id, event.message)


# --- reading -----------------------------------------------------------------------------------------------------------------------------


async def history(engines: Engines, room_id: str, limit: int) -> ChatLines:
    """The last lines, oldest first, without deleted ones."""
    hidden = await store.hidden_messages(engines, room_id)
    publications, _ = await engines.streams.last(chat_channel(room_id), engines.settings.chat_history_messages_max)
    lines: list[ChatLine] = []
    for publication in publications:
        event = decode_event(publication.data)
        if isinstance(event, ChatMessage) and event.message.id not in hidden:
            lines.append(event.message)
    return ChatLines(messages=lines[-limit:])


async def without_deleted(engines: Engines, publications: list[Delivered]) -> list[Delivered]:
    """A chat channel's publications as they may be handed out again: in the place of a line that was deleted since, its deletion.

    In its place, so that offsets run on without a gap; the stream itself stays as it was said. The engine is told of a deletion a moment
    after it was announced, so those among the publications count as well.
    """
    hidden = await store.hidden_messages(engines, publications[0].channel.partition(":")[2]) if publications else set[str]()
    hidden |= rules.deleted_among(publication.data for publication in publications)
    return [_if_not_hidden(publication, hidden) for publication in publications] if hidden else publications


def _if_not_hidden(publication: Delivered, hidden: set[str]) -> Delivered:
    event = decode_event(publication.data)
    if not isinstance(event, ChatMessage) or event.message.id not in hidden:
        return publication
    deleted = ChatDeleted(at=event.at, message=event.message.id, viewer=event.message.viewer)
    return publication._replace(data=encode_event(deleted))


async def said(engines: Engines, room_id: str) -> int:
    """Messages admitted in the last full second."""
    now_ms, fields = await store.read_said(engines, room_id)
    return rules.said_last_second(now_ms, second=fields.get("second", 0), count=fields.get("count", 0), before=fields.get("before", 0))


async def shown(engines: Engines, room_id: str) -> int:
    return min(await said(engines, room_id), engines.settings.chat_shown_per_s)


# --- moderation --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Act:
    """A moderator's command: who, where, and the body that its key stands for."""

    caller: Caller
    room_id: str
    key: str
    digest: str


def act_of(caller: Caller, room_id: str, method: str, key: str, request: Request) -> Act:
    return Act(caller, room_id, key, derived_tail(method, msgspec.json.encode(request).decode()))


async def once(engines: Engines, act: Act, do: Callable[[Work], Awaitable[str]]) -> Done:
    """Does it and remembers its outcome word under the key. Raises AppError key_reused, and what `do` raises; then nothing was done."""
    async with engines.work() as work:
        await store.lock_moderation(work.session, act.room_id)
        before = await store.fetch_key(work.session, act.caller.id, act.key)
        if before is not None:
            if before.digest != act.digest:
                raise AppError(KEY_REUSED, "this key was used for another command; take a new one for each command")
            return Done(outcome=DoneOutcome(before.outcome))
        outcome = await do(work)
        work.session.add(ChatKey(caller_id=act.caller.id, key=act.key, digest=act.digest, outcome=outcome, at=work.now))
    return Done(outcome=DoneOutcome(outcome))


async def delete_message(work: Work, caller: Caller, room_id: str, message_id: str, reason: str) -> str:
    """The writer may take back an own message; anybody else's needs `chat.moderate`. Deleting again changes nothing."""
    message = await store.lock_message(work.session, room_id, message_id)
    if message is None or message.state != "sent":
        raise AppError(NOT_FOUND, "no such message in this room")
    own = message.viewer_id == caller.id
    if not own and not caller.may("chat.moderate", room_id):
        raise AppError(PERMISSION_DENIED, "you may delete your own messages; others' need the right `chat.moderate`")
    if message.deleted_at is not None:
        return "done"
    message.deleted_at, message.deleted_by = work.now, caller.id
    if not own:
        await work.audit(room_id, caller.id, "chat.delete", message_id, viewer=message.viewer_id, reason=reason)
    work.emit(room_id, [room_channel(room_id)], ChatDeleted(at=work.at, message=message_id, viewer=message.viewer_id))
    return "done"


async def mute(work: Work, caller: Caller, room_id: str, *, viewer_id: str, seconds: int, reason: str) -> str:
    """0 seconds lift the mute. A new mute replaces the one in force."""
    await _check_standing(work.session, caller, room_id, viewer_id)
    until = work.now + timedelta(seconds=seconds) if seconds else None
    lifted = await store.lift_sanction(work.session, room_id, viewer_id, "mute", at=work.now, by=caller.id)
    if until is None and not lifted:
        return "done"
    if until is not None:
        await _add_sanction(work, caller, room_id, viewer_id=viewer_id, kind="mute", until=until, reason=reason)
    await work.audit(room_id, caller.id, "chat.mute" if until else "chat.unmute", viewer_id, seconds=seconds, reason=reason)
    until_text = at_text(work.now_ms + seconds * 1000) if seconds else None
    event = ChatMuted(at=work.at, room=room_id, viewer=viewer_id, until=until_text, reason=reason)
    work.emit(room_id, [user_channel(viewer_id), staff_channel(room_id)], event)
    return "done"


async def ban(work: Work, caller: Caller, room_id: str, *, viewer_id: str, lift: bool, reason: str) -> str:
    """A ban closes the viewer's connections to the room and refuses new ones until it is lifted."""
    await _check_standing(work.session, caller, room_id, viewer_id)
    if not lift and await store.fetch_sanction_in_force(work.session, room_id, viewer_id, "ban", work.now):
        return "done"
    if lift and not await store.lift_sanction(work.session, room_id, viewer_id, "ban", at=work.now, by=caller.id):
        return "done"
    if not lift:
        await _add_sanction(work, caller, room_id, viewer_id=viewer_id, kind="ban", until=None, reason=reason)
    await work.audit(room_id, caller.id, "chat.unban" if lift else "chat.ban", viewer_id, reason=reason)
    event = ViewerBanned(at=work.at, room=room_id, viewer=viewer_id, reason=reason, lifted=lift)
    work.emit(room_id, [user_channel(viewer_id), staff_channel(room_id)], event)
    return "done"


async def _check_standing(session: AsyncSession, caller: Caller, room_id: str, viewer_id: str) -> None:
    """A viewer's standing is what the accounts say, or the role that the viewer last spoke with: a token can carry roles of its own."""
    granted = await accounts.list_roles_of(session, viewer_id)
    spoken = await store.list_roles_spoken_with(session, room_id, viewer_id)
    subject = rules.standing(granted | spoken, room_id)
    actor = rules.standing({"operator"} if caller.kind in {"api_key", "system"} else caller.roles, room_id)
    if viewer_id == caller.id or not rules.may_sanction(actor, subject):
        raise AppError(PERMISSION_DENIED, "nobody may sanction themselves, or staff of equal or higher standing")


async def _add_sanction(
    work: Work, caller: Caller, room_id: str, *, viewer_id: str, kind: str, until: datetime | None, reason: str
) -> None:
    session_id = await rooms.live_session(work.engines, room_id) or ""
    work.session.add(
        ChatSanction(
            room_id=room_id,
            viewer_id=viewer_id,
            kind=kind,
            until=until,
            reason=reason,
            by=caller.id,
            at=work.now,
            session_id=session_id,
        )
    )
    await work.session.flush()


async def set_slow_mode(work: Work, caller: Caller, room_id: str, interval_s: int) -> str:
    await store.set_room(work.session, room_id, slow_mode_s=interval_s)
    await work.audit(room_id, caller.id, "chat.set_slow_mode", room_id, interval_s=interval_s)
    work.emit(room_id, [room_channel(room_id)], SlowModeSet(at=work.at, interval_s=interval_s))
    return "done"


async def pin_notice(work: Work, caller: Caller, room_id: str, text: str) -> str:
    await store.set_room(work.session, room_id, notice=text)
    await work.audit(room_id, caller.id, "chat.pin_notice", room_id, text=text)
    work.emit(room_id, [room_channel(room_id)], NoticePinned(at=work.at, text=text))
    return "done"


async def review(work: Work, caller: Caller, room_id: str, message_id: str, approve: bool) -> str:
    """Approving publishes the message; rejecting tells nobody but the team. Whoever comes second gets the word `already_decided`."""
    row = await store.lock_review(work.session, room_id, message_id)
    message = await store.lock_message(work.session, room_id, message_id)
    if row is None or message is None:
        raise AppError(NOT_FOUND, "no message of that id waits in this room")
    if row.state != "waiting":
        return "already_decided"
    row.state, row.decided_by, row.decided_at = "approved" if approve else "rejected", caller.id, work.now
    message.state = "sent" if approve else "rejected"
    await work.audit(room_id, caller.id, "chat.review", message_id, approve=approve, words=row.words)
    if approve:
        work.emit(room_id, [chat_channel(room_id)], ChatMessage(at=work.at, message=_line_of(message)))
    work.emit(room_id, [staff_channel(room_id)], ReviewResolved(at=work.at, message=message_id, approved=approve, by=caller.id))
    return "done"


async def set_words(work: Work, caller: Caller, room_id: str, words: Sequence[str]) -> list[str]:
    """Replaces a room's list, or with the empty room id the platform's. The list as it is kept: normalised, sorted, once each."""
    kept = rules.clean_words(words)
    await store.set_words(work.session, room_id, kept, at=work.now, by=caller.id)
    await work.audit(room_id, caller.id, "chat.set_words", room_id, count=len(kept), digest=rules.digest_words(kept))
    work.emit(room_id, [staff_channel(room_id)] if room_id else [], WordsChanged(at=work.at, room=room_id))
    return kept


async def list_words(session: AsyncSession, room_id: str) -> list[str]:
    return (await store.list_words(session, [room_id])).get(room_id, [])


# --- the archive -------------------------------------------------------------------------------------------------------------------------


async def archive_chat(engines: Engines) -> None:
    """Worker loop: from the archive streams to SQL."""

    async def one(room_id: str) -> None:
        if not await archive_room(engines, room_id):
            await store.leave_out_idle_room(engines, room_id)

    raise_first(await gather_each(await store.list_rooms(engines), one))


async def archive_room(engines: Engines, room_id: str) -> int:
    """Entries archived. Killed between commit and deletion, the next pass inserts nothing and deletes them."""
    archived = 0
    for _ in range(ARCHIVE_BATCHES_MAX):
        entries = await store.read_archive(engines, room_id)
        if not entries:
            break
        async with engines.work() as work:
            await insert_entries(work, room_id, entries)
        await store.drop_archived(engines, room_id, entries)
        archived += len(entries)
        if len(entries) < engines.settings.chat_archive_batch_max:
            break
    return archived


async def insert_entries(work: Work, room_id: str, entries: Sequence[ArchiveEntry]) -> None:
    """Writes what is not there yet, and asks for a review of what was held."""
    lines = [_with_time(msgspec.json.decode(entry.line, type=ChatLine), entry.at_ms) for entry in entries]
    new = await store.insert_messages(work.session, [_row_of(room_id, entry, line) for entry, line in zip(entries, lines, strict=True)])
    for entry, line in zip(entries, lines, strict=True):
        if entry.words and line.id in new:
            work.session.add(ChatReview(message_id=line.id, room_id=room_id, words=entry.words))
            work.emit(room_id, [staff_channel(room_id)], ReviewRequested(at=line.at, message=line, words=entry.words))


def _row_of(room_id: str, entry: ArchiveEntry, line: ChatLine) -> dict[str, Any]:
    return {
        "id": line.id,
        "room_id": room_id,
        "session_id": entry.session_id,
        "viewer_id": line.viewer,
        "name": line.name,
        "role": line.role,
        "level": line.level,
        "text": line.text,
        "reply_to": line.reply_to,
        "at": datetime.fromtimestamp(entry.at_ms / 1000, UTC),
        "state": "held" if entry.words else "sent",
    }


def _line_of(message: ChatMessageRow) -> ChatLine:
    return ChatLine(
        id=message.id,
        viewer=message.viewer_id,
        name=message.name,
        text=message.text,
        at=at_text(round(message.at.timestamp() * 1000)),
        role=message.role,
        level=message.level,
        reply_to=message.reply_to,
    )


async def prune_keys(engines: Engines) -> None:
    """Worker loop: forgets the keys of moderators' commands when their time is over."""
    async with engines.sql.begin() as session:
        await store.delete_keys_before(session, engines.runtime.now() - timedelta(seconds=engines.settings.idempotency_key_ttl_s))


# --- what analytics reads ----------------------------------------------------------------------------------------------------------------


async def count_messages(session: AsyncSession, session_id: str) -> dict[str, int]:
    """Of one session: sent, chatters, deleted, waiting, rejected."""
    return await store.count_messages(session, session_id)


async def count_by_minute(session: AsyncSession, session_id: str) -> dict[datetime, int]:
    return await store.count_by_minute(session, session_id)


async def count_sanctions(session: AsyncSession, session_id: str) -> dict[str, int]:
    counts = await store.count_sanctions(session, session_id)
    return {"mutes": counts.get("mute", 0), "bans": counts.get("ban", 0)}
