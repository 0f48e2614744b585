"""`jishi up`: the whole product on one machine. Starts engines, migrations, workers, web processes and the demo, and keeps them alive.

Invariants
- What dies is started again with the same address: engines keep their sockets, and each web process gets back its listening socket,
  which stays open here, so that who knocks meanwhile waits instead of being refused.
- Each web process has a listening socket of its own on the one port (SO_REUSEPORT): the kernel spreads connections evenly, whereas
  processes that share one socket let whoever wakes first take most of a join storm.
- SIGHUP renews the web processes one after the other (renewal.py), but for a product started in a terminal, where it means to stop.
- Everything ends in the order demo, web, worker, engines; children also end when this process is killed.

It is one plain loop without threads or asyncio: all it does is look ten times a second who has ended.
"""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from types import FrameType
from typing import IO
from urllib.parse import urlsplit

from rich.console import Console
from rich.panel import Panel
from rich.table import Table as Grid

from app.core.errors import SetupError
from app.core.settings import DEMO_SECRET, Settings
from app.renewal import Place, Renewal
from app.storage.children import die_with_parent
from app.storage.cluster import is_cluster, places_of
from app.storage.data_dir import Running, forget_running, kept_secret, locked, write_running
from app.storage.embedded import Engine, Postgres, Valkey

LOOK_S = 0.1
READY_S_MAX = 120.0  # a small machine that is busy with other things takes long to import everything
BACK_OFF_S_MAX = 10.0
STEADY_S = 30.0  # who ran this long starts its back-off anew
PORT_WAIT_S = 8.0  # web processes of a product that was killed just now are still draining
LISTEN_BACKLOG = 2048
REACH_S = 3.0
LOG_BYTES_MAX = 10_000_000
# Who looks in on the demo shall be able to do everything, and see deadlines pass within one show.
DEMO_SETTINGS = {
    "JISHI_GUEST_RIGHTS": "room.watch,chat.send,inventory.reserve,order.place,draw.enter,envelope.grab,wallet.view",
    "JISHI_HOLD_TTL_S": "120",
    "JISHI_PAYMENT_TTL_S": "150",
}
DRAIN_S = "3"


@dataclass(slots=True)
class Child:
    """One process that must be there. `stop_s`: how long it may take to end when asked; `buried`: told the id of one that has ended."""

    name: str
    spawn: Callable[[], "subprocess.Popen[bytes]"]
    stop_signal: signal.Signals = signal.SIGTERM
    stop_s: float = 15.0
    buried: Callable[[int], None] | None = None
    process: "subprocess.Popen[bytes] | None" = None
    failures: int = 0
    started_s: float = 0.0
    next_start_s: float = 0.0

    def start(self) -> None:
        self.process = self.spawn()
        self.started_s = time.monotonic()

    def take(self, process: "subprocess.Popen[bytes]") -> None:
        """This one serves from now on."""
        self.process = process
        self.started_s = time.monotonic()

    def look(self, say: Callable[[str], None]) -> None:
        """Notes an end, and starts again when the back-off is over."""
        now = time.monotonic()
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return
            if self.buried is not None:
                self.buried(self.process.pid)
            self.process = None
            self.failures = 1 if now - self.started_s > STEADY_S else self.failures + 1
            pause_s = min(BACK_OFF_S_MAX, 0.1 * 2 ** min(self.failures, 10))
            self.next_start_s = now + pause_s
            say(f"{self.name} ended ({_how(code)}); starting it again")
        if now >= self.next_start_s:
            try:
                self.start()
            except (SetupError, OSError) as failure:
                self.failures += 1
                self.next_start_s = now + BACK_OFF_S_MAX
                say(f"{self.name} did not start: {failure}")

    def ask_to_stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(self.stop_signal)


