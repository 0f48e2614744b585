"""REST routes of the shelf, the pin and the run-of-show: the second half of endpoints.py."""

from datetime import date, datetime
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from app.core.caller import Caller
from app.core.errors import AppError
from app.core.ids import room_of
from app.core.money import AMOUNT_MINOR_MAX
from app.domains.catalogue.rules import KEYWORD_CHARS_MAX, LIMIT_UNITS_MAX, PRICE_STEPS_MAX, STOCK_MAX, ReturnPolicy, SellingPolicy
from app.domains.catalogue.tables import Offer
from app.domains.rooms import service
from app.domains.rooms.rules import CUES_MAX, CueKind
from app.domains.rooms.tables import Cue
from app.protocol.codes import NOT_FOUND, PERMISSION_DENIED
from app.rest.access import EnginesDep, check_right, require

router = APIRouter(prefix="/api/v1")

DELEGATED = {"price_min_minor", "price_max_minor", "total_max", "discount_percent_max"}  # the limits of what a host may change

Runner = Annotated[Caller, require("session.run")]
Seller = Annotated[Caller, require("offer.edit")]
Watcher = Annotated[Caller, require("staff.watch")]

Price = Annotated[int, Field(ge=0, le=AMOUNT_MINOR_MAX, description="minor units of the room's currency")]
Limit = Annotated[int, Field(ge=0, le=LIMIT_UNITS_MAX, description="units a viewer may hold and buy; 0: no limit")]
TotalMax = Annotated[int | None, Field(ge=0, le=STOCK_MAX, description="units up to which the host may top up; null: no limit")]
DiscountMax = Annotated[int | None, Field(ge=0, le=100, description="per cent off the list price that the host may give; null: no limit")]
OrderLimit = Annotated[int, Field(ge=0, le=LIMIT_UNITS_MAX, description="units of one order; 0: no limit")]


# --- offers -------------------------------------------------------------------------------------------------------------------------


class PriceStepIn(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"at": "2026-04-03T20:00:00+08:00", "price_minor": 14900}]})

    at: AwareDatetime = Field(description="by the engine's clock, to the millisecond")
    price_minor: Price


Steps = Annotated[list[PriceStepIn], Field(max_length=PRICE_STEPS_MAX, description="prices to come, in the order of their times")]


Keyword = Annotated[str, Field(max_length=KEYWORD_CHARS_MAX, description="what viewers write in the chat to hold it; empty: none")]


def _stored(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of an offer as the shelf takes them."""
    if "price_steps" in fields:
        steps = [{"at_ms": round(step["at"].timestamp() * 1000), "price_minor": step["price_minor"]} for step in fields["price_steps"]]
        return {**fields, "price_steps": steps}
    return fields


class OfferIn(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "product": "01jr9z0k3v8g6w1y5n2c4t7x0m",
                    "price_minor": 16800,
                    "list_price_minor": 19800,
                    "total": 300,
                    "limit_per_viewer": 2,
                    "price_min_minor": 14800,
                    "price_max_minor": 19800,
                },
                {"name": "Wild honey, 500 g", "price_minor": 5900, "total": 80},
            ]
        },
    )

    name: str = Field("", max_length=120, description="left out: the product's")
    product: str | None = Field(None, max_length=64, description="gives name, image, unit, origin and return policy")
    price_minor: Price
    list_price_minor: Price | None = Field(None, description="the price crossed out; left out: the price")
    total: int = Field(ge=0, le=STOCK_MAX, description="units of stock")
    limit_per_viewer: Limit = 0
    limit_per_order: OrderLimit = 0
    opens_at: AwareDatetime | None = Field(None, description="start of the flash sale; left out: as soon as the session is live")
    closes_at: AwareDatetime | None = None
    return_policy: ReturnPolicy | None = None
    selling_policy: SellingPolicy = Field(
        SellingPolicy.HOLD, description="`hold`: set aside until a deadline; `waitlist`: with a line; `first_paid`: who pays first gets it"
    )
    price_min_minor: Price | None = Field(None, description="the limits within which the host may set the price; null: none")
    price_max_minor: Price | None = None
    total_max: TotalMax = None
    discount_percent_max: DiscountMax = None
    price_steps: Steps = []
    keyword: Keyword = ""

    def draft(self) -> service.OfferDraft:
        fields = _stored(self.model_dump(exclude={"product"}))
        return service.OfferDraft(product_id=self.product, **fields)


class OfferPatch(BaseModel):
    """Fields that are left out stay as they are. The delegated limits need an operator."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"closes_at": "2026-04-03T20:15:00+08:00"}]})

    name: str = Field("", min_length=1, max_length=120)
    list_price_minor: Price = 0
    limit_per_viewer: Limit = 0
    limit_per_order: OrderLimit = 0
    opens_at: AwareDatetime | None = None
    closes_at: AwareDatetime | None = None
    return_policy: ReturnPolicy = ReturnPolicy.NO_REASON_7_DAYS
    price_min_minor: Price | None = None
    price_max_minor: Price | None = None
    total_max: TotalMax = None
    discount_percent_max: DiscountMax = None
    price_steps: Steps = []
    keyword: Keyword = ""


class PriceStepOut(BaseModel):
    at: datetime = Field(validation_alias="at_ms")
    price_minor: int


class OfferOut(BaseModel):
    id: str = Field(examples=["k7qz0m4w2a-9f4h2j8p6s"])
    room: str = Field(validation_alias="room_id")
    session: str = Field(validation_alias="session_id")
    product: str | None = Field(validation_alias="product_id")
    name: str
    currency: str
    price_minor: int
    list_price_minor: int
    price_min_minor: int | None
    price_max_minor: int | None
    total_max: int | None
    discount_percent_max: int | None
    price_steps: list[PriceStepOut] = Field(description="prices to come; viewers hear of each when it is due")
    total: int
    sold: int = Field(description="paid units; what is held or waits for payment is in the session's stock")
    limit_per_viewer: int
    limit_per_order: int
    opens_at: datetime | None
    closes_at: datetime | None
    return_policy: str
    selling_policy: str
    keyword: str
    state: str = Field(examples=["listed"], description="`listed`, `paused` or `withdrawn`")
    position: int
    version: int
    image: str
    village: str
    lot: str
    harvested_on: date | None
    unit: str
    created_at: datetime

    @classmethod
    def of(cls, offer: Offer) -> "OfferOut":
        return cls.model_validate(offer, from_attributes=True)


class OffersOut(BaseModel):
    items: list[OfferOut]


class PriceIn(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"price_minor": 15800}]})

    price_minor: Price


