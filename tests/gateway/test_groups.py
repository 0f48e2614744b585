"""The fast way of a sweep: who is written to without a question, and what happens to those who stop being ordinary on the way."""

import json
from collections.abc import Callable, Iterable

import pytest
from prometheus_client import REGISTRY

from app.core.runtime import Runtime
from app.core.settings import Settings
from app.gateway.connection import Connection
from app.gateway.fanout import Fanout
from app.gateway.room import Room
from app.gateway.window import Window
from app.protocol import codes
from app.protocol.channels import Kind
from app.storage.streams import Delivered
from tests.gateway.pipes import PULSE, Pipe, chat, client, spawn, stage
from tests.support.waiting import wait_until

Client = tuple[Connection, Pipe]


@pytest.fixture
def settings() -> Settings:
    return Settings(sweep_ms=30, stage_sweep_ms=10, sweep_slice=2, chat_shown_per_s=3)


@pytest.fixture
def room() -> Room:
    return Room("r", spawn)


@pytest.fixture
async def fanout(settings: Settings) -> Fanout:
    return Fanout(settings, Runtime(), spawn)


def crowd(room: Room, size: int) -> list[Client]:
    """Viewers with room and chat, all in one group."""
    clients = [client(f"v{number}") for number in range(size)]
    for connection, _ in clients:
        room.enter(connection, Kind.ROOM, 0)
        room.enter(connection, Kind.CHAT, 0)
    room.divide(Window())
    assert not room.apart
    return clients


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def first_written_does(clients: Iterable[Client], act: Callable[[list[Client]], object]) -> None:
    """While the first of them is written to, `act` happens to those who are not yet."""
    done: list[bool] = []

    def on_write() -> None:
        if not done:
            done.append(True)
            act([one for one in clients if not one[1].frames])

    for _, pipe in clients:
        pipe.on_write = on_write


async def test_a_group_is_served_with_bytes_that_were_packed_once(room: Room, fanout: Fanout) -> None:
    clients = crowd(room, 5)
    fanout.put(room, Kind.ROOM, stage(1))
    fanout.put(room, Kind.CHAT, chat(1))
    await wait_until(lambda: all(pipe.frames for _, pipe in clients))
    assert len({id(pipe.frames[0]) for _, pipe in clients}) == 1
    assert clients[0][1].all_seen == [("room", 1), ("chat", 1)]


async def test_channels_make_groups(room: Room, fanout: Fanout) -> None:
    clients = crowd(room, 2)
    (watcher, watched), (team, seen_by_team) = client("watcher"), client("team")
    room.enter(watcher, Kind.ROOM, 0)
    for kind in (Kind.ROOM, Kind.STAFF):
        room.enter(team, kind, 0)
    room.divide(Window())
    assert sorted(len(group.members) for group in room.groups.values()) == [1, 1, 2]
    for kind, publication in [(Kind.CHAT, chat(1)), (Kind.STAFF, Delivered("staff:r", 1, "e", b"{}")), (Kind.ROOM, stage(1))]:
        fanout.put(room, kind, publication)
    await wait_until(lambda: all(pipe.frames for pipe in (clients[0][1], watched, seen_by_team)))
    assert [pipe.all_seen for pipe in (clients[0][1], watched, seen_by_team)] == [
        [("room", 1), ("chat", 1)],
        [("room", 1)],
        [("room", 1), ("staff", 1)],
    ]


async def test_deliveries_are_counted_by_lane_for_each_who_was_written_to(room: Room, fanout: Fanout) -> None:
    clients = crowd(room, 5)
    before = [counted("jishi_deliveries_total", lane=lane) for lane in ("stage", "pulse", "chat")]
    for kind, publication in [(Kind.ROOM, stage(1)), (Kind.ROOM, stage(2)), (Kind.ROOM, PULSE), (Kind.CHAT, chat(1))]:
        fanout.put(room, kind, publication)
    first_written_does(clients, lambda rest: room.leave_all(rest[-1][0]))
    await wait_until(lambda: sum(bool(pipe.frames) for _, pipe in clients) == 4 and room.sweeping is None)
    after = [counted("jishi_deliveries_total", lane=lane) for lane in ("stage", "pulse", "chat")]
    assert [now - then for now, then in zip(after, before, strict=True)] == [8, 4, 4]


async def test_who_leaves_or_is_closed_during_a_sweep_gets_nothing_more(room: Room, fanout: Fanout) -> None:
    clients = crowd(room, 7)
    left: list[Client] = []
    closed: list[Client] = []

    def act(rest: list[Client]) -> None:
        left.append(rest[-1])
        closed.append(rest[-2])
        room.leave_all(rest[-1][0])
        rest[-2][0].close(codes.FORCE_DISCONNECT)

    first_written_does(clients, act)
    fanout.put(room, Kind.ROOM, stage(1))
    await wait_until(lambda: sum(("room", 1) in pipe.all_seen for _, pipe in clients) == 5 and room.sweeping is None)
    assert left[0][1].frames == []
    assert closed[0][1].closed == 3503
    fanout.put(room, Kind.ROOM, stage(2))  # and later: the pipe refuses what follows a close
    await wait_until(lambda: sum(("room", 2) in pipe.all_seen for _, pipe in clients) == 5 and room.sweeping is None)


