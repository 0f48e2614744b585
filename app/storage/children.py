"""Child processes that end when we do, and children of root that are not root."""

import ctypes
import os
import pwd
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2


def die_with_parent(how: signal.Signals) -> Callable[[], None]:
    """For the child, between fork and exec: the kernel sends it this signal when its parent's thread is gone (Linux only)."""
    if not sys.platform.startswith("linux"):
        return lambda: None
    libc = ctypes.CDLL(None, use_errno=True)  # loaded before the fork
    number, parent = int(how), os.getpid()

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

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


def is_process_of(pid: int, word: str) -> bool:
    """Whether the process lives and one of its arguments contains `word`: a number alone may belong to somebody else by now."""
    import psutil  # noqa: PLC0415 - an optional dependency, installed with the engines

    try:
        return any(word in argument for argument in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def first_number(path: Path) -> int | None:
    """The process number that a pid file begins with; None when there is none."""
    try:
        return int(path.read_text().splitlines()[0])
    except (OSError, ValueError, IndexError):
        return None
