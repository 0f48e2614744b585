"""REST routes and commands of rooms, through the real web process."""

from typing import Any

import httpx2

from app.storage.work import Engines
from tests.rest.people import as_
from tests.support.builders import OpenRoom, open_room

API = "/api/v1"


def operator(engines: Engines) -> dict[str, str]:
    return as_(engines, "olga", "operator")


def host(engines: Engines, room_id: str) -> dict[str, str]:
    return as_(engines, "mei", f"host@{room_id}")


async def ok(answer: Any, status: int = 200) -> dict[str, Any]:
    response: httpx2.Response = await answer
    assert response.status_code == status, response.text
    return response.json()


async def problem(answer: Any) -> tuple[int, str]:
    response: httpx2.Response = await answer
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["word"]


async def test_a_show_over_rest(client: httpx2.AsyncClient, engines: Engines) -> None:
    boss = operator(engines)
    room = await ok(client.post(f"{API}/rooms", json={"title": "Tea hills", "host_name": "Mei"}, headers=boss), 201)
    assert (room["live_session"], room["viewers"], room["currency"]) == (None, 0, "CNY")
    mei = host(engines, room["id"])
    product = await ok(client.post(f"{API}/products", json={"name": "Tea", "village": "Longwu", "unit": "250 g"}, headers=mei), 201)
    show = await ok(client.post(f"{API}/rooms/{room['id']}/sessions", json={"title": "First flush"}, headers=mei), 201)
    at = f"{API}/sessions/{show['id']}"
    checklist = await ok(client.get(f"{at}/checklist", headers=mei))
    assert (checklist["step"], checklist["ready"]) == ("go_live", False)
    assert [item["word"] for item in checklist["items"] if not item["ok"]] == ["shelf"]
    assert await problem(client.post(f"{at}/go-live", headers=mei)) == (409, "conflict")

    draft = {"product": product["id"], "price_minor": 16800, "total": 30, "price_min_minor": 15000, "limit_per_viewer": 2}
    offer = await ok(client.post(f"{at}/offers", json=draft, headers=mei), 201)
    assert (offer["name"], offer["village"], offer["unit"], offer["session"]) == ("Tea", "Longwu", "250 g", show["id"])
    await ok(client.post(f"{at}/schedule", json={"starts_at": "2025-06-15T20:00:00+08:00"}, headers=mei))
    live = await ok(client.post(f"{at}/go-live", headers=mei))
    assert (live["state"], live["starts_at"]) == ("live", "2025-06-15T12:00:00Z")

    this = f"{API}/offers/{offer['id']}"
    assert (await ok(client.post(f"{this}/price", json={"price_minor": 15000}, headers=mei)))["price_minor"] == 15000
    assert await problem(client.post(f"{this}/price", json={"price_minor": 14999}, headers=mei)) == (403, "over_limit")
    for limit in ("price_min_minor", "price_max_minor", "total_max", "discount_percent_max"):
        assert await problem(client.patch(this, json={limit: 0}, headers=mei)) == (403, "permission_denied")
    assert (await ok(client.patch(this, json={"total_max": 50}, headers=boss)))["total_max"] == 50
    assert (await ok(client.post(f"{this}/price", json={"price_minor": 9900}, headers=boss)))["price_minor"] == 9900
    assert (await ok(client.post(f"{this}/stock", json={"add": 20}, headers=mei)))["total"] == 50
    assert await problem(client.post(f"{this}/stock", json={"add": 1}, headers=mei)) == (403, "over_limit")
    changed = await ok(client.patch(this, json={"closes_at": "2025-06-15T20:15:00+08:00"}, headers=mei))
    assert (changed["closes_at"], changed["limit_per_viewer"]) == ("2025-06-15T12:15:00Z", 2)
    assert (await ok(client.post(f"{this}/pause", json={"reason": "label"}, headers=mei)))["state"] == "paused"
    assert (await ok(client.post(f"{this}/resume", headers=mei)))["state"] == "listed"
    pin = f"{API}/rooms/{room['id']}/pin"
    assert await ok(client.put(pin, json={"offer": offer["id"]}, headers=mei)) == {"offer": offer["id"]}

    seen = await ok(client.get(f"{API}/rooms/{room['id']}/snapshot"))
    assert (seen["pin"], seen["session"]["id"], seen["offers"][0]["total"]) == (offer["id"], show["id"], 50)
    assert (await ok(client.get(f"{API}/rooms/{room['id']}")))["live_session"]["id"] == show["id"]

    await ok(client.post(f"{at}/interrupt", json={"reason": "rain"}, headers=mei))
    await ok(client.post(f"{at}/resume", headers=mei))
    assert await ok(client.put(pin, json={"offer": None}, headers=mei)) == {"offer": None}
    assert (await ok(client.post(f"{this}/withdraw", headers=mei)))["state"] == "withdrawn"
    ended = await ok(client.post(f"{at}/end", headers=mei))
    assert (ended["state"], ended["peak_viewers"]) == ("ended", 0)
    assert (await ok(client.post(f"{at}/archive", headers=mei)))["state"] == "archived"
    assert (await ok(client.get(f"{at}/checklist", headers=mei))) == {"step": None, "ready": False, "items": []}

    audit = await ok(client.get(f"{API}/rooms/{room['id']}/audit?limit=3", headers=boss))
    assert [entry["action"] for entry in audit["items"]] == ["session.archive", "session.end", "offer.withdrawn"]
    older = await ok(client.get(f"{API}/rooms/{room['id']}/audit?limit=200&cursor={audit['next_cursor']}", headers=boss))
    assert (older["items"][0]["action"], older["items"][-1]["action"], older["next_cursor"]) == ("offer.pinned", "room.created", "")
    assert older["items"][-1]["actor"] == "olga"


