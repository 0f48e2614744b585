"""What every HTTP request passes through, as plain ASGI: request id, metrics, security headers, the whole body within its limit, who calls.

Outside in: `Edge` (id, metrics, headers, and the last net under every failure), `WholeBody`, `WhoCalls`, then idempotency.py, then FastAPI.
Websockets pass untouched: the gateway has limits of its own.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from time import perf_counter

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.caller import NOBODY, Caller
from app.core.errors import AppError
from app.core.metrics import REQUEST_SECONDS, REQUESTS
from app.protocol.codes import BAD_REQUEST, LIMIT_EXCEEDED, UNAUTHORIZED
from app.rest.dispatch import NUL_REFUSED, refuse_nul
from app.rest.problems import failure_response, problem_response

Resolve = Callable[[str], Awaitable[Caller]]  # token -> caller; raises AppError

_HOST = re.compile(r"[A-Za-z0-9.\-]{1,253}(:[0-9]{1,5})?|\[[0-9a-fA-F:.]{2,45}\](:[0-9]{1,5})?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_FIXED_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Edge:
    """Outermost. `new_id` gives request ids; one that a proxy in front made is kept."""

    def __init__(self, app: ASGIApp, new_id: Callable[[], str]) -> None:
        self._app = app
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else self._new_id()
        policy = content_security_policy(headers.get("host", ""))
        started = perf_counter()
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["X-Request-Id"] = request_id
                out.setdefault("Content-Security-Policy", policy)
                for name, value in _FIXED_HEADERS.items():
                    out.setdefault(name, value)
            await send(message)

        with structlog.contextvars.bound_contextvars(request=request_id):
            try:
                await self._app(scope, receive, send_on)
            except Exception as failure:  # the last net: whatever escaped becomes a problem, and is logged there
                response = failure_response(failure, scope["path"])
                if status == 0:
                    await response(scope, receive, send_on)
            finally:
                _count(scope, status, perf_counter() - started)


def content_security_policy(host: str) -> str:
    """Scripts, styles and connections from here alone. Old Safari does not count a websocket to the same host as 'self', so it is named."""
    sockets = f" ws://{host} wss://{host}" if _HOST.fullmatch(host) else ""
    return (
        "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data: https:; "
        f"connect-src 'self'{sockets}; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


def _count(scope: Scope, status: int, seconds: float) -> None:
    """Labels come from the route's pattern, never from the path a client chose."""
    route = getattr(scope.get("route"), "path", "none")
    method = scope["method"] if scope["method"] in _METHODS else "other"
    REQUESTS.labels(method, route, f"{status // 100}xx").inc()
    REQUEST_SECONDS.labels(route).observe(seconds)


class WholeBody:
    """Reads the body, at most `bytes_max` within `timeout_s`, before anything else sees the request, and refuses the character NUL.

    PostgreSQL cannot store NUL, in any text: refused here once, no route and no archive has to think of it.
    """

    def __init__(self, app: ASGIApp, bytes_max: int, timeout_s: float) -> None:
        self._app = app
        self._bytes_max = bytes_max
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read_in_time(Headers(scope=scope).get("content-length", "0"), receive)
            if "\0" in scope["path"] or b"%00" in scope["query_string"]:
                raise AppError(BAD_REQUEST, NUL_REFUSED)
            refuse_nul(body)
        except AppError as error:
            await problem_response(error, scope["path"])(scope, receive, send)
            return
        except ClientDisconnect:
            return
        await self._app(scope, replay(body, receive), send)

    async def _read_in_time(self, declared: str, receive: Receive) -> bytes:
        """The server waits for ever: who announced a body and sent none kept its connection and its task."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._read(declared, receive)
        except TimeoutError:
            raise AppError(BAD_REQUEST, f"the body did not come within {self._timeout_s:g} s") from None

    async def _read(self, declared: str, receive: Receive) -> bytes:
        """Refuses by the declared length at once, else when the body has grown too long."""
        too_large = AppError(LIMIT_EXCEEDED, f"a body holds at most {self._bytes_max} bytes")
        if not declared.isdecimal() or int(declared[:20]) > self._bytes_max:
            raise too_large
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            if len(body) > self._bytes_max:
                raise too_large
            if not message.get("more_body", False):
                return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands out a body that was read already, then goes on with the connection."""
    handed_out = False

    async def receive_again() -> Message:
        nonlocal handed_out
        if handed_out:
            return await receive()
        handed_out = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


class WhoCalls:
    """Puts the caller into `request.state.caller`: nobody without a token. A token that is wrong is refused even where none is needed."""

    def __init__(self, app: ASGIApp, resolve: Resolve) -> None:
        self._app = app
        self._resolve = resolve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            scope.setdefault("state", {})["caller"] = await self._caller(Headers(scope=scope).get("authorization", ""))
        except AppError as error:
            await problem_response(error, scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _caller(self, authorization: str) -> Caller:
        if not authorization:
            return NOBODY
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise AppError(UNAUTHORIZED, "send the token as `Authorization: Bearer <token>`")
        return await self._resolve(token.strip())
