"""The worker: one loop's failure is its own, entries are taken in, several workers share the rooms."""

import asyncio
import json
from collections.abc import Sequence

import msgspec
import pytest
from prometheus_client import REGISTRY

from app.core.registry import Domain, Registry
from app.protocol.channels import room_channel, staff_channel
from app.protocol.events import NoticePinned
from app.storage.intake import find_waiting, outbox_key, register_room
from app.storage.redis import engine_now_ms
from app.storage.work import Engines, Work
from app.worker import BACK_OFF_S_MAX, WORKERS_KEY, Loop, RoomLeases, announce, lease_key, pause_s, run_loops, take_in
from tests.support.waiting import wait_until


async def test_a_loop_that_fails_is_counted_and_holds_up_no_other(engines: Engines) -> None:
    runs = {"good": 0, "bad": 0}

    async def good(_: Engines) -> None:
        runs["good"] += 1

    async def bad(_: Engines) -> None:
        runs["bad"] += 1
        raise ValueError("of its own making")

    before = REGISTRY.get_sample_value("jishi_loop_failures_total", {"loop": "bad"}) or 0
    stopping = asyncio.Event()
    loops = (Loop("bad", bad, 1), Loop("good", good, 1))
    running = asyncio.create_task(run_loops(engines, stopping, owner="me", loops=loops))
    await wait_until(lambda: runs["good"] >= 20 and runs["bad"] >= 2)
    stopping.set()
    await running
    assert REGISTRY.get_sample_value("jishi_loop_failures_total", {"loop": "bad"}) == before + runs["bad"]


def test_the_pause_doubles_with_each_failure_up_to_a_bound() -> None:
    assert [pause_s(50, failures) for failures in (0, 1, 2, 3, 20)] == [0.05, 0.2, 0.4, 0.8, BACK_OFF_S_MAX]
    assert pause_s(600_000, 3) == 600, "a rare loop does not become a frequent one by failing"


async def test_a_stop_lets_the_pass_under_way_end(engines: Engines) -> None:
    entered, leave, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(_: Engines) -> None:
        entered.set()
        await leave.wait()
        ended.set()

    stopping = asyncio.Event()
    running = asyncio.create_task(run_loops(engines, stopping, owner="me", loops=(Loop("slow", slow, 1),)))
    await entered.wait()
    stopping.set()
    leave.set()
    await running
    assert ended.is_set()


async def test_intake_empties_the_outboxes_of_all_its_rooms(engines: Engines) -> None:
    taken: list[tuple[str, int]] = []

    async def handler(_: Work, entries: list[object]) -> None:
        taken.extend((entry.room_id, entry.data["n"]) for entry in entries)  # type: ignore[attr-defined]  # OutboxEntry

    engines.registry = Registry.of([Domain("test", intake={"test.counted": handler})])
    rooms = [f"room{number}" for number in range(20)]
    for room in rooms:
        await register_room(engines, room)
        for number in range(3):
            await engines.sales.xadd(outbox_key(room), {"t": "test.counted", "d": json.dumps({"n": number})})
    await take_in(engines, RoomLeases("me"))
    assert sorted(taken) == sorted((room, number) for room in rooms for number in range(3))
    assert [await engines.sales.xlen(outbox_key(room)) for room in rooms] == [0] * 20


async def test_a_flooded_room_costs_the_others_one_batch(engines: Engines) -> None:
    """In each round every room has a batch, whoever waits longest first: a room's few entries do not wait for another's thousands."""
    engines.settings = engines.settings.model_copy(update={"intake_batch_max": 10})
    turns: list[tuple[str, int]] = []

    async def handler(_: Work, entries: list[object]) -> None:
        turns.append((entries[0].room_id, len(entries)))  # type: ignore[attr-defined]  # OutboxEntry

    engines.registry = Registry.of([Domain("test", intake={"test.counted": handler})])
    for room, count in (("flood", 45), ("brook", 3)):
        await register_room(engines, room)
        for _ in range(count):
            await engines.sales.xadd(outbox_key(room), {"t": "test.counted", "d": "{}"})
    await take_in(engines, RoomLeases("me"))
    assert sorted(turns[:2]) == [("brook", 3), ("flood", 10)]
    assert turns[2:] == [("flood", 10)] * 3 + [("flood", 5)]


async def test_a_room_in_trouble_holds_up_no_other(engines: Engines) -> None:
    taken: list[str] = []

    async def handler(_: Work, entries: list[object]) -> None:
        taken.extend(entry.room_id for entry in entries)  # type: ignore[attr-defined]  # OutboxEntry

    engines.registry = Registry.of([Domain("test", intake={"test.counted": handler})])
    for room, text in (("ill", "no json"), ("well", "{}")):
        await register_room(engines, room)
        await engines.sales.xadd(outbox_key(room), {"t": "test.counted", "d": text})
    await take_in(engines, RoomLeases("me"))
    assert taken == ["well"]
    with pytest.raises(msgspec.DecodeError):
        await take_in(engines, RoomLeases("me"))