async def test_lists_are_paged(client: httpx2.AsyncClient, engines: Engines) -> None:
    rooms = [await open_room(engines, title=f"Room {n}", live=n == 1) for n in range(3)]
    first = await ok(client.get(f"{API}/rooms?limit=2"))
    assert [(item["title"], item["live_session"] is not None) for item in first["items"]] == [("Room 2", False), ("Room 1", True)]
    rest = await ok(client.get(f"{API}/rooms?limit=2&cursor={first['next_cursor']}"))
    assert ([item["title"] for item in rest["items"]], rest["next_cursor"]) == (["Room 0"], "")
    assert await problem(client.get(f"{API}/rooms?cursor=nonsense")) == (400, "bad_request")
    mei, at = host(engines, rooms[0].room_id), f"{API}/rooms/{rooms[0].room_id}/sessions"
    for n in range(2):
        await ok(client.post(at, json={"title": f"Show {n}"}, headers=mei), 201)
    titles: list[str] = []
    cursor = ""
    for _ in range(3):
        page = await ok(client.get(f"{at}?limit=1&cursor={cursor}", headers=mei))
        titles += [item["title"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert (titles, cursor) == (["Show 1", "Show 0", "Room 0"], "")


async def test_the_run_of_show(client: httpx2.AsyncClient, engines: Engines) -> None:
    room = await open_room(engines)
    mei, at = host(engines, room.room_id), f"{API}/sessions/{room.session_id}/run-of-show"
    cues = [{"title": "Hello"}, {"title": "Tea", "kind": "offer", "offer": room.offer_ids[0], "minutes": 5}]
    put = await ok(client.put(at, json={"cues": cues}, headers=mei))
    assert [cue["state"] for cue in put["cues"]] == ["waiting", "waiting"]
    await ok(client.post(f"{at}/advance", headers=mei))
    advanced = await ok(client.post(f"{at}/advance", headers=mei))
    assert (advanced["cue"]["title"], advanced["cue"]["state"]) == ("Tea", "now")
    assert [cue["state"] for cue in (await ok(client.get(at, headers=mei)))["cues"]] == ["done", "now"]
    assert (await ok(client.post(f"{at}/advance", headers=mei)))["cue"] is None
    assert (await ok(client.get(f"{API}/rooms/{room.room_id}/snapshot")))["pin"] == room.offer_ids[0]


async def test_rooms_and_sessions_can_be_changed(client: httpx2.AsyncClient, engines: Engines) -> None:
    room = await open_room(engines, live=False)
    mei = host(engines, room.room_id)
    changed = await ok(client.patch(f"{API}/rooms/{room.room_id}", json={"title": "Rice terraces"}, headers=mei))
    assert (changed["title"], changed["host_name"]) == ("Rice terraces", "Mei")
    show = await ok(client.patch(f"{API}/sessions/{room.session_id}", json={"starts_at": "2026-01-01T00:00:00Z"}, headers=mei))
    assert (show["title"], show["starts_at"]) == ("Spring tea from Longwu", "2026-01-01T00:00:00Z")
    assert await problem(client.patch(f"{API}/rooms/{room.room_id}", json={"currency": "USD"}, headers=mei)) == (400, "bad_request")
    assert (await client.get(f"{API}/sessions/{room.session_id}/offers", headers=mei)).json()["items"][0]["name"] == "Tea"
    assert (await ok(client.get(f"{API}/offers/{room.offer_ids[0]}", headers=mei)))["sold"] == 0
    assert (await ok(client.get(f"{API}/sessions/{room.session_id}", headers=mei)))["state"] == "draft"


ROUTES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("PATCH", "/rooms/{room}", {"title": "x"}),
    ("GET", "/rooms/{room}/audit", None),
    ("POST", "/rooms/{room}/sessions", {"title": "x"}),
    ("GET", "/rooms/{room}/sessions", None),
    ("GET", "/sessions/{session}", None),
    ("PATCH", "/sessions/{session}", {"title": "x"}),
    ("GET", "/sessions/{session}/checklist", None),
    ("POST", "/sessions/{session}/schedule", {}),
    ("POST", "/sessions/{session}/go-live", None),
    ("POST", "/sessions/{session}/interrupt", None),
    ("POST", "/sessions/{session}/resume", None),
    ("POST", "/sessions/{session}/end", None),
    ("POST", "/sessions/{session}/archive", None),
    ("GET", "/sessions/{session}/run-of-show", None),
    ("PUT", "/sessions/{session}/run-of-show", {"cues": []}),
    ("POST", "/sessions/{session}/run-of-show/advance", None),
    ("GET", "/sessions/{session}/offers", None),
    ("POST", "/sessions/{session}/offers", {"name": "x", "price_minor": 1, "total": 1}),
    ("GET", "/offers/{offer}", None),
    ("PATCH", "/offers/{offer}", {"name": "x"}),
    ("POST", "/offers/{offer}/price", {"price_minor": 1}),
    ("POST", "/offers/{offer}/stock", {"add": 1}),
    ("POST", "/offers/{offer}/withdraw", None),
    ("POST", "/offers/{offer}/pause", None),
    ("POST", "/offers/{offer}/resume", None),
    ("PUT", "/rooms/{room}/pin", {"offer": None}),
]


async def test_strangers_are_refused_and_nothing_changes(client: httpx2.AsyncClient, engines: Engines) -> None:
    room = await open_room(engines)
    before = await everything(client, engines, room)
    for method, path, body in ROUTES:
        url = API + path.format(room=room.room_id, session=room.session_id, offer=room.offer_ids[0])
        assert await problem(client.request(method, url, json=body)) == (401, "unauthorized"), path
        for headers in (as_(engines, "viewer"), host(engines, "another0ne")):
            assert await problem(client.request(method, url, json=body, headers=headers)) == (403, "permission_denied"), path
    assert await everything(client, engines, room) == before


async def everything(client: httpx2.AsyncClient, engines: Engines, room: OpenRoom) -> list[Any]:
    boss = operator(engines)
    paths = (f"/rooms/{room.room_id}/snapshot", f"/rooms/{room.room_id}/audit", f"/rooms/{room.room_id}/sessions")
    return [(await client.get(API + path, headers=boss)).json() for path in paths]


async def test_only_an_operator_of_everything_makes_rooms(client: httpx2.AsyncClient, engines: Engines) -> None:
    body = {"title": "x"}
    assert await problem(client.post(f"{API}/rooms", json=body)) == (401, "unauthorized")
    for headers in (host(engines, "room1"), as_(engines, "omar", "operator@room1")):
        assert await problem(client.post(f"{API}/rooms", json=body, headers=headers)) == (403, "permission_denied")
    assert (await client.get(f"{API}/rooms")).json()["items"] == []


async def test_unknown_ids_are_not_found(client: httpx2.AsyncClient, engines: Engines) -> None:
    boss = operator(engines)
    for path in (
        "/rooms/x",
        "/rooms/x/snapshot",
        "/rooms/x/audit",
        "/rooms/x/sessions",
        "/sessions/x",
        "/sessions/x-y",
        "/offers/x-y",
        "/offers/x",
    ):
        assert await problem(client.get(API + path, headers=boss)) == (404, "not_found")
    assert await problem(client.post(f"{API}/sessions/x-y/go-live", headers=boss)) == (404, "not_found")


async def test_the_commands(client: httpx2.AsyncClient, engines: Engines) -> None:
    room = await open_room(engines)
    viewer = as_(engines, "lin")
    assert await ok(client.post(f"{API}/room/like", json={"room": room.room_id, "count": 3}, headers=viewer)) == {"outcome": "done"}
    assert (await ok(client.post(f"{API}/room/snapshot", json={"room": room.room_id}, headers=viewer)))["likes"] == 3
    assert await problem(client.post(f"{API}/room/like", json={"room": room.room_id, "count": 51}, headers=viewer)) == (400, "bad_request")
    assert await problem(client.post(f"{API}/room/snapshot", json={"room": "nowhere"}, headers=viewer)) == (404, "not_found")
    elsewhere = as_(engines, "lin", rooms=["another0ne"])
    assert await problem(client.post(f"{API}/room/like", json={"room": room.room_id, "count": 1}, headers=elsewhere)) == (
        403,
        "permission_denied",
    )
