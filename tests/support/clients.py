"""A raw client of the protocol: every frame as it came, nothing hidden, nothing repaired. The SDKs hide what a test may have to see."""

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError

REPLY_S_MAX = 10


class RawClient:
    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.create_task(self._read())
        self.node = ""
        self.pushes: list[dict[str, Any]] = []

    async def command(self, **command: Any) -> dict[str, Any]:
        """Sends one command and returns its whole reply."""
        number = next(self._ids)
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._replies[number] = reply
        await self._connection.send(json.dumps({"id": number, **command}))
        return await asyncio.wait_for(reply, REPLY_S_MAX)

    async def subscribe(self, channel: str, **options: Any) -> dict[str, Any]:
        reply = await self.command(subscribe={"channel": channel, **options})
        assert "subscribe" in reply, reply
        return reply["subscribe"]

    async def rpc(self, method: str, data: dict[str, Any]) -> dict[str, Any]:
        reply = await self.command(rpc={"method": method, "data": data})
        assert "rpc" in reply, reply
        return reply["rpc"]["data"]

    def publications(self, channel: str) -> list[dict[str, Any]]:
        return [push["pub"] for push in self.pushes if push.get("channel") == channel and "pub" in push]

    async def close(self) -> None:
        await self._connection.close()
        await self._reader

    async def _read(self) -> None:
        with suppress(ConnectionClosedError):  # how the server closed is in the disconnect push before it
            await self._read_frames()

    async def _read_frames(self) -> None:
        async for frame in self._connection:
            for line in str(frame).split("\n"):
                message = json.loads(line)
                if not message:
                    await self._connection.send("{}")
                elif "push" in message:
                    self.pushes.append(message["push"])
                else:
                    self._replies.pop(message["id"]).set_result(message)


@asynccontextmanager
async def raw_client(url: str, token: str) -> AsyncGenerator[RawClient]:
    """Connected with the token; `url` is the product's http address."""
    address = url.replace("http", "ws", 1) + "/connection/websocket"
    connection = await connect(address, proxy=None, compression=None)
    client = RawClient(connection)
    try:
        reply = await client.command(connect={"token": token})
        client.node = reply["connect"]["node"]
        yield client
    finally:
        await client.close()
