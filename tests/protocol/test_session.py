"""The session's rules, one by one, without a socket. The numbers of the traps are those of the list in the design of the wire."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from app.protocol import codes
from app.protocol.json_codec import JSON
from app.protocol.messages import ConnectResult, RpcRequest, RpcResult, SubscribeResult, UnsubscribeRequest
from app.protocol.session import Incoming, Limits, Session, State

LIMITS = Limits(
    ping_interval_ms=25_000,
    pong_timeout_ms=10_000,
    connect_timeout_ms=15_000,
    message_bytes_max=1_000,
    channel_bytes_max=40,
    channels_max=4,
    commands_per_s_max=20,
    errors_max=5,
    calls_in_flight_max=3,
    held_commands_max=3,
)
CONNECT = b'{"id":1,"connect":{"token":"t"}}'


def session_of(first_ping_share: float = 0.5) -> Session:
    return Session(JSON, LIMITS, now_ms=0, first_ping_share=first_ping_share)


def connected(*, expires_in_ms: float = float("inf"), user: str = "user:7") -> Session:
    session = session_of()
    assert [one.id for one in session.receive(CONNECT, 0)] == [1]
    result = ConnectResult(client="c", version="1", ping=25, pong=True, subs={user: SubscribeResult(recoverable=True)})
    assert session.accept_connect(result, 0, expires_in_ms=expires_in_ms) == []
    session.data_to_send()
    return session


def sent(session: Session) -> list[dict[str, Any]]:
    return [json.loads(message) for message in session.data_to_send()]


def send(session: Session, *commands: dict[str, Any], now_ms: float = 0) -> list[Incoming]:
    return session.receive(b"\n".join(json.dumps(command).encode() for command in commands), now_ms)


def rpc(command_id: int, method: str = "a.b") -> dict[str, Any]:
    return {"id": command_id, "rpc": {"method": method, "data": {}}}


def subscribe(command_id: int, channel: str) -> dict[str, Any]:
    return {"id": command_id, "subscribe": {"channel": channel}}


def error_codes(session: Session) -> list[int]:
    return [reply["error"]["code"] for reply in sent(session)]


def assert_closed(session: Session, code: codes.CloseCode) -> None:
    """Trap 2: a disconnect push of the same code comes first. Trap 1: the reason is plain words, not JSON."""
    assert session.state is State.CLOSED
    assert session.close_code == code
    last = sent(session)[-1]["push"]["disconnect"]
    assert last["code"] == code.number
    assert last["reason"] == code.reason
    assert last.get("reconnect", False) is code.reconnect


# --- opening ------------------------------------------------------------------------------------------------------------------------


def test_connect_reply_is_what_clients_expect() -> None:
    session = session_of()
    [incoming] = session.receive(CONNECT, 0)
    assert incoming.request.token == "t"  # type: ignore[union-attr]
    result = ConnectResult(client="8f0f", version="0.1.0", ping=25, pong=True, subs={"user:7": SubscribeResult()})
    session.accept_connect(result, 0)
    assert session.state is State.CONNECTED
    assert session.data_to_send() == [b'{"id":1,"connect":{"client":"8f0f","version":"0.1.0","ping":25,"pong":true,"subs":{"user:7":{}}}}']


@pytest.mark.parametrize(
    "frame",
    [
        b'{"id":1,"subscribe":{"channel":"room:1"}}',  # trap 7: any command before connect
        b'{"id":1,"rpc":{"method":"a.b"}}',
        b'{"id":1,"ping":{}}',
        b"{}",
        b'{"send":{}}',
        b'{"connect":{}}',  # ids are above 0
        b'{"id":1}',
        b'{"id":1,"connect":{},"ping":{}}',
        b'{"id":-1,"connect":{}}',
        b'{"id":4294967296,"connect":{}}',
        b'{"id":"1","connect":{}}',
        b'{"id":1,"connect":[]}',
        b"",
        b"\n\n",
        b"null",
        b"[]",
        b"\xff\xfe\x00",
        b"{",
        b"[" * 900,
        b'{"connect":' + b"[" * 900,
        b'{"id":1,"connect":{"token":"\xff"}}',
    ],
)
def test_a_bad_first_frame_closes_3501(frame: bytes) -> None:
    session = session_of()
    assert session.receive(frame, 0) == []
    assert_closed(session, codes.CLOSE_BAD_REQUEST)


def test_commands_behind_the_connect_wait_for_it_in_order() -> None:
    session = session_of()
    incoming = send(session, json.loads(CONNECT), subscribe(2, "room:1"), rpc(3))
    assert [one.id for one in incoming] == [1]
    assert send(session, rpc(4)) == []
    released = session.accept_connect(ConnectResult(client="c", version="1", ping=25, pong=True), 0)
    assert [one.id for one in released] == [2, 3, 4]


def test_too_many_commands_behind_the_connect_close() -> None:
    session = session_of()
    send(session, json.loads(CONNECT), rpc(2), rpc(3), rpc(4), rpc(5))
    assert_closed(session, codes.CLOSE_BAD_REQUEST)


def test_after_a_failed_connect_the_rest_is_ignored_quietly() -> None:
    """Trap 7."""
    session = session_of()
    send(session, json.loads(CONNECT), subscribe(2, "room:1"))
    session.refuse(1, codes.TOKEN_EXPIRED, "", 0)
    assert sent(session) == [{"id": 1, "error": {"code": 109, "message": "token expired"}}]
    assert send(session, subscribe(3, "room:1")) == []
    assert session.receive(b"\xff", 0) == []
    assert session.data_to_send() == []
    assert session.state is State.OPENING
    session.tick(15_000)
    assert_closed(session, codes.STALE)


def test_an_overloaded_connect_is_temporary() -> None:
    """Trap 8: an SDK gives up on a connect error that is not temporary."""
    session = session_of()
    session.receive(CONNECT, 0)
    session.refuse(1, codes.SERVICE_UNAVAILABLE, "", 0)
    assert sent(session)[0]["error"]["temporary"] is True


def test_a_connect_without_answer_is_refused_as_temporary() -> None:
    session = session_of()
    session.receive(CONNECT, 0)
    session.tick(4_000)
    assert sent(session) == [
        {"id": 1, "error": {"code": 100, "message": "no answer in time; try again with the same key", "temporary": True}}
    ]
    assert session.accept_connect(ConnectResult(client="c", version="1", ping=25, pong=True), 4_100) == []
    assert session.data_to_send() == []


def test_no_connect_in_time_closes_3502() -> None:
    session = session_of()
    session.tick(14_999)
    assert session.state is State.OPENING
    session.tick(15_000)
    assert_closed(session, codes.STALE)


def test_a_second_connect_closes_3501() -> None:
    session = connected()
    send(session, {"id": 2, "connect": {}})
    assert_closed(session, codes.CLOSE_BAD_REQUEST)


def test_a_second_connect_before_the_first_is_answered_closes_3501() -> None:
    session = session_of()
    send(session, json.loads(CONNECT), {"id": 2, "connect": {}})
    assert_closed(session, codes.CLOSE_BAD_REQUEST)


# --- commands ------------------------------------------------------------------------------------------------------------------------


def test_a_call_is_handed_out_and_answered_once() -> None:
    session = connected()
    [incoming] = send(session, {"id": 5, "rpc": {"method": "chat.send", "data": {"text": "早"}}})
    assert isinstance(incoming.request, RpcRequest)
    assert json.loads(bytes(incoming.request.data)) == {"text": "早"}
    assert session.reply(5, RpcResult(data=Raw(b'{"outcome":"sent"}')))
    assert not session.reply(5, RpcResult(data=Raw(b"{}")))
    assert session.data_to_send() == [b'{"id":5,"rpc":{"data":{"outcome":"sent"}}}']


def test_ping_and_unsubscribe_answer_with_an_empty_object() -> None:
    """Trap 5: the result object is there even when it is empty."""
    session = connected()
    incoming = send(session, {"id": 2, "ping": {}}, {"id": 3, "unsubscribe": {"channel": "room:9"}})
    assert session.data_to_send() == [b'{"id":2,"ping":{}}', b'{"id":3,"unsubscribe":{}}']
    assert [type(one.request) for one in incoming] == [UnsubscribeRequest]


def test_a_pong_and_a_one_way_message_have_no_answer() -> None:
    session = connected()
    assert send(session, {}, {"send": {"data": 1}}) == []
    assert session.data_to_send() == []
    assert session.state is State.CONNECTED


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ({"publish": {"channel": "room:1", "data": {}}}, 103),
        ({"presence": {"channel": "room:1"}}, 108),
        ({"sub_refresh": {"channel": "room:1", "token": "t"}}, 108),
        (subscribe(0, "user:7"), 103),
        (subscribe(0, "user:8"), 103),
        (subscribe(0, ""), 102),
        (subscribe(0, "room:"), 102),
        (subscribe(0, "lobby:1"), 102),
        (subscribe(0, "room:" + "x" * 36), 106),
        (subscribe(0, "room:" + "村" * 12), 106),  # the limit is in bytes
    ],
)
def test_commands_refused_without_asking_anyone(command: dict[str, Any], code: int) -> None:
    session = connected()
    assert send(session, command | {"id": 2}) == []
    assert error_codes(session) == [code]


def test_subscribing_twice_is_105_also_while_the_first_is_under_way() -> None:
    session = connected()
    send(session, subscribe(2, "room:1"), subscribe(3, "room:1"))
    assert error_codes(session) == [105]
    session.reply(2, SubscribeResult())
    send(session, subscribe(4, "room:1"))
    assert [reply.get("error", {}).get("code") for reply in sent(session)] == [None, 105]


def test_channels_are_limited_and_a_refused_one_gives_its_place_back() -> None:
    session = connected()  # the own channel is the first of four
    assert len(send(session, *[subscribe(n, f"room:{n}") for n in (2, 3, 4)])) == 3
    assert send(session, subscribe(5, "room:5")) == []
    assert error_codes(session) == [106]
    session.refuse(4, codes.PERMISSION_DENIED, "", 0)
    assert len(send(session, subscribe(6, "room:6"))) == 1


def test_unsubscribe_and_subscribe_in_one_frame() -> None:
    session = connected()
    send(session, subscribe(2, "room:1"))
    session.reply(2, SubscribeResult())
    incoming = send(session, {"id": 3, "unsubscribe": {"channel": "room:1"}}, subscribe(4, "room:1"))
    assert [one.id for one in incoming] == [3, 4]
    assert not session.is_subscribed("room:1")


def test_unsubscribe_while_subscribing_answers_both() -> None:
    session = connected()
    send(session, subscribe(2, "room:1"))
    send(session, {"id": 3, "unsubscribe": {"channel": "room:1"}})
    first, second = sent(session)
    assert (first["id"], first["error"]["temporary"]) == (2, True)
    assert second == {"id": 3, "unsubscribe": {}}
    assert not session.reply(2, SubscribeResult())
    assert not session.is_subscribed("room:1")


def test_the_own_channel_cannot_be_unsubscribed() -> None:
    session = connected()
    send(session, {"id": 2, "unsubscribe": {"channel": "user:7"}})
    assert session.is_subscribed("user:7")


def test_an_id_that_still_waits_for_its_answer_closes_3501() -> None:
    session = connected()
    send(session, rpc(2), rpc(2))
    assert_closed(session, codes.CLOSE_BAD_REQUEST)


# --- limits --------------------------------------------------------------------------------------------------------------------------


def test_too_large_a_message_is_an_error_reply_not_1009() -> None:
    """Trap 12. Other messages of the frame are not touched."""
    session = connected()
    large = {"id": 2, "rpc": {"method": "a.b", "data": "x" * 1_000}}
    assert [one.id for one in send(session, large, rpc(3))] == [3]
    assert sent(session) == [{"id": 2, "error": {"code": 106, "message": "a message has at most 1000 bytes"}}]


def test_too_large_a_connect_is_a_failed_connect() -> None:
    session = session_of()
    assert send(session, {"id": 1, "connect": {"token": "x" * 1_000}}, subscribe(2, "room:1")) == []
    assert error_codes(session) == [106]
    assert session.state is State.OPENING


def test_too_large_and_not_even_a_message_closes() -> None:
    session = connected()
    session.receive(b"x" * 2_000, 0)
    assert_closed(session, codes.CLOSE_BAD_REQUEST)


def test_more_calls_than_may_be_in_flight_are_told_to_wait() -> None:
    session = connected()
    assert len(send(session, *[rpc(n) for n in range(2, 6)])) == 3
    [refusal] = sent(session)
    assert (refusal["id"], refusal["error"]["code"], refusal["error"]["temporary"]) == (5, 111, True)
    session.reply(2, RpcResult(data=Raw(b"{}")))
    assert len(send(session, rpc(6))) == 1


def test_the_command_rate_is_limited_and_recovers() -> None:
    session = connected()
    history = {"history": {"channel": "room:1"}}
    for n in range(40):  # twice the rate is the burst
        assert len(send(session, history | {"id": n + 2})) == 1
        session.refuse(n + 2, codes.TOO_MANY_REQUESTS, "", 0)
    session.data_to_send()
    assert send(session, history | {"id": 100}) == []
    assert error_codes(session) == [111]
    assert len(send(session, history | {"id": 101}, now_ms=100)) == 1


def test_a_flood_closes_3013() -> None:
    session = connected()
    for _ in range(25):
        session.receive(b"\n".join([b"{}"] * 10), 0)
    assert_closed(session, codes.CONNECTION_RATE)


def test_too_many_errors_close_3509_and_old_ones_are_forgiven() -> None:
    session = connected()
    for n in range(5):
        send(session, subscribe(n + 2, "lobby:1"))
    assert session.state is State.CONNECTED
    send(session, subscribe(10, "lobby:1"), now_ms=30_000)
    assert session.state is State.CONNECTED
    send(session, subscribe(11, "lobby:1"), now_ms=30_000)
    assert_closed(session, codes.TOO_MANY_ERRORS)


def test_temporary_errors_are_not_held_against_the_client() -> None:
    session = connected()
    for n in range(20):
        send(session, rpc(n + 2))
        session.refuse(n + 2, codes.TOO_MANY_REQUESTS, "", 0)
    assert session.state is State.CONNECTED


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
