"""Group commit: all that arrives while a batch is under way joins the next one.

One lane a room: at most one script call of a kind is in flight for it, so a busy room costs one engine call and one fsync a batch and not
one a viewer, and an idle room's command leaves at once. With a window, a lane begins a batch at most once a window: what comes meanwhile
waits for the next together, and only a full batch goes sooner.
Within a lane commands go in turns of their viewers (fair_queue.py): a batch takes one of each viewer before a second of any, so a viewer's
one command waits for one batch, however many another has sent, and each viewer's commands keep their order. The queue is bounded. When it
is full, the newest command of the viewer who has most in it is told to try again later: it was not begun, so a retry does no harm.
A caller that goes away does not take its command back: it may already be with the engine, and its key makes a retry safe. A member whose
outcome is an exception fails alone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from app.core.errors import AppError
from app.core.metrics import BATCH_SIZE, BATCH_WAIT_SECONDS
from app.protocol.codes import SERVICE_UNAVAILABLE, TOO_MANY_REQUESTS
from app.storage.fair_queue import FairQueue

Member = TypeVar("Member")
Outcome = TypeVar("Outcome")


_Waiting = tuple[Member, asyncio.Future[Outcome], float]  # the last: since when


class _Lane(Generic[Member, Outcome]):
    """There is work to begin (`task`), or the window is still open (`is_waiting`), or the lane is gone."""

    __slots__ = ("is_waiting", "queue", "task")

    def __init__(self) -> None:
        self.queue: FairQueue[_Waiting[Member, Outcome]] = FairQueue()
        self.task: asyncio.Task[None] | None = None
        self.is_waiting = False  # a timer ends it: an idle room holds no task


class GroupCommit(Generic[Member, Outcome]):
    """`run_batch(room_id, members)` does one script call and returns one outcome a member, in order: what it came to, or an exception."""

    def __init__(
        self,
        name: str,
        run_batch: Callable[[str, Sequence[Member]], Awaitable[Sequence[Outcome | Exception]]],
        *,
        batch_max: int,
        queue_max: int,
        window_ms: int = 0,
    ) -> None:
        self._run_batch = run_batch
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._window_s = window_ms / 1000
        self._lanes: dict[str, _Lane[Member, Outcome]] = {}
        self._size = BATCH_SIZE.labels(name)
        self._wait = BATCH_WAIT_SECONDS.labels(name)

    def submit(self, room_id: str, member: Member, *, viewer: str = "") -> "asyncio.Future[Outcome]":
        """The member's outcome, to be awaited. `viewer`: who asks; empty for what is no viewer's. Raises AppError `too_many_requests` when
        the room's queue is full and nobody has more in it than this viewer; else whoever has most is told so in his place."""
        lane = self._lanes.get(room_id)
        if lane is None:
            lane = self._lanes[room_id] = _Lane()
        if lane.queue.length >= self._queue_max:
            given_up = lane.queue.make_room(viewer)
            if given_up is None:
                raise _queue_is_full()
            _fail([given_up], _queue_is_full())
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Outcome] = loop.create_future()
        lane.queue.put(viewer, (member, outcome, loop.time()))
        if lane.task is None and (not lane.is_waiting or lane.queue.length >= self._batch_max):
            self._begin(room_id, lane)
        return outcome

    def _begin(self, room_id: str, lane: _Lane[Member, Outcome]) -> None:
        lane.task = asyncio.get_running_loop().create_task(self._drain(room_id, lane))

    async def _drain(self, room_id: str, lane: _Lane[Member, Outcome]) -> None:
        """All that waits now, and all that joins while a batch is under way; with a window, what joins is left to the window's end."""
        try:
            while lane.queue.length:
                self._open_window(room_id, lane)
                await self._run_next(room_id, lane)
                if lane.is_waiting and lane.queue.length < self._batch_max:
                    break
        finally:
            lane.task = None
            self._settle(room_id, lane)

    async def _run_next(self, room_id: str, lane: _Lane[Member, Outcome]) -> None:
        batch = lane.queue.take(self._batch_max)
        self._size.observe(len(batch))
        self._wait.observe(asyncio.get_running_loop().time() - batch[0][2])
        try:
            outcomes = await self._run_batch(room_id, [member for member, _, _ in batch])
            assert len(outcomes) == len(batch), "a script answers every member"
        except asyncio.CancelledError as end:  # the process is ending: nobody may be left waiting for ever
            _fail([*batch, *lane.queue.take(lane.queue.length)], end)
            raise
        except Exception as failure:  # handed to every caller; the lane must go on
            _fail(batch, failure)
            return
        for (_, future, _), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(_told(outcome))
            else:
                future.set_result(outcome)

    def _open_window(self, room_id: str, lane: _Lane[Member, Outcome]) -> None:
        if self._window_s and not lane.is_waiting:
            lane.is_waiting = True
            asyncio.get_running_loop().call_later(self._window_s, self._close_window, room_id, lane)

    def _close_window(self, room_id: str, lane: _Lane[Member, Outcome]) -> None:
        lane.is_waiting = False
        if lane.task is None:
            self._settle(room_id, lane)

    def _settle(self, room_id: str, lane: _Lane[Member, Outcome]) -> None:
        """No task runs. No await between the look at the queue and the end of the lane: a later submit starts anew."""
        if lane.is_waiting:
            return
        if lane.queue.length:
            self._begin(room_id, lane)
        else:
            del self._lanes[room_id]


def _queue_is_full() -> AppError:
    return AppError(TOO_MANY_REQUESTS, "this room has more commands waiting than it can take; try again", retry_after_ms=500)


def _fail(batch: Sequence[_Waiting[Member, Outcome]], failure: BaseException) -> None:
    """The batch may or may not have been done: the caller retries with its key and gets the final answer."""
    for _, future, _ in batch:
        if not future.done():
            future.set_exception(_told(failure))


def _told(failure: BaseException) -> AppError:
    """One exception a caller: they are raised in different tasks, and a traceback must not be shared."""
    if isinstance(failure, AppError):
        return AppError(failure.code, failure.detail, retry_after_ms=failure.retry_after_ms)
    error = AppError(SERVICE_UNAVAILABLE, "the engine did not answer; try again with the same key")
    error.__cause__ = failure
    return error
