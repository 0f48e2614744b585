"""A new life of the engine: killed and restarted with its file, restarted empty, a replica that lagged takes over.

Nobody sells from records that nobody has compared; what is acknowledged and in SQL stands; what is gone is told; never an oversell.
"""

import signal
from typing import Any

import pytest
from sqlalchemy import text

from app.domains.inventory import renewal, store
from app.domains.inventory import service as inventory
from app.domains.lottery import service as lottery
from app.domains.lottery.rules import Condition, DrawDraft, PrizeDraft, PrizeKind
from app.domains.orders import service as orders
from app.protocol.channels import room_channel, user_channel
from app.storage.work import Engines
from tests.faults.show import Show, TcpValkey, connected, master_and_replica, raises, restart
from tests.support.runtime import TestRuntime
from tests.support.shelf import Shelf
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


async def test_killed_and_restarted_with_its_file_nothing_is_lost_and_nothing_void(show: Show) -> None:
    held, ordered, paid = await show.hold(1), await show.order(2), await show.order(3)
    assert await show.pay(paid, "v3") == "paid"
    before = await show.stock()
    restart(show.servers)
    # Until it is compared: nothing new, and no answer that could turn out wrong.
    assert (await show.shelf.reserve(show.offer, viewer="v9", key="k9")).outcome == "frozen"
    assert await raises(lambda: show.hold(1)) == "service_unavailable"
    assert (await show.shelf.place(held, viewer="v1", key="k1")).outcome == "frozen"
    assert await raises(lambda: show.shelf.place(ordered, viewer="v2", key="k2")) == "service_unavailable"
    assert await raises(lambda: inventory.release(show.engines, viewer_id="v1", hold_id=held)) == "service_unavailable"
    assert await raises(lambda: show.pay(ordered, "v2")) == "service_unavailable"
    assert await show.stock() == before

    await show.work()
    assert await show.stock() == before
    assert await show.audit() == []
    assert await show.hold(1) == held
    assert (await show.shelf.place(held, viewer="v1", key="k1")).outcome == "placed"
    assert await show.pay(ordered, "v2") == "paid"
    await show.work()
    frozen, reopened = await show.told(room_channel(show.room.room_id), "sales.frozen", "sales.reopened")
    assert (frozen["type"], reopened["type"]) == ("sales.frozen", "sales.reopened")
    assert (reopened["epoch"], reopened["lost"]) == (0, False)
    assert await show.told(user_channel("v1"), "hold.ended") == []
    assert await show.audit() == []


async def test_restarted_empty_orders_stand_and_open_holds_are_void_and_told(show: Show, runtime: TestRuntime) -> None:
    held, ordered, paid, cancelled = await show.hold(1), await show.order(2), await show.order(3), await show.order(4)
    ended = await show.hold(5)
    assert (await inventory.release(show.engines, viewer_id="v5", hold_id=ended)).outcome == "released"
    assert await show.pay(paid, "v3") == "paid"
    await orders.cancel(show.engines, viewer_id="v4", order_id=cancelled)
    late = await show.order(6)
    await show.work()
    restart(show.servers, empty=True)
    assert (await show.shelf.reserve(show.offer, viewer="v9", key="k9")).outcome == "frozen"
    assert await raises(lambda: show.pay(ordered, "v2")) == "service_unavailable", "the money must not go back"

    await show.work()
    assert await show.stock() == (17, 0, 2, 1)
    assert await show.audit() == []
    void = await show.told(user_channel("v1"), "hold.ended")
    assert [(event["hold"], event["outcome"]) for event in void] == [(held, "void")]
    assert await show.told(user_channel("v5"), "hold.ended") == [], "the fan-out lost its history too; what had ended is not told again"
    assert await show.told(user_channel("v2"), "hold.ended") == []
    (reopened,) = await show.told(room_channel(show.room.room_id), "sales.reopened")
    assert (reopened["epoch"], reopened["lost"]) == (1, True)

    assert (await show.shelf.place(held, viewer="v1", key="k1")).outcome == "unknown"
    assert (await show.shelf.place(ordered, viewer="v2", key="k2")).repeated
    assert await show.pay(ordered, "v2") == "paid"
    assert (await orders.cancel(show.engines, viewer_id="v4", order_id=cancelled)).outcome == "cancelled"
    runtime.advance(show.engines.settings.payment_ttl_s * 1000 + 1)  # its payment deadline was kept
    await show.work()
    assert (await orders.find_order(show.engines, late, "v6")).state == "expired"  # type: ignore[union-attr]  # it is there
    assert await show.stock() == (18, 0, 0, 2)
    left = [await show.shelf.reserve(show.offer, viewer=f"w{number}", key="all") for number in range(20)]
    assert [answer.outcome for answer in left] == ["held"] * 18 + ["exhausted"] * 2
    await show.work()
    assert await show.audit() == []


