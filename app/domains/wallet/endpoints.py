"""RPC methods and REST routes of the wallet."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.core.caller import Caller
from app.core.errors import AppError
from app.core.money import AMOUNT_MINOR_MAX
from app.core.registry import Command, Domain
from app.core.runtime import at_text
from app.domains.wallet import service
from app.domains.wallet.tables import Transfer
from app.protocol.codes import BAD_REQUEST
from app.protocol.commands import Empty, WalletBalance
from app.rest.access import EnginesDep, check_right, require
from app.rest.pages import CursorParam, LimitParam, Page, decode_cursor, encode_cursor
from app.storage.work import Engines

router = APIRouter(prefix="/api/v1", tags=["wallet"])


async def read_balance(engines: Engines, caller: Caller, request: Empty) -> WalletBalance:
    currency = engines.settings.currency
    async with engines.sql.read() as session:
        return WalletBalance(currency=currency, available_minor=await service.balance(session, f"viewer:{caller.id}", currency))


class RoomWalletOut(BaseModel):
    room: str = Field(examples=["k7qz0m4w2a"])
    currency: str = Field(examples=["CNY"])
    available_minor: int = Field(examples=[250_000], description="may be spent on envelopes and money prizes")
    reserved_minor: int = Field(examples=[0], description="set aside by transfers that are not finished")


class DepositIn(BaseModel):
    amount_minor: int = Field(gt=0, le=AMOUNT_MINOR_MAX, examples=[100_000], description="minor units: fen, cent")
    reference: str = Field(
        min_length=1, max_length=100, examples=["bank-2026-05-01-0017"], description="the bank's or provider's id; it counts once"
    )


class DepositOut(BaseModel):
    outcome: str = Field(examples=["done"], description="`done`, or `repeated` when this reference was booked before")
    available_minor: int = Field(examples=[350_000])


class TransferOut(BaseModel):
    id: str
    at: str
    kind: str = Field(examples=["envelope.funded"])
    from_account: str
    to_account: str
    amount_minor: int
    posted_minor: int = Field(description="what has moved: less than the amount when a reservation was posted in part")
    currency: str
    state: str = Field(examples=["posted"])
    reference: str


@router.get("/rooms/{room_id}/wallet")
async def room_wallet(room_id: str, engines: EnginesDep, caller: Annotated[Caller, require("wallet.room")]) -> RoomWalletOut:
    """The room's own account, from which envelopes and money prizes are funded."""
    check_right(caller, "wallet.room", room_id)
    currency = engines.settings.currency
    async with engines.sql.read() as session:
        funds = await service.fetch_funds(session, f"room:{room_id}", currency)
    return RoomWalletOut(
        room=room_id, currency=currency, available_minor=funds.balance_minor - funds.pending_minor, reserved_minor=funds.pending_minor
    )


@router.post("/rooms/{room_id}/wallet/deposits")
async def deposit(room_id: str, body: DepositIn, engines: EnginesDep, caller: Annotated[Caller, require("wallet.deposit")]) -> DepositOut:
    """Books money that came in from outside. The same reference again books nothing."""
    check_right(caller, "wallet.deposit", room_id)
    for admit in engines.registry.admission:  # the room must exist; `rooms` is a sibling, so it answers through the registry
        await admit(engines, caller, room_id)
    currency = engines.settings.currency
    async with engines.work() as work:
        outcome = await service.deposit(
            work, room_id=room_id, amount_minor=body.amount_minor, currency=currency, reference=body.reference, by=caller.id
        )
        available = await service.balance(work.session, f"room:{room_id}", currency)
    return DepositOut(outcome=outcome, available_minor=available)


@router.get("/rooms/{room_id}/wallet/transfers")
async def room_transfers(
    room_id: str,
    engines: EnginesDep,
    caller: Annotated[Caller, require("wallet.room")],
    cursor: CursorParam = "",
    limit: LimitParam = 50,
) -> Page[TransferOut]:
    """Everything that moved in or out of the room's account, newest first."""
    check_right(caller, "wallet.room", room_id)
    async with engines.sql.read() as session:
        rows = await service.list_transfers(session, f"room:{room_id}", limit=limit + 1, before=_decode(cursor))
    more = len(rows) > limit
    last = rows[limit - 1] if more else None
    return Page[TransferOut](
        items=[_out(row) for row in rows[:limit]], next_cursor=encode_cursor(last.at.isoformat(), last.id) if last is not None else ""
    )


def _decode(cursor: str) -> tuple[datetime, str] | None:
    key = decode_cursor(cursor, 2)
    if key is None:
        return None
    try:
        return datetime.fromisoformat(str(key[0])), str(key[1])
    except ValueError as failure:
        raise AppError(BAD_REQUEST, "cursor: not one that this server gave out") from failure


def _out(row: Transfer) -> TransferOut:
    return TransferOut(
        id=row.id,
        at=at_text(int(row.at.timestamp() * 1000)),
        kind=row.kind,
        from_account=row.debit_account,
        to_account=row.credit_account,
        amount_minor=row.amount_minor,
        posted_minor=row.posted_minor,
        currency=row.currency,
        state=row.state,
        reference=row.reference,
    )


DOMAIN = Domain(
    name="wallet",
    rights={
        "wallet.view": "see one's own balance",
        "wallet.room": "see a room's account and its transfers",
        "wallet.deposit": "book money that came in from outside",
    },
    commands=(
        Command(
            method="wallet.balance",
            request=Empty,
            reply=WalletBalance,
            handler=read_balance,
            right="wallet.view",
            summary="What the caller's own wallet holds.",
            calls_per_s_max=2,
        ),
    ),
    routers=(router,),
)
