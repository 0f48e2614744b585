"""Whether the sales engine keeps what it acknowledges: its own settings, asked of the engine itself.

Owns the list of settings that the promises of sales rest on. A weaker engine serves all the same, since only its operator knows what a
crash may cost there; but it is said: by the worker's log at its start and whenever it changes (another engine may take over), by `/readyz`.
Where an engine hides its settings, that is said too: nobody here knows then.
"""

from typing import cast

import structlog
from redis.exceptions import ResponseError

from app.storage.redis import Redis
from app.storage.work import Engines

# setting -> (what it must be, what is at stake)
NEEDED = {
    "appendonly": ("yes", "what was acknowledged is gone when the engine restarts"),
    "appendfsync": ("always", "a power cut takes the last acknowledged holds and orders with it"),
    "maxmemory-policy": ("noeviction", "an engine that is full throws away stock and holds"),
}

log = structlog.get_logger()


async def find_weaknesses(client: Redis) -> list[str]:
    """One sentence for each setting that is weaker than it must be; empty when all is well."""
    try:
        found = cast("dict[str, str]", await client.config_get(*NEEDED))
    except ResponseError as refusal:
        return [f"the sales engine does not let its settings be read ({refusal}): see to it that {_wanted()}"]
    return [
        f"the sales engine has {name} {found.get(name, 'unknown')}, not {needed}: {stake}"
        for name, (needed, stake) in NEEDED.items()
        if found.get(name) != needed
    ]


def _wanted() -> str:
    return ", ".join(f"{name} is {needed}" for name, (needed, _) in NEEDED.items())


async def watch_durability(engines: Engines) -> None:
    """One pass of the worker: says what is weak when it was not said before."""
    found = await find_weaknesses(engines.sales)
    if found != engines.local.get("durability", []):
        engines.local["durability"] = found
        for weakness in found:
            log.warning("not durable", weakness=weakness)
        if not found:
            log.info("the sales engine is durable again")
