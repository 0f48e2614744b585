"""Draws from escrow to delivered prizes.

Invariants
- Rules, seed and salt are fixed, and their hashes published, before the first entry; afterwards a draw can only be closed or cancelled.
- Every prize lies in escrow (money in `draw:<id>`, products as holds of `draw:<id>`) before the draw opens, and ends with a winner or
  back where it came from.
- Winners follow from the rules' hash, the entrants' root and the seed alone (rules.py), once, in the transaction that takes in
  `draw.closed`.
- A new life of the engine takes no entry before it knows whom SQL has, and which draws are over (`renew_room`). An entry that was answered
  and is in neither the outbox nor SQL is void; the room hears that something was lost (`sales.reopened`), and who enters again is in.

Not here: conditions that need evidence over time, randomness from several parties or a beacon, proof bundles, claim windows.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import AppError
from app.core.ids import room_of, scoped_id
from app.domains.inventory import service as inventory
from app.domains.lottery import store
from app.domains.lottery.escrow import account_of, escrow_hold, escrow_products
from app.domains.lottery.rules import (
    SECRET_BYTES,
    Condition,
    DrawDraft,
    PrizeKind,
    canonical_json,
    check_draft,
    draw_places,
    draw_view,
    entrants_root,
    evidence_of,
    money_total,
    normal_keyword,
    prize_of_unit,
    prize_view,
    product_units,
    pseudonym_of,
    randomness_of,
    rules_object,
    sha256_hex,
    shorten_name,
)
from app.domains.lottery.tables import Draw, DrawPrize, DrawWinner
from app.domains.orders import service as orders
from app.domains.wallet import service as wallet
from app.domains.wallet.rules import Movement, TransferOutcome
from app.protocol.channels import room_channel, user_channel
from app.protocol.codes import BAD_REQUEST, CONFLICT, INSUFFICIENT_FUNDS, KEY_REUSED, NOT_FOUND
from app.protocol.commands import DrawEntered, EnterOutcome
from app.protocol.events import DrawCancelled, DrawClosed, DrawDrawn, DrawOpened, DrawWon
from app.protocol.views import DrawView, Winner
from app.storage.gathering import gather_each, raise_first
from app.storage.intake import OutboxEntry, being_written, catch_up
from app.storage.life import being_renewed
from app.storage.work import Engines, Work

log = structlog.get_logger()

SWEEP_MAX = 50  # draws that one pass of the worker's loop looks at, of each kind


# --- opening --------------------------------------------------------------------------------------------------------------------------


async def open_draw(engines: Engines, draft: DrawDraft, *, room_id: str, session_id: str, by: str) -> str:
    """Escrows every prize, fixes the rules, announces the draw; its id. Raises AppError when it cannot, and then nothing stays behind.

    Three steps, since stock is held in the engine and money in SQL. A crash in between leaves a draw that is `preparing`; the worker
    cancels it and returns what was held.
    """
    wrong = check_draft(draft, room_id)
    if wrong is not None:
        raise AppError(BAD_REQUEST, wrong)
    async with engines.work() as work:
        draw, prizes = await _prepare(work, draft, room_id, session_id, by)
    try:
        await escrow_products(engines, draw.id, prizes)
        async with engines.work() as work:
            await _open(work, draw.id, prizes, draft, by)
    except AppError as refusal:
        await _abandon(engines, draw.id, refusal.detail)
        raise
    return draw.id


async def _prepare(work: Work, draft: DrawDraft, room_id: str, session_id: str, by: str) -> tuple[Draw, list[DrawPrize]]:
    draw = Draw(
        id=scoped_id(room_id, work.runtime.new_short_id()),
        room_id=room_id,
        session_id=session_id,
        title=draft.title,
        state="preparing",
        condition=draft.condition,
        keyword=normal_keyword(draft.keyword) if draft.condition is Condition.KEYWORD else "",
        entrants_max=draft.entrants_max,
        entrants=0,
        currency=work.engines.settings.currency,
        created_by=by,
        created_at=work.now,
    )
    work.session.add(draw)
    await work.session.flush()
    prizes = [
        DrawPrize(
            draw_id=draw.id,
            position=position,
            kind=prize.kind,
            name=prize.name,
            unit_count=prize.count,
            amount_minor=prize.amount_minor,
            offer_id=prize.offer_id,
        )
        for position, prize in enumerate(draft.prizes)
    ]
    work.session.add_all(prizes)
    return draw, prizes


async def _open(work: Work, draw_id: str, prizes: Sequence[DrawPrize], draft: DrawDraft, by: str) -> None:
    draw = await store.lock_draw(work.session, draw_id)
    if draw is None or draw.state != "preparing":
        raise AppError(CONFLICT, "opening took too long and was given up: try again")
    await _fund(work, draw, prizes)
    seed, salt = work.runtime.token_bytes(SECRET_BYTES), work.runtime.token_bytes(SECRET_BYTES)
    draw.seed, draw.salt, draw.commitment = seed.hex(), salt.hex(), sha256_hex(seed)
    draw.state, draw.opened_at = "open", work.now
    if draft.duration_s is not None:
        draw.closes_at = datetime.fromtimestamp((await work.engines.sales_now_ms(draw.room_id) + draft.duration_s * 1000) / 1000, UTC)
    rules = canonical_json(rules_object(draw, prizes, salt_hash=sha256_hex(salt)))
    draw.rules_json, draw.rules_hash = rules.decode(), sha256_hex(rules)
    work.emit(draw.room_id, [room_channel(draw.room_id)], DrawOpened(at=work.at, draw=draw_view(draw, prizes)))
    await work.audit(draw.room_id, by, "draw.opened", draw.id, rules_hash=draw.rules_hash, commitment=draw.commitment)


async def _fund(work: Work, draw: Draw, prizes: Sequence[DrawPrize]) -> None:
    total = money_total(prizes)
    if not total:
        return
    outcome = await wallet.transfer(
        work,
        transfer_id=f"fund:{draw.id}",
        from_account=f"room:{draw.room_id}",
        to_account=account_of(draw.id),
        amount_minor=total,
        currency=draw.currency,
        kind="draw.funded",
        reference=draw.id,
    )
    if outcome is TransferOutcome.INSUFFICIENT_FUNDS:
        raise AppError(INSUFFICIENT_FUNDS, "the room's account holds less than the money prizes: book a deposit first")


async def _abandon(engines: Engines, draw_id: str, reason: str) -> None:
    """Gives up a draw that never opened. Nobody has heard of it, so nothing is announced."""
    async with engines.work() as work:
        draw = await store.lock_draw(work.session, draw_id)
        if draw is not None and not draw.rules_hash:  # also one that was given up meanwhile: what was set aside since then goes back
            _give_up(work, draw, reason)
    await settle_draw(engines, draw_id)


def _give_up(work: Work, draw: Draw, reason: str) -> None:
    draw.state, draw.reason, draw.ended_at, draw.settled_at = "cancelled", draw.reason or reason, work.now, None


async def on_draw_opened(work: Work, room_id: str, events: list[DrawOpened]) -> None:
    """Makes the draw enterable before viewers hear of it."""
    await inventory.open_room(work, room_id)
    for event in events:
        await _load(work.engines, work.session, event.draw.id)


async def renew_room(work: Work, room_id: str, life: str) -> bool:
    """Compares the draws of a closed room, whose outbox is read to the end, with SQL. False: the engine has restarted once more.

    A draw that was being prepared is given up: what it had set aside may be gone, and nobody has heard of it.
    """
    engines, now_ms = work.engines, await work.engines.sales_now_ms(room_id)
    since = datetime.fromtimestamp(now_ms / 1000 - engines.settings.hot_keys_ttl_s, UTC)
    for draw in await store.lock_remembered(work.session, room_id, since):
        if draw.state == "preparing":
            _give_up(work, draw, "the engine restarted while it was being prepared")
        viewers = await store.list_viewers(work.session, draw.id) if draw.state == "open" else ()
        if await store.load_engine(engines, draw, viewers, now_ms, renewed=life) == "stale":
            return False
    return True


async def list_rooms_in_play(session: AsyncSession) -> Sequence[str]:
    """Rooms with an open draw."""
    return await store.list_rooms_in_play(session)


async def _load(engines: Engines, session: AsyncSession, draw_id: str) -> bool:
    """False when the draw is unknown or over. Harmless when the engine has it, and when its room is closed."""
    draw = await store.fetch_draw(session, draw_id)
    if draw is None or draw.state != "open":
        return False
    await store.load_engine(engines, draw, await store.list_viewers(session, draw_id), await engines.sales_now_ms(draw.room_id))
    return True


# --- entering -------------------------------------------------------------------------------------------------------------------------


async def enter(
    engines: Engines, *, draw_id: str, viewer_id: str, name: str, key: str, keyword: str = "", is_staff: bool = False
) -> DrawEntered:
    """One viewer's entry, through the room's group commit. Raises AppError `not_found` or `key_reused`."""
    room_id = room_of(draw_id)
    if not room_id:
        raise AppError(NOT_FOUND, "no such draw")
    member = store.Entering(draw_id, viewer_id, name, key, normal_keyword(keyword), "staff" if is_staff else "")
    group = engines.group_commit("enter", store.enter_batch)
    entered = await group.submit(room_id, member, viewer=viewer_id)
    if entered.word == "missing":
        async with engines.sql.read() as session:
            known_open = await _load(engines, session, draw_id)
        if known_open:
            entered = await group.submit(room_id, member, viewer=viewer_id)
    if entered.word == "missing":
        async with engines.sql.read() as session:
            entered = store.Entered("closed", "", (await fetch_draw(session, draw_id)).entrants)
    if entered.word == "key_reused":
        raise AppError(KEY_REUSED, "this key has entered the draw with another keyword; take a new key")
    entrants = None if entered.word == "frozen" else entered.entrants
    return DrawEntered(outcome=EnterOutcome(entered.word), draw=draw_id, condition=entered.condition, entrants=entrants)


async def take_in_entries(work: Work, entries: Sequence[OutboxEntry]) -> None:
    """Intake of `draw.entered`: one row a viewer, with the leaf's two parts."""
    draws = {draw_id: await store.fetch_draw(work.session, draw_id) for draw_id in sorted({entry.data["draw"] for entry in entries})}
    rows: list[dict[str, object]] = []
    for entry in entries:
        draw = draws[entry.data["draw"]]
        if draw is None:
            raise ValueError(f"an entry for the unknown draw {entry.data['draw']}")
        evidence = evidence_of(Condition(draw.condition), draw.keyword)
        rows.append(
            {
                "draw_id": draw.id,
                "viewer_id": entry.data["viewer"],
                "name": entry.data["name"],
                "pseudonym": pseudonym_of(bytes.fromhex(draw.salt), entry.data["viewer"]).hex(),
                "evidence": evidence.decode(),
                "evidence_hash": sha256_hex(evidence),
                "at": datetime.fromtimestamp(entry.at_ms / 1000, UTC),
            }
        )
    await store.insert_entries(work.session, rows)


