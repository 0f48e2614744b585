"""Windows, parcels and sampling: who gets what in which write, without a socket."""

import json
import random

import pytest

from app.core.runtime import Runtime
from app.core.settings import Settings
from app.gateway.fanout import Fanout
from app.gateway.room import Room
from app.gateway.sampling import Line, hidden_lines, read_line
from app.gateway.window import Entry, Window
from app.protocol.channels import Kind
from app.storage.streams import Delivered
from tests.gateway.pipes import PULSE, Pipe, chat, client, spawn, stage
from tests.support.waiting import wait_until


@pytest.fixture
def room() -> Room:
    return Room("r", spawn)


@pytest.fixture
async def fanout(settings: Settings) -> Fanout:
    return Fanout(settings, Runtime(), spawn)


@pytest.fixture
def settings() -> Settings:
    return Settings(sweep_ms=30, stage_sweep_ms=10, sweep_slice=2, chat_shown_per_s=3)


async def test_one_write_carries_stage_then_pulse_then_chat(room: Room, fanout: Fanout) -> None:
    ann, pipe = client("ann")
    room.enter(ann, Kind.ROOM, 4)
    room.enter(ann, Kind.CHAT, 0)
    for kind, publication in [(Kind.CHAT, chat(1)), (Kind.ROOM, PULSE), (Kind.ROOM, stage(5)), (Kind.CHAT, chat(2)), (Kind.ROOM, PULSE)]:
        fanout.put(room, kind, publication)
    await wait_until(lambda: pipe.frames)
    assert [pipe.seen(n) for n in range(len(pipe.frames))] == [[("room", 5), ("room", "pulse"), ("chat", 1), ("chat", 2)]]


async def test_members_get_what_comes_after_their_own_offset_and_only_their_channels(room: Room, fanout: Fanout) -> None:
    pipes = {}
    for name, channels in {"early": {Kind.ROOM: 0}, "late": {Kind.ROOM: 2}, "latest": {Kind.ROOM: 9}, "chatty": {Kind.CHAT: 0}}.items():
        connection, pipes[name] = client(name)
        for kind, after in channels.items():
            room.enter(connection, kind, after)
    for offset in (1, 2, 3):
        fanout.put(room, Kind.ROOM, stage(offset))
    fanout.put(room, Kind.ROOM, PULSE)
    await wait_until(lambda: pipes["late"].frames)
    assert pipes["early"].seen(0) == [("room", 1), ("room", 2), ("room", 3), ("room", "pulse")]
    assert pipes["late"].seen(0) == [("room", 3), ("room", "pulse")]
    assert pipes["latest"].seen(0) == [("room", "pulse")]
    assert pipes["chatty"].frames == []


async def test_an_idle_room_sends_at_once_and_a_busy_one_in_windows(room: Room, fanout: Fanout) -> None:
    ann, pipe = client("ann")
    room.enter(ann, Kind.CHAT, 0)
    fanout.put(room, Kind.CHAT, chat(1))
    await wait_until(lambda: pipe.frames)
    for offset in (2, 3):
        fanout.put(room, Kind.CHAT, chat(offset))
    assert len(pipe.frames) == 1
    await wait_until(lambda: len(pipe.frames) == 2)
    assert pipe.seen(1) == [("chat", 2), ("chat", 3)]


async def test_a_reading_waits_for_company_and_does_not_wait_for_ever(room: Room) -> None:
    ann, pipe = client("ann")
    room.enter(ann, Kind.ROOM, 0)
    room.enter(ann, Kind.CHAT, 0)
    patient = Fanout(Settings(pulse_wait_ms=60_000), Runtime(), spawn)
    patient.put(room, Kind.ROOM, PULSE)
    patient.put(room, Kind.CHAT, chat(1))
    await wait_until(lambda: pipe.frames)
    assert [pipe.seen(n) for n in range(len(pipe.frames))] == [[("room", "pulse"), ("chat", 1)]]
    hasty = Fanout(Settings(pulse_wait_ms=1), Runtime(), spawn)
    hasty.put(room, Kind.ROOM, PULSE)
    await wait_until(lambda: len(pipe.frames) == 2)
    assert pipe.seen(1) == [("room", "pulse")]


