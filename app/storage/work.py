"""The engines of one process, and the unit of work.

`Engines` is made once, at the composition root, and passed as the first argument to whatever talks to an engine. `Work` is one SQL
transaction with the events it announces: `emit` writes them into the same transaction, and after the commit they are published at once
(announcements.py). If the process dies in between, the worker publishes them.

    async with engines.work() as work:
        await service.pin_offer(work, ...)      # flushes, emits; never commits
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import asyncpg
import structlog
from redis.exceptions import RedisError
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as SqlPoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import AppError
from app.core.registry import Registry
from app.core.runtime import Runtime, at_text
from app.core.settings import Settings
from app.protocol.catalogue import may_carry
from app.protocol.codes import SERVICE_UNAVAILABLE, TOO_MANY_REQUESTS
from app.protocol.events import Event, encode_event, event_type
from app.storage.audit import append_audit
from app.storage.bulk import BulkInsert
from app.storage.claims import current_claim, mark_done
from app.storage.gathering import gather_each
from app.storage.group_commit import GroupCommit
from app.storage.redis import Argument, Redis, Script, any_now_ms, command_client, engine_now_ms
from app.storage.sql import Sql
from app.storage.streams import Streams
from app.storage.tables import Announcement

Member = TypeVar("Member")
Outcome = TypeVar("Outcome")

_insert_announcements = BulkInsert(Announcement, "room_id", "channels", "type", "payload", "attempts")

# PostgreSQL's own words for "not now": too many connections, shutting down, crashed, starting up; and its class of broken connections.
_AWAY = frozenset({"53300", "57P01", "57P02", "57P03"})
_CONNECTION_CLASS = "08"

log = structlog.get_logger()


@dataclass(slots=True)
class Engines:
    settings: Settings
    runtime: Runtime
    registry: Registry
    sql: Sql
    sales: Redis
    fanout: Redis
    streams: Streams
    _groups: dict[str, GroupCommit[Any, Any]] = field(default_factory=dict[str, GroupCommit[Any, Any]])
    # Domains' process-local caches and rate limiters, by name: never truth, always bounded by whoever keeps one.
    local: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def connect(cls, settings: Settings, runtime: Runtime, registry: Registry) -> "Engines":
        """Opens no connection yet: the first command does."""
        settings.check_engines()
        sales = command_client(settings.redis_url)
        fanout = command_client(settings.fanout_redis_url) if settings.fanout_redis_url else sales
        return cls(settings, runtime, registry, Sql(settings.database_url), sales, fanout, Streams(fanout, settings, runtime))

    async def close(self) -> None:
        await self.sales.aclose()
        if self.fanout is not self.sales:
            await self.fanout.aclose()
        await self.sql.close()

    async def run_on_sales(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """A script of the sales role: what it promises is on as many replicas as `replicas_min` says before anybody hears of it."""
        settings = self.settings
        if not settings.replicas_min:
            return await script(self.sales, keys, arguments)
        wait_ms = settings.replicas_wait_ms
        return await script.call_replicated(self.sales, keys, arguments, replicas=settings.replicas_min, wait_ms=wait_ms)

    async def sales_now_ms(self, room_id: str = "") -> int:
        """The clock that decides the room's deadlines. Without a room, one of those that do, for passes over all rooms."""
        if set_ms := self.runtime.script_now_ms():
            return set_ms
        return await engine_now_ms(self.sales, f"{{{room_id}}}:outbox") if room_id else await any_now_ms(self.sales)

    async def check(self) -> dict[str, str]:
        """What each engine answers: "ok", or the name of its failure. For readiness and the command line.

        Of a cluster it is enough that one shard answers: a node that were taken from service for one would stop the rooms of the others.
        """
        answers: dict[str, str] = {}
        for name, client in (("sales", self.sales), ("fan-out", self.fanout)):
            answers[name] = await _check(client)
        try:
            async with self.sql.read() as session:
                await session.execute(text("select 1"))
            answers["sql"] = "ok"
        except (SQLAlchemyError, OSError) as failure:
            answers["sql"] = type(failure).__name__
        return answers

    def group_commit(
        self, name: str, run_batch: Callable[["Engines", str, Sequence[Member]], Awaitable[Sequence[Outcome | Exception]]]
    ) -> GroupCommit[Member, Outcome]:
        """The process's one group commit of this name; `run_batch(engines, room_id, members)` is called once a batch."""
        group = self._groups.get(name)
        if group is None:

            async def run(room_id: str, members: Sequence[Member]) -> Sequence[Outcome | Exception]:
                return await run_batch(self, room_id, members)

            group = self._groups[name] = GroupCommit(
                name, run, batch_max=self.settings.group_commit_batch_max, queue_max=self.settings.group_commit_queue_max
            )
        return group

    @asynccontextmanager
    async def work(self) -> AsyncGenerator["Work"]:
        """One transaction; what it emitted is published before this returns, or soon after by the worker if an engine is away."""
        from app.storage.announcements import announce_room  # noqa: PLC0415 - announcements need Work, which is defined here

        claim = current_claim()
        async with self.sql.begin() as session:
            work = Work(self, session)
            yield work
            await work.flush()
            if claim:
                await mark_done(session, claim)
        if claim:
            claim.is_marked = True
        for room_id in work.announced_rooms:
            try:
                await announce_room(self, room_id)
            except Exception as failure:  # the change is committed: whatever fails now must not make the caller do it again
                log.warning("announcement left to the worker", room=room_id, error=repr(failure))


