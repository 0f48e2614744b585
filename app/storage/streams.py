"""Channels with history: publish, read back, position. The fan-out role.

A channel has an epoch (names one life of its stream) and an offset that counts its publications. `publish` is one script for all that one
loop turn brings to a hash tag. A publication with a `once` id is made at most once within `ONCE_TTL_S`, so that the outbox may repeat
itself after a crash without a client seeing a duplicate. What is always made together shares one (`is_shared`): a key for each hold was a
third of what its publication costs the engine.

Chat gathers: a quiet room's line leaves at once, the following within `chat_gather_ms` go together, in one script call and one message to
the nodes, since viewers would get them together anyway. Nothing else waits. Measured (one core, Valkey 9): 48 us of the engine's time a
line alone, 14 in batches of five, 7.5 in batches of fifty, which is 1000 lines a second in one room; a node's reader takes 9 us a message.

On the wire between nodes a message is runs of publications of one channel, in lines: channel, epoch, offset of the first, how many, and
their data, which is JSON and holds no raw newline. Offset 0: they are transient.
"""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from app.core.errors import AppError
from app.core.runtime import Runtime
from app.core.settings import Settings
from app.protocol.channels import Kind, hash_tag, parse_channel
from app.protocol.codes import INTERNAL
from app.storage.gathering import raise_first
from app.storage.group_commit import GroupCommit
from app.storage.redis import Redis, Script

CONTROL_CHANNEL = "jishi:control"
ONCE_TTL_S = 3600
ENTRY_MAX = 2**64 - 1  # the engine knows no later entry; a client may name any position, also one that never was
META_TTL_S = 48 * 3600  # an epoch outlives its history: a client that comes back next morning learns that it missed something

_publish_script = Script(Path(__file__).with_name("publish.lua"))

log = structlog.get_logger()
_position_script = Script(Path(__file__).with_name("position.lua"))


class Publication(NamedTuple):
    """`is_shared`: those in a row that have the same `once` are made together or not at all, under one key of the engine. Whoever makes
    them again makes the same ones; a channel that cannot be published to loses its own."""

    channel: str
    data: bytes
    once: str = ""
    transient: bool = False
    is_shared: bool = False

    def goes_with(self, before: "Publication") -> bool:
        return self.is_shared and before.is_shared and self.once == before.once


class Delivered(NamedTuple):
    """A publication as nodes and histories carry it. `offset` 0: transient."""

    channel: str
    offset: int
    epoch: str
    data: bytes


class Position(NamedTuple):
    epoch: str
    offset: int


def push_channel(tag: str) -> str:
    return f"{{{tag}}}:push"


def parse_runs(message: bytes) -> Iterator[tuple[str, list[Delivered]]]:
    """A message between nodes: channel after channel, what it brings in order."""
    lines = message.split(b"\n")
    at = 0
    while at < len(lines):
        channel, epoch = lines[at].decode(), lines[at + 1].decode()
        first, count = int(lines[at + 2]), int(lines[at + 3])
        data = lines[at + 4 : at + 4 + count]
        if len(data) != count:
            raise ValueError("a message between nodes that was cut short")
        offsets = range(first, first + count) if first else repeat(0)
        yield channel, list(map(Delivered, repeat(channel), offsets, repeat(epoch), data))
        at += 4 + count


def parse_push(message: bytes) -> list[Delivered]:
    """The same in one list."""
    return [publication for _, run in parse_runs(message) for publication in run]


