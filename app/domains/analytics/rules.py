"""What the figures of a show mean, and the shape in which they are told. Pure.

Definitions, the same live and in the report:
- viewers: people in the room at one moment; peak: the most in any reading; unique_viewers: different people since the show went live.
- orders: placed, whatever became of them; paid_orders: paid at some time, also if refunded later.
- gmv_minor: the sum of what was paid, before refunds; refunded_minor stands beside it and is never taken off silently.
- conversion: paid orders per unique viewer; 0 while nobody came.
- a minute is named by its beginning, in UTC. Money is in minor units of `currency`.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from pydantic import BaseModel, Field

TOP_OFFERS_MAX = 5
MINUTES_MAX = 24 * 60  # a series never grows beyond a day


class OfferFigures(BaseModel):
    """One offer on the shelf."""

    offer: str = Field(examples=["k3m97q2x0a-8c1v5n3b7z"])
    name: str = Field(examples=["高山云雾茶 250g"])
    price_minor: int = Field(default=0, examples=[6800])
    total: int = Field(default=0, description="units put up for sale", examples=[200])
    available: int = Field(default=0, examples=[20])
    held: int = Field(default=0, description="units that are set aside now", examples=[3])
    ordered: int = Field(default=0, description="units in orders that wait for payment", examples=[2])
    sold: int = Field(default=0, description="units paid and not returned to the shelf", examples=[175])
    holds: int = Field(default=0, description="holds that viewers ever placed", examples=[240])
    orders: int = Field(default=0, examples=[190])
    paid_orders: int = Field(default=0, examples=[170])
    gmv_minor: int = Field(default=0, examples=[1156000])


class MinuteFigures(BaseModel):
    at: datetime = Field(description="beginning of the minute")
    viewers: int = Field(default=0, description="the most in any reading of this minute", examples=[312])
    messages: int = Field(default=0, examples=[85])
    orders: int = Field(default=0, examples=[12])
    paid_orders: int = Field(default=0, examples=[10])
    gmv_minor: int = Field(default=0, examples=[68000])


class Summary(BaseModel):
    """The headline figures. `messages` and `chatters` lag the chat by about a second."""

    peak_viewers: int = Field(default=0, examples=[342])
    unique_viewers: int = Field(default=0, examples=[1210])
    messages: int = Field(default=0, examples=[2310])
    chatters: int = Field(default=0, description="different people who said something", examples=[410])
    likes: int = Field(default=0, examples=[18230])
    holds: int = Field(default=0, examples=[460])
    orders: int = Field(default=0, examples=[380])
    paid_orders: int = Field(default=0, examples=[341])
    units_sold: int = Field(default=0, description="units in paid orders", examples=[402])
    gmv_minor: int = Field(default=0, examples=[2318800])
    refunded_minor: int = Field(default=0, examples=[6800])
    conversion: float = Field(
        default=0.0, description="paid orders per unique viewer, 0 to 1 (or more, if people buy often)", examples=[0.2818]
    )
    average_order_minor: int = Field(default=0, description="gmv_minor / paid_orders, rounded", examples=[6800])


class Figures(Summary):
    """What a host sees during a show."""

    session: str
    room: str
    currency: str = Field(default="CNY", examples=["CNY"])
    at: datetime
    live: bool
    viewers: int = Field(default=0, description="people in the room now", examples=[298])
    offers: list[OfferFigures] = Field(default_factory=list[OfferFigures])
    minutes: list[MinuteFigures] = Field(default_factory=list[MinuteFigures], description="one entry a minute since the show went live")


class FunnelStep(BaseModel):
    step: str = Field(description="viewers, chatters, holds, orders, paid", examples=["orders"])
    count: int = Field(examples=[380])
    of_viewers: float = Field(description="count per unique viewer", examples=[0.314])


class DrawWinner(BaseModel):
    viewer: str
    name: str
    prize: str


class DrawReport(BaseModel):
    id: str
    title: str
    state: str = Field(examples=["drawn"])
    entrants: int
    winners: list[DrawWinner] = Field(default_factory=list[DrawWinner])


class EnvelopesReport(BaseModel):
    envelopes: int = 0
    shares: int = Field(default=0, description="shares that were funded")
    opened: int = Field(default=0, description="shares that somebody opened")
    funded_minor: int = 0
    opened_minor: int = 0
    refunded_minor: int = Field(default=0, description="what went back to the funder at the end")


class ChatReport(BaseModel):
    sent: int = 0
    chatters: int = 0
    deleted: int = 0
    waiting: int = Field(default=0, description="held for review and not decided")
    rejected: int = 0
    mutes: int = 0
    bans: int = 0


class PaymentsReport(BaseModel):
    """What became of the orders; `waiting + paid + cancelled + expired + refunded` is all of them."""

    waiting: int = Field(default=0, description="placed, the payment deadline has not passed")
    paid: int = Field(default=0, description="paid, shipped or delivered, and not refunded in whole")
    cancelled: int = 0
    expired: int = Field(default=0, description="not paid in time")
    refunded: int = Field(default=0, description="refunded in whole")
    refunds: int = Field(default=0, description="orders with any refund, in part or whole")
    refunded_minor: int = 0


class Report(BaseModel):
    """The review of a show. Kept with the session; computed again while payments and refunds come in."""

    session: str
    room: str
    title: str
    state: str = Field(examples=["ended"])
    currency: str = Field(default="CNY", examples=["CNY"])
    started_at: datetime | None
    ended_at: datetime | None
    duration_s: int
    computed_at: datetime
    summary: Summary
    funnel: list[FunnelStep]
    offers: list[OfferFigures]
    top_offers: list[str] = Field(description="ids of the offers with the highest GMV, highest first")
    minutes: list[MinuteFigures]
    peak_minute: MinuteFigures | None = Field(description="the minute with the highest GMV, or without sales the most viewers")
    draws: list[DrawReport] = Field(default_factory=list[DrawReport])
    envelopes: EnvelopesReport = Field(default_factory=EnvelopesReport)
    chat: ChatReport = Field(default_factory=ChatReport)
    payments: PaymentsReport = Field(default_factory=PaymentsReport)


def ratio(part: int, whole: int) -> float:
    """To four places; 0 of nothing is 0."""
    return round(part / whole, 4) if whole else 0.0


def average(total: int, count: int) -> int:
    """Rounded half up, in minor units."""
    return (2 * total + count) // (2 * count) if count else 0


def funnel(summary: Summary) -> list[FunnelStep]:
    steps = {
        "viewers": summary.unique_viewers,
        "chatters": summary.chatters,
        "holds": summary.holds,
        "orders": summary.orders,
        "paid": summary.paid_orders,
    }
    return [FunnelStep(step=name, count=count, of_viewers=ratio(count, summary.unique_viewers)) for name, count in steps.items()]


def top_offers(offers: Iterable[OfferFigures]) -> list[str]:
    """Those that sold, the highest GMV first; equal ones in the order of the shelf."""
    sold = [offer for offer in offers if offer.gmv_minor > 0]
    return [offer.offer for offer in sorted(sold, key=lambda offer: -offer.gmv_minor)[:TOP_OFFERS_MAX]]


def peak_minute(minutes: Iterable[MinuteFigures]) -> MinuteFigures | None:
    """The first of equal ones."""
    return max(minutes, key=lambda minute: (minute.gmv_minor, minute.viewers), default=None)


def minute_of(at: datetime) -> datetime:
    return at.replace(second=0, microsecond=0)


def fill_minutes(known: dict[datetime, MinuteFigures], *, start: datetime | None, end: datetime) -> list[MinuteFigures]:
    """One entry for every minute from start to end, also where nothing happened; what happened later (a late payment) is at the end."""
    if start is None:
        return [known[at] for at in sorted(known)][-MINUTES_MAX:]
    count = min(MINUTES_MAX, int((minute_of(end) - minute_of(start)) / timedelta(minutes=1)) + 1)
    during = {minute_of(start) + timedelta(minutes=i) for i in range(max(0, count))}
    every = sorted(during | known.keys())
    return [known.get(at) or MinuteFigures(at=at) for at in every][:MINUTES_MAX]
