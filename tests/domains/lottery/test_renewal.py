"""Draws in a new life of the engine: nobody enters what is drawn, whoever SQL has is in, and every prize has one place."""

from typing import Any

import pytest

from app.core.errors import AppError
from app.domains.inventory import service as inventory
from app.domains.lottery import service
from app.domains.lottery.rules import PrizeDraft, PrizeKind
from app.protocol.codes import SERVICE_UNAVAILABLE
from app.protocol.events import SalesReopened
from app.storage.work import Engines
from tests.domains.lottery.test_service import MONEY, ROOM, draft, enter, enter_all, events, fetch, opened, outcome, recompute, take_in
from tests.support.auditor.ledger import audit_ledger
from tests.support.auditor.stock import audit_stock
from tests.support.lives import fail_over, remember, renew
from tests.support.runtime import TestRuntime
from tests.support.shelf import open_shelf


async def entrants_of(engines: Engines, draw_id: str) -> set[str]:
    """Who took part; whoever trusts nobody computes root and winners again."""
    draw, leaves, winners = await outcome(engines, draw_id)
    root, places = recompute(draw.rules_json, [bytes.fromhex(leaf.pseudonym + leaf.evidence_hash) for leaf in leaves], draw.seed)
    assert (root, places) == (draw.entrants_root, [winner.entrant_index for winner in winners])
    return {leaf.viewer_id for leaf in leaves}


async def stock(engines: Engines, offer: str) -> tuple[int, int, int]:
    found = (await inventory.read_stock(engines, ROOM))[offer]
    return found.available, found.held, found.sold


async def lost(engines: Engines) -> list[bool]:
    return [event.lost for event in await events(engines, f"room:{ROOM}") if isinstance(event, SalesReopened)]


async def test_an_engine_that_lacks_the_last_entries_takes_none_twice_and_loses_none_that_sql_has(engines: Engines) -> None:
    draw_id = await opened(engines, draft(MONEY))
    first = await enter(engines, draw_id, "v1")
    await take_in(engines)
    await enter(engines, draw_id, "v2")  # still in the outbox of both
    memory = await remember(engines)
    await enter(engines, draw_id, "v3")  # SQL has it, the replica does not
    await take_in(engines)
    await enter(engines, draw_id, "v4")  # nobody has it
    await fail_over(engines, memory, ROOM)

    assert (await enter(engines, draw_id, "v1")).outcome == first.outcome
    for viewer in ("v3", "v4", "v5"):
        refused = await enter(engines, draw_id, viewer)
        assert (refused.outcome, refused.entrants) == ("frozen", None)
    for end in (service.close_draw(engines, draw_id, by="host"), service.cancel_draw(engines, draw_id, by="host", reason="none")):
        with pytest.raises(AppError) as closed:
            await end
        assert closed.value.code is SERVICE_UNAVAILABLE

    await renew(engines)
    again = await enter(engines, draw_id, "v3")
    assert (again.outcome, again.entrants) == ("entered", 3)
    assert (await enter(engines, draw_id, "v3", "k2")).outcome == "again"
    assert await lost(engines) == [True]
    assert (await enter(engines, draw_id, "v4")).entrants == 4
    await service.close_draw(engines, draw_id, by="host")
    assert await entrants_of(engines, draw_id) == {"v1", "v2", "v3", "v4"}
    assert await audit_ledger(engines) == []


async def test_an_empty_engine_gets_the_entrants_back_in_parts(engines: Engines, runtime: TestRuntime, monkeypatch: Any) -> None:
    monkeypatch.setattr("app.domains.lottery.store.LOAD_VIEWERS_MAX", 3)
    draw_id = await opened(engines, draft(MONEY))
    await enter_all(engines, draw_id, 8)
    await take_in(engines)
    await fail_over(engines, {})
    runtime.advance(60_000)
    await service.close_due_draws(engines)  # it is due, and has to wait
    await renew(engines)
    again = await enter(engines, draw_id, "v1")
    assert (again.outcome, again.entrants) == ("entered", 8)
    assert (await enter(engines, draw_id, "w")).outcome == "closed"
    await service.close_due_draws(engines)
    await take_in(engines)
    assert await entrants_of(engines, draw_id) == {f"v{i}" for i in range(8)}


