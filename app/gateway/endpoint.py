"""The websocket route, and the plain ASGI shell that carries a session.

`router` is included by the composition root, which also puts the started `Hub` into `app.state.hub`. Everything before `accept` is HTTP:
refused connections get a status and, when they may come again, a `Retry-After`. After it, one task reads and one writes; the writer
is the only one that sends, so frames keep their order, and what waits for it is counted (uvicorn's `send` waits while the socket is full).

The server's own limit of a frame (`ws_max_size`) must be `frame_bytes_max`, well above that of a message, so that the session can refuse
with an error reply instead of a close code that some SDKs retry for ever.
"""

import asyncio
from typing import Any

import structlog
from fastapi import APIRouter, WebSocket
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocketDisconnect

from app.core.metrics import CLOSES, JOINS_REFUSED
from app.core.settings import Settings
from app.gateway.admission import Refusal
from app.gateway.commanding import take_frame
from app.gateway.connection import Connection
from app.gateway.hub import Hub
from app.protocol import codes
from app.protocol.codec import Codec
from app.protocol.json_codec import JSON

CODECS: tuple[Codec, ...] = (JSON,)
FRAME_FACTOR = 16  # a frame may pipeline several messages of the largest size
SEND_BYTES_MAX = 64 * 1024  # in one frame: the server takes a whole frame before it says that the socket is full
CLOSE_GRACE_S = 5.0  # for a client that does not read: then the socket is dropped without a close frame

log = structlog.get_logger()
router = APIRouter()


def frame_bytes_max(settings: Settings) -> int:
    """For the server's `ws_max_size`."""
    return settings.message_bytes_max * FRAME_FACTOR


@router.websocket("/connection/websocket")
async def connection_websocket(websocket: WebSocket) -> None:
    try:
        await _take_in(websocket, websocket.app.state.hub)
    except (WebSocketDisconnect, OSError) as failure:
        log.debug("client gone during the handshake", error=type(failure).__name__)


async def _take_in(websocket: WebSocket, hub: Hub) -> None:
    refusal = _refusal(websocket, hub)
    if refusal is not None:
        JOINS_REFUSED.labels(refusal.reason).inc()
        await _deny(websocket, refusal)
        return
    codec, subprotocol = choose_codec(websocket.scope.get("subprotocols", []), _asked_format(websocket))
    await websocket.accept(subprotocol=subprotocol)
    if codec is None:
        CLOSES.labels(str(codes.CLOSE_NOT_AVAILABLE.number)).inc()
        await websocket.close(codes.CLOSE_NOT_AVAILABLE.number, codes.CLOSE_NOT_AVAILABLE.reason)
    else:
        await _serve(websocket, hub, codec)


def choose_codec(offered: list[str], asked_format: str) -> tuple[Codec | None, str | None]:
    """The codec, and the subprotocol to echo: the first offered that is ours, else the one asked for in the address, else JSON."""
    for subprotocol in offered:
        for codec in CODECS:
            if subprotocol == codec.subprotocol:
                return codec, subprotocol
    if any(subprotocol.startswith("centrifuge-") for subprotocol in offered):
        return None, None
    by_name = {codec.name: codec for codec in CODECS}
    return by_name.get(asked_format or "json"), None


def _asked_format(websocket: WebSocket) -> str:
    return websocket.query_params.get("format") or websocket.query_params.get("cf_protocol") or ""


def _refusal(websocket: WebSocket, hub: Hub) -> Refusal | None:
    return hub.admission.refusal(
        origin=websocket.headers.get("origin", ""),
        host=websocket.headers.get("host", ""),
        connections=len(hub.connections),
        is_draining=hub.is_draining,
        now_ms=hub.now_ms(),
    )


async def _deny(websocket: WebSocket, refusal: Refusal) -> None:
    if "websocket.http.response" not in websocket.scope.get("extensions", {}):
        await websocket.close()  # the server makes it a 403
        return
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    await websocket.send_denial_response(PlainTextResponse(refusal.reason, refusal.status, headers))


