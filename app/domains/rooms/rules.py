"""The life cycle of a session, the checklist before each step, the order of the run-of-show, the pace of likes. Pure.

    draft → scheduled → live ⇄ interrupted → ended → archived

It never goes back. A show that needs no announcement goes live from `draft`. A show that is called off goes to `ended` without having
been live. A network cut of the host is `interrupted`, not `ended`: the room stays open and the show can go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

UPCOMING_MAX = 20  # scheduled sessions of one room: a snapshot carries all of them
CUES_MAX = 200
LIKES_BURST = 100  # what a viewer may send at once: two full calls
LIKES_PER_S = 20  # what refills; a fast thumb taps about ten times a second


class SessionState(StrEnum):
    DRAFT = "draft"
    SCHEDULED = "scheduled"
    LIVE = "live"
    INTERRUPTED = "interrupted"
    ENDED = "ended"
    ARCHIVED = "archived"


class Step(StrEnum):
    SCHEDULE = "schedule"
    GO_LIVE = "go_live"
    INTERRUPT = "interrupt"
    RESUME = "resume"
    END = "end"
    ARCHIVE = "archive"


_S = SessionState

# Which state a step leads to, from each state that allows it. What is not here is not allowed.
LIFE_CYCLE: dict[Step, dict[SessionState, SessionState]] = {
    Step.SCHEDULE: {_S.DRAFT: _S.SCHEDULED, _S.SCHEDULED: _S.SCHEDULED},  # again: another time
    Step.GO_LIVE: {_S.DRAFT: _S.LIVE, _S.SCHEDULED: _S.LIVE},
    Step.INTERRUPT: {_S.LIVE: _S.INTERRUPTED},
    Step.RESUME: {_S.INTERRUPTED: _S.LIVE},
    Step.END: {_S.DRAFT: _S.ENDED, _S.SCHEDULED: _S.ENDED, _S.LIVE: _S.ENDED, _S.INTERRUPTED: _S.ENDED},
    Step.ARCHIVE: {_S.ENDED: _S.ARCHIVED},
}

ON_AIR = frozenset({_S.LIVE, _S.INTERRUPTED})
OPEN = frozenset({_S.DRAFT, _S.SCHEDULED, _S.LIVE, _S.INTERRUPTED})  # the shelf may still change


def next_state(state: str, step: Step) -> SessionState | None:
    """The state that a step leads to; None when the state does not allow it."""
    return LIFE_CYCLE[step].get(SessionState(state))


def why_not(state: str, step: Step) -> str:
    """One sentence for whoever asked for a step that the state does not allow."""
    allowed = " or ".join(LIFE_CYCLE[step])
    return f"the session is {state}; {step.replace('_', ' ')} needs it to be {allowed}"


# --- checklist ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CheckItem:
    word: str
    ok: bool
    text: str  # what is so, or what to do


@dataclass(frozen=True, slots=True)
class ShelfOffer:
    """What the checklist needs to know of an offer."""

    name: str
    state: str
    price_minor: int
    total: int
    sold: int


@dataclass(frozen=True, slots=True)
class Readiness:
    """What the checklist looks at."""

    state: str
    title: str
    host: str
    starts_at: datetime | None
    shelf: Sequence[ShelfOffer]
    on_air_elsewhere: bool  # another session of the room is live or interrupted
    cues_left: int = 0


def checklist(step: Step, look: Readiness) -> list[CheckItem]:
    """What a step needs, in the order in which it is shown; the step is possible when every item is ok."""
    items = [_state_item(step, look.state)]
    match step:
        case Step.SCHEDULE:
            items += [_title_item(look.title), _time_item(look.starts_at)]
        case Step.GO_LIVE:
            items += [_title_item(look.title), _host_item(look.host), *_shelf_items(look.shelf), _alone_item(look.on_air_elsewhere)]
        case Step.RESUME | Step.INTERRUPT | Step.END | Step.ARCHIVE:
            pass
    return items


def next_step(state: str) -> Step | None:
    """The step that a host's team prepares in a state: what the checklist is shown for. None when nothing is left to do."""
    order = {
        _S.DRAFT: Step.GO_LIVE,
        _S.SCHEDULED: Step.GO_LIVE,
        _S.LIVE: Step.END,
        _S.INTERRUPTED: Step.RESUME,
        _S.ENDED: Step.ARCHIVE,
    }
    return order.get(SessionState(state))