class Streams:
    def __init__(self, client: Redis, settings: Settings, runtime: Runtime) -> None:
        self._client = client
        self._settings = settings
        self._runtime = runtime
        limits: Any = {"batch_max": settings.group_commit_batch_max, "queue_max": settings.group_commit_queue_max}
        self._group: GroupCommit[Publication, int] = GroupCommit("publish", self._run_batch, **limits)
        self._chat: GroupCommit[Publication, int] = GroupCommit(
            "publish.chat", self._run_batch, **limits, window_ms=settings.chat_gather_ms
        )

    async def publish(self, channel: str, data: bytes, *, once: str = "", transient: bool = False) -> int:
        """The publication's offset. Joins whatever else is on its way to the same room."""
        publication = _checked(Publication(channel, data, once, transient))
        group = self._chat if channel.startswith("chat:") else self._group
        return await group.submit(hash_tag(channel), publication)

    async def publish_all(self, publications: Sequence[Publication]) -> None:
        """In order within a hash tag, one script call each. Raises when an engine did not take them; repeating is harmless with `once`."""
        by_tag: dict[str, list[Publication]] = {}
        for publication in publications:
            by_tag.setdefault(hash_tag(publication.channel), []).append(_checked(publication))
        results = await asyncio.gather(*[self._publish_group(tag, group) for tag, group in by_tag.items()], return_exceptions=True)
        raise_first(results)  # after all have ended: nothing of ours is under way any more

    async def _publish_group(self, tag: str, group: Sequence[Publication]) -> None:
        failures: list[Exception] = []
        for part in _parts(group, self._settings.group_commit_batch_max):
            outcomes = await self._run_batch(tag, part)
            failures += [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if failures:
            raise failures[0]

    async def _run_batch(self, tag: str, batch: Sequence[Publication]) -> list[int | Exception]:
        """One script call. A channel that the engine cannot take fails its own publications alone."""
        numbers: dict[str, int] = {}
        keys, once_keys = [push_channel(tag)], list[str]()
        heads: list[str | bytes | int] = [self._runtime.new_short_id(), 0, META_TTL_S, ONCE_TTL_S]
        rows: list[str | bytes | int] = []
        before = None
        for publication in batch:
            channel, data, once, transient, _ = publication
            goes_with_it = before is not None and publication.goes_with(before)
            before = publication
            number = numbers.get(channel)
            if number is None:
                number = numbers[channel] = len(numbers) + 1
                keys += (_stream_key(tag, channel), _meta_key(tag, channel))
                heads += (channel, *self._history(channel))
            rows += (-number if transient else number, 2 if goes_with_it else 1 if once else 0, data)
            if once and not goes_with_it:
                once_keys.append(f"{{{tag}}}:once:{once}")
        heads[1] = len(numbers)
        replies = await _publish_script(self._client, keys + once_keys, heads + rows)
        return [reply if isinstance(reply, int) else _broken(one.channel) for one, reply in zip(batch, replies, strict=True)]

    def _history(self, channel: str) -> tuple[int, int]:
        parsed = parse_channel(channel)
        assert parsed is not None, channel
        if parsed[0] is Kind.CHAT:
            return self._settings.chat_history_messages_max, self._settings.chat_history_ttl_s
        return self._settings.stage_history_events_max, self._settings.stage_history_ttl_s

    async def position(self, channel: str) -> Position:
        """The stream's top. A channel without a life gets one, so that a client that subscribes now can recover later."""
        return (await self.positions([channel]))[0]

    async def positions(self, channels: Sequence[str]) -> list[Position]:
        """The tops of many streams, in order: one script a hash tag, all of them in one trip to the engine."""
        by_tag: dict[str, list[str]] = {}
        for channel in channels:
            by_tag.setdefault(hash_tag(channel), []).append(channel)
        arguments = [self._runtime.new_short_id(), META_TTL_S]
        calls = [([_meta_key(tag, channel) for channel in group], arguments) for tag, group in by_tag.items()]
        replies: list[list[bytes]] = await _position_script.call_all(self._client, calls)
        found: dict[str, Position] = {}
        for group, reply in zip(by_tag.values(), replies, strict=True):
            found.update((channel, Position(reply[i * 2].decode(), int(reply[i * 2 + 1]))) for i, channel in enumerate(group))
        return [found[channel] for channel in channels]

    async def history(self, channel: str, *, since_offset: int = 0, limit: int | None = None) -> tuple[list[Delivered], Position]:
        """Publications after `since_offset` in order, at most `limit` (the oldest first), and the top, read in one atomic step."""
        tag = hash_tag(channel)
        meta = _meta_key(tag, channel)
        async with self._client.pipeline(transaction=True) as pipeline:
            pipeline.hsetnx(meta, "epoch", self._runtime.new_short_id())
            pipeline.expire(meta, META_TTL_S)
            pipeline.hmget(meta, "epoch", "offset")
            if limit != 0:
                pipeline.xrange(_stream_key(tag, channel), min=f"0-{min(since_offset + 1, ENTRY_MAX)}", count=limit)
            replies: list[Any] = await pipeline.execute()
        epoch = replies[2][0].decode()
        rows = replies[3] if limit != 0 else []
        top = int(replies[2][1] or 0)
        publications = [Delivered(channel, int(entry_id.partition(b"-")[2]), epoch, fields[b"d"]) for entry_id, fields in rows]
        # A history that outlived its epoch goes beyond the new top; the next publication deletes it.
        return [one for one in publications if one.offset <= top], Position(epoch, top)

    async def last(self, channel: str, count: int) -> tuple[list[Delivered], Position]:
        """The newest `count` publications, oldest first."""
        publications, top = await self.history(channel)
        return publications[-count:] if count else [], top

    async def control(self, message: dict[str, str]) -> None:
        """Tells every node something that is about connections and not about events: `{"do": "disconnect", "user": ..., "room": ...}`."""
        await self._client.spublish(CONTROL_CHANNEL, msgspec.json.encode(message))


def _parts(group: Sequence[Publication], most: int) -> Iterator[Sequence[Publication]]:
    """In calls of about `most`; what is made together is in one of them."""
    start = 0
    while start < len(group):
        end = min(start + most, len(group))
        while end < len(group) and group[end].goes_with(group[end - 1]):
            end += 1
        yield group[start:end]
        start = end


def _checked(publication: Publication) -> Publication:
    """Raises ValueError for what would break the message for all that travel with it."""
    if b"\n" in publication.data or "\n" in publication.channel:
        raise ValueError("a publication is one line: its JSON and its channel hold no raw newline")
    publication.channel.encode()  # text that is no UTF-8 fails here, alone
    return publication


def _broken(channel: str) -> AppError:
    log.error("the engine holds something else under this channel's keys", channel=channel)
    return AppError(INTERNAL, "this channel cannot be published to just now")


def _stream_key(tag: str, channel: str) -> str:
    return f"{{{tag}}}:stream:{channel}"


def _meta_key(tag: str, channel: str) -> str:
    return f"{{{tag}}}:meta:{channel}"
