"""The viewers' door: what every new connection meets first, until it is known what it is.

Nearly all are viewers with an ordinary websocket handshake to `PATH`, whole in the first read. Those are answered here and handed over to
a `ViewerSocket`. Whatever else comes (pages, REST, a head in parts, anything odd) goes to `GatewayHttp` with all that was read, which is
uvicorn's HTTP protocol with the same answers; so what is refused for its form is refused in one place, and this one is only quick.

Measured in turns on one core (CPU of the server process a handshake, its kernel work included; medians): 146 µs where `GatewayHttp` met
all, 65 since. uvicorn's object with its two loggers, its addresses and its parser is half of what a plain handshake costs.
"""

import asyncio
import re
from typing import Any

from app.gateway.admission import Refusal
from app.gateway.endpoint import PATH
from app.gateway.handover import LATE_HEAD, GatewayHttp, Handshake, answer_handshake, read_handshake, refusal_response
from app.gateway.hub import Hub

_HEAD_BYTES_MAX = 4096  # an ordinary one has 200 to 600
_HEAD = re.compile(
    rb"GET " + re.escape(PATH.encode()) + rb"(?:\?([!-~]*))? HTTP/1\.1\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*[!-~]\r\n)+)\r\n"
)
_FIELD = re.compile(rb"([^:]+):[\t ]*([^\r]*)\r\n")


def read_ordinary(data: bytes) -> tuple[Handshake, bytes] | None:
    """The handshake of a whole and ordinary head, and what came behind it. None: not that."""
    match = _HEAD.match(data, 0, _HEAD_BYTES_MAX)
    if match is None:
        return None
    fields = _FIELD.findall(match[2])
    headers = {name.lower(): value for name, value in fields}
    if len(headers) != len(fields) or headers.get(b"upgrade", b"").lower() != b"websocket":
        return None
    if b"upgrade" not in [word.strip() for word in headers.get(b"connection", b"").lower().split(b",")]:
        return None
    handshake = read_handshake("GET", "1.1", match[1] or b"", list(headers.items()))
    return None if isinstance(handshake, Refusal) else (handshake, data[match.end() :])


class Door(asyncio.Protocol):
    """uvicorn makes one a connection, by `arguments`, and shuts those down that it finds in `connections`."""

    __slots__ = ("_arguments", "_connections", "_deadline", "_transport")

    http: type[GatewayHttp]

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments
        self._connections: set[Any] = arguments["server_state"].connections
        self._transport: Any = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._connections.add(self)
        self._deadline = asyncio.get_running_loop().call_later(self.http.hub.settings.connect_timeout_s, self._on_silence)

    def data_received(self, data: bytes) -> None:
        transport, headers = self._transport, self._arguments["server_state"].default_headers
        self._let_go()
        ordinary = read_ordinary(data)
        if ordinary is None:
            http: Any = self.http(**self._arguments)
            transport.set_protocol(http)
            http.connection_made(transport)
            http.data_received(data)
        else:
            answer_handshake(self.http, transport, headers, *ordinary)

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()

    def shutdown(self) -> None:
        """From the server, which ends."""
        if self._transport is not None:
            self._transport.close()

    def _on_silence(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(refusal_response(LATE_HEAD, self._arguments["server_state"].default_headers))
            self._transport.close()

    def _let_go(self) -> None:
        self._connections.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._transport = None


def door(hub: Hub, http: type[GatewayHttp] = GatewayHttp) -> type[Door]:
    """For the server's `http`, which takes a class."""
    http_of_hub = type("GatewayHttp", (http,), {"hub": hub})
    return type("Door", (Door,), {"__slots__": (), "http": http_of_hub})
