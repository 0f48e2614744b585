"""What the session and the gateway ask of a codec: JSON or Protobuf. Nothing above this line knows which."""

from collections.abc import Sequence
from typing import Protocol

from app.protocol.messages import Command, Reply, Result

MESSAGES_MAX = 1024  # in one frame: more than any rate lets through, and few enough to be told apart in no time


class Malformed(Exception):
    """Bytes that are no message of the protocol."""


class Codec(Protocol):
    """Messages to bytes and back. A frame is one websocket message and carries several protocol messages."""

    @property
    def name(self) -> str: ...

    @property
    def subprotocol(self) -> str: ...

    @property
    def is_text(self) -> bool:
        """Whether its frames are text frames."""
        ...

    @property
    def ping(self) -> bytes:
        """The empty reply, which clients take for a ping."""
        ...

    def split(self, frame: bytes) -> list[bytes]:
        """The messages of a frame, at most MESSAGES_MAX. Raises Malformed."""
        ...

    def decode(self, message: bytes) -> Command:
        """Raises Malformed."""
        ...

    def decode_id(self, message: bytes) -> int:
        """Only the command's id: what is needed to refuse a message that is too large to be taken. Raises Malformed."""
        ...

    def encode(self, reply: Reply) -> bytes:
        """Ready to be joined, or to be a frame by itself. The same holds for `publication` and `ping`."""
        ...

    def result(self, result: Result) -> bytes:
        """All of a reply but its id: what many clients get is encoded once, and `reply` makes it each one's own."""
        ...

    def reply(self, command_id: int, result: bytes) -> bytes:
        """`encode(reply_with(command_id, ...))` of what `result` has encoded."""
        ...

    def publication(self, channel: str, offset: int, data: bytes) -> bytes:
        """A push of `data` (JSON), built around the payload without decoding it. Offset 0: without one."""
        ...

    def join(self, messages: Sequence[bytes]) -> bytes:
        """One frame of several messages; frames may be joined again."""
        ...
