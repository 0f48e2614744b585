"""What viewers see and do: what is on air, the snapshot, likes, counts, the pulse, admission."""

import asyncio
import contextlib
from datetime import datetime

import msgspec
import pytest

from app.core.caller import NOBODY
from app.core.errors import AppError
from app.core.settings import Settings
from app.domains.rooms import audience
from app.domains.rooms import service as rooms
from app.domains.rooms.rules import LIKES_BURST
from app.protocol.channels import room_channel
from app.protocol.events import Pulse
from app.protocol.views import RoomState
from app.storage import presence
from app.storage.redis import blocking_client
from app.storage.streams import parse_push, push_channel
from app.storage.work import Engines
from tests.support.builders import OpenRoom, open_room
from tests.support.runtime import TestRuntime

BY = "host-mei"


async def end(engines: Engines, room: OpenRoom) -> None:
    async with engines.work() as work:
        await rooms.end_session(work, room.session_id, BY)


# --- on air -------------------------------------------------------------------------------------------------------------------------


async def test_live_session_follows_the_life_cycle(engines: Engines) -> None:
    room = await open_room(engines, live=False)
    assert await rooms.live_session(engines, room.room_id) is None
    async with engines.work() as work:
        await rooms.go_live(work, room.session_id, BY)
    assert await rooms.live_session(engines, room.room_id) == room.session_id
    async with engines.work() as work:
        await rooms.interrupt(work, room.session_id, BY)
    assert await rooms.live_session(engines, room.room_id) == room.session_id
    await end(engines, room)
    assert await rooms.live_session(engines, room.room_id) is None


async def test_another_node_believes_its_cache_for_a_second_at_most(engines: Engines, settings: Settings, runtime: TestRuntime) -> None:
    room = await open_room(engines)
    node = Engines.connect(settings, runtime, engines.registry)
    assert await rooms.live_session(node, room.room_id) == room.session_id
    await end(engines, room)
    assert await rooms.live_session(node, room.room_id, fresh=True) is None
    node.local.clear()
    async with engines.work() as work:
        second = await rooms.create_session(work, room.room_id, title="Second")
        await rooms.go_live(work, second.id, BY, empty_shelf_accepted=True)
    assert await rooms.live_session(node, room.room_id) == second.id
    async with engines.work() as work:
        await rooms.end_session(work, second.id, BY)
    runtime.advance(audience.AIR_CACHE_MS - 1)
    assert await rooms.live_session(node, room.room_id) == second.id
    runtime.advance(1)
    assert await rooms.live_session(node, room.room_id) is None
    await node.close()


async def test_a_lost_engine_is_not_taken_for_an_empty_room(engines: Engines) -> None:
    room = await open_room(engines)
    await engines.fanout.flushall()
    assert await rooms.live_session(engines, room.room_id, fresh=True) == room.session_id
    assert await engines.fanout.hget(f"{{{room.room_id}}}:room", "session") == f"live:{room.session_id}".encode()


async def test_a_made_up_room_leaves_no_key(engines: Engines) -> None:
    assert await rooms.live_session(engines, "made-up") is None
    assert await engines.fanout.keys("*made-up*") == []


async def test_a_late_reader_does_not_undo_what_the_reaction_wrote(engines: Engines) -> None:
    """The reader asked SQL before the session went live, and writes after."""
    room = await open_room(engines)
    await audience.store.restore_on_air(engines.fanout, room.room_id, None)
    assert await rooms.live_session(engines, room.room_id, fresh=True) == room.session_id


async def test_archiving_lets_the_hash_go_unless_another_show_is_on(engines: Engines) -> None:
    room = await open_room(engines)
    key = f"{{{room.room_id}}}:room"
    await end(engines, room)
    async with engines.work() as work:
        await rooms.archive(work, room.session_id, BY)
    ttl_s = await engines.fanout.ttl(key)
    assert engines.settings.hot_keys_ttl_s - 5 <= ttl_s <= engines.settings.hot_keys_ttl_s
    async with engines.work() as work:
        second = await rooms.create_session(work, room.room_id, title="Second")
        await rooms.go_live(work, second.id, BY, empty_shelf_accepted=True)
    assert await engines.fanout.ttl(key) == -1


# --- snapshot and admission ---------------------------------------------------------------------------------------------------------