async def test_nobody_enters_a_draw_that_was_drawn_in_the_lost_tail(engines: Engines) -> None:
    draw_id = await opened(engines, draft(MONEY))
    await enter_all(engines, draw_id, 5)
    await take_in(engines)
    memory = await remember(engines)
    await service.close_draw(engines, draw_id, by="host")
    before = await outcome(engines, draw_id)
    await fail_over(engines, memory, ROOM)
    for _ in range(2):  # also while the room is closed: SQL knows that it is over
        assert (await enter(engines, draw_id, "late")).outcome == "closed"
        assert (await enter(engines, draw_id, "v1")).outcome == "entered"
        await renew(engines)
    await service.close_draw(engines, draw_id, by="host")
    await take_in(engines)
    draw, _, winners = await outcome(engines, draw_id)
    assert (draw.ended_at, [winner.viewer_id for winner in winners]) == (before[0].ended_at, [winner.viewer_id for winner in before[2]])
    assert await entrants_of(engines, draw_id) == {f"v{i}" for i in range(5)}
    assert await audit_ledger(engines) == []


async def test_prizes_that_were_delivered_or_given_back_in_the_lost_tail_stay_so(engines: Engines) -> None:
    """What the draw had set aside for nobody once stayed set aside for ever: it has no deadline, and no draw that would give it back."""
    shelf = await open_shelf(engines)
    tea = await shelf.offer(total=5)
    draw_id = await opened(engines, draft(PrizeDraft(PrizeKind.PRODUCT, "Tea", 3, 0, tea)))
    await enter_all(engines, draw_id, 2)
    await take_in(engines)
    memory = await remember(engines)
    await service.close_draw(engines, draw_id, by="host")
    await shelf.intake()
    await fail_over(engines, memory, ROOM)
    assert await stock(engines, tea) == (2, 3, 0)
    await renew(engines)
    assert await stock(engines, tea) == (3, 0, 2)
    assert await audit_stock(engines, [ROOM]) == []


async def test_a_room_that_is_rebuilt_by_command_gets_its_draws_back_too(engines: Engines) -> None:
    draw_id = await opened(engines, draft(MONEY))
    await enter_all(engines, draw_id, 3)
    for name in ("meta", "entrants"):
        assert await engines.sales.delete(f"{{{ROOM}}}:draw:{draw_id}:{name}")
    await inventory.rebuild_room(engines, ROOM)
    assert (await enter(engines, draw_id, "w")).entrants == 4
    await service.close_draw(engines, draw_id, by="host")
    assert await entrants_of(engines, draw_id) == {"v0", "v1", "v2", "w"}


# --- a draw that is being prepared ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lags", [False, True], ids=["nothing is lost", "what was set aside is lost"])
@pytest.mark.parametrize("opener", ["is refused", "has slept", "dies"])
async def test_a_draw_that_is_being_prepared_is_given_up_and_its_stock_comes_back(
    engines: Engines, runtime: TestRuntime, monkeypatch: pytest.MonkeyPatch, *, lags: bool, opener: str
) -> None:
    """The engine restarts when the prizes are set aside, before the draw is open; whatever becomes of the opener, nothing stays aside."""
    shelf = await open_shelf(engines)
    tea = await shelf.offer(total=5)
    wanted = draft(PrizeDraft(PrizeKind.PRODUCT, "Tea", 3, 0, tea))
    whole = service.escrow_products

    async def cut(engines: Engines, draw_id: str, prizes: Any) -> None:
        before = await remember(engines)
        await whole(engines, draw_id, prizes)
        assert await stock(engines, tea) == (2, 3, 0)
        await fail_over(engines, before if lags else await remember(engines), ROOM)
        await renew(engines)
        assert await stock(engines, tea) == (5, 0, 0)
        if opener == "has slept":
            runtime.advance(61_000)
        await service.close_due_draws(engines)
        await whole(engines, draw_id, prizes)  # it does not know yet
        if opener == "dies":
            raise RuntimeError(opener)

    monkeypatch.setattr(service, "escrow_products", cut)
    with pytest.raises(RuntimeError if opener == "dies" else AppError):
        await opened(engines, wanted)
    monkeypatch.undo()
    runtime.advance(61_000)
    await service.close_due_draws(engines)
    assert await stock(engines, tea) == (5, 0, 0)
    assert True not in await lost(engines)
    draw_id = await opened(engines, wanted)
    assert (await fetch(engines, draw_id)).state == "open"
    assert await stock(engines, tea) == (2, 3, 0)
    assert await audit_stock(engines, [ROOM]) == []
