"""Draws against the real engines: who is in, who wins, where every prize ends up, and what an outsider can compute again."""

import asyncio
import hashlib
import hmac
import json
from typing import Any

import pytest
from sqlalchemy import text

from app.core.errors import AppError
from app.domains.inventory import service as inventory
from app.domains.lottery import service, store
from app.domains.lottery.rules import Condition, DrawDraft, PrizeDraft, PrizeKind
from app.domains.lottery.tables import Draw
from app.domains.wallet import service as wallet
from app.protocol.codes import BAD_REQUEST, CONFLICT, INSUFFICIENT_FUNDS, KEY_REUSED, NOT_FOUND
from app.protocol.commands import DrawEntered
from app.protocol.events import DrawCancelled, DrawClosed, DrawDrawn, DrawOpened, DrawWon, decode_event
from app.storage.intake import outbox_key, take_in_room
from app.storage.work import Engines
from tests.support.auditor.ledger import audit_ledger
from tests.support.auditor.stock import audit_stock
from tests.support.runtime import TestRuntime
from tests.support.shelf import Shelf, open_shelf

ROOM = "room1"
SESSION = "room1-show1"
MONEY = PrizeDraft(PrizeKind.MONEY, "Red packet", 2, amount_minor=500)


def draft(*prizes: PrizeDraft, condition: Condition = Condition.EVERYONE, keyword: str = "", **more: Any) -> DrawDraft:
    return DrawDraft(title="Thanks", condition=condition, keyword=keyword, prizes=prizes, duration_s=more.pop("duration_s", 60), **more)


async def opened(engines: Engines, wanted: DrawDraft, *, money: int = 1000) -> str:
    async with engines.work() as work:
        await wallet.deposit(work, room_id=ROOM, amount_minor=money, currency="CNY", reference="bank-1", by="op")
    return await service.open_draw(engines, wanted, room_id=ROOM, session_id=SESSION, by="host")


async def enter(engines: Engines, draw_id: str, viewer: str, key: str = "k1", **more: Any) -> DrawEntered:
    return await service.enter(engines, draw_id=draw_id, viewer_id=viewer, name=f"Viewer {viewer}", key=key, **more)


async def enter_all(engines: Engines, draw_id: str, count: int) -> None:
    await asyncio.gather(*(enter(engines, draw_id, f"v{i}") for i in range(count)))


async def take_in(engines: Engines) -> None:
    while await take_in_room(engines, ROOM):
        pass


async def funds(engines: Engines, account: str) -> int:
    async with engines.sql.read() as session:
        return await wallet.balance(session, account, "CNY")


async def fetch(engines: Engines, draw_id: str) -> Draw:
    async with engines.sql.read() as session:
        return await service.fetch_draw(session, draw_id)


async def outcome(engines: Engines, draw_id: str) -> tuple[Draw, list[store.Leaf], list[Any]]:
    async with engines.sql.read() as session:
        draw = await service.fetch_draw(session, draw_id)
        leaves, winners = await service.read_outcome(session, draw)
    return draw, leaves, list(winners)


async def wins(engines: Engines, viewer_id: str) -> list[tuple[int, str | None]]:
    told = await events(engines, f"user:{viewer_id}")
    return [(event.prize.amount_minor, event.order) for event in told if isinstance(event, DrawWon)]


async def events(engines: Engines, channel: str) -> list[Any]:
    publications, _ = await engines.streams.history(channel)
    return [decode_event(publication.data) for publication in publications]


# --- an outsider's own computation, from published values alone; nothing of app.domains.lottery.rules -----------------------------------


