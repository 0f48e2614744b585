"""The quick way through the door reads what the slow way would have read, and what it does not read comes to no harm."""

import pytest

from app.gateway.door import read_ordinary
from app.gateway.handover import Handshake
from tests.gateway.conftest import Node
from tests.support.frames import RawSocket

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
LINES = {
    "Host": "market.example",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Origin": "https://market.example",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "centrifuge-protobuf, other",
}


def head(first: str = "GET /connection/websocket?format=protobuf HTTP/1.1", **changes: str | None) -> bytes:
    """`changes` by the header's name with `_` for `-`; None leaves it out."""
    lines: dict[str, str | None] = LINES | {name.replace("_", "-"): value for name, value in changes.items()}
    fields = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"{first}\r\n{fields}\r\n".encode("latin-1")


def test_an_ordinary_handshake_is_read_with_what_comes_behind_it() -> None:
    expected = Handshake(KEY, "https://market.example", "market.example", ["centrifuge-protobuf", "other"], b"format=protobuf")
    assert read_ordinary(head() + b"\x81\x80") == (expected, b"\x81\x80")
    assert read_ordinary(head().replace(b": ", b":").replace(b"Host", b"hOST")) == (expected, b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        head()[:-1],
        b"\r\n" + head(),
        head("POST /connection/websocket HTTP/1.1"),
        head("GET /connection/websocket HTTP/1.0"),
        head("GET /connection/websockets HTTP/1.1"),
        head("GET /connection/%77ebsocket HTTP/1.1"),
        head("GET http://market.example/connection/websocket HTTP/1.1"),
        head("GET /connection/websocket  HTTP/1.1"),
        head(Upgrade=None),
        head(Upgrade="h2c"),
        head(Connection="close"),
        head(Sec_WebSocket_Version="8"),
        head(Sec_WebSocket_Key="short"),
        head(Content_Length="5"),
        head(Transfer_Encoding="chunked"),
        head(Host="market.example "),
        head(Host="market\x00.example"),
        head(Host="market.example\r\n folded"),
        head(Host="market.example\rX: y"),
        head(Host="market.example\nX: y"),
        head(**{"X y": "z"}),
        head().replace(b"\r\n\r\n", b"\r\nhost: other.example\r\n\r\n"),
        head(X="x" * 4096),
    ],
)
def test_everything_else_is_left_to_the_slow_way(data: bytes) -> None:
    assert read_ordinary(data) is None


@pytest.mark.parametrize("pieces", [1, 2, 7])
async def test_both_ways_let_in_and_answer_alike(node: Node, pieces: int) -> None:
    async with await RawSocket.connect(node.port) as client:
        data = head("GET /connection/websocket HTTP/1.1", Origin=None, Sec_WebSocket_Protocol="centrifuge-protobuf")
        step = -(-len(data) // pieces)
        for start in range(0, len(data), step):
            client.send(data[start : start + step])
            await client.writer.drain()
        answer = await client.read_head()
    lines = [line for line in answer.split(b"\r\n") if not line.lower().startswith((b"date", b"server"))]
    assert lines == [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        b"Sec-WebSocket-Protocol: centrifuge-protobuf",
        b"",
        b"",
    ]
