"""uvicorn as the gateway needs it: drained before it closes sockets, and with limits that leave the session its say.

uvicorn's own shutdown closes every websocket with 1012 at the same instant, before the application hears of it. Here the hub is drained
first, with 3001 in jittered slices, while the process still answers health checks ("draining") and commands that are under way.
"""

import socket

import uvicorn
from fastapi import FastAPI

from app.core.settings import Settings

FRAME_FACTOR = 16  # a frame may pipeline several messages of `message_bytes_max`


def server_config(app: FastAPI, settings: Settings, *, host: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        ws="websockets-sansio",
        ws_max_size=settings.message_bytes_max * FRAME_FACTOR,
        ws_per_message_deflate=False,  # costs 64 KiB and more a connection, and frames could not be shared
        ws_ping_interval=None,  # the protocol has its own pings
        timeout_graceful_shutdown=10,
    )


class Server(uvicorn.Server):
    """`await Server(server_config(app, settings, ...), app).serve()`."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.draining = True
        await self._app.state.hub.drain()
        await super().shutdown(sockets)
