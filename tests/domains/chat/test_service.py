"""Chat through its commands: sending, word list, review, sanctions, deletion, archive, what it contributes to a room."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from app.core.errors import AppError
from app.core.ids import scoped_id
from app.core.registry import Registry
from app.domains.accounts import service as accounts
from app.domains.chat import service, store
from app.domains.rooms import service as rooms
from app.protocol.channels import chat_channel, room_channel, staff_channel, user_channel
from app.protocol.commands import ChatLine, ChatOutcome, Done
from app.protocol.events import ChatDeleted, ChatMessage, ReviewRequested, ReviewResolved
from app.storage.audit import verify_chain
from app.storage.redis import blocking_client
from app.storage.streams import CONTROL_CHANNEL
from app.storage.tables import AuditEntry
from app.storage.work import Engines
from tests.domains.chat.conftest import Room
from tests.support.runtime import TestRuntime

# --- sending ---------------------------------------------------------------------------------------------------------------------------


async def test_a_message_reaches_the_channel_with_its_writer(room: Room, runtime: TestRuntime) -> None:
    sent = await room.say("ann", "  hello 你好  ")
    assert sent.outcome == "sent"
    (event,) = await room.events(chat_channel(room.id))
    assert event == ChatMessage(
        at="2025-06-15T15:06:40.000Z",
        message=ChatLine(id=sent.message or "", viewer="ann", name="Ann", text="hello 你好", at="2025-06-15T15:06:40.000Z"),
    )


async def test_the_team_speaks_with_its_role(room: Room) -> None:
    await room.say("host", "welcome")
    await room.say("elsewhere", "hi")  # a host, but not of this room
    assert [event.message.role for event in await room.events(chat_channel(room.id))] == ["host", ""]


async def test_a_repeated_key_publishes_once_also_after_a_lost_publication(room: Room) -> None:
    first = await room.say("ann", "hello", key="k")
    assert await room.say("ann", "hello", key="k") == first
    assert await room.lines() == ["hello"]
    # The process died between the admission and the publication: the channel has nothing, the retry completes it, once.
    tag = f"{{{room.id}}}"
    await room.engines.fanout.delete(f"{tag}:stream:{chat_channel(room.id)}", f"{tag}:once:chat:{first.message}")
    room.engines.runtime.advance(1000)  # type: ignore[attr-defined]
    assert await room.say("ann", "hello", key="k") == first
    assert await room.say("ann", "hello", key="k") == first
    (event,) = await room.events(chat_channel(room.id))
    assert (event.message.id, event.at) == (first.message, "2025-06-15T15:06:40.000Z")  # the time of the admission


async def test_a_key_is_for_one_message(room: Room) -> None:
    await room.say("ann", "hello", key="k")
    assert await room.refused("ann", "chat.send", text="other", key="k") == "key_reused"
    assert await room.refused("ann", "chat.send", text="hello", key="k", reply_to=f"{room.id}-x") == "key_reused"


@pytest.mark.parametrize("text", [" ", "a\nb", "x" * 301])
async def test_what_cannot_be_shown_is_a_bad_request(room: Room, text: str) -> None:
    assert await room.refused("ann", "chat.send", text=text) == "bad_request"


async def test_a_reply_stays_in_its_room(room: Room) -> None:
    assert await room.refused("ann", "chat.send", text="x", reply_to="other-1") == "bad_request"
    first = await room.say("ann", "hello")
    await room.say("bob", "hi", reply_to=first.message)
    assert [event.message.reply_to for event in await room.events(chat_channel(room.id))] == [None, first.message]


async def test_nobody_speaks_where_no_show_is_on(room: Room) -> None:
    async with room.engines.work() as work:
        await rooms.end_session(work, room.session, "system")
    assert (await room.say("ann", "hello")).outcome == "closed"
    assert (await room.call("ann", "chat.send", room="nowhere", text="hello")).outcome == "closed"


# --- words and review ------------------------------------------------------------------------------------------------------------------


async def set_words(room: Room, *words: str, platform: bool = False) -> list[str]:
    async with room.engines.work() as work:
        return await service.set_words(work, room.people["operator"], "" if platform else room.id, words)


async def held(room: Room, text: str, who: str = "ann") -> str:
    sent = await room.say(who, text)
    assert sent.outcome == ChatOutcome.HELD_FOR_REVIEW and sent.message
    return sent.message


async def test_a_changed_list_holds_from_the_next_message_on(room: Room) -> None:
    assert (await room.say("ann", "加微信")).outcome == "sent"
    await set_words(room, "加微信")
    assert (await room.say("ann", "快加 微 信")).outcome == "held_for_review"
    await set_words(room, "fake", platform=True)
    assert (await room.say("ann", "ＦＡＫＥ")).outcome == "held_for_review"
    assert (await room.say("ann", "加微信!")).outcome == "held_for_review"  # the room's own list still holds
    await set_words(room)
    await set_words(room, platform=True)
    assert (await room.say("ann", "fake 加微信")).outcome == "sent"


async def test_a_held_message_is_seen_by_the_team_alone_until_it_is_approved(room: Room) -> None:
    await set_words(room, "fake")
    message = await held(room, "fake tea")
    await service.archive_chat(room.engines)
    assert await room.lines() == []
    requested = [event for event in await room.events(staff_channel(room.id)) if isinstance(event, ReviewRequested)]
    assert [(event.message.id, event.message.text, event.words) for event in requested] == [(message, "fake tea", ["fake"])]
    assert await room.call("mod", "chat.review", message=message, approve=True) == Done()
    assert await room.lines() == ["fake tea"]
    assert await room.rows() == [("fake tea", "sent")]
    assert isinstance((await room.events(staff_channel(room.id)))[-1], ReviewResolved)
    assert await room.call("mod", "chat.review", message=message, approve=False) == Done(outcome="already_decided")
    assert await room.lines() == ["fake tea"]


async def test_a_rejected_message_is_told_to_nobody_but_the_team(room: Room) -> None:
    await set_words(room, "fake")
    message = await held(room, "fake tea")
    await service.archive_chat(room.engines)
    await room.call("mod", "chat.review", message=message, approve=False)
    assert await room.lines() == []
    assert await room.events(user_channel("ann")) == []
    assert [type(event) for event in await room.events(room_channel(room.id))].count(ChatDeleted) == 0
    assert await room.rows() == [("fake tea", "rejected")]


async def test_a_review_needs_the_right_and_an_existing_message(room: Room) -> None:
    await set_words(room, "fake")
    message = await held(room, "fake tea")
    await service.archive_chat(room.engines)
    for who in ("ann", "elsewhere"):
        assert await room.refused(who, "chat.review", message=message, approve=True) == "permission_denied"
    assert await room.refused("mod", "chat.review", message=scoped_id(room.id, "x"), approve=True) == "not_found"


# --- sanctions -------------------------------------------------------------------------------------------------------------------------


async def test_a_mute_ends_by_itself_and_is_told_to_its_viewer(room: Room, runtime: TestRuntime) -> None:
    await room.call("mod", "chat.mute", viewer="ann", seconds=60, reason="insults")
    refusal = await room.say("ann", "hello")
    assert (refusal.outcome, refusal.wait_ms) == ("muted", 60_000)
    (event,) = await room.events(user_channel("ann"))
    assert (event.until, event.reason) == ("2025-06-15T15:07:40.000Z", "insults")
    runtime.advance(60_000)
    assert (await room.say("ann", "hello")).outcome == "sent"


async def test_a_mute_is_replaced_and_lifted(room: Room) -> None:
    await room.call("mod", "chat.mute", viewer="ann", seconds=60)
    await room.call("mod", "chat.mute", viewer="ann", seconds=600)
    assert (await room.say("ann", "hello")).wait_ms == 600_000
    await room.call("mod", "chat.mute", viewer="ann", seconds=0)
    assert (await room.say("ann", "hello")).outcome == "sent"


async def test_a_repeated_moderation_key_has_no_second_effect(room: Room) -> None:
    for _ in range(2):
        assert await room.call("mod", "chat.mute", viewer="ann", seconds=60, key="m") == Done()
    assert len(await room.events(user_channel("ann"))) == 1
    assert await room.refused("mod", "chat.mute", viewer="ann", seconds=61, key="m") == "key_reused"
    assert await room.refused("mod", "chat.ban", viewer="ann", key="m") == "key_reused"


@pytest.fixture
async def control(engines: Engines) -> AsyncGenerator[Any]:
    client = blocking_client(engines.fanout.line.options)
    async with client, client.pubsub() as subscriber:
        await subscriber.ssubscribe(CONTROL_CHANNEL)
        await subscriber.get_message(timeout=5)
        yield subscriber


async def test_a_ban_closes_connections_and_refuses_new_ones(room: Room, control: Any) -> None:
    admission = room.engines.registry.admission
    assert service.refuse_banned in admission
    await service.refuse_banned(room.engines, room.people["ann"], room.id)
    await room.call("mod", "chat.ban", viewer="ann", reason="fraud")
    message = await control.get_message(ignore_subscribe_messages=True, timeout=5)
    assert msgspec.json.decode(message["data"]) == {"do": "disconnect", "user": "ann", "room": room.id, "code": "3507"}
    with pytest.raises(AppError) as refusal:
        await service.refuse_banned(room.engines, room.people["ann"], room.id)
    assert refusal.value.code.word == "banned"
    assert (await room.say("ann", "hello")).outcome == "banned"
    assert await room.refused("ann", "chat.history", limit=5) == "banned"
    await service.refuse_banned(room.engines, room.people["bob"], room.id)
    await room.call("mod", "chat.ban", viewer="ann", lift=True)
    await service.refuse_banned(room.engines, room.people["ann"], room.id)
    assert (await room.say("ann", "hello")).outcome == "sent"


async def test_sanctions_come_back_when_the_engine_lost_them(room: Room) -> None:
    await room.call("mod", "chat.ban", viewer="ann")
    await room.call("mod", "chat.mute", viewer="bob", seconds=60)
    await room.call("mod", "chat.set_slow_mode", interval_s=20)
    await room.call("mod", "chat.pin_notice", text="free shipping")
    await room.engines.fanout.delete(f"{{{room.id}}}:chat:state", store.ROOMS_KEY)
    assert (await room.say("ann", "hello")).outcome == "banned"
    assert (await room.say("bob", "hello")).outcome == "muted"
    assert await store.list_rooms(room.engines) == [room.id]
    await room.engines.fanout.delete(f"{{{room.id}}}:chat:state")
    with pytest.raises(AppError):
        await service.refuse_banned(room.engines, room.people["ann"], room.id)
    await room.engines.fanout.delete(f"{{{room.id}}}:chat:state")
    snapshot = room.engines.registry.snapshot
    assert (await snapshot["notice"](room.engines, room.id), await snapshot["slow_mode_s"](room.engines, room.id)) == ("free shipping", 20)


@pytest.mark.parametrize(
    ("who", "subject", "word"),
    [
        ("mod", "mod2", "permission_denied"),
        ("mod", "host", "permission_denied"),
        ("host", "operator", "permission_denied"),
        ("mod", "mod", "permission_denied"),
        ("ann", "bob", "permission_denied"),
        ("elsewhere", "ann", "permission_denied"),
        ("host", "mod", "done"),
        ("operator", "host", "done"),
        ("mod", "ann", "done"),
    ],
)
async def test_standing_decides_who_may_be_sanctioned(room: Room, who: str, subject: str, word: str) -> None:
    """Tokens carry roles of their own: the standing is known from the line that was said with it, archived or not."""
    await room.say(subject, "hello")
    if word == "done":
        assert (await room.call(who, "chat.ban", viewer=subject)).outcome == "done"
    else:
        assert await room.refused(who, "chat.ban", viewer=subject) == word
        assert (await room.say(subject, "still here")).outcome == "sent"


async def test_staff_of_the_accounts_have_their_standing_without_a_word(room: Room) -> None:
    async with room.engines.work() as work:
        staff = await accounts.create_staff(work, login="lin", password="a-long-password", name="Lin", grants=[("host", room.id)])
    assert await room.refused("mod", "chat.mute", viewer=staff.id, seconds=60) == "permission_denied"


async def test_sanctions_are_audited(room: Room) -> None:
    await room.call("mod", "chat.ban", viewer="ann", reason="fraud")
    await room.call("mod", "chat.ban", viewer="ann", reason="fraud again")  # in force already
    await room.call("host", "chat.ban", viewer="ann", lift=True)
    async with room.engines.sql.read() as session:
        query = (
            select(AuditEntry.actor, AuditEntry.action, AuditEntry.subject).where(AuditEntry.action.like("chat.%")).order_by(AuditEntry.id)
        )
        assert [tuple(row) for row in await session.execute(query)] == [("mod", "chat.ban", "ann"), ("host", "chat.unban", "ann")]
        assert await verify_chain(session, room.id) is None


async def test_slow_mode_is_announced_and_spares_the_team(room: Room) -> None:
    await room.call("mod", "chat.set_slow_mode", interval_s=10)
    assert (await room.events(room_channel(room.id)))[-1].interval_s == 10
    assert [(await room.say("ann", text)).outcome for text in ("one", "two")] == ["sent", "slow_mode"]
    assert [(await room.say("mod", text)).outcome for text in ("one", "two")] == ["sent", "sent"]


async def test_a_notice_is_announced_and_taken_down(room: Room) -> None:
    await room.call("mod", "chat.pin_notice", text=" 全场包邮 ")
    assert (await room.events(room_channel(room.id)))[-1].text == "全场包邮"
    await room.call("mod", "chat.pin_notice", text="")
    assert (await room.events(room_channel(room.id)))[-1].text == ""
    assert await room.engines.registry.snapshot["notice"](room.engines, room.id) == ""


async def test_a_room_that_does_not_exist_cannot_be_moderated(room: Room) -> None:
    assert await room.refused("operator", "chat.set_slow_mode", room="nowhere", interval_s=10) == "not_found"


# --- deletion and history --------------------------------------------------------------------------------------------------------------


async def test_history_is_the_last_lines_without_deleted_ones(room: Room, runtime: TestRuntime) -> None:
    sent = [(await room.say("ann", f"line {i}")).message for i in range(5)]
    await room.call("ann", "chat.delete", message=sent[3])
    told = (await room.events(room_channel(room.id)))[-1]
    assert (told.message, told.viewer) == (sent[3], "ann")
    lines = await room.call("bob", "chat.history", limit=3)
    assert [line.text for line in lines.messages] == ["line 1", "line 2", "line 4"]


@pytest.mark.parametrize(
    ("who", "word"), [("bob", "permission_denied"), ("elsewhere", "permission_denied"), ("mod", "done"), ("ann", "done")]
)
async def test_deleting_needs_to_be_the_writer_or_a_moderator(room: Room, who: str, word: str) -> None:
    message = (await room.say("ann", "hello")).message
    if word == "done":
        assert (await room.call(who, "chat.delete", message=message)).outcome == word
        assert (await room.call(who, "chat.delete", message=message)).outcome == word
        deletions = [event for event in await room.events(room_channel(room.id)) if isinstance(event, ChatDeleted)]
        assert len(deletions) == 1
    else:
        assert await room.refused(who, "chat.delete", message=message) == word
        assert len((await room.call("bob", "chat.history", limit=5)).messages) == 1


async def test_a_held_message_cannot_be_found_out_by_deleting(room: Room) -> None:
    await set_words(room, "fake")
    message = await held(room, "fake tea")
    assert await room.refused("bob", "chat.delete", message=message) == "not_found"
    assert await room.refused("bob", "chat.delete", message=scoped_id(room.id, "x")) == "not_found"


# --- the archive -----------------------------------------------------------------------------------------------------------------------


async def test_every_admitted_message_is_archived_once(room: Room) -> None:
    for i in range(3):
        await room.say("ann", f"line {i}")
    assert await service.archive_room(room.engines, room.id) == 3
    assert await service.archive_room(room.engines, room.id) == 0
    assert await room.rows() == [(f"line {i}", "sent") for i in range(3)]


async def test_killed_between_insert_and_delete_the_next_pass_changes_nothing(room: Room) -> None:
    """The commit was made, the entries are still there, as a kill leaves them: neither rows nor review requests may double."""
    await set_words(room, "fake")
    await room.say("ann", "hello")
    await held(room, "fake tea")
    entries = await store.read_archive(room.engines, room.id)
    async with room.engines.work() as work:
        await service.insert_entries(work, room.id, entries)
    assert await service.archive_room(room.engines, room.id) == 2
    assert await room.rows() == [("fake tea", "held"), ("hello", "sent")]
    requested = [event for event in await room.events(staff_channel(room.id)) if isinstance(event, ReviewRequested)]
    assert len(requested) == 1
    assert await store.read_archive(room.engines, room.id) == []


async def test_a_pass_that_fails_before_its_commit_loses_nothing(room: Room) -> None:
    await room.say("ann", "hello")
    entries = await store.read_archive(room.engines, room.id)
    with pytest.raises(RuntimeError, match="killed"):
        async with room.engines.work() as work:
            await service.insert_entries(work, room.id, entries)
            raise RuntimeError("killed")
    assert await room.rows() == []
    assert await service.archive_room(room.engines, room.id) == 1
    assert await room.rows() == [("hello", "sent")]


async def test_two_workers_archive_each_message_once(room: Room) -> None:
    for i in range(9):
        await room.say("ann", f"line {i}")
    await asyncio.gather(*[service.archive_room(room.engines, room.id) for _ in range(3)])
    assert await room.rows() == [(f"line {i}", "sent") for i in range(9)]


async def test_the_archive_goes_on_in_batches(room: Room) -> None:
    room.engines.settings.chat_archive_batch_max = 2
    for i in range(5):
        await room.say("ann", f"line {i}")
    assert await service.archive_room(room.engines, room.id) == 5
    assert len(await room.rows()) == 5


async def test_an_idle_room_leaves_the_list_and_comes_back(room: Room) -> None:
    await room.say("ann", "hello")
    await service.archive_chat(room.engines)
    await service.archive_chat(room.engines)
    assert await store.list_rooms(room.engines) == [room.id]
    await room.engines.fanout.delete(f"{{{room.id}}}:chat:state")  # as its expiry does
    await service.archive_chat(room.engines)
    assert await store.list_rooms(room.engines) == []
    archive = f"{{{room.id}}}:chat:archive"
    assert await room.engines.fanout.ttl(archive) == room.engines.settings.hot_keys_ttl_s
    await room.say("ann", "again")
    assert await room.engines.fanout.ttl(archive) == -1
    await service.archive_chat(room.engines)
    assert [text for text, _ in await room.rows()] == ["again", "hello"]


async def test_counts_for_the_report(room: Room, runtime: TestRuntime) -> None:
    await set_words(room, "fake")
    message = (await room.say("ann", "one")).message
    await room.say("bob", "two")
    rejected = await held(room, "fake")
    await held(room, "so fake")
    await room.call("mod", "chat.delete", message=message)
    runtime.advance(60_000)
    await room.say("ann", "three")
    await service.archive_chat(room.engines)
    await room.call("mod", "chat.review", message=rejected, approve=False)
    await room.call("mod", "chat.mute", viewer="bob", seconds=5)
    async with room.engines.sql.read() as session:
        assert await service.count_messages(session, room.session) == {"sent": 3, "chatters": 2, "deleted": 1, "waiting": 1, "rejected": 1}
        assert sorted((await service.count_by_minute(session, room.session)).values()) == [1, 2]
        assert await service.count_sanctions(session, room.session) == {"mutes": 1, "bans": 0}


# --- what chat contributes -------------------------------------------------------------------------------------------------------------


async def test_the_pulse_says_how_much_was_said_and_how_much_is_shown(room: Room, runtime: TestRuntime) -> None:
    room.engines.settings.chat_shown_per_s = 2
    pulse = room.engines.registry.pulse
    for who in ("ann", "bob", "mod"):
        await room.say(who, "hello")
    assert await pulse["said"](room.engines, room.id) == 0  # the second is not over
    runtime.advance(1000)
    assert (await pulse["said"](room.engines, room.id), await pulse["shown"](room.engines, room.id)) == (3, 2)
    runtime.advance(1000)
    assert await pulse["said"](room.engines, room.id) == 0


def test_every_command_is_registered_with_a_valid_example(registry: Registry) -> None:
    methods = {name for name in registry.commands if name.startswith("chat.")}
    assert methods == {f"chat.{verb}" for verb in ("send", "history", "delete", "mute", "ban", "set_slow_mode", "pin_notice", "review")}
    for name in methods:
        command = registry.commands[name]
        msgspec.convert(command.example, command.request)
