"""Draws over REST and the command twins: from opening to a proof that anyone can read."""

import hashlib
import json

import httpx2
import pytest

from app.domains.wallet import service as wallet
from app.storage.intake import take_in_room
from app.storage.work import Engines
from tests.domains.lottery.test_service import recompute
from tests.rest.people import as_
from tests.support.builders import OpenRoom, open_room


@pytest.fixture
async def room(engines: Engines, client: httpx2.AsyncClient) -> OpenRoom:
    room = await open_room(engines)
    async with engines.work() as work:
        await wallet.deposit(work, room_id=room.room_id, amount_minor=1000, currency="CNY", reference="bank-1", by="ops")
    return room


def body(room: OpenRoom) -> dict[str, object]:
    return {
        "title": "Thanks",
        "condition": "keyword",
        "keyword": "spring tea",
        "prizes": [
            {"kind": "money", "name": "Red packet", "count": 2, "amount_minor": 300},
            {"kind": "product", "name": "Tea", "count": 2, "offer": room.offer_ids[0]},
        ],
    }


async def test_from_opening_to_the_proof(client: httpx2.AsyncClient, engines: Engines, room: OpenRoom) -> None:
    host = as_(engines, "mei", f"host@{room.room_id}")
    opened = await client.post(f"/api/v1/sessions/{room.session_id}/draws", json=body(room), headers=host)
    assert opened.status_code == 201, opened.text
    draw_id = opened.json()["id"]
    snapshot = (await client.get(f"/api/v1/rooms/{room.room_id}/snapshot")).json()
    assert [view["id"] for view in snapshot["draws"]] == [draw_id]
    assert snapshot["stock"][room.offer_ids[0]] == 8
    secret = (await client.get(f"/api/v1/draws/{draw_id}")).json()
    assert (secret["seed"], secret["salt"], secret["leaves"], secret["winners"]) == ("", "", [], [])
    assert json.loads(secret["rules"])["keyword"] == "spring tea"
    for i in range(3):
        enter = {"draw": draw_id, "key": "k1", "keyword": "Spring Tea"}
        assert (await client.post("/api/v1/draw/enter", json=enter, headers=as_(engines, f"v{i}"))).json()["outcome"] == "entered"
    wrong = {"draw": draw_id, "key": "k1", "keyword": "honey"}
    assert (await client.post("/api/v1/draw/enter", json=wrong, headers=as_(engines, "v9"))).json()["condition"] == "keyword"
    assert (await client.post("/api/v1/draw/enter", json=enter, headers=host)).json()["condition"] == "staff"
    closed = await client.post(f"/api/v1/draws/{draw_id}/close", headers=host)
    assert (closed.json()["state"], closed.json()["entrants"]) == ("drawn", 3)
    await take_in_room(engines, room.room_id)
    proof = (await client.get(f"/api/v1/draws/{draw_id}")).json()
    assert proof["rules"] == secret["rules"]
    assert hashlib.sha256(bytes.fromhex(proof["seed"])).hexdigest() == secret["commitment"]
    leaves = [bytes.fromhex(leaf["pseudonym"] + leaf["evidence_hash"]) for leaf in proof["leaves"]]
    root, places = recompute(proof["rules"], leaves, proof["seed"])
    assert root == proof["root"]
    assert places == [winner["index"] for winner in proof["winners"]]
    assert [winner["prize"] for winner in proof["winners"]] == ["Red packet", "Red packet", "Tea"]
    assert all(winner["delivered"] for winner in proof["winners"])
    after = (await client.get(f"/api/v1/rooms/{room.room_id}/snapshot")).json()
    assert (after["draws"], after["stock"][room.offer_ids[0]]) == ([], 9)  # one of two was won


async def test_cancelling_says_why(client: httpx2.AsyncClient, engines: Engines, room: OpenRoom) -> None:
    host = as_(engines, "mei", f"host@{room.room_id}")
    draw_id = (await client.post(f"/api/v1/sessions/{room.session_id}/draws", json=body(room), headers=host)).json()["id"]
    cancelled = await client.post(f"/api/v1/draws/{draw_id}/cancel", json={"reason": "It rained."}, headers=host)
    assert (cancelled.status_code, cancelled.json()["state"], cancelled.json()["reason"]) == (200, "cancelled", "It rained.")
    assert (await client.post(f"/api/v1/draws/{draw_id}/close", headers=host)).status_code == 409
    assert (await client.get(f"/api/v1/draws/{draw_id}")).json()["seed"] == ""
    listed = await client.get(f"/api/v1/sessions/{room.session_id}/draws", headers=host)
    assert [item["state"] for item in listed.json()["items"]] == ["cancelled"]


@pytest.mark.parametrize("roles", [(), ("host@elsewhere",), ("moderator",), ("supervisor",), ("planner",)])
async def test_who_may_not_run_draws(client: httpx2.AsyncClient, engines: Engines, room: OpenRoom, roles: tuple[str, ...]) -> None:
    someone, url = as_(engines, "someone", *roles), f"/api/v1/sessions/{room.session_id}/draws"
    assert (await client.post(url, json=body(room), headers=someone)).status_code == 403
    draw_id = (await client.post(url, json=body(room), headers=as_(engines, "ops", "operator"))).json()["id"]
    assert (await client.post(f"/api/v1/draws/{draw_id}/close", headers=someone)).status_code == 403
    assert (await client.post(f"/api/v1/draws/{draw_id}/cancel", json={"reason": "x"}, headers=someone)).status_code == 403
    assert (await client.get(f"/api/v1/draws/{draw_id}")).json()["state"] == "open"


async def test_too_little_stock_is_said_and_nothing_is_kept(client: httpx2.AsyncClient, engines: Engines, room: OpenRoom) -> None:
    host = as_(engines, "mei", f"host@{room.room_id}")
    wanted = {"title": "Too many", "prizes": [{"kind": "product", "name": "Tea", "count": 11, "offer": room.offer_ids[0]}]}
    refused = await client.post(f"/api/v1/sessions/{room.session_id}/draws", json=wanted, headers=host)
    assert refused.status_code == 409
    assert "exhausted" in refused.json()["detail"]
    assert (await client.get(f"/api/v1/rooms/{room.room_id}/snapshot")).json()["stock"][room.offer_ids[0]] == 10
