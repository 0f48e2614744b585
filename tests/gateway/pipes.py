"""Clients without a socket, and publications, shared by the tests of windows and sweeps."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from app.core.caller import Caller
from app.core.settings import Settings
from app.gateway.connection import Connection, limits_of
from app.protocol.json_codec import JSON
from app.protocol.session import Session, State
from app.storage.streams import Delivered


@dataclass
class Pipe:
    """A client that takes what it is sent, or says that it has not."""

    frames: list[bytes] = field(default_factory=list[bytes])
    buffered_bytes: int = 0
    closed: int = 0
    on_write: Callable[[], None] | None = None

    @staticmethod
    def pack(payload: bytes, is_text: bool) -> bytes:
        return payload

    def write(self, frame: bytes) -> None:
        assert not self.closed, "nothing may follow the close frame"
        self.frames.append(frame)
        if self.on_write is not None:
            self.on_write()

    def abort(self) -> None:
        self.closed = self.closed or 1006

    def close(self, code: int, reason: str) -> None:
        self.closed = code

    def seen(self, number: int) -> list[Any]:
        """Of one write: offsets, or `pulse` for a reading."""
        pushes = [json.loads(line)["push"] for line in self.frames[number].split(b"\n")]
        return [(push["channel"].split(":")[0], push["pub"].get("offset", "pulse")) for push in pushes if "pub" in push]

    @property
    def all_seen(self) -> list[Any]:
        return [one for number in range(len(self.frames)) for one in self.seen(number)]


def client(name: str, settings: Settings | None = None, *, pipe: Pipe | None = None) -> tuple[Connection, Pipe]:
    settings = settings or Settings()
    pipe = pipe or Pipe()
    session = Session(JSON, limits_of(settings), now_ms=0, first_ping_share=1)
    session.state = State.CONNECTED
    connection = Connection(connection_id=name, session=session, codec=JSON, transport=pipe, settings=settings)
    connection.caller = Caller(id=name, name=name, kind="viewer")
    return connection, pipe


def spawn(work: Any) -> Any:
    return asyncio.ensure_future(work)


def stage(offset: int, data: bytes = b"{}") -> Delivered:
    return Delivered("room:r", offset, "e", data)


def chat(offset: int, viewer: str = "someone", role: str = "") -> Delivered:
    return Delivered("chat:r", offset, "e", json.dumps({"type": "chat.sent", "message": {"viewer": viewer, "role": role}}).encode())


PULSE = Delivered("room:r", 0, "e", b'{"type":"room.pulse"}')
