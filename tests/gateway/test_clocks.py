"""Who is looked at when: idle viewers at their pings alone, busy ones every second, nobody too late."""

import asyncio
import json
from typing import Any

import pytest
from msgspec import Raw

from app.core.settings import Settings
from app.gateway.clocks import Clocks
from app.gateway.connection import Connection, limits_of
from app.protocol.json_codec import JSON
from app.protocol.messages import ConnectResult, RpcResult
from app.protocol.session import Session, State
from tests.gateway.pipes import Pipe


class Desk:
    """A node's clock, one second a step."""

    def __init__(self) -> None:
        self.clocks = Clocks()
        self.now_ms = 1_000_000.0
        self.looks = 0

    def connect(self, *, share: float = 1.0, expires_in_ms: float = float("inf"), greets: bool = True) -> tuple[Connection, Pipe]:
        settings, pipe = Settings(), Pipe()
        session = Session(JSON, limits_of(settings), now_ms=self.now_ms, first_ping_share=share)
        line = Connection(connection_id="c", session=session, codec=JSON, transport=pipe, settings=settings, watch=self.clocks.watch)
        self.clocks.watch(line)
        if greets:
            session.receive(b'{"id":1,"connect":{"token":"t"}}', self.now_ms)
            result = ConnectResult(client="c", version="1", ping=25, pong=True)
            session.accept_connect(result, self.now_ms, expires_in_ms=expires_in_ms)
            line.flush()
            pipe.frames.clear()
        return line, pipe

    def pass_s(self, seconds: int, *, answering: Connection | None = None) -> None:
        for _ in range(seconds):
            self.now_ms += 1_000
            for connection in self.clocks.take_due(self.now_ms):
                self.looks += 1
                connection.tick(self.now_ms)
                if answering is not None:
                    answering.session.receive(b"{}", self.now_ms)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def close_code(pipe: Pipe) -> Any:
    return json.loads(pipe.frames[-1])["push"]["disconnect"]["code"]


def test_an_idle_viewer_is_looked_at_twice_a_ping_and_pinged_in_its_phase(desk: Desk) -> None:
    line, pipe = desk.connect(share=0.4)
    desk.pass_s(9)
    assert pipe.frames == []
    desk.pass_s(1)
    assert pipe.frames == [b"{}"]
    line.session.receive(b"{}", desk.now_ms)
    desk.pass_s(1)
    desk.looks = 0
    desk.pass_s(250, answering=line)
    assert len(pipe.frames) == 11
    assert desk.looks <= 21


def test_a_client_that_never_connects_is_closed_stale(desk: Desk) -> None:
    _, pipe = desk.connect(greets=False)
    desk.pass_s(14)
    assert pipe.closed == 0
    desk.pass_s(1)
    assert pipe.closed == 3502


def test_a_missing_pong_closes(desk: Desk) -> None:
    _, pipe = desk.connect(share=0.2)
    desk.pass_s(14)
    assert (pipe.frames, pipe.closed) == ([b"{}"], 0)
    desk.pass_s(1)
    assert pipe.closed == 3012


def test_a_token_that_ends_before_the_next_ping_is_not_forgotten(desk: Desk) -> None:
    """It moves the viewer to an earlier slot than the one it was in."""
    _, pipe = desk.connect(share=0.9)
    line, refreshed = desk.connect(share=1.0)
    line.session.extend(desk.now_ms, -20_000.0)  # as a shorter token would
    line.flush()
    desk.pass_s(4)
    assert refreshed.closed == 0
    desk.pass_s(1)
    assert (refreshed.closed, pipe.closed) == (3005, 0)


def test_a_late_answer_is_refused_although_no_ping_is_due(desk: Desk) -> None:
    line, pipe = desk.connect()
    line.session.receive(b'{"id":2,"rpc":{"method":"a.b","data":{}}}', desk.now_ms)
    line.flush()
    desk.pass_s(3)
    assert pipe.frames == []
    desk.pass_s(1)
    assert json.loads(pipe.frames[0])["error"]["code"] == 100


def test_an_answered_command_leaves_the_viewer_idle_and_in_its_place(desk: Desk) -> None:
    line, _ = desk.connect()
    desk.pass_s(1)
    slot = line.slot
    for number in range(2, 20):
        line.session.receive(b'{"id":%d,"rpc":{"method":"a.b","data":{}}}' % number, desk.now_ms)
        line.flush()
        line.session.reply(number, RpcResult(data=Raw(b"{}")))
        line.flush()
    assert line.slot is slot
    desk.looks = 0
    desk.pass_s(5)
    assert desk.looks == 0


async def test_a_buffer_that_does_not_drain_closes_3008_and_one_that_does_not(desk: Desk) -> None:
    desk.now_ms = asyncio.get_running_loop().time() * 1000
    stuck, pipe = desk.connect()
    recovered, other = desk.connect()
    for line in (stuck, recovered):
        line.pause()
    desk.pass_s(9)
    recovered.resume()
    assert pipe.closed == 0
    desk.pass_s(2)
    assert (pipe.closed, close_code(pipe), other.closed) == (3008, 3008, 0)


def test_draining_ends_with_the_last_answer(desk: Desk) -> None:
    line, pipe = desk.connect()
    line.session.receive(b'{"id":2,"rpc":{"method":"a.b","data":{}}}', desk.now_ms)
    line.flush()
    line.drain(desk.now_ms)
    desk.pass_s(2)
    assert (line.session.state, pipe.closed) == (State.DRAINING, 0)
    desk.pass_s(1)
    assert pipe.closed == 3001


def test_who_is_gone_is_in_no_slot(desk: Desk) -> None:
    lines = [desk.connect()[0] for _ in range(3)]
    lines[0].session.receive(b'{"id":2,"rpc":{"method":"a.b","data":{}}}', desk.now_ms)
    lines[0].flush()
    for line in lines:
        line.session.lose()
        desk.clocks.forget(line)
    desk.pass_s(40)
    assert desk.looks == 0
