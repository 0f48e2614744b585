"""Runs the web process: uvicorn with what the gateway needs, and a stop that lets viewers leave in an orderly way."""

import asyncio
import gc
import logging
import os
import socket

import uvicorn
from fastapi import FastAPI

from app.core.logs import configure_logs
from app.core.settings import Settings
from app.gateway.door import door
from app.gateway.endpoint import frame_bytes_max
from app.main import create_app
from app.renewal import READY

FORCE_LOOK_S = 0.1
COLLECTOR_THRESHOLDS = (5_000, 5, 40)  # the first two keep a young collection under some 10 ms


def without_addresses(record: logging.LogRecord) -> bool:
    """Leaves out uvicorn's lines about websockets: they carry the whole address, and some clients put a token there."""
    return '"WebSocket %s"' not in str(record.msg)


class Server(uvicorn.Server):
    """uvicorn closes every websocket the moment it is told to stop. This one first stops accepting and lets the gateway hand its viewers
    over, in small groups with a reason that their SDKs understand; a second Ctrl-C cuts that short."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, *, ready_descriptor: int | None = None) -> None:
        super().__init__(config)
        self._app = app
        self._ready_descriptor = ready_descriptor

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._ready_descriptor is not None and self.started:
            os.write(self._ready_descriptor, READY)
            os.close(self._ready_descriptor)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        self._app.state.draining = True
        hub = self._app.state.hub
        if hub is not None:
            drain = asyncio.ensure_future(hub.drain())
            while not drain.done() and not self.force_exit:
                await asyncio.wait([drain], timeout=FORCE_LOOK_S)
            drain.cancel()
            await asyncio.gather(drain, return_exceptions=True)
            if self.force_exit:
                hub.abort()  # uvicorn waits for sockets that it no longer knows how to close
        await super().shutdown(sockets)


def serve(settings: Settings, *, descriptor: int | None = None, ready_descriptor: int | None = None) -> None:
    """Until SIGTERM or SIGINT. `descriptor`: a listening socket that the supervisor holds, instead of host and port; `ready_descriptor`:
    where it waits for the word that this process serves."""
    configure_logs(settings, "web")
    logging.getLogger("uvicorn.error").addFilter(without_addresses)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=door(app.state.hub),
        ws="websockets-sansio",  # uvicorn takes upgrades only with one; `http` answers them all before it
        ws_max_size=frame_bytes_max(settings),  # the gateway itself refuses what is too large, by an error reply
        ws_ping_interval=None,  # the client protocol has pings of its own
        ws_ping_timeout=None,
        ws_per_message_deflate=False,  # 64 to 316 KiB a connection, and frames could not be shared
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=2048,
        timeout_graceful_shutdown=max(1, int(settings.drain_s)),
    )
    sockets = None if descriptor is None else [socket.socket(fileno=descriptor)]
    calm_collector()
    Server(config, app, ready_descriptor=ready_descriptor).run(sockets)


def calm_collector() -> None:
    """Viewers are hundreds of thousands of objects that live long and are freed by their counts. A full collection walks all of them while
    nobody is served (15,000 viewers and the modules: 0.2 s, with neighbours 0.7 s; five times while they join), so it comes about once in a
    million objects that stay, instead of with every quarter more. What was made until now stays and is never walked again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
