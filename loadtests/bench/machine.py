"""What the machine gives: cores to pin to, the kernel's accounting of CPU and memory, file descriptors, a C compiler if there is one."""

import contextlib
import hashlib
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

NATIVE = Path(__file__).parents[1] / "native"
BUILD = Path("build/native")
COMPILE_S_MAX = 60
SPARE_FILES = 300  # of a process with so many viewers: its engines, its log, its listening socket


def cores() -> tuple[int, int]:
    """The server's and the crowd's. The same on a machine with one."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


SERVER_CORE, CROWD_CORE = cores()


def pin(pid: int, core: int) -> None:
    """All threads that the process has now, and so all that they start."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


@contextlib.contextmanager
def on_core(core: int) -> Generator[None]:
    """Children that are started in the block run there from their first instruction."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process, user and system, to the nanosecond: what clock_getcpuclockid(3) makes of a process id."""
    return time.clock_gettime((~pid << 3) | 2)


def memory_kib(pid: int) -> float:
    """Proportional set size: what the process has to itself, and its share of what it has with others."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return float(line.split()[1])
    raise OSError("this kernel does not tell the proportional set size")


def raise_file_limit() -> int:
    """As many file descriptors as we may have; children inherit it. Returns how many viewers that allows a process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1_048_576 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted - SPARE_FILES


def compile_native(name: str) -> tuple[Path | None, str]:
    """The program made of native/NAME.c, and by what; or None, and why not. A program that was made already is used again."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None, "no C compiler"
    source = NATIVE / f"{name}.c"
    program = (BUILD / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}").absolute()
    if program.exists():
        return program, Path(compiler).name
    BUILD.mkdir(parents=True, exist_ok=True)
    fresh = program.with_suffix(f".{os.getpid()}")
    done = subprocess.run(  # noqa: S603 - a compiler of this machine, a source of ours
        [compiler, "-O2", "-o", str(fresh), str(source)], check=False, capture_output=True, text=True, timeout=COMPILE_S_MAX
    )
    if done.returncode:
        return None, f"{Path(compiler).name} refused {name}.c: {done.stderr.strip()[:200]}"
    fresh.replace(program)
    return program, Path(compiler).name


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
