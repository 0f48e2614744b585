"""`jishi up` as an operator meets it: one product in processes of its own, killed here and there, and stopped."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from app.core.errors import SetupError
from app.supervisor import listen
from tests.support.waiting import wait_until_sync

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("up"), pytest.mark.timeout(240)]

START_S = 150


@dataclass(frozen=True)
class Up:
    process: "subprocess.Popen[bytes]"
    data_dir: Path

    @property
    def screen(self) -> str:
        return (self.data_dir / "screen").read_text()

    @property
    def running(self) -> dict[str, str | int]:
        found: dict[str, str | int] = json.loads((self.data_dir / "run.json").read_text())
        return found

    def jishi(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "app.cli", *arguments, "--data-dir", str(self.data_dir)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def status(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", int(self.running["port"]), timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def children(self, word: str) -> list[psutil.Process]:
        return [child for child in psutil.Process(self.process.pid).children() if word in command_line(child)]


def command_line(process: psutil.Process) -> str:
    """Empty for one that has ended and is not yet collected."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def start(folder: str) -> Up:
    data_dir = Path(folder)
    with (data_dir / "screen").open("wb") as screen:
        command = [sys.executable, "-m", "app.cli", "up", "--no-demo", "--port", "0", "--web", "2", "--data-dir", folder]
        process = subprocess.Popen(command, stdout=screen, stderr=screen, env={**os.environ, "JISHI_DRAIN_S": "0.2", "COLUMNS": "200"})
    up = Up(process, data_dir)
    wait_until_sync(lambda: "Ctrl-C" in up.screen or process.poll() is not None, within_s=START_S, what="the screen")
    assert process.poll() is None, up.screen
    return up


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="jishi-up-", ignore_cleanup_errors=True) as folder:
        running = start(folder)
        yield running
        running.process.send_signal(signal.SIGINT)
        running.process.wait(60)


def test_the_screen_says_where_to_go(up: Up) -> None:
    url = up.running["url"]
    for place in (f"{url}/", f"{url}/host", f"{url}/docs", f"{url}/metrics", str(up.data_dir), "Ctrl-C", "jishi room open"):
        assert place in up.screen
    for path in ("/healthz", "/readyz", "/metrics"):  # a process that another test killed may still be coming back
        wait_until_sync(lambda path=path: up.status(path) == 200, within_s=START_S, what=path)


def test_what_is_kept_is_for_its_owner_alone(up: Up) -> None:
    modes = {name: (up.data_dir / name).stat().st_mode & 0o777 for name in ("run.json", "secret", "lock")}
    assert modes == {"run.json": 0o600, "secret": 0o600, "lock": 0o600}


def test_a_room_opens_from_the_command_line_and_its_report_and_books_are_there(up: Up) -> None:
    done = up.jishi("room", "open", "--title", "Tea hills", "--offer", "Tea: spring:8800:50:2", "--offer", "Honey:4500:20", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    opened = json.loads(done.stdout)
    assert sorted(opened) == ["host_token", "offers", "room", "session"]
    assert [sorted(offer) for offer in opened["offers"]] == [["id", "name"], ["id", "name"]]
    assert [offer["name"] for offer in opened["offers"]] == ["Tea: spring", "Honey"]
    assert up.status(f"/api/v1/rooms/{opened['room']}/snapshot") == 200
    report = up.jishi("report", opened["session"], "--json")
    assert json.loads(report.stdout)["session"] == opened["session"]
    assert up.jishi("reconcile").stdout == "both engines agree\n"
    unknown = up.jishi("report", f"{opened['room']}-nothing")
    assert (unknown.returncode, unknown.stdout, unknown.stderr.count("\n")) == (1, "", 1)


def test_a_token_of_the_command_line_is_accepted(up: Up) -> None:
    made = up.jishi("token", "--viewer", "lin").stdout.strip()
    connection = http.client.HTTPConnection("127.0.0.1", int(up.running["port"]), timeout=10)
    connection.request("GET", "/api/v1/me", headers={"Authorization": f"Bearer {made}"})
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["id"]) == (200, "lin")
    connection.close()


