"""What a run prints: a line while it goes, and the table at its end."""

from collections import Counter

from loadtests.torture.book import Book
from loadtests.torture.line import Tally
from loadtests.torture.verdict import Verdict

SHOWN_MAX = 20


def progress(seconds: float, tally: Tally, book: Book, kills: Counter[str]) -> str:
    killed = ", ".join(f"{role} {count}" for role, count in sorted(kills.items())) or "none"
    broken = len(book.lost) + len(book.duplicates)
    return (
        f"{seconds:6.0f} s  {tally.answered:>9,} operations  {book.counts['holds']:>8,} holds  {book.counts['orders']:>8,} orders  "
        f"{len(book.paid_heard):>7,} paid  kills: {killed}" + (f"  BROKEN: {broken}" if broken else "")
    )


def table(*, seed: int, seconds: float, tally: Tally, book: Book, kills: Counter[str], verdict: Verdict) -> str:
    rows: list[tuple[str, str]] = [
        ("seed", str(seed)),
        ("operations", f"{tally.answered:,}"),
        ("time", f"{seconds:,.0f} s, {tally.answered / max(seconds, 0.001):,.0f} a second"),
        ("converged within", f"{verdict.converged_s:.1f} s"),
        ("longest silence", f"{tally.silence_s_max:.1f} s"),
        ("holds", f"{book.counts['holds']:,} acknowledged, {verdict.figures['holds in the engine']:,} in the engine"),
        ("waits", f"{book.counts['waits']:,} places in a line acknowledged"),
        ("orders", f"{book.counts['orders']:,} acknowledged, {verdict.figures['orders in SQL']:,} in SQL"),
        *[(name, f"{count:,}") for name, count in sorted(verdict.figures.items()) if not name.endswith((" in the engine", " in SQL"))],
        ("kills", ", ".join(f"{role} {count}" for role, count in sorted(kills.items())) or "none"),
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
