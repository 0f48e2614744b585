"""Things done side by side, where the failure of one must not keep the others from their turn."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 16


async def gather_each(
    items: Iterable[Item], run: Callable[[Item], Awaitable[Result]], *, at_once: int = AT_ONCE
) -> list[Result | BaseException]:
    """What each came to, in order: its result, or its failure."""
    turn = asyncio.Semaphore(at_once)

    async def one(item: Item) -> Result:
        async with turn:
            return await run(item)

    return await asyncio.gather(*[one(item) for item in items], return_exceptions=True)


def raise_first(results: Sequence[Result | BaseException]) -> list[Result]:
    """The results. Raises the first failure."""
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
