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
FATES = (*ROLES, "engines", "sleep")  # both engines at once; one of any role stops for a while and wakes with what it believed before
SLEEP_S_MIN, SLEEP_S_MAX = 1.0, 5.0  # a room's lease is 2 s; replies are waited for 6 s
WORDS = {"web": ("serve", "--fd"), "worker": ("app.cli", "worker"), "valkey": ("valkey-server",), "postgres": ("postgres", "-D")}
ROUNDS_BETWEEN_ALL = 5  # each round has each fate once; after so many the supervisor dies, and everything with it
STOP_S_MAX = 60
ENVIRONMENT = {
    "JISHI_SANDBOX_PAYMENT_DELAY_MS": "200",
    "JISHI_SANDBOX_RETRY_MS_MAX": "2000",
    "JISHI_PROVIDER_TIMEOUT_S": "2",
    "JISHI_PROVIDER_TAKEOVER_S": "1",
    "JISHI_WEBHOOK_TIMEOUT_S": "1",
    "JISHI_WEBHOOK_ATTEMPTS_MAX": "1000",
    "JISHI_ROOM_LEASE_S": "2",
    "JISHI_DRAIN_S": "0.2",
    "JISHI_METHOD_RATES_FACTOR": "10000",  # one viewer here is many
    "JISHI_COMMANDS_PER_S_MAX": "100000",
    "JISHI_CHAT_PER_VIEWER_PER_10_S": "100000",
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
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # Ctrl-C ends the operations, not the product
            )

    def wait_ready(self) -> None:
        wait_ready(self.url, self._process, self.data_dir)

    def kill(self, fate: str, rng: random.Random) -> None:
        """As `kill -9` does. A role of which nothing runs just now is spared."""
        if fate == "supervisor":
            self._process.kill()
            self._process.wait()
        else:
            found = [
                rng.choice(there) for role in (("valkey", "postgres") if fate == "engines" else (fate,)) if (there := self.processes(role))
            ]
            if not found:
                return
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.kills[fate] += 1

    def stop_one(self, rng: random.Random) -> list[psutil.Process]:
        """As `kill -STOP` does, with its children: PostgreSQL's work is theirs. Who was stopped, for `wake`."""
        found = self.processes(rng.choice(ROLES))
        if not found:
            return []
        first = rng.choice(found)
        stopped: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            for process in (first, *first.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
                    stopped.append(process)
        self.kills["sleep"] += bool(stopped)
        return stopped

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
    """What happens next, for ever: each fate as often as the others, in an order that nobody knows."""
    while True:
        for _ in range(ROUNDS_BETWEEN_ALL):
            yield from rng.sample(FATES, len(FATES))
        yield "supervisor"


def wake(stopped: list[psutil.Process]) -> None:
    for process in stopped:
        with suppress(psutil.NoSuchProcess):
            process.resume()


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
