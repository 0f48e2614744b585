"""How a session opens, what it answers, and its limits, one rule at a time. The traps' numbers are those of the design of the wire."""

import json
from typing import Any

import pytest
from msgspec import Raw

from app.protocol import codes
from app.protocol.messages import ConnectResult, RpcRequest, RpcResult, SubscribeResult, UnsubscribeRequest
from app.protocol.session import State
from tests.protocol.sessions import CONNECT, assert_closed, connected, error_codes, rpc, send, sent, session_of, subscribe

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
