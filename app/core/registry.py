"""What many domains contribute to: commands, channels, snapshots, outbox handlers, reactions, report figures.

A domain states all that it contributes in one value, the `DOMAIN` of its `endpoints.py`. `composition.py` lists the domains by hand
and folds them into one `Registry`; nothing registers itself by being imported. Two contributions of one name are a mistake found at start.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Command:
    """One RPC method, and its REST twin `POST /api/v1/<namespace>/<verb>`.

    `handler(engines, caller, request)` returns a reply struct, or raises AppError. `right` is checked before the handler (in any room);
    the handler checks it again for the room it concerns. Who is banned from the room that the request names is refused before the
    handler too; `is_open_to_banned` is for what they may still do: look after what they bought, and be told their ban in the command's
    own words. `calls_per_s_max` is what the gateway lets one viewer call it on a node, twice as many at once: a guard against floods,
    answered `too_many_requests`, and no rule of the product.
    """

    method: str
    request: type[Any]
    reply: type[Any]
    handler: Callable[[Any, Any, Any], Awaitable[Any]]
    right: str
    summary: str
    example: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_open_to_banned: bool = False
    calls_per_s_max: float = 10

    @property
    def path(self) -> str:
        return "/api/v1/" + self.method.replace(".", "/")


# async (engines, room_id) -> value that msgspec can encode
SnapshotPart = Callable[[Any, str], Awaitable[Any]]
# async (work, entries) -> None; all of a batch in one SQL transaction. A domain gets its entries in stream order; those that follow each
# other and have the same handler come in one call
IntakeHandler = Callable[[Any, list[Any]], Awaitable[None]]
# async (work, room_id, events) -> None; may see the same event twice, so must be idempotent by id. A domain gets its events in order;
# those that follow each other and have the same reaction come in one call, so a domain whose types must be in order gives them one
Reaction = Callable[[Any, str, list[Any]], Awaitable[None]]
# async (session, session_id) -> value for the post-show report
ReportFigure = Callable[[Any, str], Awaitable[Any]]


# async (engines, caller, room_id) -> None; raises AppError when this caller may not be in the room
Admission = Callable[[Any, Any, str], Awaitable[None]]


# async (session, room_id or None for all, ended_after) -> session id -> state, of the sessions whose sales the engine must know: those
# that are not archived and did not end before that
OpenSessions = Callable[[Any, str | None, datetime], Awaitable[Mapping[str, str]]]
# async (session, room_id, offer_ids) -> hold id -> the hold as SQL knows it, with the keys that the engine keeps; for an engine that has
# lost its own. What two domains know of one hold is put together
StandingHolds = Callable[[Any, str, Sequence[str]], Awaitable[Mapping[str, Any]]]
# async (session) -> rooms for which the engine must remember something of this domain
RoomsInPlay = Callable[[Any], Awaitable[Sequence[str]]]
# async (work, room_id, life) -> bool; brings the domain's hot records of a closed room in line with SQL, in a life of the engine that has
# just begun, when the room's outbox is read to its end. False: that life is over. May be cut off and done again
RenewRoom = Callable[[Any, str, str], Awaitable[bool]]


async def _no_sessions(_session: Any, _room_id: str | None, _ended_after: datetime) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Domain:
    name: str
    rights: Mapping[str, str] = field(default_factory=dict[str, str])  # right -> what it lets one do
    commands: tuple[Command, ...] = ()
    routers: tuple[Any, ...] = ()  # FastAPI routers of the REST control panel
    snapshot: Mapping[str, SnapshotPart] = field(default_factory=dict[str, SnapshotPart])
    intake: Mapping[str, IntakeHandler] = field(default_factory=dict[str, IntakeHandler])
    reactions: Mapping[str, Reaction] = field(default_factory=dict[str, Reaction])  # event type -> reaction
    report: Mapping[str, ReportFigure] = field(default_factory=dict[str, ReportFigure])
    pulse: Mapping[str, SnapshotPart] = field(default_factory=dict[str, SnapshotPart])  # field of the Pulse event -> reading
    admission: tuple[Admission, ...] = ()
    command_admission: tuple[Admission, ...] = ()  # before a command that names a room, or something that has its room in its id
    open_sessions: OpenSessions | None = None  # of the one domain that owns sessions
    standing_holds: StandingHolds | None = None
    rooms_in_play: RoomsInPlay | None = None
    renew_room: RenewRoom | None = None


@dataclass(slots=True)
class Registry:
    domains: dict[str, Domain] = field(default_factory=dict[str, Domain])
    rights: dict[str, str] = field(default_factory=dict[str, str])
    commands: dict[str, Command] = field(default_factory=dict[str, Command])
    routers: list[Any] = field(default_factory=list[Any])
    snapshot: dict[str, SnapshotPart] = field(default_factory=dict[str, SnapshotPart])
    intake: dict[str, IntakeHandler] = field(default_factory=dict[str, IntakeHandler])
    reactions: list[Mapping[str, Reaction]] = field(default_factory=list[Mapping[str, Reaction]])  # one mapping a domain
    report: dict[str, ReportFigure] = field(default_factory=dict[str, ReportFigure])
    pulse: dict[str, SnapshotPart] = field(default_factory=dict[str, SnapshotPart])
    admission: list[Admission] = field(default_factory=list[Admission])
    command_admission: list[Admission] = field(default_factory=list[Admission])
    open_sessions: OpenSessions = _no_sessions
    standing_holds: list[StandingHolds] = field(default_factory=list[StandingHolds])
    rooms_in_play: list[RoomsInPlay] = field(default_factory=list[RoomsInPlay])
    renew_room: list[RenewRoom] = field(default_factory=list[RenewRoom])

    @classmethod
    def of(cls, domains: Iterable[Domain]) -> "Registry":
        registry = cls()
        for domain in domains:
            registry._add(domain)
        return registry

    def _add(self, domain: Domain) -> None:
        _merge(self.domains, {domain.name: domain}, domain.name, "domain")
        _merge(self.rights, domain.rights, domain.name, "right")
        _merge(self.commands, {command.method: command for command in domain.commands}, domain.name, "command")
        _merge(self.snapshot, domain.snapshot, domain.name, "snapshot part")
        _merge(self.intake, domain.intake, domain.name, "intake handler")
        _merge(self.report, domain.report, domain.name, "report figure")
        _merge(self.pulse, domain.pulse, domain.name, "pulse reading")
        self.routers.extend(domain.routers)
        self.admission.extend(domain.admission)
        self.command_admission.extend(domain.command_admission)
        self.open_sessions = domain.open_sessions or self.open_sessions
        if domain.standing_holds:
            self.standing_holds.append(domain.standing_holds)
        if domain.rooms_in_play:
            self.rooms_in_play.append(domain.rooms_in_play)
        if domain.renew_room:
            self.renew_room.append(domain.renew_room)
        if domain.reactions:
            self.reactions.append(domain.reactions)


def _merge(into: dict[str, Any], new: Mapping[str, Any], domain: str, what: str) -> None:
    for name, value in new.items():
        if name in into:
            raise ValueError(f"domain {domain}: the {what} {name!r} is already taken")
        into[name] = value
