"""uvicorn's HTTP protocol, which answers the gateway's path itself and hands the socket over. `door` is before it, and quicker.

uvicorn reads the head of every request. For a websocket handshake to `PATH` this class asks `decide`, the same question that the
ASGI route asks, writes the 101 (or the refusal) and lets a `ViewerSocket` take the loop's transport. No ASGI scope, task or queue is
made, and nothing of uvicorn stays with the viewer. There is no other websocket path: uvicorn's own class for them ends in an assertion
when frames come before its answer is out.

What came in behind the handshake goes to the `ViewerSocket`; uvicorn itself drops it. A head that does not end within `connect_timeout_s`,
or not within `head_bytes_max`, is refused: uvicorn would wait for ever, and keep all of it. So are many requests sent ahead in one go,
and a client that takes nothing of its answer for `send_stalled_s_max` is dropped.
Where another protocol than websockets is asked for (h2c, by Java's client), the request is answered as one that asked for none.

The design has the route do this, through an extension in the ASGI scope. Measured in turns on one core (300 handshakes a turn, CPU of the
server process, its kernel work included; medians of eleven turns while the machine was busy, so compare the ratios):

    a plain FastAPI websocket route, accepted by uvicorn's `websockets-sansio`                   567 µs      26 KiB a connection
    the product's ASGI route, carried by `AsgiTransport`                                       1,224 µs      31 KiB
    the same route calling an extension of a minimal websocket class of ours, then handed over   186 µs
    this class: asked and answered before ASGI, then handed over                                  83 µs     1.5 KiB

The 100 µs between the last two are a second parse of the head, the scope, a task, five middlewares that let websockets pass untouched, and
the router. Of the 83, 39 are Python (measured on a transport that does nothing); the rest is the loop's and the kernel's.

uvicorn counts its open connections and closes them when it stops. Viewers are not among them any more: the hub closes them (`drain`,
`stop`). The address, which may carry a secret, is logged nowhere.
"""

import asyncio
from base64 import b64decode
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from websockets.utils import accept_key

from app.core.metrics import JOINS_REFUSED
from app.gateway.admission import Refusal
from app.gateway.endpoint import PATH, decide
from app.gateway.hub import Hub
from app.gateway.socket_transport import ViewerSocket