@dataclass(slots=True)
class Supervisor:
    settings: Settings
    data_dir: Path
    web_count: int
    with_demo: bool
    console: Console
    worker_count: int = 1
    engines: list[Engine] = field(default_factory=list[Engine])
    children: list[Child] = field(default_factory=list[Child])  # in the order in which they stop
    sockets: list[socket.socket] = field(default_factory=list[socket.socket])
    places: list[Place] = field(default_factory=list[Place])  # of the web processes
    stop_asked: int = 0
    renewal_asked: bool = False

    @property
    def url(self) -> str:
        if self.settings.public_url:
            return self.settings.base_url
        host = _reachable_host(self.settings.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def port(self) -> int:
        return int(self.sockets[0].getsockname()[1])

    def say(self, line: str) -> None:
        if not self.stop_asked:
            self.console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {line}", highlight=False)

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Once: stop in order. Twice: at once, but the engines still close their files."""
        self.stop_asked += 1

    def on_hangup(self, _number: int, _frame: FrameType | None) -> None:
        """Asks for a rolling restart."""
        self.renewal_asked = True

    def run(self) -> None:
        self.settings.check_engine_urls()
        with locked(self.data_dir):
            handlers = {signal.SIGINT: self.on_signal, signal.SIGTERM: self.on_signal}
            # A terminal that is closed hangs up on us as well: whoever started the product in one means to stop it.
            handlers[signal.SIGHUP] = self.on_signal if os.isatty(0) else self.on_hangup
            old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
            renewal = Renewal(self.say)
            try:
                self._start()
                while not self.stop_asked:
                    self._look(renewal)
                    time.sleep(LOOK_S)
            finally:
                self.stop_asked = self.stop_asked or 1
                late = renewal.end()
                self._stop()
                if late is not None:
                    _end(late)
                for number, handler in old.items():
                    signal.signal(number, handler)

    def _look(self, renewal: Renewal) -> None:
        for child in self.children:
            child.look(self.say)
        if self.renewal_asked:
            self.renewal_asked = False
            renewal.begin(self.places)
        renewal.look()

    def _start(self) -> None:
        self.sockets = listen(self.settings.host, self.settings.port, self.web_count, wait_s=self._port_wait_s())
        environment = self._start_engines()
        if self.stop_asked:
            return
        prepare_schema(environment["DATABASE_URL"])
        workers = [self._python(f"worker {number}", ["-m", "app.cli", "worker"], environment) for number in range(1, self.worker_count + 1)]
        webs = [self._web(number, listener, environment) for number, listener in enumerate(self.sockets, 1)]
        engines = [Child(engine.name, engine.spawn, process=engine.process, started_s=time.monotonic()) for engine in self.engines]
        self.children = [*webs, *workers, *engines]
        for child in (*webs, *workers):
            child.start()
        self._await_ready()
        if self.stop_asked:
            return
        write_running(self.data_dir, Running(os.getpid(), self.url, self.port, environment["REDIS_URL"], environment["DATABASE_URL"]))
        self._start_demo(environment)
        self._show_screen(environment)

    def _port_wait_s(self) -> float:
        return PORT_WAIT_S if (self.data_dir / "run.json").exists() else 0.0

    def _start_engines(self) -> dict[str, str]:
        """What the children find in their environment."""
        shutil.rmtree(self._metrics_dir, ignore_errors=True)  # of an earlier life; Prometheus expects counters to begin at zero
        self._metrics_dir.mkdir()
        redis_url, database_url = self.settings.redis_url, self.settings.database_url
        check_reachable("REDIS_URL", redis_url, 6379)
        check_reachable("FANOUT_REDIS_URL", self.settings.fanout_redis_url, 6379)
        check_reachable("DATABASE_URL", database_url, 5432)
        if not redis_url:
            self.engines.append(Valkey(self.data_dir, appendfsync=self.settings.appendfsync))
            redis_url = self.engines[-1].url
        if not database_url:
            self.engines.append(Postgres(self.data_dir))
            database_url = self.engines[-1].url
        for engine in self.engines:
            engine.start()
        environment = {
            **os.environ,
            "REDIS_URL": redis_url,
            "DATABASE_URL": database_url,
            "JISHI_TOKEN_SECRET": token_secret(self.settings, self.data_dir),
            "JISHI_DATA_DIR": str(self.data_dir),
            "JISHI_HOST": self.settings.host,
            "JISHI_PORT": str(self.port),
            "JISHI_DRAIN_S": os.environ.get("JISHI_DRAIN_S", DRAIN_S),
            "PROMETHEUS_MULTIPROC_DIR": str(self._metrics_dir),
            "PYTHONUNBUFFERED": "1",
        }
        if self.with_demo:
            for name, value in DEMO_SETTINGS.items():
                environment.setdefault(name, value)
        return environment

    def _web(self, number: int, listener: socket.socket, environment: dict[str, str]) -> Child:
        name, descriptor = f"web {number}", listener.fileno()
        arguments = ["-m", "app.cli", "serve", "--fd", str(descriptor)]
        child = self._python(name, arguments, environment, descriptors=(descriptor,))
        child.stop_s = float(environment["JISHI_DRAIN_S"]) + 15

        def spawn(ready: int) -> "subprocess.Popen[bytes]":
            renewed = [*arguments, "--ready-fd", str(ready)]
            return self._python(name, renewed, environment, descriptors=(descriptor, ready)).spawn()

        self.places.append(Place(name, spawn, lambda: child.process, child.take, self._bury_gauges, child.stop_s))
        return child

    def _python(
        self, name: str, arguments: list[str], environment: dict[str, str], *, descriptors: tuple[int, ...] = (), to_terminal: bool = False
    ) -> Child:
        log_path = self.data_dir / "logs" / f"{name.replace(' ', '-')}.log"

        def spawn() -> "subprocess.Popen[bytes]":
            with open_log(log_path) as log:
                return subprocess.Popen(
                    [sys.executable, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=None if to_terminal else log,
                    stderr=log,
                    env=environment,
                    pass_fds=descriptors,
                    start_new_session=True,  # Ctrl-C reaches this process, which stops the others in order
                    preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - no threads here
                )

        return Child(name, spawn, buried=self._bury_gauges)

    def _bury_gauges(self, pid: int) -> None:
        """What a process counted stays; what it measured of itself goes with it."""
        for gauge in self._metrics_dir.glob(f"gauge_live*_{pid}.db"):
            gauge.unlink(missing_ok=True)

    @property
    def _metrics_dir(self) -> Path:
        """Where the processes share their figures, so that `/metrics` of any of them tells the sum."""
        return self.data_dir / "metrics"

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY_S_MAX
        while not self.stop_asked and not is_ready(_reachable_host(self.settings.host), self.port):
            for child in self.children:
                if child.process is not None and child.process.poll() is not None:
                    raise SetupError(f"{child.name} ended while starting: see {self.data_dir / 'logs'}")
            if time.monotonic() > deadline:
                raise SetupError(f"not ready after {READY_S_MAX:.0f} s: see {self.data_dir / 'logs'}")
            time.sleep(LOOK_S)

    def _start_demo(self, environment: dict[str, str]) -> None:
        if not self.with_demo or find_spec("app.demo") is None:
            return
        environment = {**environment, "JISHI_DEMO_PASSWORD": kept_secret(self.data_dir / "demo-password", 6)}
        arguments = [
            "-m",
            "app.demo",
            "--url",
            f"http://127.0.0.1:{self.port}" if self.settings.public_url else self.url,
            "--data-dir",
            str(self.data_dir),
        ]
        demo = self._python("demo", arguments, environment, to_terminal=True)
        demo.stop_s = 5
        self.children.insert(0, demo)
        demo.start()

    def _show_screen(self, environment: dict[str, str]) -> None:
        grid = Grid.grid(padding=(0, 2))
        grid.add_row("Viewers", f"{self.url}/")
        demo_runs = any(child.name == "demo" for child in self.children)
        sign_in = (
            f"   sign in as [bold]host[/bold], password [bold]{kept_secret(self.data_dir / 'demo-password', 6)}[/bold]" if demo_runs else ""
        )
        grid.add_row("Hosts", f"{self.url}/host{sign_in}")
        grid.add_row("API", f"{self.url}/docs")
        grid.add_row("Metrics", f"{self.url}/metrics")
        grid.add_row("Data", f"{self.data_dir}   logs in {self.data_dir / 'logs'}")
        if not demo_runs:
            grid.add_row(
                "Next", f'jishi room open --title "First show" --offer "Rice 5 kg:4990:100" --data-dir {quote(str(self.data_dir))}'
            )
        grid.add_row("Stop", "Ctrl-C")
        self.console.print(Panel(grid, title="Jishi is open", expand=False), highlight=False, soft_wrap=True)

    def _stop(self) -> None:
        forget_running(self.data_dir)
        for listener in self.sockets:
            listener.close()
        for stage in ("demo", "web", "worker"):
            self._stop_together([child for child in self.children if child.name.split()[0] == stage])
        for engine in self.engines:
            engine.stop()

    def _stop_together(self, children: list[Child]) -> None:
        """Asks all of them, and ends whoever takes too long, or at once when we are asked a second time."""
        running = [child.process for child in children if child.process is not None]
        for child in children:
            child.ask_to_stop()
        deadline = time.monotonic() + max((child.stop_s for child in children), default=0.0)
        while any(process.poll() is None for process in running):
            if self.stop_asked > 1 or time.monotonic() > deadline:
                for process in running:
                    process.kill()
            time.sleep(LOOK_S / 2)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """It was asked to end before the engines were."""
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        process.kill()


def prepare_schema(database_url: str) -> None:
    from app.storage.migrate import migrate  # noqa: PLC0415 - Alembic and all domains, only needed here

    migrate(database_url)


def token_secret(settings: Settings, data_dir: Path) -> str:
    """The one of the environment, or one that is made at the first start and kept."""
    given = settings.token_secret.get_secret_value()
    return given if given != DEMO_SECRET else kept_secret(data_dir / "secret")


def check_reachable(name: str, url: str, port_default: int) -> None:
    """An engine of the operator's own that is not there is said at once, before anything waits for it. Sockets in the file system and
    whatever else has no host and port are left to those who connect."""
    failures: list[str] = []
    try:
        for place in map(urlsplit, places_of(url) if is_cluster(url) else [url]):
            if not place.hostname:
                return
            try:
                with socket.create_connection((place.hostname, place.port or port_default), timeout=REACH_S):
                    return  # of a cluster one is enough: it knows the others
            except OSError as failure:
                failures.append(f"nothing answers at {place.hostname} ({failure})")
    except ValueError as failure:  # the port is no port, say
        failures.append(str(failure))
    raise SetupError(f"{name}: {'; '.join(failures)}; start it, or unset {name} for the embedded one")


def listen(host: str, port: int, count: int, *, wait_s: float = 0.0) -> list[socket.socket]:
    """`count` listening sockets on one port. Port 0: any free one. Raises SetupError when the port is taken.

    A first socket without SO_REUSEPORT finds out whether somebody listens there: with it, two products of one user would share the port.
    Where the kernel does not spread connections (not Linux), all processes share one socket.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
                port = int(probe.getsockname()[1])
            break
        except OSError as failure:
            if time.monotonic() >= deadline:
                raise SetupError(
                    f"cannot listen on {host} port {port}: {failure.strerror or failure}; choose another with --port"
                ) from failure
            time.sleep(LOOK_S)
    spread = sys.platform.startswith("linux")
    sockets = [_listening(family, host, port, spread=spread) for _ in range(count if spread else 1)]
    return sockets if spread else sockets * count


def _listening(family: socket.AddressFamily, host: str, port: int, *, spread: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if spread:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    listener.listen(LISTEN_BACKLOG)
    return listener


def is_ready(host: str, port: int) -> bool:
    """Asks directly: a proxy in the environment has no business between us and our own port."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def open_log(path: Path) -> Generator[IO[bytes]]:
    """Appends; a large log of earlier runs becomes `.old` first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
        path.replace(path.with_name(path.name + ".old"))
    with path.open("ab") as log:
        yield log


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _reachable_host(host: str) -> str:
    """Nobody can connect to "all addresses"."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
