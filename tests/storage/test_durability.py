"""A sales engine with settings that break promises is named, with what is at stake."""

import pytest
from structlog.testing import capture_logs

from app.storage.durability import find_weaknesses, watch_durability
from app.storage.redis import command_client
from app.storage.work import Engines


async def test_each_weak_setting_is_named_with_its_stake(engines: Engines) -> None:
    strong = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    weak = {"appendonly": "no", "appendfsync": "everysec", "maxmemory-policy": "allkeys-lru"}
    try:
        for name, value in strong.items():
            await engines.sales.config_set(name, value)
        assert await find_weaknesses(engines.sales) == []
        for name, value in weak.items():
            await engines.sales.config_set(name, value)
            assert await find_weaknesses(engines.sales) == [_said(name, value, strong[name])]
            await engines.sales.config_set(name, strong[name])
    finally:
        await engines.sales.config_set("appendfsync", "everysec")  # as the tests' engine was


def _said(name: str, value: str, needed: str) -> str:
    stakes = {
        "appendonly": "what was acknowledged is gone when the engine restarts",
        "appendfsync": "a power cut takes the last acknowledged holds and orders with it",
        "maxmemory-policy": "an engine that is full throws away stock and holds",
    }
    return f"the sales engine has {name} {value}, not {needed}: {stakes[name]}"


async def test_an_engine_that_hides_its_settings_is_said_too(engines: Engines) -> None:
    await engines.sales.execute_command("ACL", "SETUSER", "guarded", "on", ">pw", "~*", "&*", "+@all", "-config")
    client = command_client(engines.settings.redis_url.replace("unix://", "unix://guarded:pw@"))
    try:
        (said,) = await find_weaknesses(client)
    finally:
        await client.aclose()
        await engines.sales.execute_command("ACL", "DELUSER", "guarded")
    assert said.startswith("the sales engine does not let its settings be read (")
    assert said.endswith("see to it that appendonly is yes, appendfsync is always, maxmemory-policy is noeviction, cluster-enabled is no")


@pytest.mark.parametrize("repeats", [1, 3])
async def test_the_worker_says_it_once_and_again_when_it_changes(engines: Engines, repeats: int) -> None:
    with capture_logs() as lines:
        for _ in range(repeats):
            await watch_durability(engines)
        await engines.sales.config_set("appendfsync", "always")
        await watch_durability(engines)
        await engines.sales.config_set("appendfsync", "everysec")
        await watch_durability(engines)
    assert [line["event"] for line in lines] == ["not durable", "the sales engine is durable again", "not durable"]
