"""A cluster's engines as one line: each command goes to the shard that holds its key.

All hot keys of a room share a hash tag, so a room lives on one shard, and one script is one trip to one engine. What a shard's trouble
costs is told by what it holds: the rooms of the others go on.

Which engine holds which slot is asked of any engine of the cluster, and asked again when one says `MOVED`, says that the cluster is down,
or does not answer: after a failover the replica that took over is found so. redis-py's cluster client is not used: it runs every command
of a transaction in a thread with an event loop of its own, knows no pub/sub reader a shard, and closes all its connections when one fails.

Invariants
- Commands to one engine leave in their order. Commands that belong together go to one engine, one behind the other.
- A command is asked again, a bounded number of times, only where it was not done or where its caller bears that it is done twice (resp.py).
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import structlog
from redis.asyncio.connection import parse_url
from redis.backoff import ExponentialWithJitterBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError
from redis.exceptions import ConnectionError as EngineConnectionError

from app.storage.gathering import raise_first
from app.storage.resp import RETRIES_MAX, Command, EngineLine, Line, Part, is_passing

SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
Place = tuple[str, int]  # host, port

_pauses = ExponentialWithJitterBackoff(base=0.05, cap=0.5)  # seconds before a command is asked again
_KEYED_BY_SCRIPT = {"EVALSHA", "EVAL"}
_ASKING: Command = ("ASKING",)  # lets the next command into a slot that is only coming

log = structlog.get_logger()


def is_cluster(url: str) -> bool:
    return url.partition("://")[0] in SCHEMES


def places_of(url: str) -> list[str]:
    """`redis+cluster://user:secret@one:7000,two:7001?option=1` as one address for each engine that it names. Raises ValueError."""
    scheme, _, rest = url.partition("://")
    network, slash, tail = rest.partition("/") if "/" in rest else rest.partition("?")
    credentials, at, hosts = network.rpartition("@")
    found = [host.strip() for host in hosts.split(",") if host.strip()]
    if not found:
        raise ValueError("names no engine")
    return [f"{SCHEMES[scheme]}://{credentials}{at}{host}{slash}{tail}" for host in found]


def slot_of(command: Command, key: str) -> int:
    """Of `key`, or of the command's first. Raises ValueError for a command that names none: it could go anywhere."""
    found: Part = key
    if not key and len(command) > 1:
        at = 3 if command[0] in _KEYED_BY_SCRIPT else 1
        found = command[at] if len(command) > at else ""
    if not isinstance(found, str | bytes) or not found:
        raise ValueError(f"{command[0]!r} names no key: say whose engine is meant")
    return key_slot(found.encode() if isinstance(found, str) else found)


@dataclass(slots=True)
class _Unit:
    """Commands that go to one engine together, and are asked again together."""

    commands: Sequence[Command]
    slot: int
    answers: list[Any] = field(default_factory=list[Any])
    moving_to: Place | None = None  # the slot is on its way there, and this key is there already