class TopUpIn(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"add": 50}]})

    add: int = Field(ge=1, le=STOCK_MAX, description="units")


class ReasonIn(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "a wrong label on this lot"}]})

    reason: str = Field("", max_length=200, description="viewers read it")


@router.get("/sessions/{session_id}/offers", tags=["offers"])
async def list_offers(session_id: str, engines: EnginesDep, caller: Watcher) -> OffersOut:
    """The whole shelf in its order, withdrawn offers too. A shelf is bounded, so there are no pages."""
    _check(caller, "staff.watch", session_id)
    async with engines.sql.read() as session:
        await service.get_session(session, session_id)
        return OffersOut(items=[OfferOut.of(offer) for offer in await service.list_offers(session, session_id)])


@router.post("/sessions/{session_id}/offers", status_code=201, tags=["offers"])
async def list_offer(session_id: str, engines: EnginesDep, caller: Seller, body: OfferIn) -> OfferOut:
    """Puts an offer at the end of the shelf. Viewers see it at once when the session is on air, else when it goes live."""
    _check(caller, "offer.edit", session_id)
    async with engines.work() as work:
        return OfferOut.of(await service.list_offer(work, session_id, body.draft(), caller.id))


@router.get("/offers/{offer_id}", tags=["offers"])
async def get_offer(offer_id: str, engines: EnginesDep, caller: Watcher) -> OfferOut:
    _check(caller, "staff.watch", offer_id)
    async with engines.sql.read() as session:
        return OfferOut.of(await service.get_offer(session, offer_id))


@router.patch("/offers/{offer_id}", tags=["offers"])
async def change_offer(offer_id: str, engines: EnginesDep, caller: Seller, body: OfferPatch) -> OfferOut:
    room_id = _check(caller, "offer.edit", offer_id)
    changes = _stored(body.model_dump(exclude_unset=True))
    if changes.keys() & DELEGATED and not caller.may("room.create", room_id):
        raise AppError(PERMISSION_DENIED, "the limits delegated to a host are set by an operator (right `room.create`)")
    async with engines.work() as work:
        return OfferOut.of(await service.change_offer(work, offer_id, changes, caller.id))


@router.post("/offers/{offer_id}/price", tags=["offers"])
async def reprice_offer(offer_id: str, engines: EnginesDep, caller: Seller, body: PriceIn) -> OfferOut:
    """Error `over_limit` when the price is outside the limits delegated to the host; an operator (`room.create`) is not bound."""
    room_id = _check(caller, "offer.edit", offer_id)
    bind = not caller.may("room.create", room_id)
    async with engines.work() as work:
        return OfferOut.of(await service.reprice_offer(work, offer_id, body.price_minor, caller.id, limits_bind=bind))


@router.post("/offers/{offer_id}/stock", tags=["offers"])
async def top_up_offer(offer_id: str, engines: EnginesDep, caller: Seller, body: TopUpIn) -> OfferOut:
    """Adds units. Send an `Idempotency-Key`: without one a repeated call adds again.

    Error `over_limit` when the total would be above what is delegated to the host; an operator (`room.create`) is not bound.
    """
    room_id = _check(caller, "offer.edit", offer_id)
    bind = not caller.may("room.create", room_id)
    async with engines.work() as work:
        return OfferOut.of(await service.top_up_offer(work, offer_id, body.add, caller.id, limits_bind=bind))


