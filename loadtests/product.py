"""A product of our own for a load run or a benchmark: `jishi up --no-demo` in a fresh folder, a room with a shelf, and its end."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_S_MAX = 90
COMMAND_S_MAX = 600  # comparing the books of a million operations takes its time


@dataclass(frozen=True, slots=True)
class Product:
    url: str
    data_dir: Path
    pid: int

    @property
    def secret(self) -> str:
        return (self.data_dir / "secret").read_text().strip()

    def jishi(self, *arguments: str) -> str:
        """Runs a command of the command line against this product and returns what it printed, also where it found something wrong."""
        command = [sys.executable, "-m", "app.cli", *arguments, "--data-dir", str(self.data_dir)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=COMMAND_S_MAX)  # noqa: S603 - our own command line
        if done.returncode and not done.stdout:
            raise SystemExit(done.stderr)
        return done.stdout

    def open_room(self, title: str, offers: list[str]) -> dict[str, Any]:
        flags = [flag for offer in offers for flag in ("--offer", offer)]
        place: dict[str, Any] = json.loads(self.jishi("room", "open", "--title", title, *flags, "--json"))
        return place


@contextmanager
def running_product(*, web: int = 2, environment: dict[str, str] | None = None) -> Generator[Product]:
    """Starts, waits until ready, and at the end stops all of it by its own signal."""
    with tempfile.TemporaryDirectory(prefix="jishi-load-", ignore_cleanup_errors=True) as folder:
        data_dir = Path(folder)
        data_dir.chmod(0o755)  # the embedded PostgreSQL runs as a user of its own when we are root
        port = free_port()
        command = [sys.executable, "-m", "app.cli", "up", "--no-demo", "--port", str(port), "--web", str(web), "--data-dir", folder]
        with (data_dir / "up.log").open("w") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(environment or {})})  # noqa: S603 - our own command
            try:
                url = f"http://127.0.0.1:{port}"
                wait_ready(url, process, data_dir)
                yield Product(url, data_dir, process.pid)
            finally:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()


def wait_ready(url: str, process: "subprocess.Popen[bytes]", data_dir: Path) -> None:
    """Until the web processes answer and the product has written where it can be found."""
    log = data_dir / "up.log"
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the product ended while starting:\n{log.read_text()[-2000:]}")
        if (data_dir / "run.json").exists() and _answers(f"{url}/readyz"):
            return
        time.sleep(0.2)
    raise SystemExit(f"the product was not ready after {START_S_MAX} s:\n{log.read_text()[-2000:]}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - a loopback address of our own
            return True
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
