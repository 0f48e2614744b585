"""REST routes of webhooks, and the events that are passed on."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from app.core.caller import ANYWHERE, Caller
from app.core.errors import AppError
from app.core.registry import Domain
from app.domains.integrations import rules, service, store
from app.protocol.codes import NOT_FOUND
from app.rest.access import EnginesDep, check_right, require
from app.rest.pages import CursorParam, LimitParam, Page, decode_cursor, encode_cursor

router = APIRouter(prefix="/api/v1", tags=["integrations"])

Manager = Annotated[Caller, require("webhook.manage")]
EventType = Literal["order.paid", "order.shipped", "order.refunded", "refund.settled", "dispute.opened", "dispute.closed", "session.ended"]


class WebhookIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: str = Field(min_length=1, max_length=rules.URL_CHARS_MAX, examples=["https://shop.example/hooks/jishi"])
    events: list[EventType] = Field(min_length=1, max_length=len(rules.EVENT_TYPES), examples=[["order.paid", "session.ended"]])


class WebhookOut(BaseModel):
    id: str = Field(examples=["4h8s0c2p7x"])
    url: str = Field(examples=["https://shop.example/hooks/jishi"])
    events: list[str] = Field(examples=[["order.paid"]])
    created_by: str = Field(examples=["staff-4h8s0c2p7x"])
    created_at: datetime


class WebhookMade(WebhookOut):
    secret: str = Field(description="shown this once; verifies the `webhook-signature` header", examples=["whsec_MfKQ9r8GKYqrTwjU"])


class AttemptOut(BaseModel):
    attempt: int = Field(examples=[1])
    at: datetime
    status: int | None = Field(None, description="HTTP status of the answer; null: no answer", examples=[200])
    error: str = Field("", examples=["no answer within 10 s"])
    duration_ms: int = Field(examples=[84])


class DeliveryOut(BaseModel):
    id: str = Field(description="the `webhook-id` header", examples=["01jx8w6g3w9k6r2a4m5n7p8q9s"])
    event: str = Field(examples=["order.paid"])
    state: str = Field(description="pending, delivered or failed", examples=["delivered"])
    created_at: datetime
    next_attempt_at: datetime | None = Field(None, description="while it is pending")
    attempts: list[AttemptOut]


class TestQueued(BaseModel):
    __test__ = False  # the name is no test class

    delivery: str = Field(description="look for it in the delivery log", examples=["01jx8w6g3w9k6r2a4m5n7p8q9s"])


@router.get("/webhooks", summary="List webhooks")
async def list_webhooks(engines: EnginesDep, caller: Manager, cursor: CursorParam = "", limit: LimitParam = 50) -> Page[WebhookOut]:
    check_right(caller, "webhook.manage", ANYWHERE)
    after = decode_cursor(cursor, 1)
    async with engines.sql.read() as session:
        rows = await store.list_endpoints(session, after_id=str(after[0]) if after else "", limit=limit + 1)
    items = [WebhookOut.model_validate(row, from_attributes=True) for row in rows[:limit]]
    return Page(items=items, next_cursor=encode_cursor(items[-1].id) if len(rows) > limit else "")


@router.post("/webhooks", status_code=201, summary="Add a webhook; the answer shows its secret once")
async def create_webhook(body: WebhookIn, response: Response, engines: EnginesDep, caller: Manager) -> WebhookMade:
    """Deliveries are signed as Standard Webhooks: `webhook-id`, `webhook-timestamp` and `webhook-signature` (`v1,` and the base64 of
    HMAC-SHA256 over `id.timestamp.body`, keyed with the base64-decoded text behind `whsec_`). Answer 2xx; anything else is tried again."""
    check_right(caller, "webhook.manage", ANYWHERE)
    async with engines.work() as work:
        endpoint = await service.create_endpoint(work, url=body.url, events=body.events, by=caller.id)
        await work.audit(ANYWHERE, caller.id, "webhook.made", endpoint.id, url=endpoint.url, events=endpoint.events)
    response.headers["Cache-Control"] = "no-store"
    return WebhookMade.model_validate(endpoint, from_attributes=True)


@router.delete("/webhooks/{webhook_id}", status_code=204, summary="Delete a webhook with its log")
async def delete_webhook(webhook_id: str, engines: EnginesDep, caller: Manager) -> None:
    check_right(caller, "webhook.manage", ANYWHERE)
    async with engines.work() as work:
        await service.remove_endpoint(work, webhook_id)
        await work.audit(ANYWHERE, caller.id, "webhook.deleted", webhook_id)


@router.get("/webhooks/{webhook_id}/deliveries", summary="Delivery log of a webhook, the newest first")
async def list_deliveries(
    webhook_id: str, engines: EnginesDep, caller: Manager, cursor: CursorParam = "", limit: LimitParam = 50
) -> Page[DeliveryOut]:
    check_right(caller, "webhook.manage", ANYWHERE)
    before = decode_cursor(cursor, 1)
    async with engines.sql.read() as session:
        if await store.fetch_endpoint(session, webhook_id) is None:
            raise AppError(NOT_FOUND, f"no webhook has the id {webhook_id}")
        rows = await store.list_deliveries(session, webhook_id, before_id=str(before[0]) if before else "", limit=limit + 1)
        attempts = await store.list_attempts(session, [row.id for row in rows[:limit]])
    items = [
        DeliveryOut(
            id=row.id,
            event=row.event,
            state=row.state,
            created_at=row.created_at,
            next_attempt_at=row.next_attempt_at if row.state == "pending" else None,
            attempts=[AttemptOut.model_validate(attempt, from_attributes=True) for attempt in attempts[row.id]],
        )
        for row in rows[:limit]
    ]
    return Page(items=items, next_cursor=encode_cursor(items[-1].id) if len(rows) > limit else "")


@router.post("/webhooks/{webhook_id}/test", status_code=202, summary="Send a test event")
async def test_webhook(webhook_id: str, engines: EnginesDep, caller: Manager) -> TestQueued:
    check_right(caller, "webhook.manage", ANYWHERE)
    async with engines.work() as work:
        return TestQueued(delivery=await service.queue_test(work, webhook_id))


DOMAIN = Domain(
    name="integrations",
    rights={"webhook.manage": "add and delete webhooks, read their delivery log"},
    routers=(router,),
    reactions=dict.fromkeys(
        (
            *("order.paid", "order.changed", "refund.settled", "return.requested", "return.changed"),
            *("dispute.opened", "dispute.closed", "session.ended"),
        ),
        service.queue_events,
    ),
)
