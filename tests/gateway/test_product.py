"""The gateway inside the whole web process: middleware, all domains, lifespan."""

import asyncio

import uvicorn

from app.composition import build_registry
from app.domains.accounts.service import make_token
from app.main import create_app
from app.serve import Server
from app.storage.work import Engines
from tests.support.clients import raw_client
from tests.support.waiting import wait_until


async def test_the_whole_web_process_speaks_the_protocol(engines: Engines) -> None:
    product = Engines(engines.settings, engines.runtime, build_registry(), engines.sql, engines.sales, engines.fanout, engines.streams)
    app = create_app(engines=product)
    server = Server(uvicorn.Config(app, port=0, ws="websockets-sansio", ws_ping_interval=None, log_config=None, access_log=False), app)
    running = asyncio.create_task(server._serve())
    await wait_until(lambda: server.started and app.state.hub.bus.is_connected)
    port = server.servers[0].sockets[0].getsockname()[1]
    token = make_token(engines.settings, subject="ann", name="Ann", ttl_s=600, now_ms=engines.runtime.now_ms())
    async with raw_client(f"http://127.0.0.1:{port}", token) as client:
        assert (await client.command(subscribe={"channel": "room:nowhere"}))["error"]["code"] == 102
        reply = await client.command(rpc={"method": "chat.send", "data": {"room": "nowhere", "text": "x"}})
        assert reply["error"]["code"] == 107
        assert "key" in reply["error"]["message"]
    server.should_exit = True
    await running
