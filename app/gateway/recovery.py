"""Recovery as pure functions: what a client missed, whole or not at all.

A client that gets a part of what it missed believes in a state that never was; so either every publication from its position to the top
is there, in order and once, or the answer is None and it starts from a fresh snapshot.
"""

from collections.abc import Iterable, Sequence

from app.storage.streams import Delivered, Position


def merge(history: Sequence[Delivered], buffered: Iterable[Delivered], after: int) -> list[Delivered] | None:
    """History and what arrived meanwhile, from offset `after` + 1 on without gap or double. None when something is missing.

    Readings without an offset are left out: the next one replaces them anyway.
    """
    merged: list[Delivered] = []
    last = after
    for publication in sorted((*history, *buffered), key=_offset):
        if publication.offset <= last:
            continue  # also the readings, whose offset is 0
        if publication.offset != last + 1:
            return None
        merged.append(publication)
        last = publication.offset
    return merged


def recover(since: Position, history: Sequence[Delivered], top: Position) -> list[Delivered] | None:
    """What a client at `since` missed of a stream that is at `top`, given the history after `since.offset`. None: start afresh."""
    if since.epoch != top.epoch or since.offset > top.offset:
        return None
    missed = merge(history, (), since.offset)
    if missed is None or since.offset + len(missed) != top.offset:
        return None
    return missed


def _offset(publication: Delivered) -> int:
    return publication.offset
