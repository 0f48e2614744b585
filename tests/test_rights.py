"""The rights table: every command and route, and who may use it. Denied means 401 or 403, and nothing changed.

A route without a row here fails the first test. The table is written out, not computed from the rights: it is what the product promises.
"""

import hashlib
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from app.domains.accounts import service as accounts
from app.domains.chat.service import archive_room
from app.rest.document import api_routes
from app.storage.intake import take_in_room
from app.storage.sql import Table
from app.storage.work import Engines
from tests.rest.people import as_, token_for
from tests.support.builders import open_room

# Who: N nobody, V viewer, G guest, M moderator of the room, X host of another room, H host, P planner, O operator, S supervisor
EVERYBODY = "NVGMXHPOS"
SIGNED_IN = "VGMXHPOS"
CALLERS = {"N": (), "V": (), "G": (), "M": ("moderator@{room}",), "X": ("host@{other}",), "H": ("host@{room}",), "P": ("planner@{room}",)}
CALLERS |= {"O": ("operator",), "S": ("supervisor",)}


class Row(NamedTuple):
    method: str
    path: str
    who: str
    body: Any = None
    word: str = "permission_denied"  # what a caller without the right is told; nobody is told `unauthorized`


ADDRESS = {"name": "Lin", "phone": "13800000000", "line": "8 Tea Street"}
PRIZE = {"kind": "money", "name": "Thanks", "amount_minor": 100}

