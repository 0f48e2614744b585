"""The worker: one loop's failure is its own, entries are taken in, several workers share the rooms."""

import asyncio
import json

from prometheus_client import REGISTRY

from app.core.registry import Domain, Registry
from app.protocol.channels import room_channel
from app.protocol.events import NoticePinned
from app.storage.intake import outbox_key, register_room
from app.storage.work import Engines, Work
from app.worker import BACK_OFF_S_MAX, LEASE_PREFIX, Loop, RoomLeases, announce, pause_s, run_loops, take_in
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


async def test_two_workers_share_the_rooms_and_a_clean_stop_hands_them_over(engines: Engines) -> None:
    first, second = RoomLeases("first"), RoomLeases("second")
    assert await first.ours(engines, ["a", "b"]) == ["a", "b"]
    assert await second.ours(engines, ["a", "b", "c"]) == ["c"]
    assert await first.ours(engines, ["a", "b", "c"]) == ["a", "b"]
    ttl_ms = await engines.sales.pttl(LEASE_PREFIX + "a")
    assert 0 < ttl_ms <= engines.settings.room_lease_s * 1000, "a worker that is killed holds its rooms no longer than that"
    await first.release(engines)
    assert await RoomLeases("third").ours(engines, ["a", "b", "c"]) == ["a", "b"]


async def test_a_worker_takes_over_a_room_whose_lease_ran_out(engines: Engines) -> None:
    killed, other = RoomLeases("killed"), RoomLeases("other")
    assert await killed.ours(engines, ["a"]) == ["a"]
    assert await other.ours(engines, ["a"]) == []
    await engines.sales.delete(LEASE_PREFIX + "a")  # as its expiry would
    other.foreign.clear()
    assert await other.ours(engines, ["a"]) == ["a"]


async def test_announce_publishes_what_a_crash_left_behind(engines: Engines) -> None:
    async with engines.sql.begin() as session:  # committed, but nobody announces: the process died here
        work = Work(engines, session)
        work.emit("attic", [room_channel("attic")], NoticePinned(at=work.at, text="closed on Monday"))
        await work.flush()
    await announce(engines)
    delivered, _ = await engines.streams.history(room_channel("attic"))
    assert [json.loads(publication.data)["text"] for publication in delivered] == ["closed on Monday"]
