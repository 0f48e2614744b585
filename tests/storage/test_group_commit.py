"""Batches by lane: what goes together, what waits for the window, who fails alone, and that nobody is left waiting."""

import asyncio
from collections.abc import Sequence

import pytest

from app.core.errors import AppError
from app.protocol.codes import INTERNAL, SERVICE_UNAVAILABLE, TOO_MANY_REQUESTS
from app.storage.group_commit import GroupCommit
from tests.support.waiting import wait_until

WINDOW_MS = 40


class Script:
    """Stands for an engine's script: echoes, keeps its batches, waits where it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun_at: list[float] = []
        self.gate: asyncio.Event | None = None
        self.failures: dict[int, Exception] = {}

    async def __call__(self, room_id: str, members: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(members))
        self.begun_at.append(asyncio.get_running_loop().time())
        if self.gate is not None:
            await self.gate.wait()
        return [self.failures.get(member, member) for member in members]


@pytest.fixture
def script() -> Script:
    return Script()


def group(script: Script, *, window_ms: int = 0, batch_max: int = 100, queue_max: int = 1000) -> GroupCommit[int, int]:
    return GroupCommit("test", script, batch_max=batch_max, queue_max=queue_max, window_ms=window_ms)


async def several(commit: GroupCommit[int, int], numbers: range, room_id: str = "r") -> list[int]:
    return await asyncio.gather(*[commit.submit(room_id, number) for number in numbers])


async def test_what_comes_while_a_batch_is_under_way_joins_the_next(script: Script) -> None:
    script.gate = asyncio.Event()
    commit = group(script)
    first = asyncio.create_task(several(commit, range(1)))
    await wait_until(lambda: script.batches)
    rest = asyncio.create_task(several(commit, range(1, 6)))
    await asyncio.sleep(0)
    script.gate.set()
    assert await first + await rest == list(range(6))
    assert script.batches == [[0], [1, 2, 3, 4, 5]]


async def test_with_a_window_a_quiet_room_waits_for_nothing_and_a_busy_one_for_the_windows_end(script: Script) -> None:
    commit = group(script, window_ms=WINDOW_MS)
    assert await several(commit, range(1)) == [0]
    assert await several(commit, range(1, 6)) == [1, 2, 3, 4, 5]
    assert script.batches == [[0], [1, 2, 3, 4, 5]]
    assert script.begun_at[1] - script.begun_at[0] >= WINDOW_MS / 1000
    await wait_until(lambda: not commit._lanes)  # quiet again: nothing is kept of the room
    assert await several(commit, range(6, 7)) == [6]


async def test_other_rooms_have_windows_of_their_own(script: Script) -> None:
    commit = group(script, window_ms=60_000)
    assert await several(commit, range(1), "r") == [0]
    assert await several(commit, range(1, 2), "s") == [1]


async def test_a_full_batch_does_not_wait_for_the_window(script: Script) -> None:
    commit = group(script, window_ms=60_000, batch_max=5)
    await several(commit, range(1))
    assert await several(commit, range(1, 6)) == [1, 2, 3, 4, 5]
    assert [len(batch) for batch in script.batches] == [1, 5]


async def test_the_queue_is_bounded_also_while_it_waits(script: Script) -> None:
    commit = group(script, window_ms=60_000, queue_max=3)
    await several(commit, range(1))
    waiting = [asyncio.ensure_future(commit.submit("r", number)) for number in range(1, 4)]
    await asyncio.sleep(0)
    with pytest.raises(AppError) as refusal:
        await commit.submit("r", 4)
    assert refusal.value.code is TOO_MANY_REQUESTS
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_one_bad_member_fails_alone(script: Script) -> None:
    script.failures = {2: AppError(INTERNAL, "broken"), 3: ValueError("strange")}
    commit = group(script)
    outcomes = await asyncio.gather(*[commit.submit("r", number) for number in range(5)], return_exceptions=True)
    codes = [outcome.code if isinstance(outcome, AppError) else outcome for outcome in outcomes]
    assert codes == [0, 1, INTERNAL, SERVICE_UNAVAILABLE, 4]


async def test_who_leaves_does_not_take_the_others_along(script: Script) -> None:
    script.gate = asyncio.Event()
    commit = group(script, window_ms=WINDOW_MS)
    callers = [asyncio.ensure_future(commit.submit("r", number)) for number in range(3)]
    await wait_until(lambda: script.batches)
    callers[1].cancel()
    script.gate.set()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert [outcomes[0], outcomes[2]] == [0, 2]
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert script.batches == [[0, 1, 2]]


async def test_nobody_waits_for_ever_when_the_process_ends(script: Script) -> None:
    script.gate = asyncio.Event()
    commit = group(script)
    first = asyncio.ensure_future(commit.submit("r", 0))
    await wait_until(lambda: script.batches)
    second = asyncio.ensure_future(commit.submit("r", 1))
    await asyncio.sleep(0)
    lane = commit._lanes["r"]
    assert lane.task is not None
    lane.task.cancel()
    outcomes = await asyncio.gather(first, second, return_exceptions=True)
    assert [outcome.code for outcome in outcomes if isinstance(outcome, AppError)] == [SERVICE_UNAVAILABLE] * 2
    assert commit._lanes == {}


# --- fair between viewers -------------------------------------------------------------------------------------------------------------


async def blocked(commit: GroupCommit[int, int], script: Script) -> "asyncio.Future[int]":
    """A batch of one command is under way and does not end before `script.gate` is set: what is submitted now queues."""
    script.gate = asyncio.Event()
    first = asyncio.ensure_future(commit.submit("r", -1))
    await wait_until(lambda: script.batches)
    return first


async def test_one_command_waits_for_one_batch_however_many_another_viewer_has_sent(script: Script) -> None:
    """First come, first served put it behind the thousand: ten batches."""
    commit = group(script, queue_max=2000)
    first = await blocked(commit, script)
    flood = [commit.submit("r", number, viewer="ann") for number in range(1000)]
    one = commit.submit("r", 5000, viewer="bo")
    assert script.gate is not None
    script.gate.set()
    assert await asyncio.gather(first, one, *flood) == [-1, 5000, *range(1000)]
    assert script.batches[1] == [0, 5000, *range(1, 99)]
    assert [number for batch in script.batches for number in batch if number not in {-1, 5000}] == list(range(1000))
    assert [len(batch) for batch in script.batches] == [1, *[100] * 10, 1]


async def test_who_has_most_in_a_full_queue_is_refused_first(script: Script) -> None:
    """Others were refused for the one who had filled it."""
    commit = group(script, queue_max=5)
    first = await blocked(commit, script)
    flood = [commit.submit("r", number, viewer="ann") for number in range(5)]
    others = [commit.submit("r", 10 + number, viewer=f"other-{number}") for number in range(4)]
    with pytest.raises(AppError) as refusal:  # each has one now: who comes last is told
        commit.submit("r", 20, viewer="late")
    assert refusal.value.code is TOO_MANY_REQUESTS
    with pytest.raises(AppError):
        commit.submit("r", 5, viewer="ann")
    assert script.gate is not None
    script.gate.set()
    outcomes = await asyncio.gather(first, *flood, *others, return_exceptions=True)
    words = [outcome.code.word if isinstance(outcome, AppError) else outcome for outcome in outcomes]
    assert words == [-1, 0, *["too_many_requests"] * 4, 10, 11, 12, 13]
    assert script.batches == [[-1], [0, 10, 11, 12, 13]]


async def test_commands_of_no_viewer_keep_their_order_and_give_way_to_nobody(script: Script) -> None:
    commit = group(script, queue_max=3)
    first = await blocked(commit, script)
    rest = [commit.submit("r", number) for number in range(3)]
    for viewer in ("", "ann"):
        with pytest.raises(AppError):
            commit.submit("r", 9, viewer=viewer)
    assert script.gate is not None
    script.gate.set()
    assert await asyncio.gather(first, *rest) == [-1, 0, 1, 2]
    assert script.batches == [[-1], [0, 1, 2]]


async def test_a_command_that_made_room_may_have_been_left_by_its_caller(script: Script) -> None:
    commit = group(script, queue_max=2)
    first = await blocked(commit, script)
    flood = [commit.submit("r", number, viewer="ann") for number in range(2)]
    flood[1].cancel()
    other = commit.submit("r", 7, viewer="bo")
    assert script.gate is not None
    script.gate.set()
    assert await asyncio.gather(first, flood[0], other) == [-1, 0, 7]
    assert script.batches == [[-1], [0, 7]]
