"""Figures that several processes share: what is in the files, and when."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from app.core import metrics

registry = CollectorRegistry()
MultiProcessCollector(registry)
counter, seconds = metrics.command_counter("a.b", "ok"), metrics.command_seconds("a.b")

def told():
    counted = registry.get_sample_value("jishi_commands_total", {"method": "a.b", "result": "ok"})
    print(counted, registry.get_sample_value("jishi_command_seconds_count", {"method": "a.b"}))

counter.inc()
seconds.observe(0.01)
told()  # at once
metrics.write_late()
counter.inc(2)
counter.inc(3)
seconds.observe(7)
told()  # not yet
metrics.write_figures()
told()
counter.inc()
metrics.write_at_once()  # the rest, and from now on at once
told()
counter.inc()
told()
"""


def test_a_process_counts_in_memory_and_writes_its_files_when_it_says_so(tmp_path: Path) -> None:
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["1.0 1.0", "1.0 1.0", "6.0 2.0", "7.0 2.0", "8.0 2.0"]
