"""What a run says: a line while it goes, each contradiction when it is found, with its history in a file, and the table at its end."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtests.torture.book import Book
from loadtests.torture.journal import Journal
from loadtests.torture.line import Tally
from loadtests.torture.plays import PlayBook
from loadtests.torture.verdict import Verdict

SHOWN_MAX = 20
TOLD_MAX = 50  # contradictions that are told at once and have their history in the report


def progress(seconds: float, operations: int, tally: Tally, book: Book, kills: Counter[str]) -> str:
    killed = ", ".join(f"{fate} {count}" for fate, count in sorted(kills.items())) or "none"
    broken = len(book.lost) + len(book.duplicates) + len(book.problems)
    rate = tally.answered / max(seconds, 0.001)
    left_s = (operations - tally.answered) / rate if rate else 0
    ahead = f"  {tally.answered / operations:4.0%}, {left_s / 60:.0f} min to go at {rate:,.0f}/s" if left_s > 0 else ""
    return (
        f"{seconds:6.0f} s  {tally.answered:>9,} operations{ahead}  {book.counts['holds']:,} holds  {book.counts['orders']:,} orders  "
        f"{len(book.paid_heard):,} paid  kills: {killed}" + (f"  BROKEN: {broken}" if broken else "")
    )


class Teller:
    """Says each contradiction once, as soon as it is there, and keeps a file of them: sentence, history, what the engines have."""

    def __init__(self, say: Callable[[str], None], journal: Journal, path: Path, about: dict[str, Any]) -> None:
        self._say = say
        self._journal = journal
        self._path = path
        self._about = about
        self._told: Counter[str] = Counter()
        self._found: list[dict[str, Any]] = []

    def tell(self, book: Book, seconds: float) -> None:
        """May be called from another thread: the lists only grow."""
        before = len(self._found)
        for kind, sentences in (("lost", book.lost), ("duplicate", book.duplicates), ("problem", book.problems)):
            fresh = sentences[self._told[kind] :]
            self._told[kind] += len(fresh)
            for sentence in fresh[: TOLD_MAX - len(self._found)]:
                self._say(f"{seconds:6.0f} s  BROKEN ({kind}): {sentence}")
                self._found.append({"kind": kind, "sentence": sentence, "second": round(seconds)})
        for found in self._found[before:]:
            found["history"] = self._journal.history(found["sentence"])
        if len(self._found) > before:
            self._write()

    @property
    def sentences(self) -> list[str]:
        return [found["sentence"] for found in self._found]

    def complete(self, records: dict[str, Any]) -> None:
        """Adds what both engines have of the things in each sentence at the end."""
        for found in self._found:
            found["records"] = records[found["sentence"]]
        if self._found:
            self._write()
            self._say(f"the history of what broke: {self._path}")

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps({**self._about, "broken": self._found}, ensure_ascii=False, indent=1, default=str) + "\n")


def table(*, facts: dict[str, str], tally: Tally, book: Book, plays: PlayBook, kills: Counter[str], verdict: Verdict) -> str:
    rows: list[tuple[str, str]] = [
        *facts.items(),
        ("converged within", f"{verdict.converged_s:.1f} s"),
        ("longest silence", f"{tally.silence_s_max:.1f} s"),
        ("holds", f"{book.counts['holds']:,} acknowledged, {verdict.figures['holds in the engine']:,} in the engine"),
        ("waits", f"{book.counts['waits']:,} places in a line acknowledged"),
        ("orders", f"{book.counts['orders']:,} acknowledged, {verdict.figures['orders in SQL']:,} in SQL"),
        ("return requests", f"{book.counts['returns']:,} acknowledged"),
        ("entries in draws", f"{plays.counts['entries']:,} acknowledged"),
        ("shares of envelopes", f"{plays.counts['shares']:,} acknowledged"),
        *[(name, f"{count:,}") for name, count in sorted(verdict.figures.items()) if not name.endswith((" in the engine", " in SQL"))],
        ("kills", ", ".join(f"{fate} {count}" for fate, count in sorted(kills.items())) or "none"),
        *[(f"answer: {name}", f"{count:,}") for name, count in sorted(tally.answers.items())],
        *[(f"no answer: {name}", f"{count:,}") for name, count in sorted(tally.unanswered.items())],
        ("oversold", str(verdict.oversold)),
        ("undersold", str(verdict.undersold)),
        ("lost", str(len(verdict.lost))),
        ("duplicates", str(len(verdict.duplicates))),
        ("other problems", str(len(verdict.problems))),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    for title, found in (("lost", verdict.lost), ("duplicate", verdict.duplicates), ("problem", verdict.problems)):
        lines += [f"{title}: {sentence}" for sentence in found[:SHOWN_MAX]]
        if len(found) > SHOWN_MAX:
            lines.append(f"{title}: and {len(found) - SHOWN_MAX} more")
    return "\n".join(lines)
