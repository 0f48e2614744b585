"""The crowd as the benchmark sees it: a program of its own on the crowd's core that takes a command and answers with what it counted.

native/crowd.c where a C compiler is there, else loadtests/crowd.py; both understand the same, described at the head of native/crowd.c.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from loadtests.bench.machine import CROWD_CORE, compile_native, on_core

ANSWER_SPARE_S = 20.0  # beyond what a command may take itself
OPEN_S_MAX = 150.0
AT_ONCE = 64


class Trouble(Exception):
    """A measurement that cannot be made; the message says why, and the others go on."""


def crowd_program() -> tuple[list[str], str]:
    """The command line, and what it is."""
    program, how = compile_native("crowd")
    if program is None:
        return [sys.executable, "-m", "loadtests.crowd"], f"Python ({how})"
    return [str(program)], f"C ({how})"


class Crowd:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, command: str, *, seconds_max: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command.encode() + b"\n")
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), seconds_max + ANSWER_SPARE_S)
        except TimeoutError:
            raise Trouble(f"the crowd did not answer `{command[:20]}` in time") from None
        if not line:
            raise Trouble("the crowd ended; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def open(self, viewers: int, *, at_once: int = AT_ONCE, seconds_max: float = OPEN_S_MAX) -> dict[str, Any]:
        """`viewers` more, all ready; raises Trouble when some do not get in."""
        told = await self.ask(f"open {viewers} {at_once} {seconds_max}", seconds_max=seconds_max)
        if told["samples"] != viewers or told["lost"]:
            raise Trouble(f"{told['samples']} of {viewers} viewers came in, {told['lost']} were lost: {told['errors'] or 'too slow'}")
        return told

    async def speak(self, text: str, *, rate: float, seconds: float, grace_s: float = 5.0) -> dict[str, Any]:
        return await self.ask(f"speak {rate} {seconds} {grace_s} {text}", seconds_max=seconds + grace_s)

    async def loop(self, text: str, *, mark: str, seconds: float) -> dict[str, Any]:
        return await self.ask(f"loop {seconds} {mark} {text}", seconds_max=seconds)

    async def storm(self, *, spread_s: float, seconds_max: float) -> dict[str, Any]:
        return await self.ask(f"storm {spread_s} {seconds_max}", seconds_max=seconds_max)

    async def stage(self) -> dict[str, Any]:
        return await self.ask("stage", seconds_max=1)

    async def close(self) -> None:
        await self.ask("close", seconds_max=10)


@asynccontextmanager
async def running_crowd(*, port: int, path: str, greetings: Iterable[str] = (), stage: str = "-") -> AsyncGenerator[Crowd]:
    command, _ = crowd_program()
    with tempfile.NamedTemporaryFile("w", prefix="jishi-crowd-") as file:
        file.writelines(f"{greeting}\n" for greeting in greetings)
        file.flush()
        pipe = asyncio.subprocess.PIPE
        with on_core(CROWD_CORE):
            process = await asyncio.create_subprocess_exec(
                *command, str(port), path, str(Path(file.name)), stage, stdin=pipe, stdout=pipe, start_new_session=True
            )
        try:
            yield Crowd(process)
        finally:
            process.kill()
            await process.wait()
