"""REST routes of products."""

import httpx2

from app.storage.work import Engines
from tests.rest.people import as_

API = "/api/v1/products"
TEA = {
    "name": "Spring tea",
    "description": "",
    "unit": "250 g",
    "image": "/static/tea.svg",
    "village": "Longwu",
    "lot": "LW-1",
    "harvested_on": "2026-04-02",
    "return_policy": "fresh_no_return",
}


async def test_enter_read_and_change_a_product(client: httpx2.AsyncClient, engines: Engines) -> None:
    mei = as_(engines, "mei", "host@room1")
    created = await client.post(API, json=TEA, headers=mei)
    assert created.status_code == 201
    product = created.json()
    assert product == TEA | {"id": product["id"], "created_at": "2025-06-15T15:06:40Z"}
    changed = await client.patch(f"{API}/{product['id']}", json={"lot": "LW-2", "harvested_on": None}, headers=mei)
    assert changed.json() == product | {"lot": "LW-2", "harvested_on": None}
    assert (await client.get(f"{API}/{product['id']}", headers=mei)).json() == changed.json()


async def test_products_belong_to_who_entered_them(client: httpx2.AsyncClient, engines: Engines) -> None:
    path = f"{API}/{(await client.post(API, json=TEA, headers=as_(engines, 'mei', 'host@room1'))).json()['id']}"
    refused = await client.patch(path, json={"name": "Mine"}, headers=as_(engines, "ann", "host@room1"))
    assert (refused.status_code, refused.json()["word"]) == (403, "permission_denied")
    assert (await client.patch(path, json={"name": "Ours"}, headers=as_(engines, "olga", "operator"))).json()["name"] == "Ours"


async def test_who_may_see_products(client: httpx2.AsyncClient, engines: Engines) -> None:
    assert (await client.get(API)).status_code == 401
    assert (await client.get(API, headers=as_(engines, "lin"))).status_code == 403
    assert (await client.post(API, json=TEA, headers=as_(engines, "sam", "supervisor"))).status_code == 403


async def test_products_are_paged_newest_first(client: httpx2.AsyncClient, engines: Engines) -> None:
    mei = as_(engines, "mei", "host@room1")
    for n in range(5):
        await client.post(API, json=TEA | {"name": f"Tea {n}"}, headers=mei)
    names: list[str] = []
    cursor = ""
    for _ in range(3):
        page = (await client.get(f"{API}?limit=2&cursor={cursor}", headers=mei)).json()
        names += [item["name"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert (names, cursor) == (["Tea 4", "Tea 3", "Tea 2", "Tea 1", "Tea 0"], "")


async def test_what_is_no_product_is_refused(client: httpx2.AsyncClient, engines: Engines) -> None:
    mei = as_(engines, "mei", "host@room1")
    for body in (
        {"name": ""},
        {"name": "x", "price": 1},
        {"name": "x", "image": "javascript:alert(1)"},
        {"name": "x", "return_policy": "?"},
    ):
        answer = await client.post(API, json=body, headers=mei)
        assert (answer.status_code, answer.json()["word"]) == (400, "bad_request")
    assert (await client.get(f"{API}/nothing", headers=mei)).status_code == 404
