"""Values that events and snapshots share: what a client sees of a room, its session, its offers and its games."""

from msgspec import Struct


class OfferView(Struct, frozen=True, kw_only=True):
    """An offer on the shelf, as viewers see it. How much is left is a reading: the snapshot's `stock`, then the pulse."""

    id: str
    name: str
    price_minor: int
    list_price_minor: int
    currency: str
    total: int
    limit_per_viewer: int  # 0: no limit
    limit_per_order: int = 0  # 0: no limit
    state: str  # listed, paused, withdrawn
    selling_policy: str = "hold"  # first_paid: who pays first gets it; waitlist: it has a line for what comes back
    keyword: str = ""  # a chat line that is this word, alone or with a number, places a hold; empty: none
    opens_at: str | None = None
    closes_at: str | None = None
    return_policy: str = "no_reason_7_days"  # or "fresh_no_return"
    image: str = ""
    village: str = ""
    lot: str = ""
    harvested_on: str | None = None
    unit: str = ""
    position: int = 0
    version: int = 1


class RoomView(Struct, frozen=True, kw_only=True):
    """The lasting place of a host."""

    id: str
    title: str
    host: str
    description: str = ""
    currency: str = "CNY"
    language: str = "zh"  # BCP 47


class SessionView(Struct, frozen=True, kw_only=True):
    """The session on air: live, or interrupted. A room has at most one."""

    id: str
    title: str
    state: str  # live, interrupted
    went_live_at: str
    reason: str = ""  # why it is interrupted


class UpcomingView(Struct, frozen=True, kw_only=True):
    """A session that was announced and has not begun."""

    session: str
    title: str
    starts_at: str


class PrizeView(Struct, frozen=True, kw_only=True):
    kind: str  # "money" or "product"
    name: str
    count: int
    amount_minor: int = 0
    offer: str | None = None


class DrawView(Struct, frozen=True, kw_only=True):
    id: str
    title: str
    state: str  # open, closed, drawn, cancelled
    prizes: list[PrizeView]
    condition: str  # everyone, keyword
    keyword: str = ""
    closes_at: str | None = None
    rules_hash: str = ""
    commitment: str = ""
    entrants: int = 0


class Winner(Struct, frozen=True, kw_only=True):
    viewer: str
    name: str
    prize: str


class EnvelopeView(Struct, frozen=True, kw_only=True):
    id: str
    title: str
    state: str  # open, emptied, expired, settled
    mode: str  # lucky, equal
    total_minor: int
    currency: str
    count: int
    remaining: int
    commitment: str = ""
    expires_at: str | None = None


class RoomState(Struct, frozen=True, kw_only=True):
    """A room's snapshot: what the subscribe reply carries in `data`, and what `room.snapshot` answers.

    This and the stage events after its offset give a fresh one; `stock`, `likes` and `viewers` are readings, renewed by the pulse.
    `now` is the clock that decides windows and deadlines, and the pulse's `at` tells it again: count down by the difference to it.
    """

    now: str
    room: RoomView
    session: SessionView | None
    upcoming: list[UpcomingView]
    offers: list[OfferView]  # listed and paused ones of the session on air, in the shelf's order
    pin: str | None
    likes: int
    viewers: int
    stock: dict[str, int]
    notice: str
    slow_mode_s: int
    draws: list[DrawView]
    envelopes: list[EnvelopeView]
