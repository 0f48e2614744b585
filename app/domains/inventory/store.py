"""The engine's side of inventory: keys, scripts, and what goes in and out of them. All keys of a room share its hash tag.

A hold is no SQL row: what becomes of it stands in the outbox, and SQL has the orders. Of open holds SQL has notes, a row a batch, and of
places in lines, a row each.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.domains.inventory.rules import Hold, MoveAnswer, ReserveAnswer, RoomBooks, Stock, Survivors, SweepAnswer
from app.domains.inventory.tables import HoldNote, WaitNote
from app.storage.bulk import BulkInsert
from app.storage.intake import has_mark, outbox_key
from app.storage.life import LIFE, being_renewed, room_key
from app.storage.redis import Script
from app.storage.work import Engines, is_away

Answer = TypeVar("Answer")

_HERE = Path(__file__).parent
_SHARED = (LIFE, *(_HERE / f"{part}.lua" for part in ("sales", "stock", "terms", "line")))
_reserve = Script(_HERE / "reserve.lua", after=_SHARED)
_move = Script(_HERE / "move.lua", after=(*_SHARED, _HERE / "order.lua"))
_sweep = Script(_HERE / "sweep.lua", after=_SHARED)
_sync = Script(_HERE / "sync.lua", after=_SHARED)
_renew = Script(_HERE / "renew.lua", after=_SHARED[:2])
_look = Script(_HERE / "look.lua")

SETTLE_IN_RESERVE_MAX = 100  # what a reservation settles on its way; the expiry loop does the rest

Member = dict[str, Any]  # one command as a script takes it; its fields stand in the script's header

_encoder = msgspec.json.Encoder()
_reserve_answers = msgspec.json.Decoder(list[ReserveAnswer])
_move_answers = msgspec.json.Decoder(list[MoveAnswer])
_sweep_answer = msgspec.json.Decoder(SweepAnswer)
_hold = msgspec.json.Decoder(Hold)
_stock = msgspec.json.Decoder(Stock)


def sales_keys(room_id: str) -> list[str]:
    """In the order that sales.lua states."""
    tag = f"{{{room_id}}}"
    return [f"{tag}:{name}" for name in ("offers", "holds", "counts", "deadlines")] + [
        outbox_key(room_id),
        room_key(room_id),
        f"{tag}:memories",
        f"{tag}:line",
    ]


class Closed(Exception):
    """The room's records may be old or gone, and nothing was done. `known`: for each member, whether it has an answer that waits here."""

    def __init__(self, known: Sequence[int]) -> None:
        super().__init__("the room has to be renewed first")
        self.known = known


async def _run(
    engines: Engines, script: Script, room_id: str, members: Sequence[Member], *, settle_max: int = 0, more: Sequence[str] = ()
) -> bytes:
    """Raises Closed."""
    settings = engines.settings
    arguments = [
        engines.runtime.script_now_ms(),
        settings.hot_keys_ttl_s * 1000,
        settle_max,
        settings.outbox_entries_max,
        _encoder.encode(members),
        *more,
    ]
    reply = cast("bytes | list[int]", await engines.run_on_sales(script, sales_keys(room_id), arguments))
    if isinstance(reply, list):
        raise Closed(reply)
    return reply


async def reserve_batch(engines: Engines, room_id: str, members: Sequence[Member]) -> Sequence[ReserveAnswer | Exception]:
    try:
        return _reserve_answers.decode(await _run(engines, _reserve, room_id, members, settle_max=SETTLE_IN_RESERVE_MAX))
    except Closed as closed:
        word = await _word_for_new(engines, room_id)
        return [being_renewed() if known else ReserveAnswer(word=word) for known in closed.known]


async def move_batch(engines: Engines, room_id: str, members: Sequence[Member]) -> Sequence[MoveAnswer | Exception]:
    try:
        return _move_answers.decode(await _run(engines, _move, room_id, members))
    except Closed as closed:
        word = await _word_for_new(engines, room_id)
        is_new = [
            word == "unknown" or (member["act"] == "place" and not known) for member, known in zip(members, closed.known, strict=True)
        ]
        return [MoveAnswer(word=word) if new else being_renewed() for new in is_new]


async def _word_for_new(engines: Engines, room_id: str) -> str:
    """A room that was never open has nothing that could be lost: somebody made its name up."""
    try:
        return "frozen" if await has_mark(engines, room_id) else "unknown"
    except Exception as failure:  # SQL may be away as well, which many kinds of failure say; all else is raised
        if is_away(failure):
            return "frozen"
        raise


