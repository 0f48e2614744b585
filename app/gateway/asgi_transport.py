"""Carries a session over plain ASGI, where the server hands no socket over. The framing is the server's.

One task reads and one writes; the writer is the only one that sends, so frames keep their order, and what waits for it is counted
(uvicorn's `send` waits while the socket is full). It costs a viewer two tasks, a queue and a scope; `socket_transport` costs none of them.
"""

import asyncio
from collections.abc import Callable

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.gateway.commanding import take_frame
from app.gateway.hub import Hub
from app.protocol import codes
from app.protocol.codec import Codec

SEND_BYTES_MAX = 64 * 1024  # in one frame: the server takes a whole frame before it says that the socket is full

log = structlog.get_logger()


class AsgiTransport:
    """The outbox of one client and its single writer. Whatever has gathered while a send was waiting goes out as one frame."""

    def __init__(self, websocket: WebSocket, hub: Hub, codec: Codec) -> None:
        self._websocket = websocket
        self._hub = hub
        self._codec = codec
        self._loop = asyncio.get_running_loop()
        self._waiting: list[bytes] = []
        self._buffered = 0
        self._in_flight = 0
        self._is_paused = False
        self._work = asyncio.Event()
        self._close: tuple[int, str] | None = None
        self._runner: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._connection = hub.connect(codec, self)

    async def carry(self) -> None:
        """Until the socket was closed by either side."""
        reader = asyncio.create_task(self._read())
        self._runner = asyncio.create_task(self._write_on())
        try:
            await asyncio.wait({reader, self._runner}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._hub.disconnect(self._connection)
            self._end()
            for task in (reader, self._runner):
                task.cancel()
            await asyncio.gather(reader, self._runner, return_exceptions=True)

    # --- in -------------------------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            if text is None:
                self._take(message["bytes"], is_text=False)
            else:
                self._take(text.encode(), is_text=True)

    def _take(self, payload: bytes, *, is_text: bool) -> None:
        """A message of the client. Either kind of frame is taken: the codec knows its own bytes."""
        take_frame(self._hub, self._connection, payload)

    # --- out ------------------------------------------------------------------------------------------------------------------------

    @staticmethod
    def pack(payload: bytes, is_text: bool) -> bytes:
        """The server frames it."""
        return payload

    @property
    def write(self) -> Callable[[bytes], None]:
        return self._put

    @property
    def buffered_bytes(self) -> int:
        return self._buffered + self._in_flight

    def _put(self, frame: bytes) -> None:
        if self._close is None:
            self._waiting.append(frame)
            self._buffered += len(frame)
            self._work.set()
            if not self._is_paused and self.buffered_bytes > self._hub.settings.send_buffer_shed_bytes:
                self._is_paused = True
                self._connection.pause()

    def close(self, code: int, reason: str) -> None:
        if self._close is None:
            self._close = (code, reason)
            self._work.set()
            self._deadline = self._loop.call_later(self._hub.settings.close_grace_s, self._stop)

    def abort(self) -> None:
        """Plain ASGI cannot drop a socket: the task ends, and the server closes it as it sees fit."""
        self._waiting.clear()
        self._buffered = 0
        self._end()
        self._stop()

    def _stop(self) -> None:
        if self._runner is not None:
            self._runner.cancel()

    def _end(self) -> None:
        """The socket is gone: nothing more is taken."""
        self._close = self._close or (codes.CLOSED.number, codes.CLOSED.reason)
        if self._deadline is not None:
            self._deadline.cancel()

    async def _write_on(self) -> None:
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
        self._buffered -= size
        return frame

    async def _send_next(self) -> None:
        frame = self._next_frame()
        if self._codec.is_text:
            await self._websocket.send({"type": "websocket.send", "text": frame.decode()})
        else:
            await self._websocket.send({"type": "websocket.send", "bytes": frame})
        self._in_flight = 0
        if self._is_paused and self.buffered_bytes <= self._hub.settings.send_buffer_shed_bytes:
            self._is_paused = False
            self._connection.resume()
