"""What a test must not leave behind. Sockets and files that are never closed are warnings of Python's own, and warnings are errors."""

import asyncio


async def assert_no_stray_tasks() -> None:
    """Tasks that are just ending get three turns of the loop; whatever still runs then was forgotten."""
    for _ in range(3):
        await asyncio.sleep(0)
    strays = [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.done()]
    for task in strays:
        task.cancel()
    await asyncio.gather(*strays, return_exceptions=True)
    names = sorted(getattr(task.get_coro(), "__qualname__", repr(task)) for task in strays)
    assert not names, f"tasks left running: {names}"