TABLE: tuple[Row, ...] = (
    # accounts
    Row("POST", "/sign-in", EVERYBODY, {"login": "spare", "password": "tea-and-honey"}),
    Row("POST", "/guests", EVERYBODY, {}),
    Row("GET", "/me", SIGNED_IN),
    Row("GET", "/staff", "O"),
    Row("POST", "/staff", "O", {"login": "new", "password": "tea-and-honey", "name": "New", "roles": ["moderator@{room}"]}),
    Row("PATCH", "/staff/{staff_id}", "O", {"name": "Changed"}),
    Row("POST", "/staff/{staff_id}/sign-out", "O"),
    Row("DELETE", "/staff/{staff_id}", "O"),
    Row("GET", "/api-keys", "O"),
    Row("POST", "/api-keys", "O", {"name": "shop", "rights": ["order.view"]}),
    Row("DELETE", "/api-keys/{key_id}", "O"),
    # integrations
    Row("GET", "/webhooks", "O"),
    Row("POST", "/webhooks", "O", {"url": "https://shop.example/", "events": ["order.paid"]}),
    Row("DELETE", "/webhooks/{webhook_id}", "O"),
    Row("GET", "/webhooks/{webhook_id}/deliveries", "O"),
    Row("POST", "/webhooks/{webhook_id}/test", "O"),
    # products: they belong to whoever made them, not to a room
    Row("GET", "/products", "XHPO"),
    Row("POST", "/products", "XHPO", {"name": "Tea"}),
    Row("GET", "/products/{product_id}", "XHPO"),
    Row("PATCH", "/products/{product_id}", "O", {"name": "Changed"}),
    # rooms
    Row("GET", "/rooms", EVERYBODY),
    Row("POST", "/rooms", "O", {"title": "New"}),
    Row("GET", "/rooms/{room_id}", EVERYBODY),
    Row("PATCH", "/rooms/{room_id}", "HPO", {"title": "Changed"}),
    Row("GET", "/rooms/{room_id}/snapshot", EVERYBODY),
    Row("GET", "/rooms/{room_id}/audit", "OS"),
    Row("POST", "/room/snapshot", SIGNED_IN, {"room": "{room}"}),
    Row("POST", "/room/like", SIGNED_IN, {"room": "{room}", "count": 1}),
    # sessions
    Row("GET", "/rooms/{room_id}/sessions", "MHPOS"),
    Row("POST", "/rooms/{room_id}/sessions", "HPO", {"title": "Next"}),
    Row("GET", "/sessions/{session_id}", "MHPOS"),
    Row("PATCH", "/sessions/{session_id}", "HPO", {"title": "Changed"}),
    Row("POST", "/sessions/{session_id}/schedule", "HPO", {}),
    Row("GET", "/sessions/{session_id}/checklist", "MHPOS"),
    Row("GET", "/sessions/{session_id}/run-of-show", "MHPOS"),
    Row("PUT", "/sessions/{session_id}/run-of-show", "HPO", {"cues": [{"title": "Welcome"}]}),
    Row("POST", "/sessions/{session_id}/run-of-show/advance", "HPO"),
    Row("GET", "/sessions/{session_id}/stock", "HOS"),
    Row("GET", "/sessions/{session_id}/figures", "HPOS"),
    Row("GET", "/sessions/{session_id}/report", "HPOS"),
    # offers
    Row("GET", "/sessions/{session_id}/offers", "MHPOS"),
    Row("POST", "/sessions/{session_id}/offers", "HPO", {"name": "Honey", "price_minor": 5900, "total": 5}),
    Row("GET", "/offers/{offer_id}", "MHPOS"),
    Row("PATCH", "/offers/{offer_id}", "HPO", {"name": "Changed"}),
    Row("POST", "/offers/{offer_id}/price", "HPO", {"price_minor": 1990}),
    Row("POST", "/offers/{offer_id}/stock", "HPO", {"add": 1}),
    Row("POST", "/offers/{offer_id}/pause", "HPO"),
    Row("POST", "/offers/{offer_id}/resume", "HPO"),
    Row("PUT", "/rooms/{room_id}/pin", "HPO", {"offer": "{offer}"}),
    # inventory and orders
    Row("POST", "/inventory/reserve", "VGMXHPO", {"offer": "{offer}", "quantity": 1, "key": "k"}),
    Row("POST", "/inventory/release", "VGMXHPO", {"hold": "{order}", "key": "k"}),
    Row("POST", "/inventory/wait", "VGMXHPO", {"offer": "{offer}", "quantity": 1, "key": "k"}),
    Row("POST", "/inventory/leave", "VGMXHPO", {"wait": "{order}", "key": "k"}),
    Row("GET", "/offers/{offer_id}/line", "HOS"),
    Row("POST", "/order/place", "VGMXHPO", {"hold": "{order}", "address": ADDRESS, "key": "k"}),
    Row("POST", "/order/cancel", "VGMXHPO", {"order": "{order}", "key": "k"}),
    Row("POST", "/order/pay", "VGMXHPO", {"order": "{order}", "key": "k"}),
    Row("POST", "/order/set_address", "VGMXHPO", {"order": "{order}", "address": ADDRESS, "key": "k"}),
    Row("POST", "/order/get", "VGMXHPO", {"order": "{order}"}),
    Row("POST", "/order/list", "VGMXHPO", {}),
    Row("POST", "/order/confirm_receipt", "VGMXHPO", {"order": "{order}", "key": "k"}),
    Row("POST", "/return/request", "VGMXHPO", {"order": "{order}", "kind": "refund_only", "reason": "no_reason", "key": "k"}),
    Row("POST", "/return/cancel", "VGMXHPO", {"request": "{request}", "key": "k"}),
    Row("POST", "/return/ship_back", "VGMXHPO", {"request": "{request}", "carrier": "SF", "tracking": "SF1", "key": "k"}),
    Row("POST", "/return/get", "VGMXHPO", {"request": "{request}"}),
    Row("POST", "/return/list", "VGMXHPO", {}),
    Row("GET", "/rooms/{room_id}/returns", "HOS"),
    Row("GET", "/returns/{request_id}", "HOS"),
    Row("POST", "/returns/{request_id}/approve", "HO", {}),
    Row("POST", "/returns/{request_id}/reject", "HO", {"answer": "damaged by you"}),
    Row("POST", "/returns/{request_id}/receive", "HO"),
    Row("POST", "/returns/{request_id}/refund", "HO", {}),
    Row("POST", "/returns/{request_id}/refuse", "HO", {"answer": "another tea"}),
    Row("GET", "/rooms/{room_id}/orders", "HOS"),
    Row("GET", "/rooms/{room_id}/orders/export", "HOS"),
    Row("GET", "/orders/{order_id}", "HOS"),
    Row("POST", "/orders/{order_id}/deliver", "HO"),
    Row("POST", "/orders/{order_id}/ship", "HO", {"carrier": "SF", "tracking": "SF1"}),
    Row("POST", "/orders/{order_id}/refund", "HO", {"reason": "damaged"}),
    Row("GET", "/rooms/{room_id}/disputes", "HOS"),
    Row("POST", "/payments/{provider}/webhook", "", {}, "unauthorized"),  # by its signature alone, whoever brings it
    # wallet
    Row("POST", "/wallet/balance", "VMXHPO", {}),
    Row("GET", "/rooms/{room_id}/wallet", "HOS"),
    Row("POST", "/rooms/{room_id}/wallet/deposits", "O", {"amount_minor": 100, "reference": "bank-1"}),
    Row("GET", "/rooms/{room_id}/wallet/transfers", "HOS"),
    # chat
    Row("POST", "/chat/send", "VGMXHPO", {"room": "{room}", "text": "Hello", "key": "k"}),
    Row("POST", "/chat/history", SIGNED_IN, {"room": "{room}"}),
    Row("POST", "/chat/delete", "MHO", {"room": "{room}", "message": "{message}", "key": "k"}),
    Row("POST", "/chat/mute", "MHO", {"room": "{room}", "viewer": "rude", "seconds": 60, "key": "k"}),
    Row("POST", "/chat/ban", "MHO", {"room": "{room}", "viewer": "rude", "key": "k"}),
    Row("POST", "/chat/set_slow_mode", "MHO", {"room": "{room}", "interval_s": 0, "key": "k"}),
    Row("POST", "/chat/pin_notice", "MHO", {"room": "{room}", "text": "Hello", "key": "k"}),
    Row("POST", "/chat/review", "MHO", {"room": "{room}", "message": "{message}", "approve": True, "key": "k"}),
    Row("GET", "/rooms/{room_id}/chat/messages", "MHO"),
    Row("GET", "/rooms/{room_id}/chat/reviews", "MHO"),
    Row("GET", "/rooms/{room_id}/chat/sanctions", "MHO"),
    Row("GET", "/rooms/{room_id}/chat/words", "MHO"),
    Row("PUT", "/rooms/{room_id}/chat/words", "MHO", {"words": ["fake tea"]}),
    Row("POST", "/rooms/{room_id}/viewers/{viewer_id}/disconnect", "MHO"),
    Row("GET", "/chat/words", "O"),
    Row("PUT", "/chat/words", "O", {"words": ["fake honey"]}),
    # draws and envelopes
    Row("POST", "/draw/enter", "VMXHPO", {"draw": "{draw}", "key": "k"}),
    Row("GET", "/sessions/{session_id}/draws", "HO"),
    Row("POST", "/sessions/{session_id}/draws", "HO", {"title": "Thanks", "prizes": [PRIZE]}),
    Row("GET", "/draws/{draw_id}", EVERYBODY),
    Row("POST", "/draws/{draw_id}/close", "HO"),
    Row("POST", "/draws/{draw_id}/cancel", "HO", {"reason": "damaged"}),
    Row("POST", "/envelope/grab", "VMXHPO", {"envelope": "{envelope}", "key": "k"}),
    Row("GET", "/sessions/{session_id}/envelopes", "HO"),
    Row("POST", "/sessions/{session_id}/envelopes", "HO", {"title": "Thanks", "total_minor": 100, "count": 2}),
    Row("GET", "/envelopes/{envelope_id}", EVERYBODY),
    Row("POST", "/envelopes/{envelope_id}/end", "HO"),
    # the end of a show, last: what is allowed happens here
    Row("POST", "/offers/{offer_id}/withdraw", "HPO", {"reason": "a wrong label"}),
    Row("POST", "/sessions/{session_id}/go-live", "HPO", {}),
    Row("POST", "/sessions/{session_id}/interrupt", "HPO", {"reason": "rain"}),
    Row("POST", "/sessions/{session_id}/resume", "HPO"),
    Row("POST", "/sessions/{session_id}/end", "HPO"),
    Row("POST", "/sessions/{session_id}/archive", "HPO"),
)