def _tree(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, as it is written there: split at the largest power of two below n."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + _tree(leaves[:split]) + _tree(leaves[split:])).digest()


def recompute(rules: str, leaves: list[bytes], seed: str) -> tuple[str, list[int]]:
    root = _tree(sorted(leaves))
    randomness = hashlib.sha256(b"jishi-draw-1\x00" + hashlib.sha256(rules.encode()).digest() + root + bytes.fromhex(seed)).digest()
    stream = b"".join(hashlib.sha256(randomness + block.to_bytes(8, "big")).digest() for block in range(1000))
    units = sum(prize["count"] for prize in json.loads(rules)["prizes"])
    places, at = list(range(len(leaves))), 0
    for unit in range(min(units, len(leaves))):
        span = len(leaves) - unit
        while (word := int.from_bytes(stream[at : at + 8], "big")) >= (2**64 // span) * span:
            at += 8
        at += 8
        other = unit + word % span
        places[unit], places[other] = places[other], places[unit]
    return root.hex(), places[: min(units, len(leaves))]


async def test_an_outsider_computes_the_same_winners(engines: Engines) -> None:
    draw_id = await opened(engines, draft(PrizeDraft(PrizeKind.MONEY, "First", 1, 400), PrizeDraft(PrizeKind.MONEY, "Second", 4, 100)))
    before = await fetch(engines, draw_id)
    await enter_all(engines, draw_id, 41)
    await service.close_draw(engines, draw_id, by="host")
    draw, leaves, winners = await outcome(engines, draw_id)
    assert (draw.rules_hash, draw.commitment) == (before.rules_hash, before.commitment)
    assert hashlib.sha256(draw.rules_json.encode()).hexdigest() == draw.rules_hash
    assert hashlib.sha256(bytes.fromhex(draw.seed)).hexdigest() == draw.commitment
    assert hashlib.sha256(bytes.fromhex(draw.salt)).hexdigest() == json.loads(draw.rules_json)["salt_hash"]
    raw = [bytes.fromhex(leaf.pseudonym + leaf.evidence_hash) for leaf in leaves]
    root, places = recompute(draw.rules_json, raw, draw.seed)
    assert root == draw.entrants_root
    assert places == [winner.entrant_index for winner in winners]
    assert len(set(places)) == 5
    for winner in winners:  # a pseudonym belongs to one viewer and nobody else
        assert hmac.new(bytes.fromhex(draw.salt), winner.viewer_id.encode(), hashlib.sha256).hexdigest() == winner.pseudonym
        assert leaves[winner.entrant_index].pseudonym == winner.pseudonym
    for i in range(len(raw)):  # any other list of entrants has another root
        assert recompute(draw.rules_json, raw[:i] + raw[i + 1 :], draw.seed)[0] != root
    assert recompute(draw.rules_json, [*raw[:-1], raw[-1][:-1] + bytes([raw[-1][-1] ^ 1])], draw.seed)[0] != root


async def test_what_is_announced_and_what_stays_secret(engines: Engines) -> None:
    draw_id = await opened(engines, draft(MONEY))
    await enter_all(engines, draw_id, 3)
    before = await fetch(engines, draw_id)
    assert [view.id for view in await service.snapshot_draws(engines, ROOM)] == [draw_id]
    told = (await engines.streams.history(f"room:{ROOM}"))[0]
    assert before.seed.encode() not in b"".join(publication.data for publication in told)
    await service.close_draw(engines, draw_id, by="host")
    stage = await events(engines, f"room:{ROOM}")
    assert [type(event) for event in stage] == [DrawOpened, DrawClosed, DrawDrawn]
    assert (stage[0].draw.rules_hash, stage[0].draw.commitment) == (before.rules_hash, before.commitment)
    assert (stage[1].draw.state, stage[1].draw.entrants) == ("closed", 3)
    draw, _, winners = await outcome(engines, draw_id)
    assert stage[1].entrants_digest == draw.entrants_root
    assert (stage[2].seed, stage[2].draw.state) == (draw.seed, "drawn")
    assert [winner.viewer for winner in stage[2].winners] == [winner.viewer_id for winner in winners]
    assert {winner.name for winner in stage[2].winners} <= {"V**0", "V**1", "V**2"}
    assert await service.snapshot_draws(engines, ROOM) == []
    for winner in winners:
        assert [event.prize.amount_minor for event in await events(engines, f"user:{winner.viewer_id}") if isinstance(event, DrawWon)] == [
            500
        ]
    async with engines.sql.read() as session:
        acts = (await session.execute(text("select action, actor from audit_entries order by id"))).all()
    assert [tuple(act) for act in acts] == [("wallet.deposited", "op"), ("draw.opened", "host"), ("draw.drawn", "host")]


async def test_money_moves_from_escrow_to_winners_and_the_surplus_returns(engines: Engines) -> None:
    draw_id = await opened(engines, draft(PrizeDraft(PrizeKind.MONEY, "Red packet", 5, 200)), money=1500)
    assert (await funds(engines, f"room:{ROOM}"), await funds(engines, f"draw:{draw_id}")) == (500, 1000)
    await enter_all(engines, draw_id, 3)
    await service.close_draw(engines, draw_id, by="host")
    assert [await funds(engines, f"viewer:v{i}") for i in range(3)] == [200, 200, 200]
    assert (await funds(engines, f"room:{ROOM}"), await funds(engines, f"draw:{draw_id}")) == (900, 0)
    assert await audit_ledger(engines) == []


async def test_a_draw_nobody_entered_returns_everything(engines: Engines, runtime: TestRuntime) -> None:
    draw_id = await opened(engines, draft(MONEY))
    runtime.advance(60_000)
    await service.close_due_draws(engines)
    await take_in(engines)
    draw, leaves, winners = await outcome(engines, draw_id)
    assert (draw.state, draw.entrants, leaves, winners) == ("drawn", 0, [], [])
    assert draw.entrants_root == hashlib.sha256(b"").hexdigest()
    assert await funds(engines, f"room:{ROOM}") == 1000
    assert await audit_ledger(engines) == []


# --- entering ---------------------------------------------------------------------------------------------------------------------------


async def test_order_of_the_checks_and_the_words_of_the_answers(engines: Engines, runtime: TestRuntime) -> None:
    wanted = draft(MONEY, condition=Condition.KEYWORD, keyword=" Spring TEA ", entrants_max=2)
    draw_id = await opened(engines, wanted)
    first = await enter(engines, draw_id, "a", keyword="honey")
    assert (first.outcome, first.condition, first.entrants) == ("not_eligible", "keyword", 0)
    entered = await enter(engines, draw_id, "a", keyword="spring tea")
    assert (entered.outcome, entered.entrants) == ("entered", 1)
    assert await enter(engines, draw_id, "a", keyword="SPRING ｔea") == entered  # the same key and the same word
    assert (await enter(engines, draw_id, "a", "k2", keyword="spring tea")).outcome == "again"
    with pytest.raises(AppError) as reused:
        await enter(engines, draw_id, "a", keyword="honey")
    assert reused.value.code is KEY_REUSED
    staff = await enter(engines, draw_id, "h", keyword="spring tea", is_staff=True)
    assert (staff.outcome, staff.condition) == ("not_eligible", "staff")
    assert (await enter(engines, draw_id, "b", keyword="spring tea")).outcome == "entered"
    assert (await enter(engines, draw_id, "c", keyword="spring tea")).outcome == "full"
    runtime.advance(60_000)
    assert (await enter(engines, draw_id, "c", keyword="spring tea")).outcome == "closed"
    assert (await enter(engines, draw_id, "b", "k2", keyword="spring tea")).outcome == "again"
    for unknown in ("nowhere", "room1-nothing"):
        with pytest.raises(AppError) as refused:
            await enter(engines, unknown, "a")
        assert refused.value.code is NOT_FOUND


async def test_the_engines_deadline_decides_to_the_millisecond(engines: Engines, runtime: TestRuntime) -> None:
    draw_id = await opened(engines, draft(MONEY))
    runtime.advance(59_999)
    await service.close_due_draws(engines)
    assert (await enter(engines, draw_id, "a")).outcome == "entered"
    runtime.advance(1)
    assert (await enter(engines, draw_id, "b")).outcome == "closed"
    await service.close_due_draws(engines)
    await service.close_due_draws(engines)
    await take_in(engines)
    draw, leaves, _ = await outcome(engines, draw_id)
    assert (draw.state, [leaf.viewer_id for leaf in leaves]) == ("drawn", ["a"])


async def test_everyone_who_was_told_entered_is_in_the_list(engines: Engines) -> None:
    draw_id = await opened(engines, draft(MONEY))
    entering = [asyncio.create_task(enter(engines, draw_id, f"v{i}")) for i in range(400)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(service.close_draw(engines, draw_id, by="host"))
    answers = await asyncio.gather(*entering)
    await closing
    told = {f"v{i}" for i, answer in enumerate(answers) if answer.outcome == "entered"}
    _, leaves, _ = await outcome(engines, draw_id)
    assert {leaf.viewer_id for leaf in leaves} == told
    assert {answer.outcome.value for answer in answers} <= {"entered", "closed"}


# --- opening and ending -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted",
    [
        draft(),
        draft(MONEY, condition=Condition.KEYWORD, keyword="  "),
        draft(PrizeDraft(PrizeKind.MONEY, "nothing", 1)),
        draft(PrizeDraft(PrizeKind.MONEY, "both", 1, 5, "room1-o1")),
        draft(PrizeDraft(PrizeKind.PRODUCT, "elsewhere", 1, 0, "room2-o1")),
        draft(PrizeDraft(PrizeKind.PRODUCT, "no offer", 1)),
        draft(PrizeDraft(PrizeKind.MONEY, "too many", 1001, 1)),
    ],
    ids=lambda wanted: wanted.prizes[0].name if wanted.prizes else "no prize",
)
async def test_a_draft_that_cannot_be_kept_is_refused(engines: Engines, wanted: DrawDraft) -> None:
    with pytest.raises(AppError) as refused:
        await opened(engines, wanted)
    assert refused.value.code is BAD_REQUEST


async def test_without_the_money_nothing_stays_behind(engines: Engines) -> None:
    shelf = await open_shelf(engines)
    tea = await shelf.offer(total=3)
    with pytest.raises(AppError) as refused:
        await opened(engines, draft(PrizeDraft(PrizeKind.PRODUCT, "Tea", 2, 0, tea), MONEY), money=999)
    assert refused.value.code is INSUFFICIENT_FUNDS
    assert (await inventory.read_stock(engines, ROOM))[tea].available == 3
    assert await funds(engines, f"room:{ROOM}") == 999
    assert not [event for event in await events(engines, f"room:{ROOM}") if isinstance(event, DrawOpened)]


async def test_cancelling_returns_money_and_goods_once(engines: Engines) -> None:
    shelf = await open_shelf(engines)
    tea = await shelf.offer(total=3)
    draw_id = await opened(engines, draft(MONEY, PrizeDraft(PrizeKind.PRODUCT, "Tea", 2, 0, tea)))
    await enter(engines, draw_id, "a")
    assert (await inventory.read_stock(engines, ROOM))[tea].available == 1
    for _ in range(2):
        draw = await service.cancel_draw(engines, draw_id, by="host", reason="The prize arrived damaged.")
        assert (draw.state, draw.reason, draw.entrants) == ("cancelled", "The prize arrived damaged.", 1)
    assert (await inventory.read_stock(engines, ROOM))[tea].available == 3
    assert (await funds(engines, f"room:{ROOM}"), await funds(engines, f"draw:{draw_id}")) == (1000, 0)
    assert len([event for event in await events(engines, f"room:{ROOM}") if isinstance(event, DrawCancelled)]) == 1
    assert (await enter(engines, draw_id, "b")).outcome == "closed"
    with pytest.raises(AppError) as refused:
        await service.close_draw(engines, draw_id, by="host")
    assert refused.value.code is CONFLICT
    assert await audit_ledger(engines) == []


async def test_a_drawn_draw_cannot_be_cancelled_nor_drawn_again(engines: Engines) -> None:
    draw_id = await opened(engines, draft(MONEY))
    await enter_all(engines, draw_id, 5)
    await service.close_draw(engines, draw_id, by="host")
    first = await outcome(engines, draw_id)
    with pytest.raises(AppError) as refused:
        await service.cancel_draw(engines, draw_id, by="host", reason="I wanted others")
    assert refused.value.code is CONFLICT
    await service.close_draw(engines, draw_id, by="host")
    again = await outcome(engines, draw_id)
    assert [winner.viewer_id for winner in again[2]] == [winner.viewer_id for winner in first[2]]
    assert await audit_ledger(engines) == []


# --- product prizes ---------------------------------------------------------------------------------------------------------------------


async def _won_products(engines: Engines, shelf: Shelf, tea: str) -> str:
    draw_id = await opened(engines, draft(PrizeDraft(PrizeKind.PRODUCT, "Tea", 3, 0, tea)))
    await enter_all(engines, draw_id, 2)
    await service.close_draw(engines, draw_id, by="host")
    await shelf.intake()
    return draw_id


async def test_won_products_become_orders_and_the_rest_goes_back(engines: Engines) -> None:
    shelf = await open_shelf(engines)
    tea = await shelf.offer(total=5)
    draw_id = await _won_products(engines, shelf, tea)
    stock = (await inventory.read_stock(engines, ROOM))[tea]
    assert (stock.available, stock.held, stock.sold) == (3, 0, 2)
    _, _, winners = await outcome(engines, draw_id)
    async with engines.sql.read() as session:
        rows = (await session.execute(text("select id, viewer_id, amount_minor, state from orders order by id"))).all()
    assert sorted((row[0], row[1]) for row in rows) == sorted((winner.order_id, winner.viewer_id) for winner in winners)
    assert {(row[2], row[3]) for row in rows} == {(0, "paid")}
    for winner in winners:
        assert [event.order for event in await events(engines, f"user:{winner.viewer_id}") if isinstance(event, DrawWon)] == [
            winner.order_id
        ]
    await service.settle_draw(engines, draw_id)  # once more
    assert await audit_stock(engines, [ROOM]) == []


async def test_delivery_cut_off_anywhere_is_finished_by_the_loop(engines: Engines) -> None:
    shelf = await open_shelf(engines)
    tea = await shelf.offer(total=5)
    draw_id = await _won_products(engines, shelf, tea)
    async with engines.sql.begin() as session:  # as if the process had died after the awards and before it noted them
        await session.execute(text("update draw_winners set delivered_at = null, order_id = null"))
        await session.execute(text("update draws set settled_at = null"))
    await service.close_due_draws(engines)
    await shelf.intake()
    _, _, winners = await outcome(engines, draw_id)
    assert all(winner.delivered_at and winner.order_id for winner in winners)
    async with engines.sql.read() as session:
        assert await session.scalar(text("select count(*) from orders")) == 2
    assert await audit_stock(engines, [ROOM]) == []


async def test_an_opening_that_was_cut_off_gives_the_stock_back(engines: Engines, runtime: TestRuntime) -> None:
    shelf = await open_shelf(engines)
    tea = await shelf.offer(total=5)
    draw_id = await opened(engines, draft(PrizeDraft(PrizeKind.PRODUCT, "Tea", 3, 0, tea)))
    async with engines.sql.begin() as session:
        await session.execute(text("update draws set state = 'preparing', rules_hash = '', opened_at = null, closes_at = null"))
    runtime.advance(14_000)
    await service.close_due_draws(engines)
    assert (await inventory.read_stock(engines, ROOM))[tea].available == 2
    runtime.advance(2_000)
    await service.close_due_draws(engines)
    assert (await inventory.read_stock(engines, ROOM))[tea].available == 5
    with pytest.raises(AppError) as refused:
        await fetch(engines, draw_id)
    assert refused.value.code is NOT_FOUND


# --- faults -----------------------------------------------------------------------------------------------------------------------------


async def test_intake_twice_and_lost_scripts_change_nothing(engines: Engines) -> None:
    draw_id = await opened(engines, draft(MONEY))
    await enter_all(engines, draw_id, 20)
    await engines.sales.script_flush()
    assert (await enter(engines, draw_id, "v3")).outcome == "entered"
    assert await store.close_engine(engines, draw_id, actor="host") == "closed"
    entries = await engines.sales.xrange(outbox_key(ROOM))
    await take_in(engines)
    first = await outcome(engines, draw_id)
    for _, fields in entries:
        await engines.sales.xadd(outbox_key(ROOM), fields)
    await take_in(engines)
    again = await outcome(engines, draw_id)
    assert (again[0].seed, [winner.viewer_id for winner in again[2]]) == (first[0].seed, [winner.viewer_id for winner in first[2]])
    assert again[0].entrants == 20
    async with engines.sql.read() as session:
        assert await session.scalar(text("select count(*) from dead_letters")) == 0
    assert await audit_ledger(engines) == []
