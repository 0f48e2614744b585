"""Finds and closes gaps between a node and the streams, before viewers notice.

A gap shows in three ways: an offset that is not the next, a bus connection that was lost, or a stream whose top has moved on without us
(looked at every `position_check_s`). Each is answered the same way: read the history since our position; if it is whole, send it on; if
not, subscribers are told to start afresh. Nothing is ever sent with a hole in it.
"""

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import structlog
from redis.exceptions import RedisError, ResponseError

from app.domains.chat.service import without_deleted
from app.gateway.channel import Channel
from app.gateway.room import Feed
from app.protocol import codes
from app.protocol.channels import Kind
from app.protocol.codes import CloseCode
from app.storage.streams import Delivered, Position

if TYPE_CHECKING:
    from app.gateway.hub import Hub

ATTEMPTS_MAX = 60
PAUSE_S_MAX = 2.0
AT_ONCE = 16  # histories read at the same time after the bus came back
POSITIONS_A_TRIP = 64
SETTLE_S = 1.0  # what is in the stream's top may still be on its way to us

log = structlog.get_logger()


class Healing:
    def __init__(self, hub: "Hub") -> None:
        self._hub = hub
        self._cuts = 0  # of the bus
        self._tasks: set[asyncio.Task[None]] = set()

    def heal(self, feed: Feed) -> None:
        feed.channel.is_healing = True
        self._spawn(self._heal(feed))

    def heal_all(self) -> None:
        """After the bus was away: anything may be missing, also of what a healing under way has read before."""
        self._cuts += 1
        feeds = [feed for feed in self._feeds() if feed.channel.top is not None and not feed.channel.is_healing]
        for feed in feeds:
            feed.channel.is_healing = True
        self._spawn(self._heal_in_turn(feeds))

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _feeds(self) -> Iterator[Feed]:
        for room in list(self._hub.rooms.values()):
            yield from room.feeds.values()
        yield from list(self._hub.users.values())

    async def _heal_in_turn(self, feeds: list[Feed]) -> None:
        for start in range(0, len(feeds), AT_ONCE):
            await asyncio.gather(*[self._heal(feed) for feed in feeds[start : start + AT_ONCE]])

    async def _heal(self, feed: Feed, code: CloseCode | None = None) -> None:
        """With a close code, connections are closed with it when the gap cannot be closed."""
        channel = feed.channel
        for attempt in range(ATTEMPTS_MAX):
            if channel.top is None or not channel.is_healing:
                return  # given up meanwhile
            cuts = self._cuts
            try:
                history, position = await self._read(feed, channel.top)
            except (RedisError, OSError):
                await asyncio.sleep(min(PAUSE_S_MAX, 0.1 * 2**attempt))
                continue
            except Exception:  # a history that cannot be read must not leave the channel silent for ever: its viewers start afresh
                log.exception("history not read", channel=channel.name)
                break
            if not channel.is_healing:
                return  # healed or given up while this was read
            missed = channel.heal(history, position)
            if missed is None:
                break
            feed.forget_reads()
            for publication in missed if self._is_live(feed) else ():
                self._hub.deliver(feed, publication)
            if cuts == self._cuts:
                return
            channel.is_healing = True  # the bus was away since
            continue
        log.warning("gap not healed", channel=channel.name)
        if self._is_live(feed):
            self._hub.give_up(feed, code)

    async def _read(self, feed: Feed, top: int) -> tuple[list[Delivered], Position]:
        """A line of chat that was deleted meanwhile is not handed out again; its deletion stands in its place."""
        engines = self._hub.engines
        history, position = await engines.streams.history(feed.channel.name, since_offset=top)
        return (await without_deleted(engines, history) if feed.channel.kind is Kind.CHAT else history), position

    def _is_live(self, feed: Feed) -> bool:
        return self._hub.feed_of(feed.channel.name) is feed

    async def check_positions(self) -> None:
        """Walks all stage channels in `position_check_s`, evenly, for ever. Many in one trip: each viewer has a channel of its own."""
        interval_s = self._hub.settings.position_check_s
        while True:
            feeds = [feed for feed in self._feeds() if feed.channel.kind is not Kind.CHAT]
            trips = [feeds[start : start + POSITIONS_A_TRIP] for start in range(0, len(feeds), POSITIONS_A_TRIP)]
            for trip in trips:
                await asyncio.sleep(interval_s / len(trips))
                await self._check(trip)
            if not trips:
                await asyncio.sleep(interval_s)

    async def check_position(self, *feeds: Feed) -> None:
        await self._check(feeds)

    async def _check(self, feeds: Sequence[Feed]) -> None:
        """A gap that nobody noticed: healed, or the viewers are closed 3010 and recover by connecting again."""
        behind = await self._behind(feeds)
        if not behind:
            return
        await asyncio.sleep(SETTLE_S)
        for feed in await self._behind(behind):
            if not self._is_settled(feed):
                continue  # no longer, after the others' healing: to call it healing now would silence it
            log.warning("behind the stream", channel=feed.channel.name, at=feed.channel.top)
            feed.channel.is_healing = True
            await self._heal(feed, codes.INSUFFICIENT_STATE)

    async def _behind(self, feeds: Sequence[Feed]) -> list[Feed]:
        """Those whose stream is elsewhere than this node believes. What cannot be read is looked at the next time."""
        feeds = [feed for feed in feeds if self._is_settled(feed)]
        if not feeds:
            return []
        befores = [feed.channel.top or 0 for feed in feeds]
        try:
            positions = await self._hub.engines.streams.positions([feed.channel.name for feed in feeds])
        except ResponseError:  # one that is broken must not hide the others
            return [] if len(feeds) == 1 else [found for feed in feeds for found in await self._behind([feed])]
        except (RedisError, OSError):
            return []
        return [
            feed
            for feed, before, top in zip(feeds, befores, positions, strict=True)
            if self._is_settled(feed) and _is_elsewhere(top, feed.channel, before)
        ]

    def _is_settled(self, feed: Feed) -> bool:
        return feed.channel.top is not None and not feed.channel.is_healing and self._is_live(feed)


def _is_elsewhere(top: Position, channel: Channel, before: int) -> bool:
    """Of another life, beyond what this node took, or short of what it had when it asked: the engine came back without its last moments."""
    return top.epoch != channel.epoch or top.offset > (channel.top or 0) or top.offset < before