def test_every_route_has_a_row(app: FastAPI) -> None:
    routes = {(method, route.path.removeprefix("/api/v1")) for route in api_routes(app) for method in route.methods}
    rows = [(row.method, row.path) for row in TABLE]
    assert len(rows) == len(set(rows))
    assert sorted(routes - set(rows)) == []
    assert sorted(set(rows) - routes) == []


def test_no_row_is_wider_than_the_right_that_the_route_declares(app: FastAPI) -> None:
    public = {(method, route.path.removeprefix("/api/v1")) for route in api_routes(app) if route.public for method in route.methods}
    assert {(row.method, row.path) for row in TABLE if "N" in row.who} <= public


@dataclass
class World:
    """A room in the midst of a show, with one of everything that a row can name."""

    ids: dict[str, str]
    headers: dict[str, dict[str, str]]

    def fill(self, value: Any) -> Any:
        if isinstance(value, str):
            return re.sub(r"\{(\w+?)(_id)?\}", lambda match: self.ids[match[1]], value)
        if isinstance(value, dict):
            return {name: self.fill(part) for name, part in value.items()}
        return [self.fill(part) for part in value] if isinstance(value, list) else value

    async def call(self, client: httpx2.AsyncClient, row: Row, who: str) -> httpx2.Response:
        return await client.request(row.method, "/api/v1" + self.fill(row.path), json=self.fill(row.body), headers=self.headers[who])