async def test_who_changes_channels_during_a_sweep_still_gets_the_rest_of_it_once(room: Room, fanout: Fanout) -> None:
    """They leave their group on the way. The stage of this window is theirs, whatever they do to their other channel."""
    clients = crowd(room, 7)
    changed: list[Client] = []

    def act(rest: list[Client]) -> None:
        changed.extend(rest[-2:])
        room.leave(rest[-1][0], Kind.CHAT)
        room.enter(rest[-2][0], Kind.CHAT, 1)  # came back with what the window has

    first_written_does(clients, act)
    fanout.put(room, Kind.ROOM, stage(1))
    fanout.put(room, Kind.CHAT, chat(1))
    await wait_until(lambda: all(pipe.frames for _, pipe in clients) and room.sweeping is None)
    assert [pipe.all_seen for _, pipe in changed] == [[("room", 1)]] * 2
    assert sorted(str(pipe.all_seen) for _, pipe in clients)[:5] == [str([("room", 1), ("chat", 1)])] * 5


async def test_who_leaves_and_comes_back_during_a_sweep_gets_only_what_follows_its_reply(room: Room, fanout: Fanout) -> None:
    clients = crowd(room, 7)
    back: list[Client] = []

    def act(rest: list[Client]) -> None:
        back.append(rest[-1])
        room.leave_all(rest[-1][0])
        room.enter(rest[-1][0], Kind.ROOM, 1)

    first_written_does(clients, act)
    fanout.put(room, Kind.ROOM, stage(1))
    await wait_until(lambda: sum(bool(pipe.frames) for _, pipe in clients) == 6 and room.sweeping is None)
    fanout.put(room, Kind.ROOM, stage(2))
    await wait_until(lambda: all(("room", 2) in pipe.all_seen for _, pipe in clients) and room.sweeping is None)
    assert back[0][1].all_seen == [("room", 2)]


async def test_who_is_paused_during_a_sweep_keeps_the_stage_and_what_it_misses_is_counted(room: Room, fanout: Fanout) -> None:
    clients = crowd(room, 7)
    paused: list[Client] = []
    before = [counted("jishi_shed_total", lane=lane, reason="slow") for lane in ("chat", "pulse")]

    def act(rest: list[Client]) -> None:
        paused.append(rest[-1])
        rest[-1][0].pause()

    first_written_does(clients, act)
    for kind, publication in [(Kind.ROOM, stage(1)), (Kind.ROOM, PULSE), (Kind.CHAT, chat(1)), (Kind.CHAT, chat(2))]:
        fanout.put(room, kind, publication)
    await wait_until(lambda: all(pipe.frames for _, pipe in clients) and room.sweeping is None)
    assert paused[0][1].all_seen == [("room", 1)]
    after = [counted("jishi_shed_total", lane=lane, reason="slow") for lane in ("chat", "pulse")]
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 1]


async def test_who_recovers_gets_all_lanes_again_and_is_back_in_the_group(room: Room, fanout: Fanout) -> None:
    [(slow, pipe), (_, other)] = crowd(room, 2)
    slow.pause()
    fanout.put(room, Kind.CHAT, chat(1))
    await wait_until(lambda: other.frames)
    slow.resume()
    fanout.put(room, Kind.CHAT, chat(2))
    fanout.put(room, Kind.ROOM, stage(1))
    await wait_until(lambda: pipe.frames)
    assert pipe.all_seen == [("room", 1), ("chat", 2)]
    assert not room.apart


async def test_a_pause_during_the_write_itself_takes_effect_at_once(room: Room, fanout: Fanout) -> None:
    """The loop says so from within `write`."""
    [(slow, pipe)] = crowd(room, 1)
    pipe.on_write = slow.pause
    fanout.put(room, Kind.CHAT, chat(1))
    await wait_until(lambda: pipe.frames)
    assert [member.connection for member in room.apart] == [slow]
    fanout.put(room, Kind.CHAT, chat(2))
    fanout.put(room, Kind.ROOM, stage(1))
    await wait_until(lambda: len(pipe.frames) == 2)
    assert pipe.all_seen == [("chat", 1), ("room", 1)]