async def _serve(websocket: WebSocket, hub: Hub, codec: Codec) -> None:
    transport = AsgiTransport(websocket, codec, hub)
    connection = transport.connection = hub.connect(codec, transport)
    reader = asyncio.create_task(_read(websocket, hub, connection))
    writer = asyncio.create_task(transport.run())
    try:
        await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        hub.disconnect(connection)
        transport.end()
        for task in (reader, writer):
            task.cancel()
        await asyncio.gather(reader, writer, return_exceptions=True)


async def _read(websocket: WebSocket, hub: Hub, connection: Connection) -> None:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        take_frame(hub, connection, _frame_of(message))


def _frame_of(message: Any) -> bytes:
    text = message.get("text")
    return message["bytes"] if text is None else text.encode()


class AsgiTransport:
    """The outbox of one client and its single writer. Whatever has gathered while a send was waiting goes out as one frame."""

    def __init__(self, websocket: WebSocket, codec: Codec, hub: Hub) -> None:
        self.connection: Connection | None = None
        self._websocket = websocket
        self._codec = codec
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        self._waiting: list[bytes] = []
        self._buffered = 0
        self._in_flight = 0
        self._work = asyncio.Event()
        self._close: tuple[int, str] | None = None
        self._runner: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def buffered_bytes(self) -> int:
        return self._buffered + self._in_flight

    @staticmethod
    def pack(payload: bytes, is_text: bool) -> bytes:
        """The server frames it."""
        return payload

    def write(self, frame: bytes) -> None:
        if self._close is None:
            self._waiting.append(frame)
            self._buffered += len(frame)
            self._work.set()
            if self.connection is not None and self.buffered_bytes > self._hub.settings.send_buffer_shed_bytes:
                self.connection.pause()

    def close(self, code: int, reason: str) -> None:
        if self._close is None:
            self._close = (code, reason)
            self._work.set()
            if self._runner is not None:
                self._deadline = self._loop.call_later(CLOSE_GRACE_S, self._runner.cancel)

    def abort(self) -> None:
        self._waiting.clear()
        self._buffered = 0
        self._close = self._close or (codes.CLOSED.number, codes.CLOSED.reason)
        if self._runner is not None:
            self._runner.cancel()

    def end(self) -> None:
        """The socket is gone: nothing more is taken."""
        self._close = self._close or (codes.CLOSED.number, codes.CLOSED.reason)
        if self._deadline is not None:
            self._deadline.cancel()

    async def run(self) -> None:
        """The writer. Ends when the socket was closed by either side."""
        self._runner = asyncio.current_task()
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                while self._waiting:
                    await self._send_next()
                if self._close is not None:
                    code, reason = self._close
                    await self._websocket.close(code, reason)
                    return
        except (WebSocketDisconnect, RuntimeError, OSError) as failure:
            log.debug("client gone while sending", error=type(failure).__name__)

    def _next_frame(self) -> bytes:
        """What waits, up to about SEND_BYTES_MAX, as one frame."""
        count, size = 1, len(self._waiting[0])
        while count < len(self._waiting) and size + len(self._waiting[count]) <= SEND_BYTES_MAX:
            size += len(self._waiting[count])
            count += 1
        frame = self._waiting[0] if count == 1 else self._codec.join(self._waiting[:count])
        del self._waiting[:count]
        self._in_flight = size
        return frame

    async def _send_next(self) -> None:
        frame = self._next_frame()
        self._buffered -= self._in_flight
        if self._codec.is_text:
            await self._websocket.send({"type": "websocket.send", "text": frame.decode()})
        else:
            await self._websocket.send({"type": "websocket.send", "bytes": frame})
        self._in_flight = 0
        if self.connection is not None and self.buffered_bytes <= self._hub.settings.send_buffer_shed_bytes:
            self.connection.resume()
