"""Envelopes over REST and the command twins: from a funded room to a published split."""

import hashlib

import httpx2
import pytest

from app.domains.wallet import service as wallet
from app.storage.work import Engines
from tests.rest.people import as_
from tests.support.builders import OpenRoom, open_room


@pytest.fixture
async def room(engines: Engines, client: httpx2.AsyncClient) -> OpenRoom:
    room = await open_room(engines)
    async with engines.work() as work:
        await wallet.deposit(work, room_id=room.room_id, amount_minor=1000, currency="CNY", reference="bank-1", by="ops")
    return room


BODY = {"title": "Harvest", "mode": "lucky", "total_minor": 900, "count": 3}


async def test_from_opening_to_the_published_split(client: httpx2.AsyncClient, engines: Engines, room: OpenRoom) -> None:
    host = as_(engines, "mei", f"host@{room.room_id}")
    opened = await client.post(f"/api/v1/sessions/{room.session_id}/envelopes", json=BODY, headers=host)
    assert opened.status_code == 201, opened.text
    envelope_id = opened.json()["id"]
    snapshot = (await client.get(f"/api/v1/rooms/{room.room_id}/snapshot")).json()
    assert [view["id"] for view in snapshot["envelopes"]] == [envelope_id]
    assert (await client.get(f"/api/v1/envelopes/{envelope_id}")).json()["shares"] == []
    grab = {"envelope": envelope_id, "key": "k1"}
    mine = await client.post("/api/v1/envelope/grab", json=grab, headers=as_(engines, "lin"))
    assert mine.json()["outcome"] == "opened"
    staff = await client.post("/api/v1/envelope/grab", json=grab, headers=host)
    assert staff.json()["outcome"] == "not_eligible"
    ended = await client.post(f"/api/v1/envelopes/{envelope_id}/end", headers=host)
    assert (ended.json()["state"], ended.json()["refunded_minor"]) == ("settled", 900 - mine.json()["amount_minor"])
    balance = await client.post("/api/v1/wallet/balance", json={}, headers=as_(engines, "lin"))
    assert balance.json()["available_minor"] == mine.json()["amount_minor"]
    detail = (await client.get(f"/api/v1/envelopes/{envelope_id}")).json()
    assert [share["opened"] for share in detail["shares"]] == [True, False, False]
    assert sum(share["amount_minor"] for share in detail["shares"]) == 900
    texts = [f"jishi-share-1|{envelope_id}|{share['position']}|{share['amount_minor']}|{share['salt']}" for share in detail["shares"]]
    leaves = [hashlib.sha256(b"\x00" + line.encode()).digest() for line in texts]
    left = hashlib.sha256(b"\x01" + leaves[0] + leaves[1]).digest()
    assert hashlib.sha256(b"\x01" + left + leaves[2]).hexdigest() == detail["commitment"] == opened.json()["commitment"]
    listed = await client.get(f"/api/v1/sessions/{room.session_id}/envelopes", headers=host)
    assert [item["id"] for item in listed.json()["items"]] == [envelope_id]


@pytest.mark.parametrize("roles", [(), ("host@elsewhere",), ("moderator",), ("supervisor",), ("planner",)])
async def test_who_may_not_open_or_end(client: httpx2.AsyncClient, engines: Engines, room: OpenRoom, roles: tuple[str, ...]) -> None:
    url = f"/api/v1/sessions/{room.session_id}/envelopes"
    someone = as_(engines, "someone", *roles)
    assert (await client.post(url, json=BODY, headers=someone)).status_code == 403
    opened = await client.post(url, json=BODY, headers=as_(engines, "ops", "operator"))
    assert (await client.post(f"/api/v1/envelopes/{opened.json()['id']}/end", headers=someone)).status_code == 403
    assert (await client.get(f"/api/v1/envelopes/{opened.json()['id']}")).json()["state"] == "open"


async def test_what_is_refused_and_how(client: httpx2.AsyncClient, engines: Engines, room: OpenRoom) -> None:
    ops = as_(engines, "ops", "operator")
    url = f"/api/v1/sessions/{room.session_id}/envelopes"
    assert (await client.post(url, json={**BODY, "total_minor": 1001}, headers=ops)).status_code == 409
    assert (await client.post(url, json={**BODY, "total_minor": 2}, headers=ops)).status_code == 400
    assert (await client.post(f"/api/v1/sessions/{room.room_id}-nothing/envelopes", json=BODY, headers=ops)).status_code == 404
    assert (await client.get(f"/api/v1/envelopes/{room.room_id}-nothing")).status_code == 404
    assert (await client.post("/api/v1/envelope/grab", json={"envelope": "x", "key": "k"}, headers=as_(engines, "lin"))).status_code == 404
    quiet = await open_room(engines, live=False)
    assert (await client.post(f"/api/v1/sessions/{quiet.session_id}/envelopes", json=BODY, headers=ops)).status_code == 409