# --- drawing --------------------------------------------------------------------------------------------------------------------------


async def take_in_closed(work: Work, entries: Sequence[OutboxEntry]) -> None:
    """Intake of `draw.closed`, which comes behind every entry: freezes the root, draws, pays the money prizes."""
    for entry in entries:
        draw = await store.lock_draw(work.session, entry.data["draw"])
        if draw is not None and draw.state == "open":
            await _draw(work, draw, engine_count=int(entry.data["count"]), actor=entry.data["actor"])


async def _draw(work: Work, draw: Draw, *, engine_count: int, actor: str) -> None:
    prizes = await store.list_prizes(work.session, draw.id)
    leaves = await store.list_leaves(work.session, draw.id)
    root = entrants_root([bytes.fromhex(leaf.pseudonym + leaf.evidence_hash) for leaf in leaves])
    draw.entrants, draw.entrants_root, draw.ended_at = len(leaves), root.hex(), work.now
    winners = _winners(draw, prizes, leaves, root)
    work.session.add_all(winners)
    draw.state = "drawn"
    await _pay(work, draw, prizes, winners)
    _announce(work, draw, prizes, winners)
    await work.audit(
        draw.room_id,
        actor or "system",
        "draw.drawn",
        draw.id,
        entrants=len(leaves),
        entered_in_engine=engine_count,
        root=draw.entrants_root,
        winners=[winner.pseudonym for winner in winners],
    )


