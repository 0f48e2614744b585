"""Who comes in and what is spoken: one decision for both ways in, and the route for servers that offer no handover.

`decide` is all that is asked before the upgrade: origin, draining, room for one more, rate of joins; then subprotocol and codec. `handover`
asks it before any ASGI is begun; the route here asks it where the server hands no socket over (a test client, another ASGI server).
`router` is included by the composition root, which also puts the started `Hub` into `app.state.hub`. Everything before `accept` is HTTP:
refused connections get a status and, when they may come again, a `Retry-After`.

The server's own limit of a frame (`ws_max_size`) must be `frame_bytes_max`, well above that of a message, so that the session can refuse
with an error reply instead of a close code that some SDKs retry for ever.
"""

from typing import NamedTuple
from urllib.parse import parse_qs

import structlog
from fastapi import APIRouter
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.core.metrics import CLOSES, JOINS_REFUSED
from app.core.settings import Settings
from app.gateway.admission import Refusal
from app.gateway.asgi_transport import AsgiTransport
from app.gateway.hub import Hub
from app.protocol import codes
from app.protocol.codec import Codec
from app.protocol.json_codec import JSON
from app.protocol.protobuf_codec import PROTOBUF

CODECS: tuple[Codec, ...] = (JSON, PROTOBUF)
PATH = "/connection/websocket"
FRAME_FACTOR = 16  # a frame may pipeline several messages of the largest size

log = structlog.get_logger()
router = APIRouter()


def frame_bytes_max(settings: Settings) -> int:
    """For the server's `ws_max_size`, and for frames of sockets handed over."""
    return settings.message_bytes_max * FRAME_FACTOR


# --- the decision -------------------------------------------------------------------------------------------------------------------


class Welcome(NamedTuple):
    """Upgrade, and echo the subprotocol. Without a codec (a subprotocol of the family that is none of ours): upgrade, and close for good,

    since an SDK would try for ever what is refused before the upgrade."""

    codec: Codec | None
    subprotocol: str | None


def decide(hub: Hub, *, origin: str, host: str, offered: list[str], query: bytes) -> Refusal | Welcome:
    refusal = hub.admission.refusal(
        origin=origin, host=host, connections=len(hub.connections), is_draining=hub.is_draining, now_ms=hub.now_ms()
    )
    if refusal is not None:
        return refusal
    welcome = Welcome(*choose_codec(offered, _asked_format(query)))
    if welcome.codec is None:
        CLOSES.labels(str(codes.CLOSE_NOT_AVAILABLE.number)).inc()
    return welcome


def choose_codec(offered: list[str], asked_format: str) -> tuple[Codec | None, str | None]:
    """The codec, and the subprotocol to echo: the first offered that is ours, else the one asked for in the address, else JSON."""
    for subprotocol in offered:
        for codec in CODECS:
            if subprotocol == codec.subprotocol:
                return codec, subprotocol
    if any(subprotocol.startswith("centrifuge-") for subprotocol in offered):
        return None, None
    by_name = {codec.name: codec for codec in CODECS}
    return by_name.get(asked_format or "json"), None


def _asked_format(query: bytes) -> str:
    if not query:
        return ""
    asked = parse_qs(query.decode("latin-1"))
    return asked.get("format", asked.get("cf_protocol", [""]))[-1]


# --- over plain ASGI ----------------------------------------------------------------------------------------------------------------


async def connection_websocket(websocket: WebSocket) -> None:
    try:
        await _take_in(websocket, websocket.app.state.hub)
    except (WebSocketDisconnect, OSError) as failure:
        log.debug("client gone during the handshake", error=type(failure).__name__)


router.add_websocket_route(PATH, connection_websocket)  # Starlette's: there are no dependencies for FastAPI to solve


async def _take_in(websocket: WebSocket, hub: Hub) -> None:
    answer = decide(
        hub,
        origin=websocket.headers.get("origin", ""),
        host=websocket.headers.get("host", ""),
        offered=websocket.scope.get("subprotocols", []),
        query=websocket.scope.get("query_string", b""),
    )
    if isinstance(answer, Refusal):
        JOINS_REFUSED.labels(answer.reason).inc()
        await _deny(websocket, answer)
        return
    await websocket.accept(subprotocol=answer.subprotocol)
    if answer.codec is None:
        await websocket.close(codes.CLOSE_NOT_AVAILABLE.number, codes.CLOSE_NOT_AVAILABLE.reason)
    else:
        await AsgiTransport(websocket, hub, answer.codec).carry()


async def _deny(websocket: WebSocket, refusal: Refusal) -> None:
    if "websocket.http.response" not in websocket.scope.get("extensions", {}):
        await websocket.close()  # the server makes it a 403
        return
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    await websocket.send_denial_response(PlainTextResponse(refusal.reason, refusal.status, headers))
