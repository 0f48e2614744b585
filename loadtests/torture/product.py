"""The product under torture: `jishi up` with two web processes and two workers, and whoever of them is to be killed."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from loadtests.product import Product, free_port, wait_ready

ROLES = ("web", "worker", "valkey", "postgres")
WORDS = {"web": ("serve", "--fd"), "worker": ("app.cli", "worker"), "valkey": ("valkey-server",), "postgres": ("postgres", "-D")}
ROUNDS_BETWEEN_ALL = 5  # each round kills one of every role; after so many the supervisor dies, and everything with it
STOP_S_MAX = 60
ENVIRONMENT = {
    "JISHI_SANDBOX_PAYMENT_DELAY_MS": "200",
    "JISHI_SANDBOX_RETRY_MS_MAX": "2000",
    "JISHI_WEBHOOK_TIMEOUT_S": "1",
    "JISHI_WEBHOOK_ATTEMPTS_MAX": "1000",
    "JISHI_ROOM_LEASE_S": "2",
    "JISHI_DRAIN_S": "0.2",
    "JISHI_METHOD_RATES_FACTOR": "10000",  # one viewer here is many
    "JISHI_COMMANDS_PER_S_MAX": "100000",
    "JISHI_JOINS_PER_S": "10000",
}


class Tortured:
    """A product that stands up again, at the same address and on the same data, whatever was killed."""

    def __init__(self, data_dir: Path, *, hold_s: int, payment_s: int) -> None:
        """Deadlines are short, so that they pass all the time."""
        self.data_dir = data_dir
        self.kills: Counter[str] = Counter()
        self._environment = {**os.environ, **ENVIRONMENT, "JISHI_HOLD_TTL_S": str(hold_s), "JISHI_PAYMENT_TTL_S": str(payment_s)}
        self._port = free_port()
        self._process: subprocess.Popen[bytes]
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def face(self) -> Product:
        return Product(self.url, self.data_dir, self._process.pid)

    def start(self) -> None:
        words = ["up", "--no-demo", "--port", str(self._port), "--web", "2", "--workers", "2", "--data-dir", str(self.data_dir)]
        with (self.data_dir / "up.log").open("a") as log:
            command = [sys.executable, "-m", "app.cli", *words]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment)  # noqa: S603 - our own command

    def wait_ready(self) -> None:
        wait_ready(self.url, self._process, self.data_dir)

    def kill_one(self, role: str, rng: random.Random) -> None:
        """As `kill -9` does. A role of which nothing runs just now is spared."""
        if role == "supervisor":
            self._process.kill()
            self._process.wait()
        else:
            found = self.processes(role)
            if not found:
                return
            with suppress(psutil.NoSuchProcess):
                rng.choice(found).kill()
        self.kills[role] += 1

    def processes(self, role: str) -> list[psutil.Process]:
        """In the order of their start."""
        found: list[psutil.Process] = []
        with suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children():
                with suppress(psutil.Error):
                    line = " ".join(child.cmdline())
                    if all(word in line for word in WORDS[role]):
                        found.append(child)
        return sorted(found, key=lambda child: child.pid)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def wait_all(self, within_s: float = 60.0) -> None:
        """Until every process is there again and serves."""
        deadline = time.monotonic() + within_s
        while any(len(self.processes(role)) < count for role, count in (("web", 2), ("worker", 2), ("valkey", 1), ("postgres", 1))):
            if time.monotonic() > deadline:
                raise SystemExit(f"not every process was started again within {within_s:.0f} s: see {self.data_dir / 'up.log'}")
            time.sleep(0.1)
        self.wait_ready()


def deck(rng: random.Random) -> Generator[str]:
    """Whom to kill, for ever: every role as often as the others, in an order that nobody knows."""
    while True:
        for _ in range(ROUNDS_BETWEEN_ALL):
            yield from rng.sample(ROLES, len(ROLES))
        yield "supervisor"


@contextmanager
def tortured_product(data_dir: Path | None, *, hold_s: int, payment_s: int) -> Generator[Tortured]:
    """In a folder of its own that goes with it, or in `data_dir`, which stays: for a look at the logs."""
    with ExitStack() as stack:
        if data_dir is None:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jishi-torture-", ignore_cleanup_errors=True)))
        data_dir.mkdir(parents=True, exist_ok=True)
        data_dir.chmod(0o755)  # the embedded PostgreSQL runs as a user of its own when we are root
        product = Tortured(data_dir, hold_s=hold_s, payment_s=payment_s)
        try:
            product.wait_ready()
            yield product
        finally:
            product.stop()
