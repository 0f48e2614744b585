"""A queue in turns: whoever asks for much waits for himself, and not others for him.

Each owner has at most one item in the line; what else he has stands behind it, and comes into the line, at its end, when that one is taken.
So the items of one owner keep their order, and whoever has one item waits for at most one item of each other owner. Items without an
owner (empty) are each as if of an owner of their own.

Room in a full queue is made by whoever has most: `make_room` gives up his newest item, unless the one that wants to come would then have as
many. All is O(1), and an owner with one item costs one entry of a dictionary.
"""

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    __slots__ = ("_behind", "_line", "_owners_by_count", "length")

    def __init__(self) -> None:
        self._line: deque[tuple[str, Item]] = deque()
        self._behind: dict[str, deque[Item] | None] = {}  # of each owner in the line; None: nothing
        self._owners_by_count: list[dict[str, None]] = []  # who has one item behind, who has two, and so on
        self.length = 0  # read with each command: an attribute costs a third of a call

    def put(self, owner: str, item: Item) -> None:
        self.length += 1
        if owner in self._behind:
            self._put_behind(owner, item)
            return
        if owner:
            self._behind[owner] = None
        self._line.append((owner, item))

    def _put_behind(self, owner: str, item: Item) -> None:
        behind = self._behind[owner] or deque[Item]()
        behind.append(item)
        self._behind[owner] = behind
        self._count(owner, len(behind) - 1, len(behind))

    def take(self, most: int) -> list[Item]:
        """The next items, in turns."""
        line, all_behind = self._line, self._behind
        taken: list[Item] = []
        while line and len(taken) < most:
            owner, item = line.popleft()
            taken.append(item)
            behind = all_behind.pop(owner, None)
            if behind:
                all_behind[owner] = behind
                line.append((owner, behind.popleft()))
                self._count(owner, len(behind) + 1, len(behind))
        self.length -= len(taken)
        return taken

    def make_room(self, owner: str) -> Item | None:
        """Gives up the newest item of whoever has most, for one of this owner; None: nobody has so much more than he."""
        most = len(self._owners_by_count)
        if most <= self._behind_of(owner) + (owner in self._behind):
            return None
        heaviest = next(iter(self._owners_by_count[-1]))
        behind = self._behind[heaviest]
        assert behind, "counted"
        given_up = behind.pop()
        self.length -= 1
        self._count(heaviest, most, most - 1)
        return given_up

    def _behind_of(self, owner: str) -> int:
        return len(self._behind.get(owner) or ())

    def _count(self, owner: str, before: int, after: int) -> None:
        """Moves an owner to those who have as many behind. Numbers change by one, so no place between is ever missing."""
        owners = self._owners_by_count
        if before:
            del owners[before - 1][owner]
        if after > len(owners):
            owners.append({})
        if after:
            owners[after - 1][owner] = None
        while owners and not owners[-1]:
            owners.pop()
