"""One read for all who want the same, for a while; nothing of it stays."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from app.gateway import shared_reads
from app.gateway.shared_reads import SharedReads
from tests.support.waiting import wait_until


class Source:
    """Counts its readings; `gate` holds one up."""

    def __init__(self) -> None:
        self.readings = 0
        self.gate: asyncio.Event | None = None
        self.failure: Exception | None = None

    async def __call__(self) -> str:
        self.readings += 1
        reading = self.readings
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return f"reading {reading}"


@pytest.fixture
async def reads() -> AsyncGenerator[SharedReads]:
    tasks: list[asyncio.Task[Any]] = []

    def spawn(work: Any) -> "asyncio.Task[Any]":
        tasks.append(asyncio.create_task(work))
        return tasks[-1]

    yield SharedReads(spawn)
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def age(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """As if what was read were so old."""

    def set_age(seconds: float) -> None:
        monkeypatch.setattr(shared_reads, "AGE_S_MAX", 2.0 - seconds)
        monkeypatch.setattr(shared_reads, "RENEW_AGE_S", 1.0 - seconds)

    return set_age


async def test_who_comes_while_it_is_read_waits_for_the_same(reads: SharedReads) -> None:
    source = Source()
    source.gate = asyncio.Event()
    waiting = [asyncio.create_task(reads.get("a", source)) for _ in range(5)]
    await wait_until(lambda: source.readings)
    assert reads.at_hand("a", source) is None
    source.gate.set()
    assert await asyncio.gather(*waiting) == ["reading 1"] * 5
    assert reads.at_hand("a", source) == "reading 1"
    assert await reads.get("b", source) == "reading 2"


async def test_one_who_leaves_takes_nothing_from_the_others(reads: SharedReads) -> None:
    source = Source()
    source.gate = asyncio.Event()
    first, second = (asyncio.create_task(reads.get("a", source)) for _ in range(2))
    await wait_until(lambda: source.readings)
    first.cancel()
    source.gate.set()
    assert await second == "reading 1"


async def test_a_failure_is_told_to_those_who_wait_and_is_not_kept(reads: SharedReads) -> None:
    source = Source()
    source.failure = OSError("away")
    with pytest.raises(OSError, match="away"):
        await reads.get("a", source)
    assert reads.at_hand("a", source) is None
    source.failure = None
    assert await reads.get("a", source) == "reading 2"


async def test_what_grows_old_is_renewed_while_it_is_still_handed_out(reads: SharedReads, age: Callable[[float], None]) -> None:
    source = Source()
    await reads.get("a", source)
    source.gate = asyncio.Event()
    age(1.5)
    assert [reads.at_hand("a", source) for _ in range(3)] == ["reading 1"] * 3
    await wait_until(lambda: source.readings == 2)
    source.gate.set()
    assert await wait_until(lambda: reads.at_hand("a", source) == "reading 2")
    assert source.readings == 2


async def test_what_is_too_old_is_not_handed_out(reads: SharedReads, age: Callable[[float], None]) -> None:
    source = Source()
    await reads.get("a", source)
    age(3.0)
    assert reads.at_hand("a", source) is None
    assert await reads.get("a", source) == "reading 2"


async def test_a_value_that_will_not_do_is_read_again_once_for_all_who_say_so(reads: SharedReads) -> None:
    source = Source()
    refused = await reads.get("a", source)
    assert await asyncio.gather(*[reads.get("a", source, instead_of=refused) for _ in range(3)]) == ["reading 2"] * 3


async def test_after_a_while_nothing_is_kept(reads: SharedReads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_reads, "AGE_S_MAX", 0.01)
    await reads.get("a", Source())
    reads.kept[1] = "made of the copy"
    await wait_until(lambda: not reads.kept and not reads._flights)
