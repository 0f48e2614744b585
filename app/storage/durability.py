"""Whether the sales engine keeps what it acknowledges: its own settings, asked of the engine itself.

Owns the list of settings that the promises of sales rest on. A weaker engine serves all the same, since only its operator knows what a
crash may cost there; but it is said: by the worker's log at its start and whenever it changes (another engine may take over), by `/readyz`.
Where an engine hides its settings, that is said too: nobody here knows then.
"""

from collections.abc import Mapping
from itertools import chain
from typing import cast

import structlog
from redis.exceptions import ResponseError

from app.storage.cluster import ClusterLine
from app.storage.redis import Redis
from app.storage.work import Engines

# setting -> (what it must be, what is at stake)
NEEDED = {
    "appendonly": ("yes", "what was acknowledged is gone when the engine restarts"),
    "appendfsync": ("always", "a power cut takes the last acknowledged holds and orders with it"),
    "maxmemory-policy": ("noeviction", "an engine that is full throws away stock and holds"),
}

NEEDED_ALONE = {
    "cluster-enabled": ("no", "rooms of the other shards cannot be reached; write the address as `redis+cluster://`"),
}
NEEDED_OF_SHARDS = {
    "cluster-require-full-coverage": ("no", "when one shard is away, the rooms of all others stop too"),
}

log = structlog.get_logger()


async def find_weaknesses(client: Redis) -> list[str]:
    """One sentence for each setting that is weaker than it must be, of each engine of a cluster; empty when all is well."""
    engines = await client.engines()
    needed = NEEDED | (NEEDED_OF_SHARDS if isinstance(client.line, ClusterLine) else NEEDED_ALONE)
    names = [f" at {place}" if len(engines) > 1 else "" for place, _ in engines]
    found = [await _find_in(engine, name, needed) for name, (_, engine) in zip(names, engines, strict=True)]
    return list(chain.from_iterable(found))


async def _find_in(engine: Redis, place: str, needed: Mapping[str, tuple[str, str]]) -> list[str]:
    try:
        found = cast("dict[str, str]", await engine.config_get(*needed))
    except ResponseError as refusal:
        wanted = ", ".join(f"{name} is {value}" for name, (value, _) in needed.items())
        return [f"the sales engine{place} does not let its settings be read ({refusal}): see to it that {wanted}"]
    return [
        f"the sales engine{place} has {name} {found.get(name, 'unknown')}, not {value}: {stake}"
        for name, (value, stake) in needed.items()
        if found.get(name) != value
    ]


async def watch_durability(engines: Engines) -> None:
    """One pass of the worker: says what is weak when it was not said before."""
    found = await find_weaknesses(engines.sales)
    if found != engines.local.get("durability", []):
        engines.local["durability"] = found
        for weakness in found:
            log.warning("not durable", weakness=weakness)
        if not found:
            log.info("the sales engine is durable again")