def _winners(draw: Draw, prizes: Sequence[DrawPrize], leaves: Sequence[store.Leaf], root: bytes) -> list[DrawWinner]:
    positions = prize_of_unit([prize.unit_count for prize in prizes])
    randomness = randomness_of(bytes.fromhex(draw.rules_hash), root, bytes.fromhex(draw.seed))
    places = draw_places(randomness, len(leaves), len(positions))
    return [
        DrawWinner(
            draw_id=draw.id,
            unit=unit,
            prize_position=positions[unit],
            entrant_index=place,
            viewer_id=leaves[place].viewer_id,
            name=leaves[place].name,
            pseudonym=leaves[place].pseudonym,
            delivered_at=None,
            order_id=None,
        )
        for unit, place in enumerate(places)
    ]


async def _pay(work: Work, draw: Draw, prizes: Sequence[DrawPrize], winners: Sequence[DrawWinner]) -> None:
    """Money prizes to their winners, the surplus back to the room, in one set of transfers."""
    movements: list[Movement] = []
    for winner in winners:
        prize = prizes[winner.prize_position]
        if prize.kind == PrizeKind.MONEY:
            movements.append(_movement(draw, f"prize:{draw.id}:{winner.unit}", f"viewer:{winner.viewer_id}", prize.amount_minor, "prize"))
            winner.delivered_at = work.now
    surplus = money_total(prizes) - sum(movement.amount_minor for movement in movements)
    if surplus:
        movements.append(_movement(draw, f"refund:{draw.id}", f"room:{draw.room_id}", surplus, "refunded"))
    if TransferOutcome.INSUFFICIENT_FUNDS in await wallet.transfer_all(work, movements):
        raise ValueError(f"the escrow of draw {draw.id} holds less than its prizes")


