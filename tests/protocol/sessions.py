"""Sessions to talk to without a socket, shared by the tests of the session."""

import json
from typing import Any

from app.protocol import codes
from app.protocol.json_codec import JSON
from app.protocol.messages import ConnectResult, SubscribeResult
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
