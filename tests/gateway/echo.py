"""Both shells with an echo in the session's place, so that any websocket test suite can talk to them. Without engines.

    python -m tests.gateway.echo socket 9001        # or asgi; until Ctrl-C

What answers is the product's own transport; only what it does with a whole message is replaced.
"""

import asyncio
import sys
from types import SimpleNamespace
from typing import Any, cast

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from app.core.settings import Settings
from app.gateway.asgi_transport import AsgiTransport
from app.gateway.door import door
from app.gateway.endpoint import PATH, frame_bytes_max
from app.gateway.handover import GatewayHttp
from app.gateway.socket_transport import ViewerSocket
from app.protocol.framing import pack_frame
from app.protocol.json_codec import JSON
from tests.support.waiting import wait_until

MESSAGE_BYTES_MAX = 2 * 1024 * 1024  # frames of 32 MiB: the Autobahn suite sends up to 16


class EchoSocket(ViewerSocket):
    __slots__ = ()

    def _take(self, payload: bytes, *, is_text: bool) -> None:
        if self._connection is not None:
            self.write(pack_frame(payload, is_text))


class EchoAsgi(AsgiTransport):
    """Each message by itself, in the kind of frame that it came in."""

    def __init__(self, websocket: WebSocket, hub: Any) -> None:
        super().__init__(websocket, hub, JSON)
        self._kinds: list[bool] = []

    def _take(self, payload: bytes, *, is_text: bool) -> None:
        self._kinds.append(is_text)
        self.write(payload)

    def _next_frame(self) -> bytes:
        self._codec = cast(Any, SimpleNamespace(is_text=self._kinds.pop(0)))
        frame = self._waiting.pop(0)
        self._buffered -= len(frame)
        self._in_flight = len(frame)
        return frame


class EchoHub:
    """As much of a hub as the shells ask for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connections: set[Any] = set()
        self.is_draining = False
        self.admission = SimpleNamespace(refusal=lambda **_: None)

    def now_ms(self) -> float:
        return asyncio.get_running_loop().time() * 1000

    def connect(self, codec: Any, transport: Any) -> Any:
        connection = _Echoed(transport)
        self.connections.add(connection)
        return connection

    def disconnect(self, connection: Any) -> None:
        self.connections.discard(connection)


class _Echoed:
    def __init__(self, transport: Any) -> None:
        self.transport = transport

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class EchoServer:
    """In this process, on a port of its own."""

    def __init__(self, shell: str, port: int = 0, *, message_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self.hub = EchoHub(Settings(message_bytes_max=message_bytes_max))
        self._server = uvicorn.Server(_config(shell, port, self.hub))
        self.port = port

    async def __aenter__(self) -> "EchoServer":
        self._task = asyncio.create_task(self._server._serve())
        await wait_until(lambda: self._server.started)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.should_exit = True
        for connection in list(self.hub.connections):
            connection.transport.abort()
        await self._task

    async def run(self) -> None:
        await self._server.serve()


def _config(shell: str, port: int, hub: EchoHub) -> uvicorn.Config:
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await EchoAsgi(websocket, hub).carry()

    class EchoHttp(GatewayHttp):
        socket_class = EchoSocket

    return uvicorn.Config(
        Starlette(routes=[WebSocketRoute(PATH, echo)]),
        host="127.0.0.1",
        port=port,
        http=door(cast(Any, hub), EchoHttp) if shell == "socket" else "httptools",
        ws="websockets-sansio",
        ws_max_size=frame_bytes_max(hub.settings),
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        lifespan="off",
        log_config=None,
        access_log=False,
    )


if __name__ == "__main__":
    uvloop.run(EchoServer(sys.argv[1], int(sys.argv[2])).run())
