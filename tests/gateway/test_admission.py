"""Who gets as far as the upgrade, and what share of a node one viewer has."""

import json
import random
from contextlib import AsyncExitStack
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from app.core.registry import Command
from app.core.settings import Settings
from app.gateway import method_rates
from app.gateway.admission import Admission, Refusal, is_allowed_origin
from app.gateway.method_rates import MethodRates
from app.protocol.commands import Reply, Request
from tests.gateway.conftest import Node, Nodes
from tests.support.clients import raw_client
from tests.support.waiting import wait_until


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "expected"),
    [
        ("", "shop.example", "", True),
        ("https://shop.example", "shop.example", "", True),
        ("https://shop.example", "SHOP.example", "", True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", "", True),
        ("http://127.0.0.1:9000", "127.0.0.1:8000", "", False),
        ("https://evil.example", "shop.example", "", False),
        ("null", "shop.example", "", False),
        ("https://evil.example", "shop.example", "*", True),
        ("https://a.example", "shop.example", "https://a.example, https://b.example/", True),
        ("https://b.example", "shop.example", "https://a.example, https://b.example/", True),
        ("https://shop.example", "shop.example", "https://a.example", False),
        ("https://a.example.evil.example", "shop.example", "https://a.example", False),
    ],
)
def test_origin(origin: str, host: str, allowed: str, expected: bool) -> None:
    assert is_allowed_origin(origin, host, allowed) is expected


def admission(**settings: int) -> Admission:
    return Admission(Settings(**settings), now_ms=0, rng=random.Random(1))  # type: ignore[arg-type]


def ask(admission: Admission, **changed: object) -> Refusal | None:
    asked: dict[str, object] = {"origin": "", "host": "h", "connections": 0, "is_draining": False, "now_ms": 0}
    return admission.refusal(**(asked | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "status", "reason"),
    [
        ({"origin": "https://evil.example", "is_draining": True}, 403, "origin"),
        ({"is_draining": True}, 503, "draining"),
        ({"connections": 5}, 503, "connections"),
    ],
)
def test_refusals(changed: dict[str, object], status: int, reason: str) -> None:
    refusal = ask(admission(connections_max=5), **changed)
    assert refusal is not None
    assert (refusal.status, refusal.reason) == (status, reason)


def test_joins_above_the_rate_are_told_to_return_at_different_times() -> None:
    door = admission(joins_per_s=10)
    answers = [ask(door) for _ in range(60)]
    assert answers[:10] == [None] * 10
    refusals = [answer for answer in answers[10:] if answer is not None]
    assert {refusal.reason for refusal in refusals} == {"joins"}
    assert len(refusals) == 50
    assert {refusal.retry_after_s for refusal in refusals} == set(range(1, 11))
    assert ask(door, now_ms=100) is None


# --- a viewer's share ----------------------------------------------------------------------------------------------------------------


def test_a_method_has_a_rate_for_each_viewer() -> None:
    rates = MethodRates(factor=2.0)
    seldom, often = command("a.seldom", 2), command("a.often", 10)
    assert [rates.take("ann", seldom, 0) for _ in range(9)] == [True] * 8 + [False]
    assert rates.take("bob", seldom, 0)
    assert all(rates.take("ann", often, 0) for _ in range(40))
    assert not rates.take("ann", often, 0)
    assert [rates.take("ann", seldom, 500) for _ in range(3)] == [True, True, False]


def test_the_longest_unused_rate_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method_rates, "BUCKETS_MAX", 2)
    rates = MethodRates(factor=1.0)
    once = command("a.once", 0.1)
    assert [rates.take(name, once, 0) for name in ("ann", "bob", "ann")] == [True, True, False]
    assert rates.take("cyd", once, 0)  # bob's goes
    assert [rates.take(name, once, 0) for name in ("ann", "bob")] == [False, True]


def command(method: str, calls_per_s_max: float) -> Command:
    async def handler(*_: object) -> None: ...

    return Command(method, Request, Reply, handler, "room.watch", "a test", calls_per_s_max=calls_per_s_max)


async def test_a_flood_of_one_method_is_told_to_slow_down_and_others_are_not(node: Node, token: Any) -> None:
    async with raw_client(node.http, token()) as client, raw_client(node.http, token()) as twin, raw_client(node.http, token("bob")) as bob:
        for sender in (client, twin):  # one viewer, one rate
            for _ in range(10):
                assert (await sender.rpc("test.echo", {"text": "x"}))["text"] == "x"
        replies = [await client.command(rpc={"method": "test.echo", "data": {"text": "x"}}) for _ in range(40)]
        errors = [reply["error"] for reply in replies if "error" in reply]
        assert len(errors) >= 10
        assert {(error["code"], error["temporary"]) for error in errors} == {(111, True)}
        assert (await bob.rpc("test.echo", {"text": "x"}))["text"] == "x"
        assert (await client.command(rpc={"method": "test.secret", "data": {"text": "x"}}))["error"]["code"] == 103


async def test_a_viewer_has_so_many_connections_and_no_more(nodes: Nodes, token: Any) -> None:
    node = await nodes.start(connections_per_viewer_max=2)
    async with raw_client(node.http, token()), AsyncExitStack() as second:
        await second.enter_async_context(raw_client(node.http, token()))
        async with connect(node.ws, proxy=None, compression=None) as third:
            await third.send(json.dumps({"id": 1, "connect": {"token": token()}}))
            push = json.loads(await third.recv())["push"]["disconnect"]
            assert push == {"code": 3504, "reason": "connection limit"}
            with pytest.raises(ConnectionClosed) as closed:
                await third.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 3504
        async with raw_client(node.http, token("bob")):
            pass
        await second.aclose()
        await wait_until(lambda: len(node.hub.connections) == 1)
        async with raw_client(node.http, token()):
            pass