async def test_ids_of_the_outbox_never_go_back_behind_what_sql_has_read(show: Show) -> None:
    """A new engine whose clock is behind would give them: intake would take new orders for old ones and skip them."""
    await show.order(1)
    await show.work()
    async with show.engines.sql.begin() as session:
        await session.execute(text("update intake_progress set last_entry = '9000000000000-5'"))
    restart(show.servers, empty=True)
    await show.work()
    order = await show.order(2)
    await show.work()
    found = await orders.fetch_order(show.engines, order)
    assert found.state == "placed"
    assert await show.audit() == []


async def test_a_replica_that_lagged_takes_over(show: Show, runtime: TestRuntime) -> None:
    with master_and_replica(show) as (master, replica):
        await _fail_over(show, runtime, master, replica)


async def test_nothing_is_acknowledged_before_the_replicas_have_it(show: Show, runtime: TestRuntime) -> None:
    with master_and_replica(show) as (master, replica):
        old = connected(show, runtime, master.url, replicas_min=1, replicas_wait_ms=2_000)
        new = connected(show, runtime, replica.url)
        try:
            await new.sales.execute_command("REPLICAOF", "127.0.0.1", master.port)
            assert await old.sales.execute_command("WAIT", 1, 10_000) == 1
            await renewal.recall_rooms(old)
            await renewal.renew_room(old, show.room.room_id)
            careful = Show(old, show.servers, show.room, Shelf(old, show.room.room_id, show.room.session_id))
            held = await careful.hold(1)
            assert await inventory.read_hold(new, held) is not None

            assert replica.process is not None
            replica.process.send_signal(signal.SIGSTOP)
            assert await raises(lambda: careful.hold(2)) == "service_unavailable"
            replica.process.send_signal(signal.SIGCONT)
            await wait_until(lambda: old.sales.execute_command("WAIT", 1, 1000))
            again = await careful.shelf.reserve(careful.offer, viewer="v2", key="k2")
            assert (again.outcome, again.repeated) == ("held", True)
            assert again.hold
            assert await inventory.read_hold(new, again.hold) is not None
        finally:
            await old.close()
            await new.close()


async def test_an_engine_that_became_a_replica_is_a_passing_trouble(show: Show, runtime: TestRuntime) -> None:
    """Its refusal once counted as a fault of ours, and the connection to it stayed for as long as it lived."""
    with master_and_replica(show) as (master, replica):
        old = connected(show, runtime, master.url)
        try:
            await renewal.recall_rooms(old)
            await renewal.renew_room(old, show.room.room_id)
            demoted = Show(old, show.servers, show.room, Shelf(old, show.room.room_id, show.room.session_id))
            held = await demoted.hold(1)
            lines = await _lines(old)
            await old.sales.execute_command("REPLICAOF", "127.0.0.1", replica.port)
            assert await raises(lambda: demoted.hold(2)) == "service_unavailable"
            assert not await _lines(old) & lines
            await old.sales.execute_command("REPLICAOF", "NO", "ONE")
            await demoted.work()
            assert await demoted.hold(1) == held
        finally:
            await old.close()


async def _lines(engines: Engines) -> set[str]:
    """The connections that scripts go over."""
    clients = await engines.sales.client_list()
    return {client["id"] for client in clients if client["name"] == "jishi-line"}