async def test_a_room_that_takes_long_to_sweep_has_longer_windows_for_chat_and_not_for_the_stage() -> None:
    settings = Settings(sweep_ms=1, sweep_ms_max=60_000, sweep_share_max=1e-9, sweep_slice=2, stage_sweep_ms=1)
    fanout = Fanout(settings, Runtime(), spawn)
    pipes: dict[str, list[Pipe]] = {}
    rooms = {"small": Room("small", spawn), "large": Room("large", spawn)}
    for name, size in (("small", 2), ("large", 3)):
        pipes[name] = []
        for number in range(size):
            connection, pipe = client(f"{name}{number}")
            rooms[name].enter(connection, Kind.ROOM, 0)
            rooms[name].enter(connection, Kind.CHAT, 0)
            pipes[name].append(pipe)
    for offset in (1, 2):
        for room in rooms.values():
            fanout.put(room, Kind.CHAT, chat(offset))
        await wait_until(lambda: all(len(pipe.all_seen) == offset for pipe in pipes["small"]))  # noqa: B023 - awaited here
        await wait_until(lambda: all(pipe.frames for pipe in pipes["large"]))
    assert [pipe.all_seen for pipe in pipes["large"]] == [[("chat", 1)]] * 3
    fanout.put(rooms["large"], Kind.ROOM, stage(1))
    await wait_until(lambda: all(len(pipe.frames) == 2 for pipe in pipes["large"]))
    assert [pipe.seen(1) for pipe in pipes["large"]] == [[("room", 1), ("chat", 2)]] * 3


async def test_members_share_the_same_bytes(room: Room) -> None:
    members = []
    for name in ("ann", "bob"):
        connection, _ = client(name)
        room.enter(connection, Kind.ROOM, 0)
        members.append(connection.member_of("r"))
    fanout = Fanout(Settings(), Runtime(), spawn)
    fanout.put(room, Kind.ROOM, stage(1))
    window = room.window
    parcel = window.parcel(members[0], is_slow=False)
    assert window.parcel(members[1], is_slow=False) is parcel
    window.add(Kind.CHAT, Entry(chat(1)))
    [(_, apart)] = room.divide(Window())
    assert set(apart) == set(members)
    [(group, grouped)] = room.divide(Window())
    assert set(grouped) == set(members)
    assert window.parcel_of_group(group) is parcel


async def test_a_large_room_is_swept_in_slices_and_in_order(room: Room, fanout: Fanout) -> None:
    pipes = []
    for number in range(7):
        connection, pipe = client(str(number))
        room.enter(connection, Kind.ROOM, 0)
        pipes.append(pipe)
    fanout.put(room, Kind.ROOM, stage(1))
    await wait_until(lambda: pipes[0].frames)
    fanout.put(room, Kind.ROOM, stage(2))  # while the sweep is under way
    await wait_until(lambda: all(len(pipe.frames) == 2 for pipe in pipes))
    assert {str([pipe.seen(0), pipe.seen(1)]) for pipe in pipes} == {str([[("room", 1)], [("room", 2)]])}


async def test_a_slow_member_keeps_the_stage_and_goes_without_the_rest(room: Room, fanout: Fanout) -> None:
    slow, pipe = client("slow")
    slow.pause()
    room.enter(slow, Kind.ROOM, 0)
    room.enter(slow, Kind.CHAT, 0)
    for kind, publication in [(Kind.CHAT, chat(1)), (Kind.ROOM, stage(1)), (Kind.ROOM, PULSE)]:
        fanout.put(room, kind, publication)
    await wait_until(lambda: pipe.frames)
    assert pipe.seen(0) == [("room", 1)]


async def test_a_member_whose_buffer_is_full_is_closed_3008(room: Room, fanout: Fanout) -> None:
    stuck, pipe = client("stuck")
    stuck.pause()
    pipe.buffered_bytes = 1024 * 1024
    room.enter(stuck, Kind.ROOM, 0)
    fanout.put(room, Kind.ROOM, stage(1))
    await wait_until(lambda: pipe.closed)
    assert pipe.closed == 3008
    assert json.loads(pipe.frames[-1])["push"]["disconnect"]["code"] == 3008