class ClusterLine(Line):
    """The process's lines to the shards. Asks for the slots with the first call."""

    def __init__(self, url: str) -> None:
        places: list[dict[str, Any]] = [dict(parse_url(place)) for place in places_of(url)]
        self._options: Mapping[str, Any] = places[0]  # of every engine, but for its place
        self._seeds = [(place.get("host", "localhost"), place.get("port", 6379)) for place in places]
        self._lines: dict[Place, EngineLine] = {}
        self._places: list[Place | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._looking: asyncio.Task[None] | None = None

    async def call(self, command: Command, key: str = "") -> Any:
        place = self._places[slot_of(command, key)]
        line = self._lines.get(place) if place else None
        if line is not None:
            (answer,) = await line.attempt((command,))
            if not _is_curable(answer):
                return raise_first([answer])[0]
        (answer,) = await self.call_together((command,), key)
        return answer

    async def call_each(self, commands: Sequence[Command]) -> list[Any]:
        units = [_Unit((command,), slot_of(command, "")) for command in commands]
        await self._ask(units)
        return [unit.answers[0] for unit in units]

    async def call_together(self, commands: Sequence[Command], key: str = "") -> list[Any]:
        unit = _Unit(commands, slot_of(commands[0], key))
        await self._ask([unit])
        return raise_first(unit.answers)

    async def engines(self) -> list[EngineLine]:
        if not any(self._places):
            await self.look()
        return [self._line(place) for place in sorted({place for place in self._places if place})]

    async def engine_of(self, key: str) -> EngineLine:
        slot = slot_of((), key)
        if self._places[slot] is None:
            await self.look()
        place = self._places[slot]
        if place is None:
            raise EngineConnectionError(f"no engine of the cluster is known to hold slot {slot}")
        return self._line(place)

    async def aclose(self) -> None:
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        lines, self._lines = self._lines, {}
        await asyncio.gather(*[line.aclose() for line in lines.values()])

    # --- asking -----------------------------------------------------------------------------------------------------------------------

    async def _ask(self, units: Sequence[_Unit]) -> None:
        """Until each unit has answers that nothing is left to be done about, or the attempts are used up."""
        waiting = list(units)
        for attempt in range(RETRIES_MAX + 1):
            if attempt:
                await self._recover(waiting, attempt)
            by_place: dict[Place | None, list[_Unit]] = {}
            for unit in waiting:
                by_place.setdefault(unit.moving_to or self._places[unit.slot], []).append(unit)
            await asyncio.gather(*[self._ask_engine(place, group) for place, group in by_place.items()])
            waiting = [unit for unit in waiting if any(map(_is_curable, unit.answers))]
            if not waiting:
                return

    async def _ask_engine(self, place: Place | None, units: Sequence[_Unit]) -> None:
        if place is None:
            for unit in units:
                unit.answers = [EngineConnectionError(f"no engine of the cluster is known to hold slot {unit.slot}")] * len(unit.commands)
            return
        commands = [command for unit in units for command in ((_ASKING, *unit.commands) if unit.moving_to else unit.commands)]
        answers = iter(await self._line(place).attempt(commands))
        for unit in units:
            if unit.moving_to:
                next(answers)
            unit.answers = list(islice(answers, len(unit.commands)))

    async def _recover(self, units: Sequence[_Unit], attempt: int) -> None:
        """Before the next attempt: what the troubles say of the slots is noted, or all are looked up anew."""
        must_look = must_wait = False
        for unit in units:
            unit.moving_to = None
            for answer in unit.answers:
                if isinstance(answer, MovedError) and answer.host:
                    self._places[answer.slot_id] = (answer.host, answer.port)
                elif isinstance(answer, AskError) and answer.host and len(unit.commands) == 1:
                    unit.moving_to = (answer.host, answer.port)
                elif isinstance(answer, TryAgainError | AskError):  # the slot is moving, and nothing can be done there together
                    must_wait = True
                elif _is_curable(answer):
                    must_look = True
        if must_wait or (must_look and attempt > 1):  # the first time at once: mostly a replica has taken over long ago
            await asyncio.sleep(_pauses.compute(attempt))
        if must_look:
            try:
                await self.look()
            except EngineConnectionError as failure:  # nobody answers: the next attempt may find somebody, or says so
                log.debug("cluster not looked at", error=repr(failure))

    def _line(self, place: Place) -> EngineLine:
        line = self._lines.get(place)
        if line is None:
            line = self._lines[place] = EngineLine({**self._options, "host": place[0], "port": place[1]})
        return line

    # --- the slots --------------------------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Asks which engine holds which slot; all who need it wait for the same look. Raises EngineConnectionError when nobody answers."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        looking = self._looking
        try:
            await asyncio.shield(looking)
        except EngineConnectionError as failure:
            raise EngineConnectionError(str(failure)) from failure  # one exception a caller

    async def _look(self) -> None:
        """The engines that served last are asked first, all at once: the first answer is as good as any, since a wrong one is moved on."""
        candidates = list(dict.fromkeys([*(place for place in self._places if place), *self._lines, *self._seeds]))
        asking = [asyncio.create_task(self._slots_of(place)) for place in candidates]
        try:
            for next_answer in asyncio.as_completed(asking):
                if (found := await next_answer) is not None:
                    self._places = found
                    break
            else:
                raise EngineConnectionError("no engine of the cluster answers")
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        served = set(self._places)
        for place in [place for place in self._lines if place not in served and place not in self._seeds]:
            await self._lines.pop(place).aclose()

    async def _slots_of(self, place: Place) -> list[Place | None] | None:
        """None: it does not answer, or knows of no slots."""
        (answer,) = await self._line(place).attempt((("CLUSTER", "SLOTS"),))
        if isinstance(answer, Exception):
            log.debug("an engine does not tell the slots", engine=f"{place[0]}:{place[1]}", error=repr(answer))
            return None
        found: list[Place | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, (host, port, *_), *_ in answer:
            found[first : last + 1] = [((host or b"").decode() or place[0], port)] * (last + 1 - first)
        return found if any(found) else None


def _is_curable(answer: object) -> bool:
    return is_passing(answer) or isinstance(answer, AskError | TryAgainError | ClusterDownError)  # MovedError is an AskError
