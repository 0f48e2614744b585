"""Who is measured beside Jishi: each a process of its own on the server's core, or the reason why this machine has it not."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from loadtests.bench.crowds import Crowd, Trouble, running_crowd
from loadtests.bench.machine import SERVER_CORE, compile_native, on_core
from loadtests.product import free_port

RIVALS = ("plain_fastapi", "picows", "nchan", "kernel_floor")
MESSAGE_BYTES = 150
START_S_MAX = 20
NGINX_FOLDERS = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
NCHAN_FOLDERS = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules", "/etc/nginx/modules")

_NGINX = """daemon off; pid {folder}/pid; error_log {folder}/error.log crit; worker_processes 1; worker_rlimit_nofile {files};
load_module {module};
events {{ worker_connections {files}; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /ws {{ nchan_pubsub websocket; nchan_channel_id room; nchan_subscriber_first_message newest; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Server:
    """`pid`: the process whose CPU and memory are counted. `text`: what a viewer sends so that all get a stamp."""

    name: str
    pid: int
    port: int
    path: str = "/ws"
    text: str = "t=%T;" + "x" * (MESSAGE_BYTES - 22)
    stage: str = "-"
    greetings: Callable[[int], Iterable[str]] = lambda _: ()

    @asynccontextmanager
    async def crowd(self, greetings: int = 0) -> AsyncGenerator[Crowd]:
        """A crowd with its greetings for so many joins, nobody in it yet."""
        async with running_crowd(port=self.port, path=self.path, greetings=self.greetings(greetings), stage=self.stage) as crowd:
            yield crowd


def missing_rivals() -> dict[str, str]:
    """Those that cannot be measured here, and why."""
    reasons: dict[str, str] = {}
    if find_spec("picows") is None:
        reasons["picows"] = "the package picows is not installed (pip install -e .[bench])"
    nginx, module = nginx_with_nchan()
    if nginx is None or module is None:
        reasons["nchan"] = "nginx is not installed" if nginx is None else "nginx is there without its module nchan"
        reasons["nchan"] += " (Debian: apt-get install nginx libnginx-mod-nchan)"
    return reasons


def nginx_with_nchan() -> tuple[str | None, Path | None]:
    modules = [Path(folder) / "ngx_nchan_module.so" for folder in NCHAN_FOLDERS]
    return shutil.which("nginx", path=NGINX_FOLDERS), next((module for module in modules if module.exists()), None)


def floor_command() -> tuple[list[str], str]:
    program, how = compile_native("floor")
    if program is None:
        return [sys.executable, "-m", "loadtests.bench.rivals.floor"], f"Python ({how})"
    return [str(program)], f"C ({how})"


@asynccontextmanager
async def running_rival(name: str, *arguments: str) -> AsyncGenerator[Server]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix=f"jishi-{name}-") as folder:
        if name == "nchan":
            command = _nginx_command(Path(folder), port)
        elif name == "kernel_floor":
            command = [*floor_command()[0], str(port)]
        else:
            module = {"plain_fastapi": "plain_fastapi", "picows": "picows_server"}[name]
            command = [sys.executable, "-m", f"loadtests.bench.rivals.{module}", str(port), *arguments]
        with on_core(SERVER_CORE):
            process = subprocess.Popen(command, start_new_session=True)  # noqa: ASYNC220, S603 - starts at once; our own programs, and nginx
        try:
            await listening(port, process)
            yield Server(name, await _worker(process.pid) if name == "nchan" else process.pid, port)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _nginx_command(folder: Path, port: int) -> list[str]:
    nginx, module = nginx_with_nchan()
    if nginx is None or module is None:
        raise Trouble(missing_rivals()["nchan"])
    folder.chmod(0o755)  # started by root, nginx serves as a user of its own
    files = os.sysconf("SC_OPEN_MAX")
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX.format(folder=folder, module=module, port=port, files=files))
    return [nginx, "-p", str(folder), "-c", str(configuration), "-e", str(folder / "error.log")]


async def _worker(master: int) -> int:
    """The one worker of nginx, which does the serving. It is there a moment after the listening socket."""
    for _ in range(100):
        if children := psutil.Process(master).children():
            return children[0].pid
        await asyncio.sleep(0.05)
    raise Trouble("nginx started no worker")


async def listening(port: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(START_S_MAX * 20):
        if process.poll() is not None:
            raise Trouble(f"the server ended while starting, with {process.returncode}")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise Trouble("the server did not start")
