"""What a run found, as tables: on the terminal, in Markdown, and between the markers of docs/performance.md. And as build/bench.json.

One object a measurement; `details` has what belongs to one without being its figure (ratios, rates, shares), `conditions` under which
circumstances all of it was measured, and what could not be, with the reason.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Results = dict[str, Any]

JSON = Path("build/bench.json")
DOCS = Path("docs/performance.md")
BEGIN, END = "<!-- figures of `make bench`: begin -->", "<!-- figures of `make bench`: end -->"
_STORM = ("viewers", "seconds_until_back", "errors", "gaps", "duplicates", "behind", "not_recovered", "rejoin_cpu_us", "rejoin_p99_ms")
_FLOOD = ("chat_per_s", "quiet_p99_ms", "flood_p99_ms", "difference_ms", "refused", "lost")
_HOLDS = ("accepted_per_s", "refused_per_s", "p50_ms", "p99_ms", "cpu_us", "refused_cpu_us")


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]

    def as_text(self) -> str:
        widths = [max(len(row[i]) for row in [self.columns, *self.rows]) for i in range(len(self.columns))]
        lines = [self._line(row, widths) for row in [self.columns, *self.rows]]
        return "\n".join([f"\n{self.title}", *lines])

    def _line(self, row: list[str], widths: list[int]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        return "  " + "  ".join([row[0].ljust(widths[0]), *cells[1:]])

    def as_markdown(self) -> str:
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        return "\n".join([f"### {self.title}\n", *("| " + " | ".join(row) + " |" for row in [self.columns, rule, *self.rows])])


def tables(results: Results) -> list[Table]:
    found: list[Table] = []
    for name in results:
        if name.startswith("fanout_"):
            found.append(_fanout(results, name))
        elif name == "memory_kib_per_viewer":
            viewers = results["details"][name]["viewers"]
            found.append(_by_server(f"Memory: KiB a viewer at {viewers:,}", "KiB", results[name], _shares(results[name])))
        elif name == "join_cpu_us":
            found.append(_joins(results))
        elif name in {"storm", "flood", "holds"}:
            found.append(_columns(name, results[name]))
        elif name == "intake_orders_per_s":
            found.append(_intake(results))
    return found


def _fanout(results: Results, name: str) -> Table:
    viewers, rate = name.removeprefix("fanout_").split("x")
    details = results["details"][name]
    rows: list[list[str]] = []
    for server, figures in results[name].items():
        its = details["servers"][server]
        rows.append(
            [
                server,
                f"{its['rate_per_s']:g}",
                f"{figures['cpu_us']:.2f}",
                *(_times(details[f"cpu_ratio_to_{other}"].get(server)) for other in ("kernel_floor", "plain_fastapi")),
                f"{figures['p50_ms']:.1f}",
                f"{figures['p99_ms']:.1f}",
                f"{its['delivered']:.1%}",
                f"{its['server_busy']:.0%}",
                f"{its['crowd_busy']:.0%}",
            ]
        )
    columns = ["server", "messages/s", "µs a delivery", "× floor", "× plain", "p50 ms", "p99 ms", "arrived", "server busy", "crowd busy"]
    return Table(f"Fan-out: {int(viewers):,} viewers × {rate} messages/s", columns, rows)


def _joins(results: Results) -> Table:
    details = results["details"]["join_cpu_us"]
    figures = results["join_cpu_us"] | {f"{name} handshake alone": figure for name, figure in details["handshake_cpu_us"].items()}
    title = "Joins: µs of CPU (Jishi: handshake, token, connect, two subscribes; the others: the handshake alone)"
    return _by_server(title, "µs", figures, details["cpu_ratio_to_plain_fastapi"])


def _intake(results: Results) -> Table:
    details = results["details"]["intake_orders_per_s"]
    row = ["jishi", f"{results['intake_orders_per_s']:,}", f"{details['orders']:,}", f"{details['worker_cpu_us']:,}"]
    return Table("Intake: orders from the outbox into PostgreSQL", ["server", "orders per s", "orders", "worker CPU µs an order"], [row])


def _by_server(title: str, unit: str, figures: dict[str, float], shares: dict[str, float]) -> Table:
    rows = [[name, f"{figure:,.2f}", _times(shares.get(name))] for name, figure in figures.items()]
    return Table(title, ["server", unit, "× plain"], rows)


def _shares(figures: dict[str, float]) -> dict[str, float]:
    plain = figures.get("plain_fastapi")
    return {name: figure / plain for name, figure in figures.items()} if plain else {}


def _columns(name: str, figures: dict[str, dict[str, Any]]) -> Table:
    titles = {
        "storm": "Reconnect storm, with recovery while stage events go on",
        "flood": "Chat flood: p99 of stage events with and without it",
        "holds": "Holds: closed loops, one with stock for all and one with nothing left",
    }
    columns = {"storm": _STORM, "flood": _FLOOD, "holds": _HOLDS}[name]
    rows = [[server, *(_cell(its[column]) for column in columns)] for server, its in figures.items()]
    return Table(titles[name], ["server", *(column.replace("_", " ").replace("cpu us", "CPU µs") for column in columns)], rows)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} × {kind}" for kind, count in value.items()) or "none"
    return f"{value:,}"


def _times(share: float | None) -> str:
    return "–" if share is None else f"{share:.2f}"


def conditions_text(conditions: Results) -> list[str]:
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in conditions.items() if not isinstance(value, dict)]
    return [*lines, *(f"not measured: {what}: {why}" for what, why in conditions["missing"].items())]


def print_results(results: Results) -> None:
    for table in tables(results):
        print(table.as_text())
    print()
    for line in conditions_text(results["conditions"]):
        print(f"  {line}")


def as_markdown(results: Results) -> str:
    parts = [table.as_markdown() for table in tables(results)]
    listed = "\n".join(f"- {line}" for line in conditions_text(results["conditions"]))
    return "\n\n".join([*parts, f"### Conditions\n\n{listed}"])


def write_json(results: Results, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Results:
    if not path.exists():
        raise SystemExit(f"{path} is not there: run `make bench` first")
    results: Results = json.loads(path.read_text())
    return results


def write_docs(results: Results, path: Path = DOCS) -> None:
    """Replaces what stands between the markers."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path} has no place for the figures: it needs the lines\n{BEGIN}\n{END}")
    path.write_text(f"{before}{begin}\n\n{as_markdown(results)}\n\n{end}{after}")