def missing(items: Sequence[CheckItem], *, empty_shelf_accepted: bool = False) -> list[CheckItem]:
    """The items that stand in the way. A talk without goods is a show too, if the team says so."""
    return [item for item in items if not item.ok and not (empty_shelf_accepted and item.word == "shelf")]


def _state_item(step: Step, state: str) -> CheckItem:
    ok = next_state(state, step) is not None
    return CheckItem("state", ok, f"the session is {state}" if ok else why_not(state, step))


def _title_item(title: str) -> CheckItem:
    ok = bool(title.strip())
    return CheckItem("title", ok, "the session has a title" if ok else "give the session a title")


def _time_item(starts_at: datetime | None) -> CheckItem:
    ok = starts_at is not None
    return CheckItem("starts_at", ok, "the start is set" if ok else "say when the session starts (starts_at)")


def _host_item(host: str) -> CheckItem:
    ok = bool(host.strip())
    return CheckItem("host", ok, f"{host} hosts" if ok else "name the room's host")


def _shelf_items(shelf: Sequence[ShelfOffer]) -> list[CheckItem]:
    listed = [offer for offer in shelf if offer.state == "listed"]
    count = f"{len(listed)} offer{'' if len(listed) == 1 else 's'} on the shelf"
    bare = [offer.name for offer in listed if offer.price_minor <= 0 or offer.total - offer.sold <= 0]
    return [
        CheckItem("shelf", bool(listed), count if listed else "put an offer on the shelf, or go live with an empty shelf on purpose"),
        CheckItem("terms", not bare, "every offer has a price and stock" if not bare else f"set price and stock of: {', '.join(bare)}"),
    ]


def _alone_item(on_air_elsewhere: bool) -> CheckItem:
    text = "end the room's other session first: it is still on air" if on_air_elsewhere else "no other session of the room is on air"
    return CheckItem("alone", not on_air_elsewhere, text)


# --- pin ----------------------------------------------------------------------------------------------------------------------------


def why_not_pinned(*, offer_session: str, offer_state: str, session_on_air: str | None) -> str:
    """Why an offer cannot be pinned; empty when it can."""
    if session_on_air is None:
        return "no session of this room is on air"
    if offer_session != session_on_air:
        return "this offer stands on the shelf of another session"
    if offer_state != "listed":
        return f"this offer is {offer_state}; only a listed offer can be pinned"
    return ""


# --- run-of-show --------------------------------------------------------------------------------------------------------------------


class CueKind(StrEnum):
    TALK = "talk"
    OFFER = "offer"
    DRAW = "draw"
    ENVELOPE = "envelope"
    BREAK = "break"


class CueState(StrEnum):
    WAITING = "waiting"
    NOW = "now"
    DONE = "done"


def next_cue(states: Sequence[str]) -> int | None:
    """The place of the cue that comes next: the first that waits. None when the run-of-show is through."""
    return next((place for place, state in enumerate(states) if state == CueState.WAITING), None)


# --- likes --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LikeBudget:
    """A token bucket: `tokens` at `at_ms`, refilled by LIKES_PER_S up to LIKES_BURST."""

    tokens: float
    at_ms: float


def spend_likes(budget: LikeBudget | None, count: int, now_ms: float) -> tuple[LikeBudget, int]:
    """The budget afterwards, and how long to wait in ms (0: the likes count). A refusal spends nothing."""
    tokens = float(LIKES_BURST)
    if budget is not None:
        tokens = min(LIKES_BURST, budget.tokens + max(0.0, now_ms - budget.at_ms) * LIKES_PER_S / 1000)
    if tokens < count:
        return LikeBudget(tokens, now_ms), int((count - tokens) * 1000 / LIKES_PER_S) + 1
    return LikeBudget(tokens - count, now_ms), 0