async def test_a_newcomer_ahead_of_this_node_is_apart_until_the_node_is_there(room: Room, fanout: Fanout) -> None:
    """The engine told it offset 3 while publications 2 and 3 were still on their way here."""
    crowd(room, 1)
    ann, pipe = client("ann")
    room.enter(ann, Kind.ROOM, 3)
    for offset in (1, 2, 3, 4):
        fanout.put(room, Kind.ROOM, stage(offset))
        await wait_until(lambda: room.window.is_empty and room.sweeping is None)
        assert [member.connection for member in room.apart] == ([ann] if offset < 3 else [])
    assert pipe.all_seen == [("room", 4)]


async def test_an_author_in_a_group_sees_its_hidden_lines_on_all_its_connections(room: Room, fanout: Fanout) -> None:
    crowd(room, 3)
    pipes = []
    for _ in range(2):
        connection, pipe = client("ann")
        room.enter(connection, Kind.CHAT, 0)
        pipes.append(pipe)
    room.divide(Window())
    before = counted("jishi_shed_total", lane="chat", reason="sampled")
    for offset in range(1, 9):
        fanout.put(room, Kind.CHAT, chat(offset, viewer="ann"))
    await wait_until(lambda: all(pipe.frames for pipe in pipes) and room.sweeping is None)
    assert [pipe.all_seen for pipe in pipes] == [[("chat", offset) for offset in range(1, 9)]] * 2
    assert counted("jishi_shed_total", lane="chat", reason="sampled") - before == 3 * 5
    assert not room.apart


async def test_what_is_no_line_of_a_viewer_is_shown_whatever_the_flood(room: Room, fanout: Fanout) -> None:
    """A purchase notice in the chat, say."""
    [(_, pipe)] = crowd(room, 1)
    fanout.put(room, Kind.CHAT, Delivered("chat:r", 1, "e", b'{"type":"order.noticed"}'))
    for offset in range(2, 40):
        fanout.put(room, Kind.CHAT, chat(offset))
    await wait_until(lambda: pipe.frames)
    assert len(pipe.all_seen) == 3, "it uses up the allowance"
    assert pipe.all_seen[0] == ("chat", 1)


async def test_a_large_window_asks_each_buffer_first(room: Room, fanout: Fanout) -> None:
    """Nobody is paused yet, but with this window the second one would hold more than it may."""
    [(_, ready), (_, full)] = crowd(room, 2)
    full.buffered_bytes = 1024 * 1024 - 70_000
    for offset in (1, 2):
        fanout.put(room, Kind.ROOM, stage(offset, b'"%b"' % (b"x" * 40_000)))
    await wait_until(lambda: ready.frames and full.closed)
    assert (ready.all_seen, ready.closed) == ([("room", 1), ("room", 2)], 0)
    assert (full.all_seen, full.closed) == ([], 3008)


async def test_a_socket_that_fails_does_not_keep_the_others_waiting(room: Room, fanout: Fanout) -> None:
    clients = crowd(room, 5)

    def fail(_: list[Client]) -> None:
        raise RuntimeError("the handler is closed")

    first_written_does(clients, fail)
    fanout.put(room, Kind.ROOM, stage(1))
    await wait_until(lambda: all(pipe.frames for _, pipe in clients) and room.sweeping is None)
    fanout.put(room, Kind.ROOM, stage(2))
    await wait_until(lambda: all(len(pipe.frames) == 2 for _, pipe in clients))


async def test_a_channel_dropped_during_a_sweep_is_not_carried_to_the_rest(room: Room, fanout: Fanout) -> None:
    clients = crowd(room, 7)
    first_written_does(clients, lambda _: room.drop(Kind.ROOM))
    fanout.put(room, Kind.ROOM, stage(1))
    fanout.put(room, Kind.CHAT, chat(1))
    await wait_until(lambda: all(pipe.frames for _, pipe in clients) and room.sweeping is None)
    whole, rest = [("room", 1), ("chat", 1)], [("chat", 1)]
    assert sorted(str(pipe.all_seen) for _, pipe in clients) == [str(rest)] * 5 + [str(whole)] * 2


async def test_the_pulse_tells_what_this_node_showed_since_the_last_one(room: Room, fanout: Fanout) -> None:
    [(_, pipe)] = crowd(room, 1)
    pulse = Delivered("room:r", 0, "e", b'{"type":"room.pulse","viewers":7,"said":999,"shown":999}')
    for offset in range(1, 11):
        fanout.put(room, Kind.CHAT, chat(offset))
    await wait_until(lambda: pipe.frames)
    assert len(pipe.all_seen) == 3
    for count in (1, 2):
        fanout.put(room, Kind.ROOM, pulse)
        await wait_until(lambda count=count: len(pipe.frames) == 1 + count)
    told = [json.loads(frame)["push"]["pub"]["data"] for frame in pipe.frames[1:]]
    assert [(reading["viewers"], reading["said"], reading["shown"]) for reading in told] == [(7, 10, 3), (7, 0, 0)]
