"""New lives of an engine, without the death of a process: what it remembers is put back, or is gone, and no room is open in it."""

from app.domains.inventory import renewal
from app.domains.inventory import service as inventory
from app.storage.intake import list_rooms, take_in_room
from app.storage.life import room_key
from app.storage.work import Engines

Memory = dict[bytes, tuple[bytes, int]]  # key -> its dump, and the milliseconds that it has left (0: for ever)


async def remember(engines: Engines) -> Memory:
    """All that the engine has now, as a replica would that hears no more from here on."""
    keys = await engines.sales.keys("*")
    return {key: (await engines.sales.dump(key), max(0, await engines.sales.pttl(key))) for key in keys}


async def fail_over(engines: Engines, memory: Memory, *rooms: str) -> None:
    """To an engine that has nothing but this."""
    await engines.sales.flushall()
    for key, (dump, ttl_ms) in memory.items():
        await engines.sales.restore(key, ttl_ms, dump)
    for room_id in rooms:
        if await engines.sales.exists(room_key(room_id)):
            await engines.sales.hset(room_key(room_id), "life", "another")


async def renew(engines: Engines) -> None:
    """What the worker's loops do, once each."""
    await renewal.recall_rooms(engines)
    await inventory.expire_sales(engines)
    await renewal.renew_rooms(engines)
    for room_id in await list_rooms(engines):
        while await take_in_room(engines, room_id):
            pass
