"""One channel as one node sees it: its position, its latest publications, and whether something is missing. Pure.

The node's copy is whole or known to be broken: offsets run on without a gap, or `take` says so and keeps what comes until the hub has
healed it from history (`heal`) or given it up (`restart`). So a viewer who is sent what this channel took misses nothing.
"""

from collections import deque
from enum import Enum, auto

from app.gateway.recovery import merge
from app.protocol.channels import LANE_OF, Kind, Lane
from app.storage.streams import Delivered, Position

RECENT_MAX = 512  # more than arrive in the seconds that a subscribe may take
HELD_MAX = 2_000


class Taken(Enum):
    NEXT = auto()  # send it
    READING = auto()  # send it; only the newest matters
    REPEATED = auto()
    HELD = auto()  # kept until the gap before it is healed
    GAP = auto()  # the same, and it is the first to show the gap: heal
    OTHER_LIFE = auto()  # the stream was lost and began anew: give up what viewers have


class Channel:
    """`top` is None until the first position is known."""

    __slots__ = ("_held", "_recent", "epoch", "is_healing", "kind", "name", "top")

    def __init__(self, kind: Kind, name: str) -> None:
        self.kind = kind
        self.name = name
        self.epoch = ""
        self.top: int | None = None
        self._recent: deque[Delivered] | None = None  # made by the first publication: most viewers' own channels never have one
        self._held: list[Delivered] | None = None
        self.is_healing = False

    @property
    def lane(self) -> Lane:
        return LANE_OF[self.kind]

    @property
    def held(self) -> list[Delivered]:
        """What came while a gap was open."""
        return self._held or []

    def anchor(self, position: Position) -> None:
        """The stream stands here: what comes next has the offset after it."""
        if self.top is None:
            self.epoch, self.top = position

    def take(self, publication: Delivered) -> Taken:
        if publication.offset == 0:
            return Taken.READING
        if self.is_healing:
            self._hold(publication)
            return Taken.HELD
        if self.top is None:
            self.epoch, self.top = publication.epoch, publication.offset - 1
        if publication.epoch != self.epoch:
            return Taken.OTHER_LIFE
        if publication.offset <= self.top:
            return Taken.REPEATED
        if publication.offset > self.top + 1:
            self.is_healing = True
            self._hold(publication)
            return Taken.GAP
        self._append(publication)
        return Taken.NEXT

    def heal(self, history: list[Delivered], position: Position) -> list[Delivered] | None:
        """What was missed and what was held, now taken and to be sent; None when it cannot be had whole: then `restart`."""
        assert self.top is not None, "a channel is healed after it had a position"
        if position.epoch != self.epoch or any(held.epoch != self.epoch for held in self.held):
            return None
        if position.offset < self.top:
            return None  # the engine came back without its last moments: offsets that viewers have seen are given out again
        missed = merge(history, self.held, self.top)
        if missed is None or self.top + len(missed) < position.offset:
            return None
        for publication in missed:
            self._append(publication)
        self._held = None
        self.is_healing = False
        return missed

    def prime(self, history: list[Delivered]) -> None:
        """Takes what was said before this node had the channel, as far as it joins what is here without a gap: for those who come back."""
        if self.top is None or not history or history[0].epoch != self.epoch or self.is_healing:
            return
        recent = self._recent or ()
        whole = merge(history, recent, history[0].offset - 1)
        if whole and whole[-1].offset == self.top and len(whole) > len(recent):
            self._recent = deque(whole, maxlen=RECENT_MAX)

    def restart(self, position: Position | None = None) -> None:
        """Forgets this life of the stream. Whoever had the channel must have been told."""
        self.epoch, self.top = position or ("", None)
        self._recent = self._held = None
        self.is_healing = False

    def after(self, offset: int) -> list[Delivered] | None:
        """What this node took after an offset; None when it no longer has all of it."""
        if self.top is None or self.top <= offset:
            return []
        missed = merge(self._recent or (), (), offset)
        return missed if missed is not None and offset + len(missed) == self.top else None

    def trim(self) -> None:
        """Nobody is coming in: what is kept for `after` is not needed."""
        self._recent = None

    def _append(self, publication: Delivered) -> None:
        if self._recent is None:
            self._recent = deque(maxlen=RECENT_MAX)
        self._recent.append(publication)
        self.top = publication.offset

    def _hold(self, publication: Delivered) -> None:
        if self._held is None:
            self._held = []
        if len(self._held) < HELD_MAX:
            self._held.append(publication)  # beyond it the merge finds a gap, and the channel is given up