def _movement(draw: Draw, transfer_id: str, to_account: str, amount_minor: int, kind: str) -> Movement:
    return Movement(
        transfer_id=transfer_id,
        from_account=account_of(draw.id),
        to_account=to_account,
        amount_minor=amount_minor,
        currency=draw.currency,
        kind=f"draw.{kind}",
        reference=draw.id,
    )


def _announce(work: Work, draw: Draw, prizes: Sequence[DrawPrize], winners: Sequence[DrawWinner]) -> None:
    channels = [room_channel(draw.room_id)]
    closed = draw_view(draw, prizes, "closed")
    work.emit(draw.room_id, channels, DrawClosed(at=work.at, draw=closed, entrants_digest=draw.entrants_root))
    shown = [
        Winner(viewer=winner.viewer_id, name=shorten_name(winner.name), prize=prizes[winner.prize_position].name) for winner in winners
    ]
    work.emit(draw.room_id, channels, DrawDrawn(at=work.at, draw=draw_view(draw, prizes), winners=shown, seed=draw.seed))
    for winner in winners:
        if winner.delivered_at is not None:
            _tell_winner(work, draw, prizes[winner.prize_position], winner.viewer_id, None)


def _tell_winner(work: Work, draw: Draw, prize: DrawPrize, viewer_id: str, order_id: str | None) -> None:
    won = DrawWon(at=work.at, draw=draw.id, prize=prize_view(prize), order=order_id)
    work.emit(draw.room_id, [user_channel(viewer_id)], won)


async def take_in_cancelled(work: Work, entries: Sequence[OutboxEntry]) -> None:
    """Intake of `draw.cancelled`: the money goes back at once, held products with the next `settle_draw`."""
    for entry in entries:
        draw = await store.lock_draw(work.session, entry.data["draw"])
        if draw is None or draw.state != "open":
            continue
        prizes = await store.list_prizes(work.session, draw.id)
        await _pay(work, draw, prizes, [])
        draw.state, draw.reason, draw.ended_at = "cancelled", entry.data["reason"], work.now
        draw.entrants = await store.count_entries(work.session, draw.id)
        cancelled = DrawCancelled(at=work.at, draw=draw_view(draw, prizes), reason=draw.reason)
        work.emit(draw.room_id, [room_channel(draw.room_id)], cancelled)
        await work.audit(draw.room_id, entry.data["actor"], "draw.cancelled", draw.id, reason=draw.reason)


# --- delivering -----------------------------------------------------------------------------------------------------------------------


async def settle_draw(engines: Engines, draw_id: str) -> None:
    """Turns won products into orders and gives the rest back to the shelf. Every step may be repeated; the last notes that it is done."""
    async with engines.sql.read() as session:
        draw = await store.fetch_draw(session, draw_id)
        if draw is None or draw.state not in {"drawn", "cancelled"} or draw.settled_at is not None:
            return
        prizes = await store.list_prizes(session, draw_id)
        winners = {winner.unit: winner for winner in await store.list_winners(session, draw_id)}
    for unit, prize in product_units(prizes):
        winner = winners.get(unit)
        if winner is None:
            await inventory.release(engines, viewer_id=account_of(draw_id), hold_id=escrow_hold(draw_id, unit))
        elif winner.delivered_at is None:
            await _deliver(engines, draw, prize, winner)
    async with engines.work() as work:
        settled = await store.lock_draw(work.session, draw_id)
        assert settled is not None
        settled.settled_at = settled.settled_at or work.now


async def _deliver(engines: Engines, draw: Draw, prize: DrawPrize, winner: DrawWinner) -> None:
    hold, holder = escrow_hold(draw.id, winner.unit), account_of(draw.id)
    order_id = await orders.award_prize(engines, hold_id=hold, holder_id=holder, viewer_id=winner.viewer_id, prize_name=prize.name)
    async with engines.work() as work:
        if await store.mark_delivered(work.session, draw.id, winner.unit, order_id, work.now):
            _tell_winner(work, draw, prize, winner.viewer_id, order_id)


