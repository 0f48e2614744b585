"""One viewer's way in: the client protocol over a real websocket, or the REST twin, asked until there is an answer.

A cut line, silence and a temporary error are no answer: the same command goes out again with the same key, as an app would send it. What
cannot be answered for `ANSWER_S_MAX` is a broken promise of its own.
"""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from app.protocol.codes import ERRORS
from loadtests.torture.journal import Journal

REPLY_S_MAX = 6.0  # the product promises 5
ANSWER_S_MAX = 180.0
WORDS = {code.number: code.word for code in ERRORS}
HTTP_TEMPORARY = (429, 500, 502, 503, 504)


class Unanswered(Exception):
    """It may or may not have been done."""


class Refused(Exception):
    """A final error, by its word."""

    def __init__(self, word: str, text: str) -> None:
        super().__init__(f"{word}: {text}")
        self.word = word


@dataclass(slots=True)
class Tally:
    """What all lines have counted."""

    answered: int = 0
    answers: Counter[str] = field(default_factory=Counter[str])  # "method word"
    unanswered: Counter[str] = field(default_factory=Counter[str])  # why
    last_answer_s: float = field(default_factory=time.monotonic)
    silence_s_max: float = 0.0

    def answer(self, method: str, word: str) -> None:
        now = time.monotonic()
        self.silence_s_max = max(self.silence_s_max, now - self.last_answer_s)
        self.last_answer_s = now
        self.answered += 1
        self.answers[f"{method} {word}"] += 1


class Line:
    def __init__(
        self, url: str, viewer: str, token: str, tally: Tally, journal: Journal, rng: random.Random, hear: Callable[[dict[str, Any]], None]
    ) -> None:
        self._address = url.replace("http", "ws", 1) + "/connection/websocket"
        self._url = url
        self._viewer = viewer
        self._token = token
        self._tally = tally
        self._journal = journal
        self._rng = rng
        self._hear = hear
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._socket: ClientConnection | None = None
        self._joined = asyncio.Event()
        self._task = asyncio.create_task(self._stay())

    async def close(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def ask(self, method: str, data: dict[str, Any], *, http: httpx2.AsyncClient | None = None) -> dict[str, Any]:
        """The answer's data. Raises Refused; Unanswered only after `ANSWER_S_MAX`. With `http`: through the REST twin."""
        until = time.monotonic() + ANSWER_S_MAX
        while True:
            try:
                answer = await (self._post(http, method, data) if http else self._call(method, data))
            except Unanswered as failure:
                self._tally.unanswered[str(failure)] += 1
                self._journal.note(viewer=self._viewer, method=method, data=data, unanswered=str(failure))
                if time.monotonic() > until:
                    raise Unanswered(f"{method} had no answer for {ANSWER_S_MAX:.0f} s: {failure}") from None
                await asyncio.sleep(0.05 + self._rng.random() * 0.3)
            except Refused as refused:
                self._tally.answer(method, refused.word)
                self._journal.note(viewer=self._viewer, method=method, data=data, refused=str(refused))
                raise
            else:
                self._journal.note(viewer=self._viewer, method=method, data=data, answer=answer)
                self._tally.answer(method, answer.get("outcome", answer.get("state", "")) + (" (again)" if answer.get("repeated") else ""))
                return answer

    async def _call(self, method: str, data: dict[str, Any]) -> dict[str, Any]:
        try:
            await asyncio.wait_for(self._joined.wait(), REPLY_S_MAX)
        except TimeoutError:
            raise Unanswered("not connected") from None
        reply = await self._send({"rpc": {"method": method, "data": data}})
        error = reply.get("error")
        if error is None:
            found: dict[str, Any] = reply["rpc"]["data"]
            return found
        if error.get("temporary"):
            raise Unanswered(error["message"])
        raise Refused(WORDS.get(error["code"], str(error["code"])), error["message"])

    async def _send(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._socket
        number = next(self._ids)
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        reply.add_done_callback(lambda done: done.cancelled() or done.exception())  # who was to read it may have been cut off already
        self._waiting[number] = reply
        try:
            await self._socket.send(msgspec.json.encode({"id": number, **command}).decode())
            return await asyncio.wait_for(reply, REPLY_S_MAX)
        except TimeoutError:
            raise Unanswered("silence") from None
        except WebSocketException:
            raise Unanswered("cut") from None
        finally:
            self._waiting.pop(number, None)

    async def _post(self, http: httpx2.AsyncClient, method: str, data: dict[str, Any]) -> dict[str, Any]:
        return await post(http, f"{self._url}/api/v1/{method.replace('.', '/')}", self._token, data)

    async def _stay(self) -> None:
        """Connected for as long as this task lives."""
        while True:
            with suppress(OSError, WebSocketException, TimeoutError, Unanswered):
                async with connect(self._address, proxy=None, compression=None, open_timeout=REPLY_S_MAX, ping_interval=None) as socket:
                    self._socket = socket
                    await self._serve(socket)
            self._joined.clear()
            for reply in self._waiting.values():
                if not reply.done():
                    reply.set_exception(Unanswered("cut"))
            await asyncio.sleep(0.05 + self._rng.random() * 0.4)

    async def _serve(self, socket: ClientConnection) -> None:
        hello = asyncio.create_task(self._greet(socket))
        try:
            async for frame in socket:
                for line in frame.split("\n") if isinstance(frame, str) else ():
                    await self._take(socket, msgspec.json.decode(line))
        finally:
            hello.cancel()
            with suppress(asyncio.CancelledError, WebSocketException):
                await hello

    async def _greet(self, socket: ClientConnection) -> None:
        with suppress(Unanswered):
            reply = await self._send({"connect": {"token": self._token, "name": "torture"}})
            if "connect" in reply:
                self._joined.set()
                return
        await socket.close()

    async def _take(self, socket: ClientConnection, message: dict[str, Any]) -> None:
        if not message:
            await socket.send("{}")
        elif "id" in message:
            reply = self._waiting.get(message["id"])
            if reply is not None and not reply.done():
                reply.set_result(message)
        elif "pub" in message.get("push", {}):
            self._hear(message["push"]["pub"]["data"])


async def post(
    http: httpx2.AsyncClient, url: str, token: str, data: dict[str, Any] | None, *, key: str = "", method: str = "POST"
) -> dict[str, Any]:
    """One call. What a company's backend takes for an answer, and what it would send again."""
    headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **({"Idempotency-Key": key} if key else {})}
    try:
        answer = await http.request(method, url, json=data, headers=headers)
    except httpx2.HTTPError as failure:
        raise Unanswered(f"HTTP {type(failure).__name__}") from None
    if answer.is_success:
        found: dict[str, Any] = answer.json()
        return found
    if answer.status_code in HTTP_TEMPORARY or "retry-after" in answer.headers:
        raise Unanswered(f"HTTP {answer.status_code}")
    raise Refused(answer.json().get("word", str(answer.status_code)), answer.text[:300])