@pytest.fixture
async def world(engines: Engines, client: httpx2.AsyncClient) -> AsyncGenerator[World]:
    engines.settings.guests_per_address_per_min = 10_000
    engines.settings.sign_in_attempts_per_min = 10_000
    room, other = await open_room(engines), await open_room(engines, title="Another room")
    root = as_(engines, "root", "operator")
    ids = {
        "room": room.room_id,
        "other": other.room_id,
        "session": room.session_id,
        "offer": room.offer_ids[0],
        "provider": "sandbox",
        "viewer": "rude",
        "request": f"{room.room_id}-none",
    }

    async def make(path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await client.post("/api/v1" + path.format(**ids), json=body, headers=root)
        assert answer.status_code < 300, (path, answer.text)
        return answer.json()

    ids["staff"] = (await make("/staff", {"login": "spare", "password": "tea-and-honey", "name": "Spare", "roles": ["host@x"]}))["id"]
    ids["key"] = (await make("/api-keys", {"name": "spare", "rights": ["order.view"]}))["id"]
    ids["webhook"] = (await make("/webhooks", {"url": "https://shop.example/", "events": ["order.paid"]}))["id"]
    ids["product"] = (await make("/products", {"name": "Tea"}))["id"]
    await make("/rooms/{room}/wallet/deposits", {"amount_minor": 100_000, "reference": "bank-0"})
    ids["draw"] = (await make("/sessions/{session}/draws", {"title": "Thanks", "prizes": [PRIZE], "duration_s": None}))["id"]
    ids["envelope"] = (await make("/sessions/{session}/envelopes", {"title": "Thanks", "total_minor": 100, "count": 20}))["id"]
    ids["message"] = (await make("/chat/send", {"room": ids["room"], "text": "Hello", "key": "k"}))["message"]
    ids["order"] = (await make("/inventory/reserve", {"offer": ids["offer"], "quantity": 1, "key": "k0"}))["hold"]
    await make("/order/place", {"hold": ids["order"], "address": ADDRESS, "key": "k0"})
    await take_in_room(engines, ids["room"])
    await archive_room(engines, ids["room"])  # else the first who asks for a message would bring the archive up to date
    guest = await accounts.admit_guest(engines, name="Guest", address="192.0.2.1")
    headers = {who: as_(engines, f"caller-{who}", *(role.format(**ids) for role in roles)) for who, roles in CALLERS.items()}
    headers |= {"N": {}, "G": {"Authorization": f"Bearer {guest.token}"}}
    yield World(ids, headers)


async def state_of(engines: Engines) -> dict[str, str]:
    """A digest of every table and every key: what a denied call must leave as it was."""
    state: dict[str, str] = {}
    async with engines.sql.read() as session:
        for table in sorted(Table.metadata.tables):
            rows = text(f"select coalesce(md5(string_agg(t::text, '|' order by t::text)), '') from \"{table}\" t")  # noqa: S608 - our own names
            state[table] = str(await session.scalar(rows))
    async for key in engines.sales.scan_iter():
        value = await engines.sales.dump(key)
        if value is not None and b"presence" not in key and b"jishi:attempts" not in key:
            passing = "passing " if await engines.sales.pttl(key) >= 0 else ""  # may run out by itself at any time
            state[key.decode()] = passing + hashlib.sha256(value).hexdigest()
    return state


def difference(before: dict[str, str], after: dict[str, str]) -> list[str]:
    gone = {name for name in before.keys() - after.keys() if not before[name].startswith("passing ")}
    return sorted(gone | {name for name in after if before.get(name) != after[name]})


async def test_who_lacks_the_right_is_refused_and_nothing_changes(client: httpx2.AsyncClient, engines: Engines, world: World) -> None:
    wrong: list[str] = []
    before = await state_of(engines)
    for row in TABLE:
        for who in sorted(set(CALLERS) - set(row.who)):
            answer = await world.call(client, row, who)
            expected = (401, "unauthorized") if who == "N" or row.word == "unauthorized" else (403, row.word)
            found = (answer.status_code, answer.json().get("word"))
            if found != expected:
                wrong.append(f"{row.method} {row.path} by {who}: {found}, not {expected}")
        after = await state_of(engines)
        changed = difference(before, after)
        if changed:
            wrong.append(f"{row.method} {row.path} changed {changed}")
            before = after
    assert wrong == []


async def test_who_has_the_right_is_not_refused(client: httpx2.AsyncClient, engines: Engines, world: World) -> None:
    """Later rows meet what earlier ones left, so an answer may be a conflict; it is never a refusal for want of a right."""
    wrong: list[str] = []
    first: dict[str, int] = {}
    for row in TABLE:
        for who in row.who:
            answer = await world.call(client, row, who)
            first.setdefault(f"{row.method} {row.path}", answer.status_code)
            if answer.status_code in {401, 403} or answer.status_code >= 500:
                wrong.append(f"{row.method} {row.path} by {who}: {answer.status_code} {answer.text[:200]}")
    assert wrong == []
    refused = {name: status for name, status in first.items() if status >= 400}
    assert set(refused.values()) <= {404, 409}, refused


async def test_a_token_for_one_room_is_good_there_alone(client: httpx2.AsyncClient, engines: Engines, world: World) -> None:
    here = {"Authorization": f"Bearer {token_for(engines, 'anna', rooms=[world.ids['room']])}"}
    there = {"Authorization": f"Bearer {token_for(engines, 'anna', 'operator', rooms=[world.ids['other']])}"}
    like = Row("POST", "/room/like", "", {"room": "{room}", "count": 1})
    ended = Row("POST", "/sessions/{session_id}/end", "")
    world.headers |= {"here": here, "there": there}
    assert (await world.call(client, like, "here")).status_code == 200
    assert (await world.call(client, like, "there")).status_code == 403
    assert (await world.call(client, ended, "there")).status_code == 403
    assert (await world.call(client, Row("GET", "/staff", ""), "there")).json()["items"] == []


# What who is banned from a room may still do there: look after what was bought, give a hold back, be told of the ban in the command's word.
STILL = {
    "/inventory/release",
    "/inventory/leave",
    "/order/cancel",
    "/order/pay",
    "/order/set_address",
    "/order/get",
    "/order/list",
    "/order/confirm_receipt",
    "/return/request",
    "/return/cancel",
    "/return/ship_back",
    "/return/get",
    "/return/list",
    "/wallet/balance",
    "/chat/send",
}


async def test_a_ban_holds_for_every_command_that_is_about_the_room(client: httpx2.AsyncClient, engines: Engines, world: World) -> None:
    """It used to close the channels alone: a banned viewer went on reserving, drawing and grabbing."""
    commands = {command.path.removeprefix("/api/v1") for command in engines.registry.commands.values()}
    assert commands > STILL
    rows = [row for row in TABLE if row.path in commands]
    assert {row.path for row in rows} == commands
    ban = Row("POST", "/chat/ban", "", {"room": "{room}", "viewer": "caller-V", "key": "ban"})
    assert (await world.call(client, ban, "O")).json()["outcome"] == "done"
    before = await state_of(engines)
    wrong: list[str] = []
    for row in rows:
        answer = await world.call(client, row, "V")
        refusal = (answer.status_code, answer.json().get("word"))
        if row.path in STILL:
            expected = (404, "not_found") if row.path in {"/order/get", "/return/get"} else (200, None)  # the order is another viewer's
        else:
            expected = (403, "banned") if "V" in row.who or row.path == "/chat/delete" else (403, "permission_denied")
        if refusal != expected:
            wrong.append(f"{row.path}: {refusal}, not {expected}")
    assert wrong == []
    assert difference(before, await state_of(engines)) == []
    assert (await world.call(client, Row("POST", "/chat/send", "", {"room": "{room}", "text": "x", "key": "k"}), "V")).json() == {
        "outcome": "banned",
        "message": None,
        "wait_ms": 0,
        "reservation": None,
    }
    lift = Row("POST", "/chat/ban", "", {"room": "{room}", "viewer": "caller-V", "key": "lift", "lift": True})
    assert (await world.call(client, lift, "O")).json()["outcome"] == "done"
    reserve = next(row for row in rows if row.path == "/inventory/reserve")
    assert (await world.call(client, reserve, "V")).json()["outcome"] == "held"


async def test_a_ban_from_one_room_leaves_the_others_open(client: httpx2.AsyncClient, world: World) -> None:
    await world.call(client, Row("POST", "/chat/ban", "", {"room": "{room}", "viewer": "caller-V", "key": "ban"}), "O")
    assert (await world.call(client, Row("POST", "/room/like", "", {"room": "{other}", "count": 1}), "V")).status_code == 200
    made_up = Row("POST", "/inventory/reserve", "", {"offer": "madeup-1", "quantity": 1, "key": "k"})
    assert (await world.call(client, made_up, "V")).json()["word"] == "not_found"  # the command's own answer