# --- ending ---------------------------------------------------------------------------------------------------------------------------


async def close_draw(engines: Engines, draw_id: str, *, by: str) -> Draw:
    """Closes and draws now. Raises AppError `conflict` for a cancelled one; a drawn one stays as it is."""
    draw = await _end(engines, draw_id, actor=by)
    if draw.state == "cancelled":
        raise AppError(CONFLICT, "this draw was cancelled")
    return draw


async def cancel_draw(engines: Engines, draw_id: str, *, by: str, reason: str) -> Draw:
    """Cancels an open draw and returns its prizes. Raises AppError `conflict` for one that is drawn."""
    draw = await _end(engines, draw_id, actor=by, reason=reason)
    if draw.state == "drawn":
        raise AppError(CONFLICT, "this draw is drawn: winners cannot be taken back")
    return draw


async def _end(engines: Engines, draw_id: str, *, actor: str, reason: str = "") -> Draw:
    if await _close_engine(engines, draw_id, actor=actor, reason=reason) == "frozen":
        async with engines.sql.read() as session:
            draw = await fetch_draw(session, draw_id)
        if draw.state == "open":
            raise being_renewed()
        return draw  # what is over in SQL stays so, whatever the engine knows
    is_read = await catch_up(engines, room_of(draw_id))
    await settle_draw(engines, draw_id)
    async with engines.sql.read() as session:
        draw = await fetch_draw(session, draw_id)
    if draw.state == "open" and not is_read:
        raise being_written()
    return draw


async def _close_engine(engines: Engines, draw_id: str, *, actor: str = "", reason: str = "") -> str:
    """A word of close.lua."""
    word = await store.close_engine(engines, draw_id, actor=actor, reason=reason)
    if word == "missing":
        async with engines.sql.read() as session:
            known_open = await _load(engines, session, draw_id)
        if known_open:
            word = await store.close_engine(engines, draw_id, actor=actor, reason=reason)
    return word


async def close_due_draws(engines: Engines) -> None:
    """A loop of the worker: closes what is due, delivers prizes, clears up openings that were cut off."""
    now_ms = await engines.sales_now_ms()
    async with engines.sql.read() as session:
        due = await store.list_due(session, datetime.fromtimestamp(now_ms / 1000, UTC), SWEEP_MAX)
        unsettled = await store.list_unsettled(session, engines.runtime.now(), SWEEP_MAX)
        stranded = await store.list_stranded(session, engines.runtime.now(), SWEEP_MAX)

    async def settle(draw_id: str) -> None:
        try:
            await settle_draw(engines, draw_id)
        except AppError as failure:  # a prize that cannot be delivered is looked at again by the next passes
            log.error("draw not settled", draw=draw_id, error=failure.detail)

    closed = await gather_each(due, partial(_close_engine, engines))
    abandoned = await gather_each(stranded, lambda draw_id: _abandon(engines, draw_id, "opening was cut off"))
    raise_first([*closed, *abandoned, *await gather_each(unsettled, settle)])


# --- reading --------------------------------------------------------------------------------------------------------------------------


async def fetch_draw(session: AsyncSession, draw_id: str) -> Draw:
    """Raises AppError `not_found`, also for a draw that has not been announced."""
    draw = await store.fetch_draw(session, draw_id)
    if draw is None or not draw.rules_hash:
        raise AppError(NOT_FOUND, "no such draw")
    return draw


async def list_prizes(session: AsyncSession, draw_id: str) -> Sequence[DrawPrize]:
    return await store.list_prizes(session, draw_id)


async def list_draws(session: AsyncSession, session_id: str, *, limit: int, before: tuple[datetime, str] | None = None) -> Sequence[Draw]:
    return await store.list_of_session(session, session_id, limit=limit, before=before)


async def read_outcome(session: AsyncSession, draw: Draw, *, with_leaves: bool = True) -> tuple[list[store.Leaf], Sequence[DrawWinner]]:
    """The frozen entrants in their order, and the winners; nothing before the draw is drawn."""
    if draw.state != "drawn":
        return [], []
    leaves = await store.list_leaves(session, draw.id) if with_leaves else []
    return leaves, await store.list_winners(session, draw.id)


async def snapshot_draws(engines: Engines, room_id: str) -> list[DrawView]:
    """Draws that can be entered now. `draw.drawn` and `draw.cancelled` take one out again."""
    async with engines.sql.read() as session:
        return [draw_view(draw, await store.list_prizes(session, draw.id)) for draw in await store.list_open(session, room_id)]
