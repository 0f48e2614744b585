"""One client: its session, its transport, and what it takes part in. Knows nothing of sockets, so that any transport can carry it.

All that goes out passes `flush` or `write`, in the order of the calls and without a pause in between; that is what keeps a subscribe
reply before the channel's first publication. The sweep writes by `write_packed`, and only to connections that are open and not paused.

The transport says when the client takes nothing (`pause`) and when it does again (`resume`), so slowness costs a delivery nothing.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from app.core.caller import NOBODY, Caller
from app.core.metrics import CLOSES
from app.core.settings import Settings
from app.protocol import codes
from app.protocol.codec import Codec
from app.protocol.codes import CloseCode
from app.protocol.session import Limits, Session, State

if TYPE_CHECKING:
    from app.gateway.clocks import Slot
    from app.gateway.room import Member

Pack = Callable[[bytes, bool], bytes]
Watch = Callable[["Connection"], None]


class Transport(Protocol):
    """Takes whole frames, keeps them in order, and counts what the client has not taken off it yet.

    It calls `connection.pause()` once more than `send_buffer_shed_bytes` wait, and `connection.resume()` when they are out.
    """

    @staticmethod
    def pack(payload: bytes, is_text: bool) -> bytes:
        """What `write` takes: for a socket a finished websocket frame, made once for all viewers of one codec."""
        ...

    @property
    def write(self) -> Callable[[bytes], None]:
        """Takes packed bytes and never blocks. Not to be called after `close`."""
        ...

    @property
    def buffered_bytes(self) -> int: ...

    def close(self, code: int, reason: str) -> None:
        """Closes once what was written is out, or soon without it. More calls have no effect."""
        ...

    def abort(self) -> None:
        """Drops the socket and what waits for it at once."""
        ...


class Connection:
    """`watch` is called after all that may change what the session waits for."""

    __slots__ = (
        "caller",
        "codec",
        "id",
        "members",
        "own_after",
        "paused_at_ms",
        "session",
        "settings",
        "slot",
        "transport",
        "watch",
        "write_packed",
    )

    def __init__(
        self, *, connection_id: str, session: Session, codec: Codec, transport: Transport, settings: Settings, watch: Watch | None = None
    ) -> None:
        self.id = connection_id
        self.session = session
        self.codec = codec
        self.transport = transport
        self.write_packed = transport.write
        self.settings = settings
        self.watch = watch
        self.caller: Caller = NOBODY
        self.members: tuple[Member, ...] = ()  # what this connection has of each room
        self.own_after = 0  # the offset after which it has its viewer's own channel
        self.paused_at_ms: float | None = None
        self.slot: Slot | None = None  # of the clocks

    @property
    def is_open(self) -> bool:
        return self.session.state is not State.CLOSED

    @property
    def is_busy(self) -> bool:
        """To be looked at every second."""
        return self.is_open and (self.paused_at_ms is not None or self.session.is_busy)

    def member_of(self, room_id: str) -> "Member | None":
        for member in self.members:
            if member.home.id == room_id:
                return member
        return None

    def is_in(self, room_id: str) -> bool:
        """Also while it is only coming in: a ban must reach who was admitted a moment before it."""
        return self.member_of(room_id) is not None or any(
            one.partition(":")[2] == room_id for one in (*self.session.channels, *self.session.pipelined_channels())
        )

    @property
    def is_slow(self) -> bool:
        """Too much waits for this client: chat and readings are skipped for it."""
        return self.paused_at_ms is not None

    def pause(self) -> None:
        """From the transport: the client does not take what it is sent."""
        if self.paused_at_ms is None:
            self.paused_at_ms = asyncio.get_running_loop().time() * 1000
            self._set_apart()
            self._watch()

    def resume(self) -> None:
        """From the transport: what waited is out."""
        self.paused_at_ms = None

    def _set_apart(self) -> None:
        for member in self.members:
            member.home.set_apart(member)

    def _watch(self) -> None:
        if self.watch is not None and self.is_open:
            self.watch(self)

    def flush(self) -> None:
        """Hands over what the session has to say, and closes when the session is over."""
        session = self.session
        messages = session.data_to_send()
        if messages and self.is_open and self.transport.buffered_bytes > self.settings.send_buffer_bytes_max:
            session.close(codes.SLOW)  # asks on and takes no answer: each may be a whole history
            messages = session.data_to_send()
        if messages:
            self.write_packed(self.transport.pack(self.codec.join(messages), self.codec.is_text))
        code = session.close_code
        if code is not None:
            session.close_code = None
            self._set_apart()
            CLOSES.labels(str(code.number)).inc()
            self.transport.close(code.number, code.reason)
        self._watch()

    def write(self, frame: bytes) -> None:
        """Publications, framed for all."""
        self.send(self.transport.pack(frame, self.codec.is_text))

    def send(self, packed: bytes) -> None:
        """A client that cannot take it is closed and recovers; stage events are never skipped.

        One that has taken what it was sent so far is sent the next window however large: then the window is large, not the client slow.
        """
        if not self.is_open:
            return
        waiting = self.transport.buffered_bytes
        if waiting > self.settings.send_buffer_shed_bytes and waiting + len(packed) > self.settings.send_buffer_bytes_max:
            self.close(codes.SLOW)
        else:
            self.write_packed(packed)

    def close(self, code: CloseCode) -> None:
        self.session.close(code)
        self.flush()

    def drain(self, now_ms: float) -> None:
        self.session.drain(now_ms)
        self.flush()

    def tick(self, now_ms: float) -> None:
        if self.paused_at_ms is not None and now_ms - self.paused_at_ms > self.settings.send_stalled_s_max * 1000:
            self.session.close(codes.SLOW)
        self.session.tick(now_ms)
        self.flush()


def limits_of(settings: Settings) -> Limits:
    return Limits(
        ping_interval_ms=settings.ping_interval_s * 1000,
        pong_timeout_ms=settings.pong_timeout_s * 1000,
        connect_timeout_ms=settings.connect_timeout_s * 1000,
        message_bytes_max=settings.message_bytes_max,
        channel_bytes_max=settings.channel_bytes_max,
        channels_max=settings.channels_per_client_max,
        commands_per_s_max=settings.commands_per_s_max,
        errors_max=settings.errors_per_connection_max,
        refresh_grace_ms=settings.refresh_grace_s * 1000,
    )