def test_metrics_tell_of_every_process_whichever_answers(up: Up) -> None:
    """The worker serves no port: its lag and its dead letters were once invisible, and each scrape saw one web process by chance."""

    def told() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{up.running['port']}/metrics", timeout=10) as answer:
            return answer.read().decode()

    wait_until_sync(lambda: re.search(r'^jishi_loop_runs_total\{loop="look"\} [1-9]', told(), re.MULTILINE), within_s=30)
    names = {line.split("{")[0].split(" ")[0] for line in told().splitlines() if not line.startswith("#")}
    assert {name for name in names if not name.startswith("jishi_")} == set()
    assert {"jishi_connections", "jishi_requests_total"} <= names


def test_a_second_up_says_that_the_first_runs(up: Up) -> None:
    done = up.jishi("up", "--port", "0")
    assert done.returncode == 1
    already = f"Jishi is already running in {up.data_dir} (process {up.process.pid})"
    assert done.stderr == f"jishi: {already}: stop it, or choose another directory with --data-dir\n"


@pytest.mark.parametrize(("word", "count"), [("serve --fd", 2), ("app.cli worker", 1), ("valkey-server", 1), ("bin/postgres -D", 1)])
def test_a_killed_process_is_started_again_in_the_same_place(up: Up, word: str, count: int) -> None:
    before = up.running
    victims = up.children(word)
    assert len(victims) == count
    victims[0].kill()
    wait_until_sync(
        lambda: len(up.children(word)) == count and victims[0].pid not in {child.pid for child in up.children(word)},
        within_s=START_S,
        what=f"another {word}",
    )
    # Either web process may answer, and the next test may meet the other one: both must be back.
    wait_until_sync(lambda: all(up.status("/readyz") == 200 for _ in range(12)), within_s=START_S, what="both web processes ready")
    assert up.running == before
    assert re.search(r"ended \(SIGKILL\); starting it again", up.screen)


def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as taken, tempfile.TemporaryDirectory() as folder:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "app.cli", "up", "--port", str(port), "--data-dir", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"jishi: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with --port\n"


def test_an_engine_that_is_not_there_is_one_line() -> None:
    with socket.socket() as closed, tempfile.TemporaryDirectory() as folder:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        environment = {**os.environ, "REDIS_URL": f"redis://:secret@127.0.0.1:{closed.getsockname()[1]}/0"}
        command = [sys.executable, "-m", "app.cli", "up", "--no-demo", "--port", "0", "--data-dir", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("jishi: REDIS_URL: nothing answers at 127.0.0.1 ("), done.stderr
    assert (done.stderr.count("\n"), "secret" in done.stderr) == (1, False)


def test_listening_sockets_share_a_port_that_nobody_else_can_take() -> None:
    sockets = listen("127.0.0.1", 0, 3)
    try:
        ports = {listener.getsockname()[1] for listener in sockets}
        assert len(ports) == 1
        with pytest.raises(SetupError, match="choose another with --port"):
            listen("127.0.0.1", ports.pop(), 1)
    finally:
        for listener in sockets:
            listener.close()


def test_a_stop_ends_everything_and_forgets_the_address() -> None:
    with tempfile.TemporaryDirectory(prefix="jishi-up-", ignore_cleanup_errors=True) as folder:
        up = start(folder)
        family = [up.process.pid, *(child.pid for child in psutil.Process(up.process.pid).children(recursive=True))]
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(60) == 0
        assert [pid for pid in family if psutil.pid_exists(pid)] == []
        assert not (up.data_dir / "run.json").exists()


def test_a_killed_supervisor_leaves_nothing_behind_and_the_next_one_finds_its_data() -> None:
    with tempfile.TemporaryDirectory(prefix="jishi-up-", ignore_cleanup_errors=True) as folder:
        up = start(folder)
        room = json.loads(up.jishi("room", "open", "--title", "Kept", "--offer", "Rice:100:5", "--json").stdout)["room"]
        family = [child.pid for child in psutil.Process(up.process.pid).children(recursive=True)]
        up.process.kill()
        up.process.wait()
        wait_until_sync(lambda: not any(psutil.pid_exists(pid) for pid in family), within_s=30, what="all children gone")
        again = start(folder)
        try:
            assert again.status(f"/api/v1/rooms/{room}") == 200
        finally:
            again.process.send_signal(signal.SIGINT)
            again.process.wait(60)
