"""Product code in processes of their own, which a test may kill, or which kill themselves at a chosen point.

A fork server has imported everything once, so that a process is there at once; nothing of the test's own process is inherited.
"""

import asyncio
import multiprocessing
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session, configure_mappers

from app.composition import build_registry
from app.core.settings import Settings
from app.domains.orders import payments
from app.serve import serve
from app.storage.intake import take_in_room
from app.storage.work import Engines
from tests.support.runtime import TestRuntime

configure_mappers()  # once, and not in each process
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])

ROOM = "room1"


def start_web(settings: Settings, listener: socket.socket, log: Path) -> BaseProcess:
    """A web process on a listening socket that outlives it, as under `jishi up`."""
    process = _context.Process(target=_web, args=(settings, listener, log), daemon=True)
    process.start()
    return process


def _web(settings: Settings, listener: socket.socket, log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    serve(settings, descriptor=listener.detach())


def start_taking_in(settings: Settings, body: bytes, header: str, die_at: int) -> BaseProcess:
    """Hears a webhook and takes the room in, as a web process and a worker do, and kills itself at the `die_at`th boundary: before and
    after each call of the engine and each commit. It ends with 0 when it has fewer."""
    process = _context.Process(target=_take_in, args=(settings, body, header, die_at), daemon=True)
    process.start()
    return process


def _take_in(settings: Settings, body: bytes, header: str, die_at: int) -> None:
    async def run(engines: Engines) -> None:
        await payments.receive_webhook(engines, "sandbox", {"Jishi-Signature": header}, body)
        await take_in_room(engines, ROOM)

    asyncio.run(_with_engines(settings, die_at, run))


async def _with_engines(settings: Settings, die_at: int, run: Callable[[Engines], Coroutine[Any, Any, None]]) -> None:
    engines = Engines.connect(settings, TestRuntime(), build_registry())
    try:
        _die_at(engines, die_at)
        await run(engines)
    finally:
        await engines.close()


def _die_at(engines: Engines, number: int) -> None:
    passed = 0

    def boundary(*_: Any) -> None:
        nonlocal passed
        passed += 1
        if passed == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def wrapped(*arguments: Any, **options: Any) -> Any:
            boundary()
            answer = await call(*arguments, **options)
            boundary()
            return answer

        return wrapped

    line = engines.sales.line
    for name in ("call", "call_each"):
        setattr(line, name, around(getattr(line, name)))
    event.listen(engines.sql.engine.sync_engine, "commit", boundary)
    event.listen(Session, "after_commit", boundary)
