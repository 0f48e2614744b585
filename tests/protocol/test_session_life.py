"""A session's clocks, its end, and whatever bytes come."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from app.protocol import codes
from app.protocol.messages import ConnectResult, RpcResult, SubscribeResult
from app.protocol.session import State
from tests.protocol.sessions import CONNECT, assert_closed, connected, error_codes, rpc, send, sent, session_of, subscribe

# --- time ----------------------------------------------------------------------------------------------------------------------------


def test_every_command_is_answered_before_sdks_give_up() -> None:
    """Trap 4: 5 s without an answer, and the SDK drops the connection."""
    session = connected()
    send(session, rpc(2), subscribe(3, "room:1"))
    session.tick(3_999)
    assert session.data_to_send() == []
    session.tick(4_000)
    assert [(one["id"], one["error"]["code"], one["error"]["temporary"]) for one in sent(session)] == [(2, 100, True), (3, 100, True)]
    assert not session.reply(3, SubscribeResult())
    assert "room:1" not in session.channels


def test_pings_begin_jittered_and_go_on_whatever_flows() -> None:
    """Trap 3."""
    session = connected()
    session.tick(12_499)
    assert session.data_to_send() == []
    session.tick(12_500)  # half of the interval, as asked
    assert session.data_to_send() == [b"{}"]
    session.receive(b"{}", 12_600)
    send(session, rpc(2), now_ms=37_000)
    session.reply(2, RpcResult(data=Raw(b"{}")))
    session.data_to_send()
    session.tick(37_500)
    assert session.data_to_send() == [b"{}"]


def test_no_pong_closes_3012() -> None:
    session = connected()
    session.tick(12_500)
    session.tick(22_499)
    assert session.state is State.CONNECTED
    session.tick(22_500)
    assert_closed(session, codes.NO_PONG)


def test_a_pong_in_time_is_enough() -> None:
    session = connected()
    session.tick(12_500)
    session.receive(b"{}", 22_000)
    session.tick(30_000)
    assert session.state is State.CONNECTED


def test_an_expired_token_closes_3005_after_the_time_to_refresh() -> None:
    session = connected(expires_in_ms=60_000)
    for now_ms in range(0, 85_000, 1_000):
        session.tick(now_ms)
        session.receive(b"{}", now_ms)
    assert session.state is State.CONNECTED
    session.data_to_send()
    session.tick(85_000)
    assert_closed(session, codes.EXPIRED)


def test_a_refresh_extends() -> None:
    session = connected(expires_in_ms=60_000)
    session.extend(60_000, 60_000)
    session.receive(b"{}", 140_000)
    session.tick(144_000)
    assert session.state is State.CONNECTED


# --- the end -------------------------------------------------------------------------------------------------------------------------


def test_draining_answers_what_is_under_way_and_then_closes_3001() -> None:
    session = connected()
    send(session, rpc(2))
    session.drain(0)
    assert session.state is State.DRAINING
    assert send(session, rpc(3)) == []
    assert error_codes(session) == [413]
    session.reply(2, RpcResult(data=Raw(b"{}")))
    session.tick(100)
    assert_closed(session, codes.SHUTDOWN)


def test_draining_does_not_wait_for_ever() -> None:
    session = connected()
    send(session, rpc(2))
    session.drain(0)
    session.tick(3_000)
    assert_closed(session, codes.SHUTDOWN)


@pytest.mark.parametrize("make", [session_of, connected])
def test_draining_an_idle_session_closes_at_once(make: Any) -> None:
    session = make()
    session.drain(0)
    assert_closed(session, codes.SHUTDOWN)


def test_after_the_end_nothing_is_taken_and_nothing_said() -> None:
    session = connected()
    send(session, rpc(2))
    session.close(codes.FORCE_DISCONNECT)
    session.data_to_send()
    assert send(session, rpc(3)) == []
    assert not session.reply(2, RpcResult(data=Raw(b"{}")))
    session.refuse(2, codes.INTERNAL, "", 0)
    session.close(codes.SLOW)
    session.tick(10**9)
    session.push_unsubscribe("user:7", 2500, "x")
    assert session.data_to_send() == []
    assert session.close_code == codes.FORCE_DISCONNECT


def test_unsubscribe_push() -> None:
    session = connected()
    send(session, subscribe(2, "room:1"))
    session.reply(2, SubscribeResult())
    session.data_to_send()
    session.push_unsubscribe("room:1", codes.UNSUBSCRIBED_INSUFFICIENT_STATE, "insufficient state")
    session.push_unsubscribe("room:1", codes.UNSUBSCRIBED_INSUFFICIENT_STATE, "insufficient state")
    assert sent(session) == [{"push": {"channel": "room:1", "unsubscribe": {"code": 2500, "reason": "insufficient state"}}}]


@pytest.mark.parametrize("code", codes.CLOSES, ids=lambda code: str(code.number))
def test_every_close_reason_is_plain_words(code: codes.CloseCode) -> None:
    """Trap 1: centrifuge-js ignores a final code whose reason is empty or parses as JSON."""
    assert 0 < len(code.reason.encode()) <= 123
    with pytest.raises(ValueError):
        json.loads(code.reason)


# --- whatever comes ------------------------------------------------------------------------------------------------------------------

MESSAGES = st.sampled_from(
    [
        CONNECT,
        b"{}",
        b'{"send":{}}',
        b'{"id":2,"ping":{}}',
        b'{"id":3,"rpc":{"method":"a.b","data":{"x":[1]}}}',
        b'{"id":4,"subscribe":{"channel":"room:1","recover":true,"offset":9,"epoch":"e"}}',
        b'{"id":5,"unsubscribe":{"channel":"room:1"}}',
        b'{"id":6,"history":{"channel":"room:1","since":null}}',
        b'{"id":7,"publish":{}}',
        b'{"id":0}',
    ]
)
FRAMES = st.one_of(st.binary(max_size=200), st.lists(MESSAGES, max_size=6).map(b"\n".join))


@given(st.lists(st.tuples(FRAMES, st.integers(0, 5_000)), max_size=20))
def test_any_bytes_at_any_time_end_in_answers_or_a_close(steps: list[tuple[bytes, int]]) -> None:
    session = session_of()
    now_ms = 0
    for frame, pause_ms in steps:
        now_ms += pause_ms
        for incoming in session.receive(frame, now_ms):
            if incoming.id == 1 and session.state is State.OPENING:
                session.accept_connect(ConnectResult(client="c", version="1", ping=25, pong=True), now_ms)
        session.tick(now_ms)
        for message in session.data_to_send():
            assert b"\n" not in message
            json.loads(message)
        assert (session.state is State.CLOSED) == (session.close_code is not None)


def test_it_says_when_it_is_next_to_be_ticked() -> None:
    session = session_of()
    assert (session.due_ms, session.is_busy) == (15_000, False)  # a connect must come
    send(session, {"id": 1, "connect": {"token": "t"}})
    assert session.is_busy
    session.accept_connect(ConnectResult(client="c", version="1", ping=25, pong=True), 0, expires_in_ms=60_000)
    assert (session.due_ms, session.is_busy) == (12_500, False)  # the first ping
    session.tick(12_500)
    assert session.due_ms == 22_500  # its pong
    session.receive(b"{}", 12_600)
    assert session.due_ms == 37_500
    session.extend(20_000, -10_000)
    assert session.due_ms == 35_000
    send(session, rpc(2), now_ms=20_000)
    assert session.is_busy
    session.reply(2, RpcResult(data=Raw(b"{}")))
    assert not session.is_busy
    session.drain(21_000)
    assert session.state is State.CLOSED


def test_the_pong_that_is_due_counts_for_nothing_and_any_other_for_a_message() -> None:
    """One for each ping needs no limit; more are a flood like anything else."""
    session = connected()
    for ping in range(50):
        session.tick(12_500 + ping * 25_000)
        session.receive(b"{}", 12_600 + ping * 25_000)
    assert session.state is State.CONNECTED
    now_ms = 12_700 + 49 * 25_000
    for _ in range(200):
        session.receive(b"{}", now_ms)
    assert session.state is State.CONNECTED
    session.receive(b"{}", now_ms)
    assert session.close_code == codes.CONNECTION_RATE


def test_rates_are_remembered_over_a_ping_until_they_have_recovered() -> None:
    """What is let go at a ping must not give a client its allowance back."""
    session = connected()
    for number in range(5):
        send(session, rpc(2 + number, method="a.b"), now_ms=12_499)
        session.refuse(2 + number, codes.BAD_REQUEST, "", 12_499)
    session.tick(12_500)
    assert session.state is State.CONNECTED
    send(session, rpc(9), now_ms=12_501)
    session.refuse(9, codes.BAD_REQUEST, "", 12_501)
    assert session.close_code == codes.TOO_MANY_ERRORS
