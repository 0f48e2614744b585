"""Everything that was asked, answered and killed, one line each in a file: so that the history of what went wrong can be told, and the
memory of the tester stays small however long it runs."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

SCOPED = re.compile(r"\b[0-9a-z]{10}-[0-9a-z]+")  # an id that carries its room: hold, order, payment, draw, envelope, ...
KEY = re.compile(rb'"(?:key|idempotency_key)":"([^"]+)"')
LINES_MAX = 400  # of one history
AROUND_S = 10  # kills so shortly before or after belong to it


class Journal:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=1024 * 1024)

    def close(self) -> None:
        self._file.close()

    def note(self, **what: Any) -> None:
        self._file.write(msgspec.json.encode({"at": round(time.time(), 3), **what}) + b"\n")

    def history(self, sentence: str) -> list[dict[str, Any]]:
        """What was asked and answered about the things that the sentence names, by their ids and by the keys of these commands, and
        who was killed meanwhile."""
        about = {name.encode() for name in SCOPED.findall(sentence)}
        if not about:
            return []
        found = list(self._lines(lambda line: any(word in line for word in about)))
        keys = {key for line in found for key in KEY.findall(line)}
        # The tries that nobody answered name no id yet. There may be hundreds of keys: looking for each in every line would take hours.
        found = list(self._lines(lambda line: not keys.isdisjoint(KEY.findall(line)) or any(word in line for word in about)))
        notes = [msgspec.json.decode(line) for line in found[:LINES_MAX]]
        return sorted([*self._kills_between(notes), *notes], key=lambda note: note["at"])

    def _lines(self, is_wanted: Callable[[bytes], bool]) -> Iterator[bytes]:
        self._file.flush()
        with self._path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n") and is_wanted(line):
                    yield line

    def _kills_between(self, notes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        if not notes:
            return []
        kills = [msgspec.json.decode(line) for line in self._lines(lambda line: b'"kill":' in line)]
        return [kill for kill in kills if notes[0]["at"] - AROUND_S < kill["at"] < notes[-1]["at"] + AROUND_S]
