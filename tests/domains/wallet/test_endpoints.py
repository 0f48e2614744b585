"""The wallet over REST: rights, deposits, pages."""

import httpx2
import pytest

from app.storage.work import Engines
from tests.rest.people import as_
from tests.support.builders import OpenRoom, open_room


@pytest.fixture
async def room(engines: Engines, client: httpx2.AsyncClient) -> OpenRoom:
    return await open_room(engines)


async def _deposit(client: httpx2.AsyncClient, engines: Engines, room_id: str, amount_minor: int, reference: str) -> httpx2.Response:
    body = {"amount_minor": amount_minor, "reference": reference}
    return await client.post(f"/api/v1/rooms/{room_id}/wallet/deposits", json=body, headers=as_(engines, "ops", "operator"))


async def test_a_reference_counts_once(client: httpx2.AsyncClient, engines: Engines, room: OpenRoom) -> None:
    first = await _deposit(client, engines, room.room_id, 700, "bank-1")
    assert (first.status_code, first.json()) == (200, {"outcome": "done", "available_minor": 700})
    again = await _deposit(client, engines, room.room_id, 700, "bank-1")
    assert again.json() == {"outcome": "repeated", "available_minor": 700}
    other = await _deposit(client, engines, room.room_id, 701, "bank-1")
    assert other.status_code == 409
    wallet = await client.get(f"/api/v1/rooms/{room.room_id}/wallet", headers=as_(engines, "eye", "supervisor"))
    assert wallet.json() == {"room": room.room_id, "currency": "CNY", "available_minor": 700, "reserved_minor": 0}


@pytest.mark.parametrize(
    ("roles", "status"),
    [((), 403), (("host@elsewhere",), 403), (("moderator",), 403), (("host",), 200), (("supervisor",), 200), (("operator",), 200)],
)
async def test_who_may_see_the_rooms_account(
    client: httpx2.AsyncClient, engines: Engines, room: OpenRoom, roles: tuple[str, ...], status: int
) -> None:
    answer = await client.get(f"/api/v1/rooms/{room.room_id}/wallet/transfers", headers=as_(engines, "someone", *roles))
    assert answer.status_code == status


@pytest.mark.parametrize("roles", [(), ("host",), ("supervisor",), ("moderator",)])
async def test_only_operators_book_deposits(client: httpx2.AsyncClient, engines: Engines, room: OpenRoom, roles: tuple[str, ...]) -> None:
    url = f"/api/v1/rooms/{room.room_id}/wallet/deposits"
    answer = await client.post(url, json={"amount_minor": 1, "reference": "x"}, headers=as_(engines, "someone", *roles))
    assert answer.status_code == 403
    shown = await client.get(f"/api/v1/rooms/{room.room_id}/wallet", headers=as_(engines, "ops", "operator"))
    assert shown.json()["available_minor"] == 0


async def test_a_room_that_is_not_there_has_no_wallet_to_fill(client: httpx2.AsyncClient, engines: Engines) -> None:
    assert (await _deposit(client, engines, "nowhere", 1, "x")).status_code == 404


async def test_transfers_come_newest_first_page_by_page(client: httpx2.AsyncClient, engines: Engines, room: OpenRoom) -> None:
    for i in range(5):
        await _deposit(client, engines, room.room_id, 10 + i, f"bank-{i}")
    seen, cursor = [], ""
    for _ in range(3):
        page = await client.get(
            f"/api/v1/rooms/{room.room_id}/wallet/transfers",
            params={"limit": 2, "cursor": cursor},
            headers=as_(engines, "ops", "operator"),
        )
        seen += [item["amount_minor"] for item in page.json()["items"]]
        cursor = page.json()["next_cursor"]
    assert (seen, cursor) == ([14, 13, 12, 11, 10], "")


async def test_a_viewer_sees_the_own_balance(client: httpx2.AsyncClient, engines: Engines) -> None:
    answer = await client.post("/api/v1/wallet/balance", json={}, headers=as_(engines, "lin"))
    assert (answer.status_code, answer.json()) == (200, {"currency": "CNY", "available_minor": 0})