async def test_above_the_shown_rate_own_and_staff_lines_stay(room: Room, fanout: Fanout) -> None:
    pipes = {}
    for name in ("ann", "bob"):
        connection, pipes[name] = client(name)
        room.enter(connection, Kind.CHAT, 0)
    fanout.put(room, Kind.CHAT, chat(1, viewer="host", role="host"))
    for offset in range(2, 40):
        fanout.put(room, Kind.CHAT, chat(offset, viewer="ann" if offset % 2 else "other"))
    await wait_until(lambda: pipes["ann"].frames and pipes["bob"].frames)
    ann, bob = pipes["ann"].seen(0), pipes["bob"].seen(0)
    assert len(bob) == 3, "the team's line uses up the allowance"
    assert bob[0] == ("chat", 1)
    assert {("chat", offset) for offset in range(3, 40, 2)} <= set(ann)
    assert set(bob) <= set(ann)
    assert ann == sorted(ann)


@pytest.mark.parametrize("deleted", [2, 0])
async def test_a_line_that_was_deleted_before_the_sweep_is_not_shown(room: Room, fanout: Fanout, deleted: int) -> None:
    """Stage goes before chat, so the deletion came before the line, which then stayed on every screen."""
    connection, pipe = client("ann")
    room.enter(connection, Kind.ROOM, 0)
    room.enter(connection, Kind.CHAT, 0)
    for number in (1, 2):
        said = {"type": "chat.sent", "message": {"id": f"m{number}", "viewer": "mal"}}
        fanout.put(room, Kind.CHAT, Delivered("chat:r", number, "e", json.dumps(said).encode()))
    fanout.put(room, Kind.ROOM, stage(1, b'{"type":"chat.deleted","message":"m%d","viewer":"mal"}' % deleted))
    await wait_until(lambda: pipe.frames)
    assert pipe.all_seen == [("room", 1), ("chat", 1)] + ([] if deleted else [("chat", 2)])


def test_sampling_is_uniform() -> None:
    """10 lines, 3 shown, 6000 windows: each is shown 1800 times on average; five standard deviations are 178."""
    rng = random.Random(5)
    lines: list[Line | None] = [Line(viewer="v")] * 10
    shown = [0] * 10
    for _ in range(6_000):
        hidden = hidden_lines(lines, 3, rng)
        assert len(hidden) == 7
        for index in set(range(10)) - hidden:
            shown[index] += 1
    assert all(abs(count - 1_800) < 178 for count in shown), shown


def test_what_is_no_line_of_a_viewer_is_never_hidden() -> None:
    lines = [read_line(data) for data in (b'{"type":"other"}', b"nonsense", b'{"type":"chat.sent","message":{"viewer":""}}')]
    lines.append(Line(viewer="h", role="host"))
    assert lines[:3] == [None, None, None]
    assert hidden_lines(lines, 0, random.Random(1)) == set()


async def test_leaving_counts_channels_and_forgets_the_viewer(room: Room) -> None:
    ann, _ = client("ann")
    room.enter(ann, Kind.ROOM, 0)
    room.enter(ann, Kind.CHAT, 0)
    assert (set(room.viewers), room.new_viewers) == ({"ann"}, {"ann"})
    assert room.subscriptions == 2
    for _ in range(2):
        room.leave(ann, Kind.ROOM)
        assert room.subscriptions == 1
    room.leave_all(ann)
    assert room.subscriptions == 0
    assert (room.members, room.viewers, ann.members, room.is_idle) == ([], {}, (), True)


async def test_a_dropped_channel_takes_its_waiting_publications_along(room: Room, fanout: Fanout) -> None:
    """Regression by design: offsets of the next life start low, so entries of the old one would be taken for new."""
    ann, pipe = client("ann")
    room.enter(ann, Kind.ROOM, 40)
    fanout.put(room, Kind.ROOM, stage(41))
    room.drop(Kind.ROOM)
    room.enter(ann, Kind.ROOM, 0)
    fanout.put(room, Kind.ROOM, stage(1))
    await wait_until(lambda: pipe.frames)
    assert pipe.seen(0) == [("room", 1)]
