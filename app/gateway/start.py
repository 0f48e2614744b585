"""From where subscribers go on: the answer to a subscribe, encoded once for all who get the same one. Pure.

What differs between viewers who come to the same place is the id of their command alone; so the rest of the reply is built once a codec,
and so is what came between the reading and the reply (the tail), as long as nothing more comes.
"""

from collections.abc import Sequence

from msgspec import Raw

from app.gateway.channel import Channel
from app.gateway.recovery import recover
from app.gateway.sampling import DELETION
from app.protocol.channels import Kind
from app.protocol.codec import Codec
from app.protocol.messages import NO_DATA, Publication, SubscribeResult
from app.storage.streams import Delivered, Position

STARTS_MAX = 256  # positions of one history that viewers come back to
COPY_STARTS_MAX = 64
TAIL_MAX = 256  # what is further behind is read anew
FRESH = -1  # the key of the start that recovers nothing


class Start:
    """`missed` is what a subscriber at `since_offset` recovers; None: it starts afresh, with `data`."""

    __slots__ = ("_encoded", "_tail", "_tail_frames", "_tail_top", "data", "missed", "since_offset", "top")

    def __init__(self, top: Position, *, missed: Sequence[Delivered] | None = None, since_offset: int = 0, data: Raw = NO_DATA) -> None:
        self.top = top
        self.missed = missed
        self.since_offset = since_offset
        self.data = data
        self._encoded: dict[tuple[str, bool], bytes] = {}
        self._tail: list[Delivered] | None = []
        self._tail_top = -1
        self._tail_frames: dict[str, bytes] = {}

    def result(self, *, is_recovering: bool) -> SubscribeResult:
        """Recovered: the request's offset, the client moves on through the publications. Otherwise the stream's top."""
        recovered = self.missed is not None
        return SubscribeResult(
            recoverable=True,
            positioned=True,
            epoch=self.top.epoch,
            offset=self.since_offset if recovered else self.top.offset,
            publications=publications_of(self.missed or ()),
            was_recovering=is_recovering,
            recovered=recovered,
            data=self.data,
        )

    def encoded(self, codec: Codec, *, is_recovering: bool) -> bytes:
        """The reply but for the id."""
        key = (codec.name, is_recovering)
        encoded = self._encoded.get(key)
        if encoded is None:
            encoded = self._encoded[key] = codec.result(self.result(is_recovering=is_recovering))
        return encoded

    def tail(self, channel: Channel) -> list[Delivered] | None:
        """What the channel took since; None when it no longer has all of it, or so much that reading anew is better."""
        top = channel.top or 0
        if self._tail_top != top:
            self._tail_top = top
            self._tail_frames = {}
            self._tail = channel.after(self.top.offset) if top - self.top.offset <= TAIL_MAX else None
            if self._tail and channel.kind is Kind.CHAT and any(DELETION in one.data for one in self._tail):
                self._tail = None  # a line that was deleted is handed out no more
        return self._tail

    def tail_frame(self, codec: Codec) -> bytes:
        """The tail as pushes."""
        assert self._tail, "there is one"
        frame = self._tail_frames.get(codec.name)
        if frame is None:
            frame = codec.join([codec.publication(one.channel, one.offset, one.data) for one in self._tail])
            self._tail_frames[codec.name] = frame
        return frame


class Backlog:
    """A channel's whole history as it was read, and the starts that were made of it."""

    __slots__ = ("_starts", "history", "top")

    def __init__(self, history: list[Delivered], top: Position) -> None:
        self.history = history
        self.top = top
        self._starts: dict[int, Start] = {}

    def is_behind(self, since: Position) -> bool:
        """Read before what this client has seen already."""
        return since.epoch == self.top.epoch and since.offset > self.top.offset

    def start(self, since: Position) -> Start | None:
        """None: afresh."""
        if since.epoch != self.top.epoch:
            return None
        start = self._starts.get(since.offset)
        if start is None:
            missed = recover(since, self.history, self.top)
            if missed is None:
                return None
            if len(self._starts) >= STARTS_MAX:
                self._starts.clear()
            start = self._starts[since.offset] = Start(self.top, missed=missed, since_offset=since.offset)
        return start


def start_of_copy(channel: Channel, kept: dict[int, Start]) -> Start | None:
    """Afresh, from where the node's own copy of the channel stands; None before it has one. `kept` has the starts made before."""
    if channel.top is None:
        return None
    start = kept.get(FRESH)
    if start is None or start.top != (channel.epoch, channel.top):
        start = kept[FRESH] = Start(Position(channel.epoch, channel.top))
    return start


def recovery_of_copy(channel: Channel, kept: dict[int, Start], since: Position, events_max: int) -> Start | None:
    """What a client at `since` missed, from the node's own copy; None when that does not reach. Not more than the engine keeps, so that
    it does not depend on the node whether a client recovers. Of chat nothing: the engine knows what was deleted since.
    """
    if channel.top is None or since.epoch != channel.epoch:
        return None
    behind = channel.top - since.offset
    if not 0 <= behind <= (0 if channel.kind is Kind.CHAT else events_max):
        return None
    start = kept.get(since.offset)
    if start is None or start.top != (channel.epoch, channel.top):
        missed = channel.after(since.offset)
        if missed is None:
            return None
        if len(kept) >= COPY_STARTS_MAX:
            kept.clear()
        start = kept[since.offset] = Start(Position(channel.epoch, channel.top), missed=missed, since_offset=since.offset)
    return start


def publications_of(publications: Sequence[Delivered]) -> list[Publication]:
    return [Publication(data=Raw(one.data), offset=one.offset) for one in publications]
