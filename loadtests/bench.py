"""`make bench`: Jishi and the plain way side by side in one run, as ratios. Writes build/bench.json and prints one table.

Server and crowd are pinned to a core each where there are two. CPU is what the kernel accounts to the server process while the measured
traffic flows, divided by what arrived. Figures swing on small machines; the ratios are what to compare.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import psutil

from loadtests.crowd import Count, RawViewer, gather_crowd
from loadtests.product import Product, free_port, running_product

PAD = "x" * 90  # with its envelope a chat message of about 150 bytes
LIFTED = {
    "JISHI_CHAT_SHOWN_PER_S": "100000",
    "JISHI_CHAT_PER_VIEWER_PER_10_S": "100000",
    "JISHI_COMMANDS_PER_S_MAX": "100000",
    "JISHI_JOINS_PER_S": "100000",
}


def pin(pid: int, core: int) -> None:
    cores = os.cpu_count() or 1
    psutil.Process(pid).cpu_affinity([core % cores])


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def web_pid(product: Product) -> int:
    """The one web process below `jishi up`."""
    serving = [child for child in psutil.Process(product.pid).children(recursive=True) if "serve" in child.cmdline()]
    assert len(serving) == 1, serving
    return int(serving[0].pid)


async def measure_fanout(
    *, pid: int, count: Count, size: int, rate: int, seconds: float, say: Callable[[str], Awaitable[None]]
) -> dict[str, float]:
    """CPU a delivery and latency while `rate` messages a second reach `size` viewers."""
    await asyncio.sleep(1)
    count.reset()
    began_cpu_s, began = cpu_s(pid), time.monotonic()
    messages = int(rate * seconds)
    for number in range(messages):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        await say(f"t={time.time_ns()};{PAD}")
    for _ in range(50):  # what is on its way shall arrive; what has not after 5 s is lost
        await asyncio.sleep(0.1)
        if count.deliveries >= messages * size:
            break
    used_s = cpu_s(pid) - began_cpu_s
    latencies = sorted(count.latencies_ms) or [0.0]
    return {
        "cpu_us": round(used_s / max(1, count.deliveries) * 1e6, 2),
        "p50_ms": round(statistics.median(latencies), 1),
        "p99_ms": round(latencies[int(len(latencies) * 0.99) - 1], 1),
        "delivered": round(count.deliveries / (messages * size), 4),
    }


def greetings(room: str, secret: str) -> Callable[[int], list[bytes]]:
    """What a viewer sends first: connect with a token of its own, and two subscribes, pipelined."""

    def make(number: int) -> list[bytes]:
        token = jwt.encode({"sub": f"bench-{number}", "exp": int(time.time()) + 3600}, secret, algorithm="HS256")
        connect = {"id": 1, "connect": {"token": token}}
        subscribe = [{"id": 2 + i, "subscribe": {"channel": f"{kind}:{room}"}} for i, kind in enumerate(("room", "chat"))]
        return [json.dumps(command, separators=(",", ":")).encode() for command in (connect, *subscribe)]

    return make


async def fanout_jishi(size: int, rate: int, seconds: float) -> dict[str, float]:
    with running_product(web=1, environment=LIFTED) as product:
        place = product.open_room("Bench", ["Tea:100:10"])
        pid = web_pid(product)
        pin(pid, 0)
        count = Count()
        port = int(product.url.rpartition(":")[2])
        crowd = await gather_crowd(
            port=port,
            path="/connection/websocket",
            size=size,
            greetings=greetings(place["room"], product.secret),
            mark=b'"chat.sent"',
            count=count,
        )
        number = 0

        async def say(text: str) -> None:
            nonlocal number
            number += 1
            request = {"room": place["room"], "text": text, "key": f"k{number}"}
            crowd[number % size].send(json.dumps({"id": number + 10, "rpc": {"method": "chat.send", "data": request}}).encode())

        figures = await measure_fanout(pid=pid, count=count, size=size, rate=rate, seconds=seconds, say=say)
        _close(crowd)
        return figures


async def fanout_plain(size: int, rate: int, seconds: float) -> dict[str, float]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "loadtests.plain", str(port)])  # noqa: ASYNC220, S603 - our own module
    try:
        await _listening(port)
        pin(process.pid, 0)
        count = Count()
        crowd = await gather_crowd(port=port, path="/ws", size=size, greetings=lambda _: [], mark=b"t=", count=count)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def say(text: str) -> None:
            body = text.encode() + b" " * 40
            writer.write(b"POST /say HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

        drain = asyncio.create_task(reader.read(-1))
        figures = await measure_fanout(pid=process.pid, count=count, size=size, rate=rate, seconds=seconds, say=say)
        drain.cancel()
        writer.close()
        _close(crowd)
        return figures
    finally:
        process.terminate()
        process.wait()


async def holds_jishi(in_flight: int, seconds: float) -> dict[str, float]:
    """A closed loop: every viewer has one `inventory.reserve` under way, all of them accepted."""
    with running_product(web=1, environment=LIFTED) as product:
        place = product.open_room("Bench", ["Tea:100:1000000"])
        pid = web_pid(product)
        pin(pid, 0)
        port = int(product.url.rpartition(":")[2])
        make = greetings(place["room"], product.secret)
        crowd = await gather_crowd(
            port=port,
            path="/connection/websocket",
            size=in_flight,
            greetings=lambda number: make(number)[:1],
            mark=b'"held"',
            count=Count(),
        )
        offer = place["offers"][0]["id"]
        loop = _ClosedLoop(crowd, lambda number: {"offer": offer, "quantity": 1, "key": f"b{number}"})
        figures = await loop.run(pid, seconds)
        _close(crowd)
        return figures


class _ClosedLoop:
    def __init__(self, crowd: list[RawViewer], request: Callable[[int], dict[str, Any]]) -> None:
        self._crowd = crowd
        self._request = request
        self._number = 100
        self._sent_at = [0.0] * len(crowd)
        self._latencies_ms: list[float] = []
        self._accepted = self._refused = 0
        self._going = True

    async def run(self, pid: int, seconds: float) -> dict[str, float]:
        began_cpu_s, began = cpu_s(pid), time.monotonic()
        for index, viewer in enumerate(self._crowd):
            viewer.on_frame = lambda frame, index=index: self._answered(index, frame)
            self._ask(index)
        await asyncio.sleep(seconds)
        self._going = False
        elapsed_s, used_s = time.monotonic() - began, cpu_s(pid) - began_cpu_s
        await asyncio.sleep(0.5)
        ordered = sorted(self._latencies_ms) or [0.0]
        return {
            "accepted_per_s": round(self._accepted / elapsed_s),
            "refused_per_s": round(self._refused / elapsed_s),
            "p50_ms": round(statistics.median(ordered), 1),
            "p99_ms": round(ordered[int(len(ordered) * 0.99) - 1], 1),
            "cpu_us": round(used_s / max(1, self._accepted) * 1e6, 1),
        }

    def _ask(self, index: int) -> None:
        self._number += 1
        self._sent_at[index] = time.monotonic()
        command = {"id": self._number, "rpc": {"method": "inventory.reserve", "data": self._request(self._number)}}
        self._crowd[index].send(json.dumps(command, separators=(",", ":")).encode())

    def _answered(self, index: int, frame: bytes) -> None:
        if b'"rpc"' not in frame and b'"error"' not in frame:
            return  # a push, not the reply
        if not self._going:
            return
        self._latencies_ms.append((time.monotonic() - self._sent_at[index]) * 1000)
        if b'"held"' in frame:
            self._accepted += 1
        else:
            self._refused += 1
        self._ask(index)


async def holds_plain(in_flight: int, seconds: float) -> dict[str, float]:
    """One HTTP request and one script call a hold, on keep-alive connections, against the same embedded engine."""
    with running_product(web=1) as product:
        redis_url = json.loads((product.data_dir / "run.json").read_text())["redis_url"]
        port = free_port()
        process = subprocess.Popen([sys.executable, "-m", "loadtests.plain", str(port), redis_url])  # noqa: ASYNC220, S603 - our own module
        try:
            await _listening(port)
            pin(process.pid, 0)
            return await _post_holds(port, process.pid, in_flight, seconds)
        finally:
            process.terminate()
            process.wait()


async def _post_holds(port: int, pid: int, in_flight: int, seconds: float) -> dict[str, float]:
    latencies_ms: list[float] = []
    began_cpu_s, began = cpu_s(pid), time.monotonic()

    async def one(index: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        number = 0
        while time.monotonic() - began < seconds:
            number += 1
            body = json.dumps({"offer": "o", "quantity": 1, "key": f"{index}-{number}"}).encode()
            head = b"POST /reserve HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            sent = time.monotonic()
            writer.write(head + body)
            answer = await reader.readuntil(b"}")
            assert b"held" in answer, answer
            latencies_ms.append((time.monotonic() - sent) * 1000)
        writer.close()

    await asyncio.gather(*(one(index) for index in range(in_flight)))
    elapsed_s, used_s = time.monotonic() - began, cpu_s(pid) - began_cpu_s
    ordered = sorted(latencies_ms)
    return {
        "accepted_per_s": round(len(ordered) / elapsed_s),
        "refused_per_s": 0,
        "p50_ms": round(statistics.median(ordered), 1),
        "p99_ms": round(ordered[int(len(ordered) * 0.99) - 1], 1),
        "cpu_us": round(used_s / len(ordered) * 1e6, 1),
    }


async def _listening(port: int) -> None:
    for _ in range(100):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return
    raise SystemExit("the plain server did not start")


def _close(crowd: list[RawViewer]) -> None:
    for viewer in crowd:
        viewer.close()


def print_table(title: str, rows: dict[str, dict[str, float]], by: str) -> None:
    """The servers under each other, and Jishi's share of the plain way's figure."""
    print(f"\n{title}")
    for server, figures in rows.items():
        print(f"  {server:14}" + "  ".join(f"{name} {value:>10,}" for name, value in figures.items()))
    plain, ours = rows["plain_fastapi"][by], rows["jishi"][by]
    if plain:
        print(f"  ratio {by}: {ours / plain:.2f} x the plain way")


async def run(seconds: float) -> dict[str, Any]:
    pin(os.getpid(), 1)
    results: dict[str, Any] = {
        "conditions": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "seconds": seconds}
    }
    for name, size, rate in (("fanout_2000x10", 2000, 10), ("fanout_1000x100", 1000, 100)):
        results[name] = {"jishi": await fanout_jishi(size, rate, seconds)}
        plain_rate = (
            rate if rate <= 20 else 20
        )  # a hundred a second to a thousand is more than the plain way can carry; CPU a delivery is the same
        results[name]["plain_fastapi"] = await fanout_plain(size, plain_rate, seconds)
        print_table(f"fan-out: {size} viewers, {rate} messages/s (plain: {plain_rate})", results[name], "cpu_us")
    results["holds"] = {"jishi": await holds_jishi(200, seconds), "plain_fastapi": await holds_plain(64, seconds)}
    print_table("holds: closed loop, all accepted (200 in flight; plain 64)", results["holds"], "accepted_per_s")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="how long each measurement sends")
    arguments = parser.parse_args()
    results = asyncio.run(run(arguments.seconds))
    target = Path("build/bench.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nwritten to {target}")


if __name__ == "__main__":
    main()