async def sync_room(engines: Engines, room_id: str, members: Sequence[Member]) -> list[str]:
    """Raises Closed."""
    return [answer.word for answer in _move_answers.decode(await _run(engines, _sync, room_id, members))]


async def sweep_room(engines: Engines, room_id: str) -> SweepAnswer:
    try:
        return _sweep_answer.decode(await _run(engines, _sweep, room_id, (), settle_max=engines.settings.expiry_batch_max))
    except Closed:
        return SweepAnswer(settled=0, forgotten=0, closed=True)


# --- a new life of the engine --------------------------------------------------------------------------------------------------------


class Look(NamedTuple):
    """Which life the engine leads, and how far the room's records go."""

    life: str
    opened_by: str  # the life in which the room was opened; empty: none
    outbox_end: str  # empty: there is no outbox
    is_doubtful: bool  # this engine may lack the end of what was acknowledged: it was a replica, or keeps no append-only file
    was_lost: bool  # an earlier renewal found that something is missing, and did not come to its end

    @property
    def is_open(self) -> bool:
        return self.opened_by == self.life


async def look(engines: Engines, room_id: str) -> Look:
    _, _, _, _, outbox, room, *_ = sales_keys(room_id)
    life, opened_by, end, doubtful, lost = cast("list[Any]", await _look(engines.sales, [room, outbox], []))
    return Look(life.decode(), opened_by.decode(), end.decode(), bool(doubtful), bool(lost))


async def read_survivors(engines: Engines, room_id: str) -> Survivors:
    """The records as they are, with all their keys. Of a closed room, which does not change: not in one step."""
    offers_key, holds_key, counts_key, deadlines_key, *_, line_key = sales_keys(room_id)
    async with engines.sales.pipeline(transaction=False) as pipeline:
        for key in (offers_key, holds_key, counts_key):
            pipeline.hgetall(key)
        pipeline.zrange(deadlines_key, 0, -1, withscores=True)
        pipeline.zrange(line_key, 0, -1)
        offers, holds, counts, deadlines, line = await pipeline.execute()
    return Survivors(
        offers={name.decode(): msgspec.json.decode(raw) for name, raw in offers.items()},
        holds={name.decode(): msgspec.json.decode(raw) for name, raw in holds.items()},
        counts={name.decode(): int(raw) for name, raw in counts.items()},
        deadlines={name.decode(): int(score) for name, score in deadlines},
        line=frozenset(name.decode() for name in line),
    )


async def renew_part(engines: Engines, room_id: str, life: str, members: Sequence[Member]) -> bool:
    """False: the engine has restarted meanwhile, or somebody else has opened the room."""
    answers = _move_answers.decode(await _run(engines, _renew, room_id, members, more=("renew", life)))
    return all(answer.word == "done" for answer in answers)


# --- reading -------------------------------------------------------------------------------------------------------------------------


async def fetch_hold(engines: Engines, room_id: str, hold_id: str) -> Hold | None:
    raw = cast("bytes | None", await engines.sales.hget(sales_keys(room_id)[1], hold_id))
    return _hold.decode(raw) if raw else None


async def list_line(engines: Engines, room_id: str, offer_id: str, *, after_turn: int, limit: int) -> list[tuple[str, Hold]]:
    """Who waits for an offer, in turn."""
    _, holds_key, *_, line_key = sales_keys(room_id)
    start, end = f"({offer_id}|{after_turn:012d}}}", f"({offer_id}}}"
    names = cast("list[bytes]", await engines.sales.zrangebylex(line_key, start, end, start=0, num=limit))
    ids = [name.decode().rpartition("|")[2] for name in names]
    raw = cast("list[bytes | None]", await engines.sales.hmget(holds_key, ids)) if ids else []
    return [(hold_id, _hold.decode(text)) for hold_id, text in zip(ids, raw, strict=True) if text]


async def list_stock(engines: Engines, room_id: str) -> tuple[dict[str, Stock], dict[str, str]]:
    """The room's offers, and the state of its sessions."""
    offers_key, *_, room_key, _memories, _line = sales_keys(room_id)
    async with engines.sales.pipeline(transaction=False) as pipeline:
        pipeline.hgetall(offers_key)
        pipeline.hgetall(room_key)
        offers, room = cast("list[dict[bytes, bytes]]", await pipeline.execute())
    sessions = {name[2:].decode(): state.decode() for name, state in room.items() if name.startswith(b"s:")}
    return {offer_id.decode(): _stock.decode(raw) for offer_id, raw in offers.items()}, sessions


