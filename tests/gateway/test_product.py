"""The gateway inside the whole web process: middleware, all domains, lifespan."""

import asyncio
import json

import uvicorn
from websockets.asyncio.client import connect

from app.composition import build_registry
from app.domains.accounts.service import make_token
from app.domains.accounts.tokens import FETCH_GAP_MS
from app.main import create_app
from app.serve import Server
from app.storage.work import Engines
from tests.domains.accounts.key_server import private_key, public_entry, publishing, signed
from tests.gateway.conftest import Nodes
from tests.support.clients import raw_client
from tests.support.runtime import TestRuntime
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


async def test_a_key_set_out_of_reach_is_no_final_no(nodes: Nodes, runtime: TestRuntime) -> None:
    """A viewer whose token nobody can check just now gets a temporary error, so that SDKs come again; 3500 would be the end."""
    async with publishing() as keys:
        await keys.stop()
        node = await nodes.start(jwks_url=keys.url)
        command = json.dumps({"id": 1, "connect": {"token": signed("ES256", {"sub": "ann"}, kid="one")}})
        async with connect(node.ws, proxy=None, compression=None) as connection:
            await connection.send(command)
            error = json.loads(await connection.recv())["error"]
            assert (error["code"], error["temporary"]) == (413, True)
        keys.publish(public_entry(private_key("ES256"), kid="one"))
        await keys.start()
        runtime.advance(FETCH_GAP_MS)
        async with raw_client(node.http, signed("ES256", {"sub": "ann"}, kid="one")) as client:
            assert client.node == node.hub.node_id
