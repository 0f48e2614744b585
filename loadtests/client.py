"""One viewer's websocket, for Locust: the client protocol in JSON over websocket-client, which gevent makes cooperative.

Request events: `RPC <method>` from send to reply; `WS connect` from dial to the last subscribe reply; pushes are counted, not timed.
An error that the server calls temporary is counted as `temporary`, not as a failure: a viewer would try again.
"""

import itertools
import json
import time
from typing import Any

import gevent
import websocket
from gevent.event import AsyncResult
from locust.env import Environment

REPLY_TIMEOUT_S = 10


class Temporary(Exception):
    """The server is busy and said so."""


class Connection:
    def __init__(self, environment: Environment, url: str, token: str) -> None:
        self._environment = environment
        self._url = url
        self._token = token
        self._ids = itertools.count(1)
        self._waiting: dict[int, AsyncResult[dict[str, Any]]] = {}
        self._socket: websocket.WebSocket | None = None
        self._reader: gevent.Greenlet[Any, Any] | None = None
        self.pushes = 0

    def open(self, channels: list[str]) -> bool:
        started = time.perf_counter()
        failure: Exception | None = None
        try:
            self._socket = websocket.create_connection(self._url, timeout=REPLY_TIMEOUT_S, subprotocols=["centrifuge-json"])
            self._reader = gevent.spawn(self._read, self._socket)
            connect = self._send({"connect": {"token": self._token, "name": "locust"}})
            subscribed = [self._send({"subscribe": {"channel": channel, "recover": False}}) for channel in channels]
            for waiting in (connect, *subscribed):
                _raise_error(waiting.get(timeout=REPLY_TIMEOUT_S))
        except (OSError, websocket.WebSocketException, gevent.Timeout, RuntimeError, Temporary) as problem:
            failure = problem if isinstance(problem, Exception) else RuntimeError("no answer to connect")
            self.close()
        busy = isinstance(failure, Temporary) or (isinstance(failure, websocket.WebSocketBadStatusException) and failure.status_code == 503)
        self._fire("WS", "connect (503, retried)" if busy else "connect", started, None if busy else failure)
        return failure is None

    def close(self) -> None:
        """Drops the line as a phone in a tunnel does: no goodbye."""
        if self._socket is not None:
            self._socket.shutdown()
            self._socket = None
        if self._reader is not None:
            self._reader.kill()
            self._reader = None

    def call(self, method: str, data: dict[str, Any]) -> dict[str, Any]:
        """The reply's data, or an empty dict when it failed; the failure is in Locust's table then."""
        started = time.perf_counter()
        failure: Exception | None = None
        reply: dict[str, Any] = {}
        try:
            answer = self._send({"rpc": {"method": method, "data": data}}).get(timeout=REPLY_TIMEOUT_S)
            _raise_error(answer)
            reply = answer["rpc"]["data"]
        except Temporary:
            self._fire("RPC", f"{method} (temporary)", started, None)
            return {}
        except gevent.Timeout:
            failure = RuntimeError("no reply in time")
        except (OSError, websocket.WebSocketException, RuntimeError) as problem:
            failure = problem
        outcome = reply.get("outcome", "")
        self._fire("RPC", f"{method} {outcome}".strip(), started, failure)
        return reply

    def _send(self, command: dict[str, Any]) -> "AsyncResult[dict[str, Any]]":
        if self._socket is None:
            raise RuntimeError("not connected")
        number = next(self._ids)
        self._waiting[number] = AsyncResult()
        self._socket.send(json.dumps({"id": number, **command}))
        return self._waiting[number]

    def _read(self, socket: websocket.WebSocket) -> None:
        socket.settimeout(None)
        try:
            while frame := socket.recv():
                for line in frame.split("\n"):
                    self._take(socket, json.loads(line))
        except (OSError, websocket.WebSocketException):
            pass  # the line was cut: those who wait are told below
        for waiting in self._waiting.values():
            waiting.set_exception(RuntimeError("the connection was cut"))
        self._waiting.clear()

    def _take(self, socket: websocket.WebSocket, message: dict[str, Any]) -> None:
        if not message:
            socket.send("{}")
        elif "id" in message:
            waiting = self._waiting.pop(message["id"], None)
            if waiting is not None:
                waiting.set(message)
        else:
            self.pushes += 1

    def _fire(self, kind: str, name: str, started: float, failure: Exception | None) -> None:
        elapsed_ms = (time.perf_counter() - started) * 1000
        self._environment.events.request.fire(
            request_type=kind, name=name, response_time=elapsed_ms, response_length=0, exception=failure, context={}
        )


def _raise_error(reply: dict[str, Any]) -> None:
    error = reply.get("error")
    if error is None:
        return
    if error.get("temporary"):
        raise Temporary(error["message"])
    raise RuntimeError(f"{error['code']} {error['message']}")