async def test_the_metrics_tell_how_far_sql_lags(engines: Engines) -> None:
    now_ms = await engine_now_ms(engines.sales, "k")
    for number, room in enumerate(("old", "new", "idle")):
        await register_room(engines, room)
        for _ in range(2 - number):
            await engines.sales.xadd(outbox_key(room), {"t": "x", "d": "{}"}, id=f"{now_ms - 60_000 + number * 50_000}-*")
    assert await find_waiting(engines, ["idle", "new", "old"]) == ["old", "new"]
    assert 60 <= (REGISTRY.get_sample_value("jishi_intake_lag_seconds") or 0) < 70
    assert REGISTRY.get_sample_value("jishi_intake_waiting_entries") == 3
    await engines.sales.delete(outbox_key("old"), outbox_key("new"))
    assert await find_waiting(engines, ["idle", "new", "old"]) == []
    assert REGISTRY.get_sample_value("jishi_intake_lag_seconds") == 0
    assert REGISTRY.get_sample_value("jishi_intake_waiting_entries") == 0


async def test_the_team_is_warned_once_before_the_outbox_is_full(engines: Engines) -> None:
    engines.settings = engines.settings.model_copy(update={"outbox_entries_max": 15})
    for count in range(1, 5):
        await engines.sales.xadd(outbox_key("tea"), {"t": "x", "d": "{}"})
        await find_waiting(engines, ["tea"])
        told, _ = await engines.streams.history(staff_channel("tea"))
        assert len(told) == (1 if count >= 3 else 0)
    alert = json.loads(told[0].data)
    assert (alert["type"], alert["word"]) == ("alert.raised", "outbox_filling")
    assert alert["text"].startswith("3 sales wait to be written to the books; at 15 new holds and orders are refused")


async def _look(engines: Engines, workers: Sequence[RoomLeases], rooms: list[str]) -> list[list[str]]:
    """A quarter of the lease has passed: all look again, twice, so that what one gives up another has taken."""
    for _ in range(2):
        for worker in workers:
            worker.workers_until = 0
            worker.held, worker.foreign = dict.fromkeys(worker.held, 0.0), dict.fromkeys(worker.foreign, 0.0)
            await worker.ours(engines, rooms)
    return [await worker.ours(engines, rooms) for worker in workers]


async def test_workers_share_the_rooms_evenly_and_none_is_left_out(engines: Engines) -> None:
    rooms = [f"room{number:03}" for number in range(90)]
    first, second, third = workers = [RoomLeases(name) for name in ("first", "second", "third")]
    assert await first.ours(engines, rooms) == rooms, "alone it has them all"
    shares = await _look(engines, workers, rooms)
    assert sorted(room for share in shares for room in share) == rooms
    assert all(20 <= len(share) <= 40 for share in shares), [len(share) for share in shares]
    await second.release(engines)
    left = await _look(engines, [first, third], rooms)
    assert sorted(room for share in left for room in share) == rooms
    assert set(shares[0]) <= set(left[0]), "who stays keeps what it had"
    assert set(shares[2]) <= set(left[1])


async def test_a_pass_over_known_rooms_costs_no_command(engines: Engines) -> None:
    leases = RoomLeases("me")
    await leases.ours(engines, ["a", "b"])
    before = int((await engines.sales.info("stats"))["total_commands_processed"])
    assert await leases.ours(engines, ["a", "b"]) == ["a", "b"]
    assert int((await engines.sales.info("stats"))["total_commands_processed"]) == before + 1, "the reading itself"


async def test_a_worker_takes_over_the_rooms_of_one_that_was_killed(engines: Engines) -> None:
    """Its registration ends after two quarters of the lease time and its leases after three: here both by hand."""
    killed, other = RoomLeases("killed"), RoomLeases("other")
    rooms = [f"room{number}" for number in range(10)]
    had, _ = await _look(engines, [killed, other], rooms)
    assert had
    for key in (WORKERS_KEY, *(lease_key(room) for room in had)):
        left_ms = await engines.sales.pttl(key) if key != WORKERS_KEY else int(await engines.sales.zscore(key, "killed") or 0)
        bound_ms = engines.settings.room_lease_s * 750 if key != WORKERS_KEY else await engine_now_ms(engines.sales, "k") + 5000
        assert 0 < left_ms <= bound_ms
    await engines.sales.zrem(WORKERS_KEY, "killed")
    await engines.sales.delete(*[lease_key(room) for room in had])
    assert await _look(engines, [other], rooms) == [rooms]


async def test_announce_publishes_what_a_crash_left_behind(engines: Engines) -> None:
    async with engines.sql.begin() as session:  # committed, but nobody announces: the process died here
        work = Work(engines, session)
        work.emit("attic", [room_channel("attic")], NoticePinned(at=work.at, text="closed on Monday"))
        await work.flush()
    await announce(engines)
    delivered, _ = await engines.streams.history(room_channel("attic"))
    assert [json.loads(publication.data)["text"] for publication in delivered] == ["closed on Monday"]