@router.post("/offers/{offer_id}/withdraw", tags=["offers"])
async def withdraw_offer(offer_id: str, engines: EnginesDep, caller: Seller, body: ReasonIn | None = None) -> OfferOut:
    """Off the shelf for good. Orders that were placed stand."""
    _check(caller, "offer.edit", offer_id)
    async with engines.work() as work:
        return OfferOut.of(await service.withdraw_offer(work, offer_id, caller.id, reason=body.reason if body else ""))


@router.post("/offers/{offer_id}/pause", tags=["offers"])
async def pause_offer(offer_id: str, engines: EnginesDep, caller: Seller, body: ReasonIn | None = None) -> OfferOut:
    """Not for sale for now; it stays on the shelf."""
    _check(caller, "offer.edit", offer_id)
    async with engines.work() as work:
        return OfferOut.of(await service.pause_offer(work, offer_id, caller.id, reason=body.reason if body else ""))


@router.post("/offers/{offer_id}/resume", tags=["offers"])
async def resume_offer(offer_id: str, engines: EnginesDep, caller: Seller) -> OfferOut:
    _check(caller, "offer.edit", offer_id)
    async with engines.work() as work:
        return OfferOut.of(await service.resume_offer(work, offer_id, caller.id))


# --- pin ----------------------------------------------------------------------------------------------------------------------------


class Pin(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"offer": "k7qz0m4w2a-9f4h2j8p6s"}]})

    offer: str | None = Field(max_length=64, description="the offer being explained now; null takes the pin away")


@router.put("/rooms/{room_id}/pin", tags=["offers"])
async def pin_offer(room_id: str, engines: EnginesDep, caller: Runner, body: Pin) -> Pin:
    """Only a listed offer of the session on air can be pinned."""
    check_right(caller, "session.run", room_id)
    async with engines.work() as work:
        return Pin(offer=await service.pin_offer(work, room_id, body.offer, caller.id))


# --- run-of-show --------------------------------------------------------------------------------------------------------------------


class CueIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str | None = Field(None, max_length=80, description="of a cue that is there already: it keeps its state")
    title: str = Field(min_length=1, max_length=200)
    kind: CueKind = CueKind.TALK
    offer: str | None = Field(None, max_length=64, description="pinned when the cue comes")
    minutes: int = Field(0, ge=0, le=24 * 60, description="planned")


class RunOfShowIn(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "cues": [
                        {"title": "Welcome, the garden", "kind": "talk", "minutes": 5},
                        {"title": "First flush tea", "kind": "offer", "offer": "k7qz0m4w2a-9f4h2j8p6s", "minutes": 10},
                    ]
                }
            ]
        },
    )

    cues: list[CueIn] = Field(max_length=CUES_MAX)

    def drafts(self) -> list[service.CueDraft]:
        return [service.CueDraft(title=cue.title, kind=cue.kind, offer_id=cue.offer, minutes=cue.minutes, id=cue.id) for cue in self.cues]


class CueOut(BaseModel):
    id: str
    title: str
    kind: str
    offer: str | None = Field(validation_alias="offer_id")
    minutes: int
    state: str = Field(examples=["waiting"], description="`waiting`, `now` or `done`")
    began_at: datetime | None

    @classmethod
    def of(cls, cue: Cue) -> "CueOut":
        return cls.model_validate(cue, from_attributes=True)


class RunOfShowOut(BaseModel):
    cues: list[CueOut]


class AdvancedOut(BaseModel):
    cue: CueOut | None = Field(description="the cue that comes now; null: the run-of-show is through")


@router.get("/sessions/{session_id}/run-of-show", tags=["sessions"])
async def get_run_of_show(session_id: str, engines: EnginesDep, caller: Watcher) -> RunOfShowOut:
    _check(caller, "staff.watch", session_id)
    async with engines.sql.read() as session:
        await service.get_session(session, session_id)
        return RunOfShowOut(cues=[CueOut.of(cue) for cue in await service.list_cues(session, session_id)])


@router.put("/sessions/{session_id}/run-of-show", tags=["sessions"])
async def set_run_of_show(session_id: str, engines: EnginesDep, caller: Runner, body: RunOfShowIn) -> RunOfShowOut:
    """Replaces the list. A cue that is sent with its id keeps its state; others wait."""
    _check(caller, "session.run", session_id)
    async with engines.work() as work:
        return RunOfShowOut(cues=[CueOut.of(cue) for cue in await service.set_run_of_show(work, session_id, body.drafts(), caller.id)])


@router.post("/sessions/{session_id}/run-of-show/advance", tags=["sessions"])
async def advance(session_id: str, engines: EnginesDep, caller: Runner) -> AdvancedOut:
    """Goes to the next cue, and pins its offer if it has one that can be pinned."""
    _check(caller, "session.run", session_id)
    async with engines.work() as work:
        cue = await service.advance(work, session_id, caller.id)
        return AdvancedOut(cue=CueOut.of(cue) if cue else None)


def _check(caller: Caller, right: str, scoped: str) -> str:
    """The room of a session or offer, in which the caller has the right."""
    room_id = room_of(scoped)
    if not room_id:
        raise AppError(NOT_FOUND, "no such session or offer")
    check_right(caller, right, room_id)
    return room_id
