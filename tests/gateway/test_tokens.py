"""What a token is worth on an open socket: its end, its refresh, its taking back on every node, and the company's keys as they change."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import jwt
import pytest

from app.composition import build_registry
from app.core.settings import Settings
from app.domains.accounts import service as accounts
from app.domains.accounts.service import make_token
from app.domains.accounts.tokens import FETCH_GAP_MS, end_sign_ins
from app.storage.work import Engines
from tests.domains.accounts.key_server import KeyServer, private_key, public_entry, publishing, signed
from tests.gateway.conftest import Node, Nodes, start_node
from tests.gateway.test_wire import connect_command, socket, until_closed
from tests.support.builders import OpenRoom, open_room
from tests.support.clients import RawClient, raw_client
from tests.support.runtime import TestRuntime
from tests.support.waiting import wait_until


async def outcome_of_connect(node: Node, token: str) -> int:
    """The error or close code that a connect ends with; 0 when it is accepted."""
    async with socket(node) as connection:
        await connection.send(connect_command(token))
        answer = json.loads(str(await connection.recv()))
        if "push" in answer:
            return (await until_closed(connection))[1]
        return answer["error"]["code"] if "error" in answer else 0


async def until_disconnected(client: RawClient) -> dict[str, Any]:
    await wait_until(lambda: [push for push in client.pushes if "disconnect" in push])
    return client.pushes[-1]["disconnect"]


# --- the end of a token --------------------------------------------------------------------------------------------------------------


async def test_without_a_refresh_the_connection_ends_with_its_token_and_the_grace(nodes: Nodes, token: Any) -> None:
    node = await nodes.start(refresh_grace_s=1)
    async with raw_client(node.http, token("ann", ttl_s=1)) as ann, raw_client(node.http, token("bob", ttl_s=3600)) as bob:
        await ann.subscribe("room:r1")
        assert await until_disconnected(ann) == {"code": 3005, "reason": "connection expired", "reconnect": True}
        assert bob.pushes == []


async def test_a_refresh_in_the_grace_comes_in_time(nodes: Nodes, token: Any) -> None:
    """SDKs ask for a fresh token when the old one expires, and not before."""
    node = await nodes.start(refresh_grace_s=1)
    async with raw_client(node.http, token("ann", ttl_s=1)) as ann, raw_client(node.http, token("bob", ttl_s=1)) as bob:
        refreshed = (await ann.command(refresh={"token": token("ann", ttl_s=3600)}))["refresh"]
        assert (refreshed["expires"], refreshed["ttl"]) == (True, 3600)
        assert (await until_disconnected(bob))["code"] == 3005
        assert ann.pushes == []
        assert "ping" in await ann.command(ping={})


async def test_an_expired_token_is_an_error_that_sdks_answer_with_a_fresh_one(node: Node, token: Any, runtime: TestRuntime) -> None:
    expired = token("ann", ttl_s=10)
    async with raw_client(node.http, token("ann", ttl_s=60)) as ann:
        runtime.advance(11_000)
        assert await outcome_of_connect(node, expired) == 109
        assert (await ann.command(refresh={"token": expired}))["error"]["code"] == 109
        assert "refresh" in await ann.command(refresh={"token": token("ann", ttl_s=60)})


def forged(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (_json(header), _json(claims), signature))


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


async def test_tokens_that_choose_their_own_algorithm_are_final(nodes: Nodes, settings: Settings) -> None:
    async with publishing(public_entry(private_key("RS256"), kid="one")) as keys:
        node = await nodes.start(jwks_url=keys.url)
        published = json.loads(keys.body)["keys"][0]["n"].encode()
        tokens = [
            forged({"alg": "none"}, {"sub": "ann"}),
            forged({"alg": "None", "kid": "one"}, {"sub": "ann"}),
            forged({"alg": "HS256", "kid": "one"}, {"sub": "ann"}, b"x" * 32),
            jwt.encode({"sub": "ann"}, published.ljust(32), algorithm="HS256", headers={"kid": "one"}),  # the public key as a secret
            jwt.encode({"sub": "ann"}, settings.secret_bytes.ljust(64), algorithm="HS512"),
            jwt.encode({"sub": "ann"}, private_key("RS256"), algorithm="RS384", headers={"kid": "one"}),
        ]
        assert [await outcome_of_connect(node, one) for one in tokens] == [3500] * len(tokens)
        assert await outcome_of_connect(node, signed("RS256", {"sub": "ann"}, kid="one")) == 0


# --- the company's keys --------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def keys() -> AsyncGenerator[KeyServer]:
    async with publishing(public_entry(private_key("ES256"), kid="one")) as server:
        yield server


def new_key_token() -> str:
    return signed("ES256", {"sub": "ann"}, kid="two", key=private_key("ES256", 2))


async def test_a_rotated_key_is_taken_up_by_the_first_who_comes_with_it(nodes: Nodes, keys: KeyServer, runtime: TestRuntime) -> None:
    node = await nodes.start(jwks_url=keys.url)
    old = signed("ES256", {"sub": "ann"}, kid="one")
    assert await outcome_of_connect(node, old) == 0
    both = [public_entry(private_key("ES256"), kid="one"), public_entry(private_key("ES256", 2), kid="two")]
    keys.publish(*both)
    runtime.advance(FETCH_GAP_MS)
    assert [await outcome_of_connect(node, one) for one in (new_key_token(), old)] == [0, 0]
    keys.publish(both[1])
    runtime.advance(FETCH_GAP_MS)
    assert await outcome_of_connect(node, signed("ES256", {"sub": "ann"}, kid="three")) == 3500  # whoever asks brings the set up to date
    assert [await outcome_of_connect(node, one) for one in (new_key_token(), old)] == [0, 413]  # once more may it be a key of tomorrow
    runtime.advance(FETCH_GAP_MS)
    assert await outcome_of_connect(node, old) == 3500
    assert keys.fetches == 4


async def test_a_flood_of_unknown_keys_is_one_fetch_and_no_final_no(nodes: Nodes, keys: KeyServer) -> None:
    node = await nodes.start(jwks_url=keys.url)
    unknown = [signed("ES256", {"sub": "ann"}, kid=f"made-up-{number}") for number in range(30)]
    outcomes = await asyncio.gather(*[outcome_of_connect(node, one) for one in unknown])
    assert set(outcomes) <= {3500, 413}
    assert keys.fetches == 1
    assert await outcome_of_connect(node, signed("ES256", {"sub": "ann"}, kid="one")) == 0


async def test_with_the_key_server_down_known_keys_stay_good(nodes: Nodes, keys: KeyServer, runtime: TestRuntime) -> None:
    node = await nodes.start(jwks_url=keys.url)
    good = signed("ES256", {"sub": "ann"}, kid="one")
    assert await outcome_of_connect(node, good) == 0
    await keys.stop()
    runtime.advance(FETCH_GAP_MS)
    assert await outcome_of_connect(node, new_key_token()) == 413  # temporary: it may be as good as any
    assert await outcome_of_connect(node, good) == 0
    await keys.start()


# --- taken back, on every node -------------------------------------------------------------------------------------------------------


@dataclass
class Product:
    """All domains, two nodes, and a room with a show on."""

    engines: Engines
    first: Node
    second: Node
    room: OpenRoom

    def token(self, subject: str, *roles: str) -> str:
        now_ms = self.engines.runtime.now_ms()
        return make_token(self.engines.settings, subject=subject, name=subject, ttl_s=600, now_ms=now_ms, roles=roles)

    @property
    def channel(self) -> str:
        return f"room:{self.room.room_id}"


@pytest.fixture
async def product(engines: Engines) -> AsyncGenerator[Product]:
    whole = Engines(engines.settings, engines.runtime, build_registry(), engines.sql, engines.sales, engines.fanout, engines.streams)
    async with AsyncExitStack() as stack:
        room = await open_room(whole)
        nodes = [await start_node(whole), await start_node(whole)]
        for node in nodes:
            stack.push_async_callback(node.stop)
        yield Product(whole, nodes[0], nodes[1], room)


async def test_a_ban_ends_the_viewers_connections_on_every_node_and_keeps_the_viewer_out(product: Product) -> None:
    room_id = product.room.room_id
    async with AsyncExitStack() as stack:
        here, there, elsewhere, other = [
            await stack.enter_async_context(raw_client(node.http, product.token(name)))
            for node, name in ((product.first, "ann"), (product.second, "ann"), (product.second, "ann"), (product.second, "bob"))
        ]
        host = await stack.enter_async_context(raw_client(product.first.http, product.token("host-mei", "host")))
        for client in (here, there, other, host):
            await client.subscribe(product.channel)
        ban = {"room": room_id, "viewer": "ann", "key": "ban", "reason": "fraud"}
        assert (await host.rpc("chat.ban", ban))["outcome"] == "done"
        for client in (here, there):
            assert await until_disconnected(client) == {"code": 3507, "reason": "permission denied"}
        assert [push for push in (*other.pushes, *elsewhere.pushes) if "disconnect" in push] == []  # in no room, or somebody else
        again = await stack.enter_async_context(raw_client(product.second.http, product.token("ann")))
        for client in (again, elsewhere):
            assert (await client.command(subscribe={"channel": product.channel}))["error"]["code"] == 412
            reserve = {"offer": product.room.offer_ids[0], "quantity": 1, "key": "k"}
            assert (await client.command(rpc={"method": "inventory.reserve", "data": reserve}))["error"]["code"] == 412
        assert (await other.rpc("inventory.reserve", {"offer": product.room.offer_ids[0], "quantity": 1, "key": "k"}))["outcome"] == "held"


async def test_a_ban_finds_who_is_just_coming_in_on_another_node(product: Product) -> None:
    """Whatever the order, nobody is in the room after both are done."""
    async with raw_client(product.first.http, product.token("host-mei", "host")) as host:
        for number in range(10):
            name = f"viewer{number}"
            async with raw_client(product.second.http, product.token(name)) as client:
                ban = {"room": product.room.room_id, "viewer": name, "key": name}
                coming = asyncio.create_task(client.command(subscribe={"channel": product.channel}))
                assert (await host.rpc("chat.ban", ban))["outcome"] == "done"
                await wait_until(lambda: coming.done() or client.pushes)  # noqa: B023 - waited for within the turn
                if coming.done() and "error" in coming.result():
                    assert coming.result()["error"]["code"] == 412
                else:
                    assert (await until_disconnected(client))["code"] == 3507
                    coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
        await wait_until(lambda: not product.second.hub.rooms or not product.second.hub.rooms[product.room.room_id].members)


async def member_of_staff(product: Product) -> tuple[str, str]:
    """Id and a token as sign-in makes it."""
    async with product.engines.work() as work:
        grants = [("host", product.room.room_id)]
        staff = await accounts.create_staff(work, login="lin", password="tea-and-honey", name="Lin", grants=grants)
    return staff.id, (await accounts.sign_in(product.engines, login="lin", password="tea-and-honey", address="x")).token


async def test_ended_sign_ins_are_closed_on_every_node_and_worth_nothing(product: Product, runtime: TestRuntime) -> None:
    """A role that was taken away, a member who left, a lost phone: the token still says what it said."""
    staff_id, old = await member_of_staff(product)
    async with raw_client(product.first.http, old) as here, raw_client(product.second.http, old) as there:
        await here.subscribe(f"staff:{product.room.room_id}")
        await end_sign_ins(product.engines, staff_id)
        for client in (here, there):
            assert await until_disconnected(client) == {"code": 3507, "reason": "permission denied"}
    assert await outcome_of_connect(product.second, old) == 3500
    runtime.advance(1_000)
    fresh = (await accounts.sign_in(product.engines, login="lin", password="tea-and-honey", address="x")).token
    async with raw_client(product.second.http, fresh) as client:
        await client.subscribe(f"staff:{product.room.room_id}")


async def test_an_ended_sign_in_that_a_node_did_not_hear_of_is_found(product: Product) -> None:
    staff_id, old = await member_of_staff(product)
    async with raw_client(product.first.http, old) as client:
        await client.subscribe(f"staff:{product.room.room_id}")
        await product.engines.sales.set(f"jishi:sign_ins_ended:{staff_id}", product.engines.runtime.now_ms() // 1000)
        await product.engines.fanout.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        assert (await until_disconnected(client))["code"] == 3507
