"""A client that shows every message as it came, in JSON or in Protobuf as the SDK's own generated classes read it. SDKs hide what tests
have to see: the order of things, what is empty, what a close says."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from centrifuge.protocol import client_pb2
from google.protobuf.internal.decoder import _DecodeVarint32
from google.protobuf.internal.encoder import _VarintBytes
from google.protobuf.json_format import MessageToDict, ParseDict
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

CODECS = ["json", "protobuf"]
FRAME_S_MAX = 30


class RawClient:
    def __init__(self, connection: ClientConnection, codec: str) -> None:
        self.connection = connection
        self.codec = codec
        self._waiting: list[dict[str, Any]] = []

    async def send(self, *commands: dict[str, Any]) -> None:
        """All in one frame; payloads are values."""
        if self.codec == "json":
            await self.connection.send("\n".join(json.dumps(command) for command in commands))
        else:
            await self.connection.send(b"".join(_framed(command) for command in commands))

    async def receive(self) -> dict[str, Any]:
        """The next message; {} is a ping. Raises ConnectionClosed."""
        while not self._waiting:
            frame = await asyncio.wait_for(self.connection.recv(), FRAME_S_MAX)
            self._waiting = [json.loads(line) for line in str(frame).split("\n")] if self.codec == "json" else _parsed(bytes(frame))
        return self._waiting.pop(0)

    async def ask(self, **command: Any) -> dict[str, Any]:
        await self.send(command)
        return await self.receive()

    async def rest(self) -> tuple[list[dict[str, Any]], tuple[int, str]]:
        """Everything until the server closes, and how it does."""
        messages: list[dict[str, Any]] = []
        try:
            while True:
                messages.append(await self.receive())
        except ConnectionClosed as closed:
            assert closed.rcvd is not None, "closed without a close frame"
            return messages, (closed.rcvd.code, closed.rcvd.reason)


def _framed(command: dict[str, Any]) -> bytes:
    message = ParseDict(_packed(command), client_pb2.Command()).SerializeToString()
    return _VarintBytes(len(message)) + message


def _packed(command: dict[str, Any]) -> dict[str, Any]:
    rpc = command.get("rpc")
    if rpc is None or "data" not in rpc:
        return command
    return {**command, "rpc": {**rpc, "data": base64.b64encode(json.dumps(rpc["data"]).encode()).decode()}}


def _parsed(frame: bytes) -> list[dict[str, Any]]:
    messages = []
    position = 0
    while position < len(frame):
        size, position = _DecodeVarint32(frame, position)
        reply = client_pb2.Reply.FromString(frame[position : position + size])
        messages.append(_unpacked(MessageToDict(reply, preserving_proto_field_name=True)))
        position += size
    return messages


def _unpacked(value: Any) -> Any:
    """Payloads as values, and 64-bit numbers, which Protobuf's JSON has as text."""
    if isinstance(value, list):
        return [_unpacked(one) for one in value]
    if not isinstance(value, dict):
        return value
    special = {"data": lambda raw: json.loads(base64.b64decode(raw)), "offset": int}
    return {name: special[name](one) if name in special else _unpacked(one) for name, one in value.items()}


@asynccontextmanager
async def raw_client(url: str, codec: str) -> AsyncGenerator[RawClient]:
    async with connect(url, subprotocols=[Subprotocol(f"centrifuge-{codec}")], proxy=None, compression=None) as connection:
        assert connection.subprotocol == f"centrifuge-{codec}"
        yield RawClient(connection, codec)