async def _fail_over(show: Show, runtime: TestRuntime, master: TcpValkey, replica: TcpValkey) -> None:
    old = connected(show, runtime, master.url)
    new = connected(show, runtime, replica.url)
    try:
        await new.sales.execute_command("REPLICAOF", "127.0.0.1", master.port)
        await renewal.recall_rooms(old)
        await renewal.renew_room(old, show.room.room_id)
        before = Show(old, show.servers, show.room, Shelf(old, show.room.room_id, show.room.session_id))
        survives, released, turns = await before.hold(1), await before.hold(2), await before.hold(3)
        ordered, paid = await before.order(4), await before.order(5)
        await before.work()
        assert await old.sales.execute_command("WAIT", 1, 10_000) == 1
        await new.sales.execute_command("REPLICAOF", "NO", "ONE")  # what comes now is the tail that the replica lacks
        assert (await inventory.release(old, viewer_id="v2", hold_id=released)).outcome == "released"
        assert (await before.shelf.place(turns, viewer="v3", key="k3")).outcome == "placed"
        assert await before.pay(paid, "v5") == "paid"
        fresh, gone = await before.order(6), await before.hold(7)
        await before.work()
        unread = await before.order(8)
        assert await before.stock() == (13, 2, 4, 1)

        after = Show(new, show.servers, show.room, Shelf(new, show.room.room_id, show.room.session_id))
        assert (await after.shelf.reserve(after.offer, viewer="v9", key="k9")).outcome == "frozen"
        await after.work()
        # v2's hold has come back until it runs out; the unread order is lost, and nobody can know of it; everything in SQL stands.
        assert await after.stock() == (14, 2, 3, 1)
        assert await after.audit() == []
        states = {order: (await orders.find_order(new, order)).state for order in (ordered, paid, turns, fresh)}  # type: ignore[union-attr]
        assert states == {ordered: "placed", paid: "paid", turns: "placed", fresh: "placed"}
        assert [(event["hold"], event["outcome"]) for event in await after.told(user_channel("v7"), "hold.ended")] == [(gone, "void")]
        assert (await after.shelf.place(unread, viewer="v8", key="k8")).outcome == "unknown"
        assert await after.hold(1) == survives
        assert await after.pay(fresh, "v6") == "paid"
        for number in range(20, 40):
            await after.shelf.reserve(after.offer, viewer=f"w{number}", key="all")
        await after.work()
        assert await after.stock() == (0, 16, 2, 2)
        assert await after.audit() == []
    finally:
        await old.close()
        await new.close()


async def test_prizes_in_escrow_come_back_from_what_draws_know(show: Show) -> None:
    prize = PrizeDraft(kind=PrizeKind.PRODUCT, name="Cups", count=2, offer_id=show.room.offer_ids[1])
    draft = DrawDraft(title="Tea", condition=Condition.EVERYONE, keyword="", prizes=(prize,), duration_s=None)
    draw = await lottery.open_draw(show.engines, draft, room_id=show.room.room_id, session_id=show.room.session_id, by="host-mei")
    await lottery.enter(show.engines, draw_id=draw, viewer_id="lin", name="Lin", key="e1")
    await show.work()
    restart(show.servers, empty=True)
    await show.work()
    cups = (await inventory.read_stock(show.engines, show.room.room_id))[show.room.offer_ids[1]]
    assert (cups.available, cups.held) == (3, 2)
    await lottery.close_draw(show.engines, draw, by="host-mei")
    await lottery.settle_draw(show.engines, draw)
    await show.work()
    cups = (await inventory.read_stock(show.engines, show.room.room_id))[show.room.offer_ids[1]]
    assert (cups.available, cups.held, cups.sold) == (4, 0, 1)
    assert await show.audit() == []


async def test_a_renewal_that_is_cut_off_anywhere_is_done_again(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut before each of its script calls, in parts of three records: begun again, it comes to the same."""
    for number in range(6):
        await show.order(number)
    await show.hold(7)
    await show.work()
    restart(show.servers, empty=True)
    monkeypatch.setattr(renewal, "PART_MEMBERS", 3)
    whole = store.renew_part
    cuts = 0
    for cut in range(1, 100):
        left = [cut]

        async def part(engines: Engines, room_id: str, life: str, members: Any, left: list[int] = left) -> bool:
            left[0] -= 1
            if not left[0]:
                raise ConnectionError("cut off")
            return await whole(engines, room_id, life, members)

        monkeypatch.setattr(store, "renew_part", part)
        try:
            await show.work()
        except ConnectionError:
            cuts += 1
            assert (await show.shelf.reserve(show.offer, viewer="v9", key="k9")).outcome == "frozen"
        else:
            break
    assert cuts >= 5
    await show.work()
    assert await show.stock() == (14, 0, 6, 0)
    assert await show.audit() == []
    (reopened,) = await show.told(room_channel(show.room.room_id), "sales.reopened")
    assert (reopened["epoch"], reopened["lost"]) == (1, True)
