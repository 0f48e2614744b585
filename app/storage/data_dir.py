"""What the data directory says about a product: that it runs (`lock`), where its engines are (`run.json`), its secrets.

Everything in it is readable by its owner alone. `run.json` stands only while the product is up; a lock outlives no process.
"""

import fcntl
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from pydantic import SecretStr

from app.core.errors import SetupError
from app.core.settings import DEMO_SECRET, Settings
from app.storage.children import first_number, pid_exists


class Running(msgspec.Struct, frozen=True):
    """`run.json`."""

    pid: int
    url: str
    port: int
    redis_url: str
    database_url: str


@contextmanager
def locked(data_dir: Path) -> Generator[None]:
    """One `jishi up` a data directory. The kernel lets go when the process ends, however it ends."""
    make_private(data_dir)
    path = data_dir / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = first_number(path) or "unknown"
            raise SetupError(
                f"Jishi is already running in {data_dir} (process {holder}): stop it, or choose another directory with --data-dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def make_private(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.chmod(0o700)
    except OSError as failure:
        raise SetupError(f"cannot use {path}: {failure.strerror}; choose another directory with --data-dir") from failure


def write_private(path: Path, text: str) -> None:
    """In one step: a reader sees the old file or the new one."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)


def kept_secret(path: Path, size: int = 32) -> str:
    """A random secret that is made once and kept."""
    if not path.exists():
        write_private(path, secrets.token_hex(size) + "\n")
    return path.read_text().strip()


def write_running(data_dir: Path, running: Running) -> None:
    write_private(data_dir / "run.json", msgspec.json.format(msgspec.json.encode(running)).decode() + "\n")


def forget_running(data_dir: Path) -> None:
    (data_dir / "run.json").unlink(missing_ok=True)


def read_running(data_dir: Path) -> Running | None:
    """The product that is up in this directory; None when it is not, also when it was killed."""
    try:
        running = msgspec.json.decode((data_dir / "run.json").read_bytes(), type=Running)
    except (OSError, msgspec.DecodeError):
        return None
    return running if pid_exists(running.pid) else None


def find_product(settings: Settings) -> Settings:
    """The settings with what the data directory knows and the environment did not say: engines, address, secret."""
    found: dict[str, object] = {}
    running = read_running(settings.data_dir)
    if running is not None:
        found["redis_url"] = settings.redis_url or running.redis_url
        found["database_url"] = settings.database_url or running.database_url
        found["public_url"] = settings.public_url or running.url
    secret = settings.data_dir / "secret"
    if settings.token_secret.get_secret_value() == DEMO_SECRET and secret.exists():
        found["token_secret"] = SecretStr(kept_secret(secret))
    return settings.model_copy(update=found)
