"""Group commit: all that arrives while a batch is under way joins the next one.

One lane a room: at most one script call of a kind is in flight for it, so a busy room costs one engine call and one fsync a batch and not
one a viewer, and an idle room's command leaves at once. The queue is bounded; beyond it the caller is told to try again later.
A caller that goes away does not take its command back: it may already be with the engine, and its key makes a retry safe.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from app.core.errors import AppError
from app.core.metrics import BATCH_SIZE, BATCH_WAIT_SECONDS
from app.protocol.codes import SERVICE_UNAVAILABLE, TOO_MANY_REQUESTS

Member = TypeVar("Member")
Outcome = TypeVar("Outcome")


class _Lane(Generic[Member, Outcome]):
    __slots__ = ("queue", "task")

    def __init__(self) -> None:
        self.queue: deque[tuple[Member, asyncio.Future[Outcome], float]] = deque()
        self.task: asyncio.Task[None] | None = None


class GroupCommit(Generic[Member, Outcome]):
    """`run_batch(room_id, members)` does one script call and returns one outcome a member, in order."""

    def __init__(
        self,
        name: str,
        run_batch: Callable[[str, Sequence[Member]], Awaitable[Sequence[Outcome]]],
        *,
        batch_max: int,
        queue_max: int,
    ) -> None:
        self._run_batch = run_batch
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._lanes: dict[str, _Lane[Member, Outcome]] = {}
        self._size = BATCH_SIZE.labels(name)
        self._wait = BATCH_WAIT_SECONDS.labels(name)

    async def submit(self, room_id: str, member: Member) -> Outcome:
        """The member's outcome. Raises AppError `too_many_requests` when the room's queue is full."""
        lane = self._lanes.get(room_id)
        if lane is None:
            lane = self._lanes[room_id] = _Lane()
        if len(lane.queue) >= self._queue_max:
            raise AppError(TOO_MANY_REQUESTS, "this room has more commands waiting than it can take; try again", retry_after_ms=500)
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Outcome] = loop.create_future()
        lane.queue.append((member, outcome, loop.time()))
        if lane.task is None:
            lane.task = loop.create_task(self._drain(room_id, lane))
        return await outcome

    async def _drain(self, room_id: str, lane: _Lane[Member, Outcome]) -> None:
        now = asyncio.get_running_loop().time
        while lane.queue:
            batch = [lane.queue.popleft() for _ in range(min(len(lane.queue), self._batch_max))]
            started = now()
            self._size.observe(len(batch))
            for _, _, since in batch:
                self._wait.observe(started - since)
            try:
                outcomes = await self._run_batch(room_id, [member for member, _, _ in batch])
                assert len(outcomes) == len(batch), "a script answers every member"
            except Exception as failure:  # handed to every caller; the lane must go on
                _fail(batch, failure)
                continue
            for (_, future, _), outcome in zip(batch, outcomes, strict=True):
                if not future.done():
                    future.set_result(outcome)
        # No await since the queue was found empty: a later submit starts a new task.
        del self._lanes[room_id]


def _fail(batch: list[tuple[Member, asyncio.Future[Outcome], float]], failure: Exception) -> None:
    """The batch may or may not have been done: the caller retries with its key and gets the final answer."""
    for _, future, _ in batch:
        if not future.done():
            future.set_exception(_told(failure))


def _told(failure: Exception) -> AppError:
    """One exception a caller: they are raised in different tasks, and a traceback must not be shared."""
    if isinstance(failure, AppError):
        return AppError(failure.code, failure.detail, retry_after_ms=failure.retry_after_ms)
    error = AppError(SERVICE_UNAVAILABLE, "the engine did not answer; try again with the same key")
    error.__cause__ = failure
    return error
