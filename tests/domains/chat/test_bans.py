"""What a process believes about a room's bans: for how long, and when not."""

import asyncio

import pytest

from app.domains.chat import bans, store
from app.storage.work import Engines
from tests.domains.chat.conftest import Room
from tests.support.runtime import TestRuntime


async def lose_mirror(engines: Engines, room_id: str) -> None:
    """Whoever asks the engine after this is told that it does not know the room."""
    await engines.fanout.delete(f"{{{room_id}}}:chat:state")


async def test_an_answer_is_at_hand_for_a_second_and_for_all_viewers(room: Room, runtime: TestRuntime) -> None:
    await room.call("mod", "chat.ban", viewer="ann")
    assert await bans.is_banned(room.engines, room.id, "ann") is True
    await lose_mirror(room.engines, room.id)
    assert await bans.is_banned(room.engines, room.id, "ann") is True
    assert await bans.is_banned(room.engines, room.id, "bob") is False
    runtime.advance(bans.AGE_MS_MAX)
    assert await bans.is_banned(room.engines, room.id, "ann") is None


async def test_what_was_read_while_a_ban_came_is_not_kept(room: Room) -> None:
    await room.say("bob", "hello")
    asked = asyncio.ensure_future(bans.is_banned(room.engines, room.id, "ann"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # now the question is on its way
    bans.forget(room.engines, room.id)
    assert await asked is False
    await lose_mirror(room.engines, room.id)
    assert await bans.is_banned(room.engines, room.id, "ann") is None


async def test_a_room_with_very_many_sanctions_is_asked_about_each_viewer(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    await room.call("mod", "chat.ban", viewer="ann")
    monkeypatch.setattr(bans, "AT_HAND_MAX", await store.count_state(room.engines, room.id) - 1)
    assert await bans.is_banned(room.engines, room.id, "ann") is True
    assert await bans.is_banned(room.engines, room.id, "bob") is False
    await lose_mirror(room.engines, room.id)
    assert await bans.is_banned(room.engines, room.id, "ann") is None