async def test_the_snapshot_is_what_the_contract_says(engines: Engines) -> None:
    room = await open_room(engines, offers=[("Tea", 1990, 10), ("Honey", 5900, 5), ("Rice", 800, 9)])
    async with engines.work() as work:
        await rooms.withdraw_offer(work, room.offer_ids[1], BY)
        await rooms.pin_offer(work, room.room_id, room.offer_ids[2], BY)
    raw = msgspec.json.encode(await rooms.snapshot(engines, room.room_id))
    state = msgspec.json.decode(raw, type=RoomState)
    assert msgspec.json.decode(raw).keys() == set(RoomState.__struct_fields__)
    assert state.session is not None
    assert (state.room.host, state.session.id, state.session.state) == ("Mei", room.session_id, "live")
    assert [(offer.name, offer.position) for offer in state.offers] == [("Tea", 1), ("Rice", 3)]
    assert state.pin == room.offer_ids[2]
    await end(engines, room)
    state = msgspec.convert(msgspec.to_builtins(await rooms.snapshot(engines, room.room_id)), RoomState)
    assert (state.session, state.offers, state.pin) == (None, [], None)


async def test_an_unknown_room_has_no_snapshot_and_admits_nobody(engines: Engines) -> None:
    with pytest.raises(AppError) as refused:
        await rooms.snapshot(engines, "nowhere")
    assert refused.value.code.word == "not_found"
    for _ in range(2):  # a refusal is not remembered: the room may be made any moment
        with pytest.raises(AppError) as refused:
            await rooms.admit(engines, NOBODY, "nowhere")
        assert refused.value.code.word == "unknown_channel"
    room = await open_room(engines)
    await rooms.admit(engines, NOBODY, room.room_id)


# --- likes --------------------------------------------------------------------------------------------------------------------------


async def test_likes_add_up_and_are_kept_with_the_session(engines: Engines) -> None:
    room = await open_room(engines)
    answers = await asyncio.gather(*[rooms.like(engines, f"v{n}", room.room_id, n) for n in range(1, 51)])
    assert answers == ["done"] * 50
    assert (await rooms.snapshot(engines, room.room_id))["likes"] == 50 * 51 // 2
    await presence.record(engines, room.room_id, "node", 30, [f"v{n}" for n in range(30)])
    await rooms.pulse_room(engines, room.room_id)
    await end(engines, room)
    async with engines.sql.read() as session:
        show = await rooms.get_session(session, room.session_id)
    assert (show.likes, show.peak_viewers, show.unique_viewers) == (1275, 30, 30)
    assert await rooms.like(engines, "v1", room.room_id, 1) == "closed"


async def test_a_new_show_counts_anew(engines: Engines) -> None:
    room = await open_room(engines)
    await rooms.like(engines, "v1", room.room_id, 7)
    await presence.record(engines, room.room_id, "node", 3, ["a", "b", "c"])
    await rooms.pulse_room(engines, room.room_id)
    await end(engines, room)
    await presence.record(engines, room.room_id, "node", 1, [])
    async with engines.work() as work:
        second = await rooms.create_session(work, room.room_id, title="Second")
        await rooms.go_live(work, second.id, BY, empty_shelf_accepted=True)
    pulse = await rooms.pulse_room(engines, room.room_id)
    assert pulse is not None
    assert (pulse.likes, pulse.viewers, pulse.peak_viewers) == (0, 1, 1)
    assert await presence.unique_viewers(engines, room.room_id) == 0


async def test_calling_off_a_plan_does_not_touch_the_show_on_air(engines: Engines) -> None:
    room = await open_room(engines)
    async with engines.work() as work:
        planned = await rooms.create_session(work, room.room_id, title="Tomorrow")
    await rooms.like(engines, "v1", room.room_id, 7)
    async with engines.work() as work:
        await rooms.end_session(work, planned.id, BY)
    assert await rooms.live_session(engines, room.room_id) == room.session_id
    async with engines.sql.read() as session:
        assert (await rooms.get_session(session, planned.id)).likes == 0