async def read_books_and_outbox(engines: Engines, room_id: str) -> tuple[RoomBooks, list[dict[str, Any]]]:
    """All records of a room and what its outbox has still to tell, of one moment."""
    offers_key, holds_key, counts_key, deadlines_key, outbox, *_, line_key = sales_keys(room_id)
    async with engines.sales.pipeline(transaction=True) as pipeline:
        for key in (offers_key, holds_key, counts_key):
            pipeline.hgetall(key)
        pipeline.zrange(deadlines_key, 0, -1, withscores=True)
        pipeline.zrange(line_key, 0, -1)
        pipeline.xrange(outbox)
        offers, holds, counts, deadlines, line, entries = await pipeline.execute()
    books = RoomBooks(
        offers={name.decode(): _stock.decode(raw) for name, raw in offers.items()},
        holds={name.decode(): _hold.decode(raw) for name, raw in holds.items()},
        counts={name.decode(): int(raw) for name, raw in counts.items()},
        deadlines={name.decode(): int(score) for name, score in deadlines},
        line=[name.decode() for name in line],
    )
    return books, [msgspec.json.decode(fields[b"d"]) for _, fields in entries]


async def fetch_holds(engines: Engines, room_id: str, hold_ids: Sequence[str]) -> dict[str, Hold]:
    found = cast("list[bytes | None]", await engines.sales.hmget(sales_keys(room_id)[1], list(hold_ids))) if hold_ids else []
    return {hold_id: _hold.decode(raw) for hold_id, raw in zip(hold_ids, found, strict=True) if raw}


async def count_holds(engines: Engines, room_id: str) -> int:
    return int(await engines.sales.hlen(sales_keys(room_id)[1]))


async def outbox_length(engines: Engines, room_id: str) -> int:
    return int(await engines.sales.xlen(outbox_key(room_id)))


# --- notes of holds in SQL -----------------------------------------------------------------------------------------------------------


def add_note(session: AsyncSession, room_id: str, placed: Sequence[Any], ended: Sequence[str], until: datetime) -> None:
    session.add(HoldNote(room_id=room_id, placed=_encoder.encode(placed), ended=_encoder.encode(ended), until=until))


async def forget_notes(session: AsyncSession, until: datetime) -> None:
    await session.execute(delete(HoldNote).where(HoldNote.until <= until))


async def list_noted(session: AsyncSession, room_id: str, now: datetime) -> dict[str, dict[str, Any]]:
    """Holds that were open when SQL last heard of them, and may be still."""
    placed: dict[str, dict[str, Any]] = {}
    ended: set[str] = set()
    query = select(HoldNote.placed, HoldNote.ended).where(HoldNote.room_id == room_id, HoldNote.until > now)
    for row in await session.execute(query):
        placed |= {hold["hold"]: hold for hold in msgspec.json.decode(row.placed)}
        ended |= set(msgspec.json.decode(row.ended))
    return {hold_id: hold for hold_id, hold in placed.items() if hold_id not in ended}


_insert_waits = BulkInsert(
    WaitNote, "id", "room_id", "offer_id", "viewer_id", "quantity", "turn", "since_ms", "ttl_ms", after="on conflict do nothing"
)


async def note_waits(session: AsyncSession, room_id: str, waits: Sequence[dict[str, Any]]) -> None:
    rows = [
        {
            "id": wait["wait"],
            "room_id": room_id,
            "offer_id": wait["offer"],
            "viewer_id": wait["viewer"],
            "quantity": wait["quantity"],
            "turn": wait["turn"],
            "since_ms": wait["since"],
            "ttl_ms": wait["ttl"],
        }
        for wait in waits
    ]
    await _insert_waits(session, rows)


async def forget_waits(session: AsyncSession, wait_ids: Sequence[str]) -> None:
    await session.execute(delete(WaitNote).where(WaitNote.id.in_(wait_ids)))


async def list_waits(session: AsyncSession, room_id: str) -> dict[str, dict[str, Any]]:
    """Places in lines, as the engine keeps them."""
    rows = await session.scalars(select(WaitNote).where(WaitNote.room_id == room_id))
    return {
        row.id: {
            "offer": row.offer_id,
            "viewer": row.viewer_id,
            "quantity": row.quantity,
            "turn": row.turn,
            "since": row.since_ms,
            "ttl": row.ttl_ms,
        }
        for row in rows
    }