class Work:
    """One unit of work. `now_ms` is read once, so that all that one use case writes bears the same time.

    Locks are taken in one order, so that intake, which does many things of a room in one transaction, and the commands beside it do not
    wait in a circle: intake's mark, then rows of the domains, then ledger accounts, then offers; a room's audit log comes last of all,
    at `flush`, whenever it was asked for. Where a batch of intake comes back to an earlier step, PostgreSQL gives one of the two up, and
    that one is done again.
    """

    def __init__(self, engines: Engines, session: AsyncSession) -> None:
        self.engines = engines
        self.session = session
        self.runtime = engines.runtime
        self.now_ms = engines.runtime.now_ms()
        self.announced_rooms: set[str] = set()
        self._pending: list[dict[str, Any]] = []
        self._acts: list[dict[str, Any]] = []

    @property
    def now(self) -> datetime:
        return datetime.fromisoformat(self.at)

    @property
    def at(self) -> str:
        """`now_ms` as events state it."""
        return at_text(self.now_ms)

    def emit(self, room_id: str, channels: Sequence[str], event: Event) -> None:
        """Announces an event on these channels once the transaction has committed. One room's events keep their order."""
        assert may_carry(channels, event), f"the catalogue does not name {list(channels)} for {type(event).__name__}"
        self._pending.append(
            {"room_id": room_id, "channels": list(channels), "type": event_type(event), "payload": encode_event(event), "attempts": 0}
        )

    async def audit(self, room_id: str, actor: str, action: str, subject: str, **detail: Any) -> None:
        """Records an act in the room's audit log, in this transaction: at its end, since the log is locked until the commit."""
        self._acts.append({"room_id": room_id, "at": self.now, "actor": actor, "action": action, "subject": subject, "detail": detail})

    async def flush(self) -> None:
        """Writes what was emitted and what is to be audited. Called at the end of the unit of work."""
        await self.session.flush()
        if self._pending:
            await _insert_announcements(self.session, self._pending)
            self.announced_rooms |= {row["room_id"] for row in self._pending}
            self._pending = []
        acts, self._acts = sorted(self._acts, key=lambda act: act["room_id"]), []  # a stable sort: a room's acts keep their order
        for act in acts:
            await append_audit(self.session, **act)


async def rooms_to_announce(engines: Engines, limit: int = 100) -> list[str]:
    """Rooms with committed events that are not out yet."""
    async with engines.sql.read() as session:
        return list(await session.scalars(select(Announcement.room_id).distinct().limit(limit)))


async def _check(client: Redis) -> str:
    try:
        answers = await gather_each(await client.engines(), lambda engine: engine[1].ping())
    except (RedisError, OSError) as failure:
        return type(failure).__name__
    return "ok" if any(answer is True for answer in answers) else type(answers[0]).__name__


def is_away(failure: BaseException) -> bool:
    """An engine is away: nothing is wrong with what was asked, and it may be asked again.

    Whoever went through group commit hears of it as an AppError. asyncpg raises an error of its own, which SQLAlchemy does not wrap, when
    a connection goes in the middle of BEGIN or ROLLBACK; and a connection that never came about is not said to be invalidated.
    """
    if isinstance(failure, AppError):
        return failure.code in {SERVICE_UNAVAILABLE, TOO_MANY_REQUESTS}
    if isinstance(failure, DBAPIError):
        state = str(getattr(failure.orig, "sqlstate", None) or "")
        return failure.connection_invalidated or state in _AWAY or state.startswith(_CONNECTION_CLASS)
    return isinstance(failure, RedisError | SqlPoolTimeoutError | asyncpg.InterfaceError | OSError)