_PATH = PATH.encode()
_ONCE = frozenset({b"host", b"origin", b"upgrade", b"sec-websocket-key", b"sec-websocket-version"})  # else it is not clear what was asked
LATE_HEAD = Refusal(408, "the head of the request did not come in time")
_PIPELINED_MAX = 16  # requests behind one that is being answered: uvicorn makes 2 KiB and more of each 18 bytes
_BODY = frozenset({b"content-length", b"transfer-encoding"})
_PHRASES = {
    400: b"Bad Request",
    403: b"Forbidden",
    408: b"Request Timeout",
    426: b"Upgrade Required",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


class Handshake(NamedTuple):
    """Of a proper upgrade (RFC 6455, 4.2.1)."""

    key: str
    origin: str
    host: str
    offered: list[str]
    query: bytes


def read_handshake(method: str, version: str, query: bytes, headers: list[tuple[bytes, bytes]]) -> Handshake | Refusal:
    """Names of headers are in lower case; that it asks for a websocket is known."""
    if method != "GET" or version != "1.1":
        return Refusal(400, "handshake")
    offered: list[str] = []
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name == b"sec-websocket-protocol":
            offered += [word.strip() for word in value.decode("latin-1").split(",")]
        elif name in _ONCE:
            if name in fields:
                return Refusal(400, "handshake")
            fields[name] = value
        elif name in _BODY:
            return Refusal(400, "handshake")
    if fields.get(b"sec-websocket-version") != b"13":
        return Refusal(426, "version")
    key = fields.get(b"sec-websocket-key", b"")
    if not _is_key(key):
        return Refusal(400, "handshake")
    origin, host = fields.get(b"origin", b""), fields.get(b"host", b"")
    return Handshake(key.decode(), origin.decode("latin-1"), host.decode("latin-1"), offered, query)


def _is_key(key: bytes) -> bool:
    """16 bytes in base64."""
    if len(key) != 24:
        return False
    try:
        return len(b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def upgrade_head(key: str, subprotocol: str | None, headers: list[tuple[bytes, bytes]]) -> bytes:
    lines = [
        f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept_key(key)}".encode()
    ]
    if subprotocol is not None:
        lines.append(b"Sec-WebSocket-Protocol: " + subprotocol.encode())
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def answer_handshake(
    http: "type[GatewayHttp]", transport: asyncio.Transport, headers: list[tuple[bytes, bytes]], handshake: Handshake, behind: bytes
) -> bool:
    """Lets the client in and hands its socket over (true), or refuses it. `headers`: the server's own, of every answer."""
    hub = http.hub
    answer = decide(hub, origin=handshake.origin, host=handshake.host, offered=handshake.offered, query=handshake.query)
    if isinstance(answer, Refusal):
        refuse(transport, headers, answer)
        return False
    transport.write(upgrade_head(handshake.key, answer.subprotocol, headers))
    http.socket_class(hub, transport).begin(answer.codec, behind)
    return True


def refuse(transport: asyncio.Transport, headers: list[tuple[bytes, bytes]], refusal: Refusal) -> None:
    JOINS_REFUSED.labels(refusal.reason).inc()
    transport.write(refusal_response(refusal, headers))
    transport.close()


def refusal_response(refusal: Refusal, headers: list[tuple[bytes, bytes]]) -> bytes:
    body = refusal.reason.encode()
    lines = [b"HTTP/1.1 %d %s" % (refusal.status, _PHRASES[refusal.status])]
    lines += [name + b": " + value for name, value in headers]
    if refusal.retry_after_s is not None:
        lines.append(b"retry-after: %d" % refusal.retry_after_s)
    if refusal.status == 426:
        lines.append(b"upgrade: websocket\r\nsec-websocket-version: 13")
    lines.append(b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class GatewayHttp(HttpToolsProtocol):
    """One connection before it is a viewer's. `http_protocol` names the hub."""

    hub: Hub
    socket_class: type[ViewerSocket] = ViewerSocket
    head_deadline: asyncio.TimerHandle | None = None  # None: no head is awaited
    head_bytes = 0  # of the head under way
    stall_deadline: asyncio.TimerHandle | None = None  # None: the client takes what it is sent

    # --- heads ----------------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._await_head()

    def on_message_begin(self) -> None:
        self._unset_keepalive_if_required()  # uvicorn: at any byte, also an empty line or a body's rest, after which nobody waited
        super().on_message_begin()
        self._await_head()

    def _await_head(self) -> None:
        if self.head_deadline is None:
            self.head_bytes = 0
            self.head_deadline = self.loop.call_later(self.hub.settings.connect_timeout_s, self._on_late_head)

    def _on_late_head(self) -> None:
        self.head_deadline = None
        if not self.transport.is_closing():
            self._refuse_head(LATE_HEAD)

    def on_headers_complete(self) -> None:
        self._forget_head()
        if len(self.pipeline) >= _PIPELINED_MAX:
            raise OverflowError("too many requests ahead")  # to the parser, which ends with an error
        if not self._is_upgrade() or self._should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._is_upgrade():
            super().on_message_complete()

    def _is_upgrade(self) -> bool:
        """To whatever protocol; a CONNECT too."""
        parser: Any = self.parser  # None when all is over
        return parser.should_upgrade()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        self._forget_stall()
        super().connection_lost(exc)

    def _forget_head(self) -> None:
        if self.head_deadline is not None:
            self.head_deadline.cancel()
            self.head_deadline = None

    def _count_head(self, size: int) -> None:
        self.head_bytes += size
        if self.head_bytes > self.hub.settings.head_bytes_max:
            self._forget_head()
            self._refuse_head(Refusal(431, "the head of the request is too large"))

    def _refuse_head(self, refusal: Refusal) -> None:
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:  # else it would be written into another answer
            self.transport.write(refusal_response(refusal, self.server_state.default_headers))
        self.transport.close()

    # --- answers that are not taken ---------------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_stall()

    def _await_reader(self) -> None:
        self._forget_stall()
        waiting = self.transport.get_write_buffer_size()
        self.stall_deadline = self.loop.call_later(self.hub.settings.send_stalled_s_max, self._on_stall, waiting)

    def _on_stall(self, waited: int) -> None:
        """A slow line is waited for, as long as it takes anything. A close alone would wait for the rest to be taken: for ever."""
        if self.transport.get_write_buffer_size() < waited:
            self._await_reader()
        else:
            self.transport.abort()

    def _forget_stall(self) -> None:
        if self.stall_deadline is not None:
            self.stall_deadline.cancel()
            self.stall_deadline = None

    # --- the upgrade ----------------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        assert self.parser is not None, "bytes come in only before the end"
        is_in_head = self.head_deadline is not None
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse_head(Refusal(400, "this is no HTTP request, or too many ahead of their answers"))
        else:
            if is_in_head and self.head_deadline is not None:
                self._count_head(len(data))

    def _upgrade(self, behind: bytes) -> None:
        if not self._should_upgrade():
            self._read_as_ordinary(behind)
            return
        cycle: Any = self.cycle  # None before the first request
        if cycle is not None and not cycle.response_complete:
            self.transport.close()  # behind a request that is being answered: two would write to one socket
            return
        path, _, query = self.url.partition(b"?")
        if path == _PATH or unquote_to_bytes(path) == _PATH:
            self._answer(query, behind)
            return
        refuse(self.transport, self.server_state.default_headers, Refusal(403, "path"))

    def _read_as_ordinary(self, behind: bytes) -> None:
        """As if the other protocol had not been asked for (RFC 9110, 7.8). The parser took the body for bytes of that protocol, and would
        take what follows of it for the next request: so it reads the head again, without the wish."""
        parser: Any = self.parser
        method: bytes = parser.get_method()
        if method == b"CONNECT":
            self._refuse_head(Refusal(400, "this is no proxy"))
            return
        lines = [b"%b %b HTTP/%b" % (method, self.url, parser.get_http_version().encode())]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.data_received(b"\r\n".join(lines) + b"\r\n\r\n" + behind)

    def _answer(self, query: bytes, behind: bytes) -> None:
        transport, headers = self.transport, self.server_state.default_headers
        handshake = read_handshake(self.scope["method"], self.scope["http_version"], query, self.headers)
        if isinstance(handshake, Refusal):
            refuse(transport, headers, handshake)
            return
        if answer_handshake(type(self), transport, headers, handshake, behind):
            self._let_go()

    def _let_go(self) -> None:
        """Nothing of this object is needed any more. Parser and protocol refer to each other: cut, both are freed now."""
        self._forget_head()
        self._forget_stall()
        self.connections.discard(self)
        for name in ("parser", "transport", "flow", "cycle"):
            setattr(self, name, None)
