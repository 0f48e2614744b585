"""The plain way: FastAPI as tutorials write it. `python -m loadtests.bench.rivals.plain_fastapi PORT [REDIS_URL]`.

`/ws` broadcasts with `await send_text` in a loop what any of its clients sends; `/reserve` runs one script call a request.
uvicorn as it comes, but for pings and compression, which are off in all servers of the comparison.
"""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import redis.asyncio as redis_asyncio
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel

RESERVE = """
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 'held' end
local left = tonumber(redis.call('HGET', KEYS[1], ARGV[3]) or '0')
if left < 1 then return 'exhausted' end
redis.call('HINCRBY', KEYS[1], ARGV[3], -1)
redis.call('HSET', KEYS[2], ARGV[1], 1)
redis.call('ZADD', KEYS[3], ARGV[2], ARGV[1])
redis.call('XADD', KEYS[4], '*', 'h', ARGV[1])
return 'held'
"""
KEYS = ["{plain}:stock", "{plain}:holds", "{plain}:deadlines", "{plain}:log"]


class Hold(BaseModel):
    offer: str
    quantity: int
    key: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    if len(sys.argv) > 2:
        app.state.redis = redis_asyncio.from_url(sys.argv[2])
        await app.state.redis.delete(*KEYS)
        await app.state.redis.hset(KEYS[0], "on_sale", 10**9)
        app.state.sha = await app.state.redis.script_load(RESERVE)
    yield


app = FastAPI(lifespan=lifespan)
sockets: set[WebSocket] = set()


@app.websocket("/ws")
async def watch(socket: WebSocket) -> None:
    await socket.accept()
    sockets.add(socket)
    try:
        while True:
            text = await socket.receive_text()
            for one in list(sockets):
                await one.send_text(text)
    except WebSocketDisconnect:
        sockets.discard(socket)


@app.post("/reserve")
async def reserve(hold: Hold) -> dict[str, str]:
    word = await app.state.redis.evalsha(app.state.sha, len(KEYS), *KEYS, hold.key, 0, hold.offer)
    return {"outcome": word.decode()}


if __name__ == "__main__":
    uvicorn.run(
        app, port=int(sys.argv[1]), log_level="error", access_log=False, ws_per_message_deflate=False, ws_ping_interval=None, backlog=4096
    )
