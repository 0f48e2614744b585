"""The pieces of `make bench` beside the crowd: the servers broadcast, the kernel's accounting is read, figures become tables."""

import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadtests.bench import servers
from loadtests.bench.machine import SERVER_CORE, compile_native, cpu_s, memory_kib
from loadtests.bench.plan import Plan, medians, ratios
from loadtests.bench.report import BEGIN, END, as_markdown, tables, write_docs, write_json
from loadtests.bench.servers import missing_rivals, running_rival

HERE = [name for name in servers.RIVALS if name not in missing_rivals()]


@pytest.mark.parametrize("name", HERE)
async def test_what_one_says_reaches_all_on_every_server(name: str) -> None:
    async with running_rival(name) as server, server.crowd() as crowd:
        assert psutil.Process(server.pid).cpu_affinity() == [SERVER_CORE]
        before_s = cpu_s(server.pid)
        await crowd.open(5)
        told = await crowd.speak(server.text, rate=50, seconds=0.2, grace_s=20)
        assert (told["sent"], told["deliveries"], told["lost"]) == (10, 50, 0)
        assert cpu_s(server.pid) > before_s
        assert memory_kib(server.pid) > 0
    assert not psutil.pid_exists(server.pid)


async def test_floor_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "floor_command", lambda: ([sys.executable, "-m", "loadtests.bench.rivals.floor"], ""))
    async with running_rival("kernel_floor") as server, server.crowd() as crowd:
        await crowd.open(5)
        told = await crowd.speak(server.text, rate=50, seconds=0.2, grace_s=20)
        assert (told["deliveries"], told["lost"]) == (50, 0)
        await crowd.close()
        await crowd.open(3)
        assert (await crowd.speak(server.text, rate=50, seconds=0.2, grace_s=20))["deliveries"] == 30


def test_without_a_compiler_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compile_native("crowd") == (None, "no C compiler")


def test_every_server_has_each_place_in_the_order_of_turns() -> None:
    plan = Plan(rounds=3, servers=["a", "b", "c"])
    assert list(plan.turns()) == [(1, ["a", "b", "c"]), (2, ["b", "c", "a"]), (3, ["c", "a", "b"])]


def test_ratios_are_made_within_a_round() -> None:
    """Medians of each alone would be 4 / 2; a round in which the whole machine was slow must not count for one of the two."""
    assert ratios({"ours": [1.0, 4.0, 9.0], "plain": [2.0, 8.0, 2.0]}, "plain") == {"ours": 0.5, "plain": 1.0}
    assert ratios({"ours": [1.0]}, "plain") == {}
    assert medians([{"us": 1.0}, {"us": 5.0}, {"us": 3.0}]) == {"us": 3.0}


def results() -> dict[str, Any]:
    its = {"rate_per_s": 10, "delivered": 1.0, "server_busy": 0.1, "crowd_busy": 0.1}
    fanout = {"cpu_us": 2.0, "p50_ms": 1.0, "p99_ms": 9.5}
    return {
        "fanout_2000x10": {"jishi": fanout, "kernel_floor": fanout},
        "memory_kib_per_viewer": {"jishi": 3.5, "plain_fastapi": 28.0},
        "join_cpu_us": {"jishi": 300.0, "plain_fastapi": 600.0},
        "details": {
            "fanout_2000x10": {
                "servers": {"jishi": its, "kernel_floor": its},
                "cpu_ratio_to_kernel_floor": {"jishi": 1.25, "kernel_floor": 1.0},
                "cpu_ratio_to_plain_fastapi": {},
            },
            "memory_kib_per_viewer": {"viewers": 15_000},
            "join_cpu_us": {"handshake_cpu_us": {"jishi": 150.0}, "cpu_ratio_to_plain_fastapi": {"jishi": 0.5, "plain_fastapi": 1.0}},
        },
        "conditions": {"cores": 2, "missing": {"nchan": "nginx is not installed"}},
    }


def test_tables_have_a_row_for_each_server_that_was_measured() -> None:
    fanout, memory, joins = tables(results())
    assert [row[:4] for row in fanout.rows] == [["jishi", "10", "2.00", "1.25"], ["kernel_floor", "10", "2.00", "1.00"]]
    assert memory.rows == [["jishi", "3.50", "0.12"], ["plain_fastapi", "28.00", "1.00"]]
    assert joins.rows == [["jishi", "300.00", "0.50"], ["plain_fastapi", "600.00", "1.00"], ["jishi handshake alone", "150.00", "–"]]
    assert "not measured: nchan: nginx is not installed" in as_markdown(results())


def test_docs_get_the_figures_between_their_markers(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"# Before\n{BEGIN}\nold figures\n{END}\nafter\n")
    write_docs(results(), page)
    assert page.read_text() == f"# Before\n{BEGIN}\n\n{as_markdown(results())}\n\n{END}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(SystemExit):
        write_docs(results(), page)


def test_json_is_what_was_measured(tmp_path: Path) -> None:
    target = tmp_path / "build" / "bench.json"
    write_json(results(), target)
    assert json.loads(target.read_text()) == results()


def test_the_docs_have_the_markers() -> None:
    page = Path("docs/performance.md").read_text()
    assert page.count(BEGIN) == page.count(END) == 1
