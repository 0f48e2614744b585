"""Carries a session on a socket that was handed over: the event loop's protocol of that socket and the session's transport in one slotted
object. No task, no queue, no timer while the viewer is open, and no parser while nothing is half read.

    ViewerSocket(hub, transport).begin(codec, behind)     # after the 101 is written; `behind`: what came in with the handshake

Writes go straight to the loop's transport (`write` is its own bound method). What the client has not taken is counted there, and the loop
says when that is more than `send_buffer_shed_bytes`.

The end, whoever begins it, has a deadline (`close_grace_s`), after which the socket is dropped with what waits for it:
- the client closes, or sends its end: the session ends at once, the code is sent back, the socket closes when that is out;
- we close: the close frame goes behind what was written; the socket closes when the client's comes back;
- the client breaks the framing rules: a close frame with the code, then our end of the stream, so that the frame is not lost in a reset.
A client that is gone without a word is found out by the session, whose ping stays unanswered, and then meets the same deadline.
After `connection_lost` the object refers to no socket and no session, so that all is freed without the garbage collector.
"""

import asyncio
from collections.abc import Callable

from app.core.metrics import CLOSES
from app.gateway.commanding import take_frame
from app.gateway.connection import Connection
from app.gateway.endpoint import frame_bytes_max
from app.gateway.hub import Hub
from app.protocol import codes
from app.protocol.codec import Codec
from app.protocol.framing import (
    Broken,
    Closing,
    Event,
    Frames,
    Message,
    Ping,
    is_text_frame,
    pack_close,
    pack_frame,
    pack_pong,
    read_single,
)


class ViewerSocket(asyncio.Protocol):
    __slots__ = ("_connection", "_deadline", "_frames", "_hub", "_transport", "_write")

    pack = staticmethod(pack_frame)

    def __init__(self, hub: Hub, transport: asyncio.Transport) -> None:
        self._hub = hub
        self._transport: asyncio.Transport | None = transport
        self._write: Callable[[bytes], None] = transport.write
        self._connection: Connection | None = None
        self._frames: Frames | None = None
        self._deadline: asyncio.TimerHandle | None = None  # set once the end has begun

    def begin(self, codec: Codec | None, behind: bytes) -> None:
        """Takes the socket over. Without a codec only to say so and close."""
        assert self._transport is not None, "a socket is taken over once"
        self._transport.set_write_buffer_limits(high=self._hub.settings.send_buffer_shed_bytes)
        self._transport.set_protocol(self)
        if codec is None:
            self.close(codes.CLOSE_NOT_AVAILABLE.number, codes.CLOSE_NOT_AVAILABLE.reason)
        else:
            self._connection = self._hub.connect(codec, self)
            if self.buffered_bytes > self._hub.settings.send_buffer_shed_bytes:
                self._connection.pause()  # an answer that was not taken: the loop has said so before, to the server's class
        if behind:
            self.data_received(behind)

    # --- in -------------------------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._frames is None:
            payload = read_single(data)
            if payload is not None:
                self._take(payload, is_text=is_text_frame(data))
                return
            self._frames = Frames(frame_bytes_max(self._hub.settings))
        frames = self._frames
        for event in frames.receive(data):
            self._on_event(event)
        if frames.is_idle:
            self._frames = None

    def _on_event(self, event: Event) -> None:
        match event:
            case Message(payload, is_text):
                self._take(payload, is_text=is_text)
            case Ping(payload):
                self._answer_ping(payload)
            case Closing(code):
                self._end(code, "")
                self._hang_up()
            case Broken(code, reason):
                CLOSES.labels(str(code)).inc()
                self._end(code, reason)
                self._end_stream()

    def _take(self, payload: bytes, *, is_text: bool) -> None:
        """A message of the client. Either kind of frame is taken: the codec knows its own bytes."""
        if self._connection is not None:
            take_frame(self._hub, self._connection, payload)

    def _answer_ping(self, payload: bytes) -> None:
        """Not while the client takes nothing: pings must not fill its buffer. RFC 6455 5.5.3 asks for the latest alone."""
        if self._deadline is None and self.buffered_bytes <= self._hub.settings.send_buffer_shed_bytes:
            self._write(pack_pong(payload))

    # --- out ------------------------------------------------------------------------------------------------------------------------

    @property
    def write(self) -> Callable[[bytes], None]:
        return self._write

    @property
    def buffered_bytes(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def pause_writing(self) -> None:
        if self._connection is not None:
            self._connection.pause()

    def resume_writing(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    # --- the end --------------------------------------------------------------------------------------------------------------------

    def close(self, code: int, reason: str) -> None:
        """From the session. The socket closes when the client's close frame is here."""
        transport = self._transport
        if transport is None or self._deadline is not None:
            return
        if not transport.is_closing():
            transport.write(pack_close(code, reason))
        self._set_deadline()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _end(self, code: int, reason: str) -> None:
        """The client is through with us: what it took part in ends now, and not when the socket is gone."""
        self.close(code, reason)
        self._leave()

    def _set_deadline(self) -> None:
        if self._deadline is None and self._transport is not None:
            grace_s = self._hub.settings.close_grace_s
            self._deadline = asyncio.get_running_loop().call_later(grace_s, self._transport.abort)

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._hub.disconnect(connection)

    def _hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _end_stream(self) -> None:
        """What the client still sends is read and dropped: closing with bytes unread would reset the connection, close frame and all."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.can_write_eof():
            transport.write_eof()
        else:  # TLS
            transport.close()

    def eof_received(self) -> bool | None:
        """The client sends nothing more, not even a close frame: the loop closes the socket when what waits is out."""
        self._set_deadline()
        self._leave()
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._leave()
        self._transport = self._frames = self._deadline = None
        self._write = _drop


def _drop(packed: bytes) -> None:
    """The socket is gone."""
