"""The corpus as bytes: read from the text files, or built, since nobody would read a hundred thousand brackets.

`Vocabulary` is what a conversation needs to get past the first refusal: a token that holds, and a room that is there.
Protobuf is written by the classes that the centrifuge SDK ships, generated from the protocol's own definition, so that our codec has no
part in its own seeds.
"""

import json
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from centrifuge.protocol import client_pb2
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from tests.support.corpus.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, client_frame, close_payload

HERE = Path(__file__).parent
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
MESSAGE_BYTES_MAX = 64 * 1024


@dataclass(frozen=True)
class Vocabulary:
    token: str = "t"
    room: str = "r1"
    viewer: str = "ann"
    bodies: Mapping[str, Any] = field(default_factory=lambda: {"test.echo": {"text": "x"}})  # of RPC, by method


def read_lines(name: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for line in (HERE / f"{name}.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        label, _, literal = line.partition(" = ")
        assert label not in found, f"{name}.txt names {label!r} twice"
        value = literal_eval(literal)
        assert isinstance(value, bytes), label
        found[label] = value
    return found


# --- right commands -----------------------------------------------------------------------------------------------------------------


def commands(words: Vocabulary) -> list[dict[str, Any]]:
    """Every command of the protocol, with all the fields that SDKs send, and in the order of a life."""
    room, chat = f"room:{words.room}", f"chat:{words.room}"
    calls = [{"rpc": {"method": method, "data": body}} for method, body in words.bodies.items()]
    bodies: list[dict[str, Any]] = [
        {"connect": {"token": words.token, "name": "js", "version": "5.3.4"}},
        {
            "connect": {
                "token": words.token,
                "data": {"a": 1},
                "subs": {f"user:{words.viewer}": {"recover": True, "epoch": "e", "offset": 7}},
            }
        },
        {"subscribe": {"channel": room, "flag": 1}},
        {"subscribe": {"channel": chat, "recover": True, "epoch": "k7Qz", "offset": 120, "positioned": True, "recoverable": True}},
        {"subscribe": {"channel": f"staff:{words.room}", "join_leave": True, "delta": "fossil", "token": "x", "data": {"b": []}}},
        {"presence_stats": {"channel": room}},
        {"presence": {"channel": room}},
        {"history": {"channel": chat, "limit": 10}},
        {"history": {"channel": room, "limit": -1, "since": {"offset": 3, "epoch": "e"}, "reverse": True}},
        {"ping": {}},
        {"send": {"data": {"any": "thing"}}},
        {"publish": {"channel": room, "data": {"t": 1}}},
        *calls,
        {"refresh": {"token": words.token}},
        {"sub_refresh": {"channel": room, "token": "x"}},
        {"unsubscribe": {"channel": chat}},
        {"unsubscribe": {"channel": room}},
    ]
    return [{"id": number, **body} for number, body in enumerate(bodies, 1)]


def to_json(command: Mapping[str, Any]) -> bytes:
    return json.dumps(command, ensure_ascii=False, separators=(",", ":")).encode()


def to_protobuf(command: Mapping[str, Any]) -> bytes:
    """With its length before it."""
    message = client_pb2.Command()
    _fill(message, command)
    raw = message.SerializeToString()
    return varint(len(raw)) + raw


def _fill(message: Message, values: Mapping[str, Any]) -> None:
    """As ParseDict does, but payloads are JSON bytes and not base64."""
    for name, value in values.items():
        if name == "data":
            message.data = json.dumps(value).encode()  # type: ignore[attr-defined]
        elif isinstance(value, dict) and name not in {"subs", "since"}:
            inner = getattr(message, name)
            inner.SetInParent()
            _fill(inner, value)
        else:
            ParseDict({name: value}, message)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


# --- seeds of the codecs ------------------------------------------------------------------------------------------------------------


def json_seeds(words: Vocabulary) -> dict[str, bytes]:
    right = {f"command {one['id']}": to_json(one) for one in commands(words)}
    seeds = read_lines("json") | right | _findings("json")
    return seeds | {"all commands": b"\n".join(right.values()), "pong": b"{}", "pongs": b"{}\n{}\n{}"}


def huge_json() -> dict[str, bytes]:
    """Too large to be worth mutating."""
    return {
        "deep arrays": b"[" * 100_000,
        "deep objects": b'{"x":' * 50_000,
        "deep payload": b'{"id":1,"rpc":{"data":' + b"[" * 100_000,
        "deep payload that ends": b'{"id":1,"rpc":{"data":' + b"[" * 30_000 + b"]" * 30_000 + b"}}",
        "deep field that is passed over": b'{"id":1,"later":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
        "a number of a hundred thousand digits": b'{"id":' + b"9" * 100_000 + b"}",
        "an offset of ten thousand digits": b'{"id":2,"subscribe":{"channel":"room:r1","offset":' + b"9" * 10_000 + b"}}",
        "an exponent of many digits": b'{"id":1e' + b"9" * 10_000 + b"}",
        "a string of a megabyte": b'{"id":1,"connect":{"token":"' + b"x" * 1_000_000 + b'"}}',
        "escapes only": b'{"id":1,"connect":{"token":"' + b"\\u0041" * 10_000 + b'"}}',
        "many names": b'{"id":1,' + b",".join(b'"n%d":%d' % (n, n) for n in range(5_000)) + b"}",
        "one name many times": b'{"id":1,' + b'"connect":{},' * 5_000 + b'"id":2}',
        "many subs": b'{"id":1,"connect":{"subs":{' + b",".join(b'"user:%d":{}' % n for n in range(3_000)) + b"}}}",
        "too many lines": b"{}\n" * 5_000,
        "one line too many": b"{}\n" * 1_024 + b"{}",
        "blank lines": b"\n" * 100_000,
        "a message above the limit": b'{"id":9,"rpc":{"method":"a","data":"' + b"x" * MESSAGE_BYTES_MAX + b'"}}',
        "a message above the limit, without an id": b'{"rpc":{"method":"a","data":"' + b"x" * MESSAGE_BYTES_MAX + b'"}}',
        "nothing for long": b" " * 200_000,
    }


def protobuf_seeds(words: Vocabulary) -> dict[str, bytes]:
    right = {f"command {one['id']}": to_protobuf(one) for one in commands(words)}
    seeds = read_lines("protobuf") | right | _findings("protobuf")
    return seeds | {"all commands": b"".join(right.values())}


def huge_protobuf() -> dict[str, bytes]:
    def whole(message: bytes) -> bytes:
        return varint(len(message)) + message

    nested = b""
    for _ in range(3_000):  # a connect within a connect: of a field that is passed over
        nested = b"\x22" + varint(len(nested)) + nested
    return {
        "many fields": whole(b"\x08\x01" * 30_000),
        "many unknown fields": whole(b"\xc0\x3e\x01" * 20_000),
        "many subs": whole(b"\x08\x01" + b"\x22" + varint(35_000) + b"\x1a\x05\x0a\x03abc" * 5_000),
        "nested": whole(nested),
        "groups within groups": whole(b"\x0b" * 60_000),
        "too many messages": b"\x00" * 200_000,
        "a token of a megabyte": whole(b"\x22" + varint(1_000_004) + b"\x0a" + varint(1_000_000) + b"x" * 1_000_000),
        "a message above the limit": whole(b"\x08\x09\x6a" + varint(70_004) + b"\x0a" + varint(70_000) + b"x" * 70_000),
        "a message above the limit, without an id": whole(b"\x6a" + varint(70_004) + b"\x0a" + varint(70_000) + b"x" * 70_000),
        "varints only": b"\xff" * 100_000,
    }


def _recorded(part: str) -> dict[str, bytes]:
    """Of what SDKs sent: the `head`, or the `stream` behind it."""
    return {name: raw for name, raw in read_lines("recorded").items() if name.startswith(part + " ")}


def _findings(target: str) -> dict[str, bytes]:
    return {name: raw for name, raw in read_lines("findings").items() if name.startswith(target + " ")}


# --- seeds of the socket ------------------------------------------------------------------------------------------------------------


def stream_seeds(words: Vocabulary) -> dict[str, bytes]:
    """What may come after the handshake: right frames of both codecs, and every fault of a frame that there is a rule for."""
    texts = [to_json(one) for one in commands(words)]
    binaries = [to_protobuf(one) for one in commands(words)]
    right = {f"json {number}": client_frame(TEXT, one) for number, one in enumerate(texts)}
    right |= {f"protobuf {number}": client_frame(BINARY, one) for number, one in enumerate(binaries)}
    right |= {
        "json joined": client_frame(TEXT, b"\n".join(texts)),
        "protobuf joined": client_frame(BINARY, b"".join(binaries)),
        "json one behind the other": b"".join(client_frame(TEXT, one) for one in texts),
        "protobuf one behind the other": b"".join(client_frame(BINARY, one) for one in binaries),
        "json in parts": in_parts(TEXT, b"\n".join(texts), 7),
        "protobuf in parts": in_parts(BINARY, b"".join(binaries), 5),
    }
    return right | _frame_seeds() | _recorded("stream") | _findings("stream")


def in_parts(opcode: int, payload: bytes, count: int) -> bytes:
    """One message in so many frames, with a ping between them, as the RFC allows."""
    size = -(-len(payload) // count)
    parts = [payload[start : start + size] for start in range(0, len(payload), size)] or [b""]
    frames = [client_frame(CONTINUATION if number else opcode, part, fin=number == len(parts) - 1) for number, part in enumerate(parts)]
    return client_frame(PING, b"between").join(frames)


def _frame_seeds() -> dict[str, bytes]:
    text = "早上好 🍵".encode()
    seeds = {
        "ping": client_frame(PING),
        "ping with 125 bytes": client_frame(PING, b"p" * 125),
        "ping with 126 bytes": client_frame(PING, b"p" * 126),
        "ping in parts": client_frame(PING, b"p", fin=False) + client_frame(CONTINUATION, b"q"),
        "ping with a wide length": client_frame(PING, b"p", width=2),
        "pong unasked": client_frame(PONG, b"q"),
        "many pings": client_frame(PING, b"p") * 50,
        "close": client_frame(CLOSE),
        "close with half a code": client_frame(CLOSE, b"\x03"),
        "close with a reason": client_frame(CLOSE, close_payload(1000, text)),
        "close with a wrong reason": client_frame(CLOSE, close_payload(1000, b"\xff\xfe")),
        "close with 126 bytes": client_frame(CLOSE, close_payload(1000, b"r" * 124)),
        "close, and more": client_frame(CLOSE, close_payload(1000)) + client_frame(TEXT, b"{}"),
        "close inside a message": client_frame(TEXT, b"{", fin=False) + client_frame(CLOSE, close_payload(1001)),
        "not masked": client_frame(TEXT, b"{}", mask=None),
        "mask of nothing": client_frame(TEXT, b"{}", mask=b"\0\0\0\0"),
        "empty text": client_frame(TEXT),
        "empty binary": client_frame(BINARY),
        "empty parts": client_frame(TEXT, fin=False) + client_frame(CONTINUATION, fin=False) * 20 + client_frame(CONTINUATION),
        "continuation of nothing": client_frame(CONTINUATION, b"x"),
        "message inside another": client_frame(TEXT, b"a", fin=False) + client_frame(TEXT, b"b"),
        "text not utf-8": client_frame(TEXT, b"\xff"),
        "text not utf-8 at its end": client_frame(TEXT, text[:-1]),
        "text cut between parts": client_frame(TEXT, text[:1], fin=False) + client_frame(CONTINUATION, text[1:]),
        "text cut between parts, wrong": client_frame(TEXT, text[:1], fin=False) + client_frame(CONTINUATION, b"x"),
        "binary as text": client_frame(TEXT, b"\x02\x08\x01"),
        "text as binary": client_frame(BINARY, b'{"id":1,"connect":{}}'),
        "length too short": client_frame(TEXT, b'{"id":1}', claimed=3),
        "length too long": client_frame(TEXT, b"{}", claimed=100),
        "length in 2 bytes for none": client_frame(TEXT, b"{}", width=2),
        "length in 8 bytes for none": client_frame(TEXT, b"{}", width=8),
        "length 2**63": client_frame(TEXT, b"{}", claimed=2**63),
        "length 2**63 - 1": client_frame(TEXT, b"{}", claimed=2**63 - 1),
        "length 2**32": client_frame(BINARY, b"{}", claimed=2**32),
        "length above the limit": client_frame(TEXT, b"{}", claimed=2_000_000),
        "payload of 126 bytes": client_frame(BINARY, b"x" * 126),
        "payload of 65536 bytes": client_frame(BINARY, b"x" * 65_536),
        "head cut off": client_frame(TEXT, b"x" * 300)[:3],
        "mask cut off": client_frame(TEXT, b"{}")[:4],
        "payload cut off": client_frame(TEXT, b'{"id":1,"connect":{}}')[:-3],
        "http instead": b"GET / HTTP/1.1\r\n\r\n",
    }
    seeds |= {
        f"close {code}": client_frame(CLOSE, close_payload(code))
        for code in (0, 999, *range(1000, 1017), 2999, 3000, 3501, 4999, 5000, 65535)
    }
    seeds |= {f"opcode {opcode}": client_frame(opcode, b"x") for opcode in range(16)}
    seeds |= {f"reserved {bits}": client_frame(TEXT, b"{}", reserved=bits) for bits in range(1, 8)}
    return seeds


def head_seeds() -> dict[str, bytes]:
    found = {name: raw.replace(b"@KEY", KEY) for name, raw in (read_lines("heads") | _recorded("head") | _findings("head")).items()}
    right = found["right"]
    return found | {
        "a header of many bytes": right[:-2] + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n",
        "many headers": right[:-2] + b"".join(b"X-%d: y\r\n" % n for n in range(2_000)) + b"\r\n",
        "a target of many bytes": right.replace(b"websocket HTTP", b"websocket?" + b"a" * 100_000 + b" HTTP"),
        "a head that never ends": right[:-2] + b"x" * 300_000,
    }


def upgrade(name: str = "right") -> bytes:
    """A head that is taken: `right`, `json` or `protobuf`."""
    return read_lines("heads")[name].replace(b"@KEY", KEY)


def as_list(seeds: Mapping[str, bytes], bytes_max: int = 70_000) -> Sequence[bytes]:
    """For the mutator: without what is too long to be copied a thousand times."""
    return [raw for raw in seeds.values() if len(raw) <= bytes_max]
