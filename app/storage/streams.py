"""Channels with history: publish, read back, position. The fan-out role.

A channel has an epoch (names one life of its stream) and an offset that counts its publications. `publish` is one script for all that one
loop turn brings to a hash tag. A publication with a `once` id is made at most once within `ONCE_TTL_S`, so that the outbox may repeat
itself after a crash without a client seeing a duplicate.

On the wire between nodes a message is records of four lines: channel, offset, epoch, data. Data is JSON and holds no raw newline.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from app.core.runtime import Runtime
from app.core.settings import Settings
from app.protocol.channels import Kind, hash_tag, parse_channel
from app.storage.group_commit import GroupCommit
from app.storage.redis import Redis, Script

CONTROL_CHANNEL = "jishi:control"
ONCE_TTL_S = 3600
META_TTL_S = 48 * 3600  # an epoch outlives its history: a client that comes back next morning learns that it missed something

_publish_script = Script(Path(__file__).with_name("publish.lua"))


class Publication(NamedTuple):
    channel: str
    data: bytes
    once: str = ""
    transient: bool = False


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


def parse_push(message: bytes) -> list[Delivered]:
    lines = message.split(b"\n")
    return [Delivered(lines[i].decode(), int(lines[i + 1]), lines[i + 2].decode(), lines[i + 3]) for i in range(0, len(lines) - 3, 4)]


class Streams:
    def __init__(self, client: Redis, settings: Settings, runtime: Runtime) -> None:
        self._client = client
        self._settings = settings
        self._runtime = runtime
        self._group: GroupCommit[Publication, int] = GroupCommit(
            "publish", self._run_batch, batch_max=settings.group_commit_batch_max, queue_max=settings.group_commit_queue_max
        )

    async def publish(self, channel: str, data: bytes, *, once: str = "", transient: bool = False) -> int:
        """The publication's offset. Joins whatever else is on its way to the same room."""
        return await self._group.submit(hash_tag(channel), Publication(channel, data, once, transient))

    async def publish_all(self, publications: Sequence[Publication]) -> None:
        """In order within a hash tag, one script call each. Raises when an engine did not take them; repeating is harmless with `once`."""
        by_tag: dict[str, list[Publication]] = {}
        for publication in publications:
            by_tag.setdefault(hash_tag(publication.channel), []).append(publication)
        results = await asyncio.gather(*[self._publish_group(tag, group) for tag, group in by_tag.items()], return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            raise failures[0]  # after all have ended: nothing of ours is under way any more

    async def _publish_group(self, tag: str, group: Sequence[Publication]) -> None:
        for start in range(0, len(group), self._settings.group_commit_batch_max):
            await self._run_batch(tag, group[start : start + self._settings.group_commit_batch_max])

    async def _run_batch(self, tag: str, batch: Sequence[Publication]) -> list[int]:
        keys = [push_channel(tag)]
        arguments: list[str | bytes | int] = [self._runtime.new_short_id()]
        for publication in batch:
            length, ttl_s = (0, 0) if publication.transient else self._history(publication.channel)
            keys += [_stream_key(publication.channel), _meta_key(publication.channel), f"{{{tag}}}:once:{publication.once}"]
            arguments += [publication.channel, publication.data, length, ttl_s, META_TTL_S, ONCE_TTL_S if publication.once else 0]
        return [int(offset) for offset in await _publish_script(self._client, keys, arguments)]

    def _history(self, channel: str) -> tuple[int, int]:
        parsed = parse_channel(channel)
        assert parsed is not None, channel
        if parsed[0] is Kind.CHAT:
            return self._settings.chat_history_messages_max, self._settings.chat_history_ttl_s
        return self._settings.stage_history_events_max, self._settings.stage_history_ttl_s

    async def position(self, channel: str) -> Position:
        """The stream's top. A channel without a life gets one, so that a client that subscribes now can recover later."""
        return (await self.history(channel, limit=0))[1]

    async def history(self, channel: str, *, since_offset: int = 0, limit: int | None = None) -> tuple[list[Delivered], Position]:
        """Publications after `since_offset` in order, at most `limit` (the oldest first), and the top, read in one atomic step."""
        meta = _meta_key(channel)
        async with self._client.pipeline(transaction=True) as pipeline:
            pipeline.hsetnx(meta, "epoch", self._runtime.new_short_id())
            pipeline.expire(meta, META_TTL_S)
            pipeline.hmget(meta, "epoch", "offset")
            if limit != 0:
                pipeline.xrange(_stream_key(channel), min=f"0-{since_offset + 1}", count=limit)
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
        await self._client.publish(CONTROL_CHANNEL, msgspec.json.encode(message))


def _stream_key(channel: str) -> str:
    return f"{{{hash_tag(channel)}}}:stream:{channel}"


def _meta_key(channel: str) -> str:
    return f"{{{hash_tag(channel)}}}:meta:{channel}"