async def test_likes_beyond_the_pace_are_refused(engines: Engines, runtime: TestRuntime) -> None:
    room = await open_room(engines)
    for _ in range(LIKES_BURST // 50):
        await rooms.like(engines, "v1", room.room_id, 50)
    with pytest.raises(AppError) as refused:
        await rooms.like(engines, "v1", room.room_id, 50)
    assert (refused.value.code.word, refused.value.retry_after_ms) == ("too_many_requests", 2501)
    assert await rooms.like(engines, "v2", room.room_id, 1) == "done"
    runtime.advance(2501)
    assert await rooms.like(engines, "v1", room.room_id, 50) == "done"
    assert (await rooms.snapshot(engines, room.room_id))["likes"] == LIKES_BURST + 51


async def test_liking_an_unknown_room(engines: Engines) -> None:
    with pytest.raises(AppError) as refused:
        await rooms.like(engines, "v1", "nowhere", 1)
    assert refused.value.code.word == "not_found"


async def test_the_limiter_is_bounded(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audience, "LIKERS_MAX", 3)
    room = await open_room(engines)
    for n in range(5):
        await rooms.like(engines, f"v{n}", room.room_id, 1)
    assert [name.split()[1] for name in engines.local["rooms.likes"]] == ["v2", "v3", "v4"]


# --- pulse --------------------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def listening(engines: Engines, room_id: str):
    client = blocking_client(engines.fanout.line.options)
    pubsub = client.pubsub()
    await pubsub.execute_command("SSUBSCRIBE", push_channel(room_id))
    await pubsub.parse_response()
    try:
        yield pubsub
    finally:
        await pubsub.aclose()
        await client.aclose()


async def test_clients_count_down_by_the_clock_that_decides(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose clock is off once told its own time, and pages opened a flash sale early."""
    room = await open_room(engines)
    monkeypatch.setattr(engines.runtime, "script_now_ms", lambda: 1_750_000_060_000)
    pulse = await rooms.pulse_room(engines, room.room_id)
    assert pulse
    assert [(await rooms.snapshot(engines, room.room_id))["now"], pulse.at] == ["2025-06-15T15:07:40.000Z"] * 2
    monkeypatch.setattr(engines.runtime, "script_now_ms", lambda: 0)  # as in production
    before = await engines.sales.time()
    told = datetime.fromisoformat((await rooms.snapshot(engines, room.room_id))["now"]).timestamp()
    after = await engines.sales.time()
    assert before[0] <= told <= after[0] + 1


async def test_the_pulse_is_beside_the_stream(engines: Engines) -> None:
    room = await open_room(engines)
    await presence.record(engines, room.room_id, "node-a", 2, ["v1", "v2"])
    await presence.record(engines, room.room_id, "node-b", 3, ["v3"])
    top = await engines.streams.position(room_channel(room.room_id))
    async with listening(engines, room.room_id) as pubsub:
        await rooms.pulse_rooms(engines)
        message = await asyncio.wait_for(pubsub.parse_response(), 5)
    (delivered,) = parse_push(message[2])
    assert (delivered.channel, delivered.offset) == (room_channel(room.room_id), 0)
    pulse = msgspec.json.decode(delivered.data, type=Pulse)
    assert (pulse.viewers, pulse.peak_viewers, pulse.likes, pulse.stock) == (5, 5, 0, {room.offer_ids[0]: 10})
    assert await engines.streams.position(room_channel(room.room_id)) == top


async def test_a_room_where_nothing_moves_and_nobody_is_has_no_pulse(engines: Engines) -> None:
    room = await open_room(engines)
    assert await rooms.pulse_room(engines, room.room_id) is not None  # the first reading is new
    assert await rooms.pulse_room(engines, room.room_id) is None
    await rooms.like(engines, "v1", room.room_id, 1)
    pulse = await rooms.pulse_room(engines, room.room_id)
    assert pulse is not None
    assert pulse.likes == 1
    await presence.record(engines, room.room_id, "node", 1, ["v1"])
    assert await rooms.pulse_room(engines, room.room_id) is not None
    assert await rooms.pulse_room(engines, room.room_id) is not None  # somebody watches: each second


async def test_the_peak_stays_when_viewers_leave(engines: Engines) -> None:
    room = await open_room(engines)
    peaks = []
    for count in (2, 5, 1):
        await presence.record(engines, room.room_id, "node", count, [])
        pulse = await rooms.pulse_room(engines, room.room_id)
        assert pulse is not None
        peaks.append((pulse.viewers, pulse.peak_viewers))
    assert peaks == [(2, 2), (5, 5), (1, 5)]


async def test_two_workers_make_one_pulse(engines: Engines, settings: Settings, runtime: TestRuntime) -> None:
    room = await open_room(engines)
    other = Engines.connect(settings, runtime, engines.registry)
    await presence.record(engines, room.room_id, "node", 1, ["v1"])
    async with listening(engines, room.room_id) as pubsub:
        await asyncio.gather(rooms.pulse_rooms(engines), rooms.pulse_rooms(other))
        await engines.streams.publish(room_channel(room.room_id), b"{}")
        first = parse_push((await asyncio.wait_for(pubsub.parse_response(), 5))[2])
        second = parse_push((await asyncio.wait_for(pubsub.parse_response(), 5))[2])
    assert b"room.pulse" in first[0].data
    assert second[0].data == b"{}"
    await other.close()


async def test_the_pulse_heals_a_lost_hash(engines: Engines) -> None:
    room = await open_room(engines)
    await engines.fanout.flushall()
    await rooms.pulse_rooms(engines)
    assert await engines.fanout.hget(f"{{{room.room_id}}}:room", "session") == f"live:{room.session_id}".encode()
