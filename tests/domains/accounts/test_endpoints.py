"""The team and its keys over REST."""

import asyncio
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select

from app.domains.accounts import service
from app.domains.accounts.tables import Staff
from app.storage.tables import AuditEntry
from app.storage.work import Engines
from tests.rest.people import as_
from tests.support.runtime import TestRuntime

PASSWORD = "tea-and-honey"


def lin(**changes: Any) -> dict[str, Any]:
    return {"login": "lin", "password": PASSWORD, "name": "Lin", "roles": ["host@a"], **changes}


@pytest.fixture
def operator(engines: Engines) -> dict[str, str]:
    return as_(engines, "root", "operator")


async def test_a_member_is_added_signs_in_is_changed_and_removed(
    client: httpx2.AsyncClient, engines: Engines, operator: dict[str, str]
) -> None:
    made = await client.post("/api/v1/staff", json=lin(), headers=operator)
    assert made.status_code == 201
    staff_id = made.json()["id"]
    assert "password" not in made.text
    token = await client.post("/api/v1/sign-in", json={"login": "lin", "password": PASSWORD})
    assert token.status_code == 200
    assert token.headers["cache-control"] == "no-store"
    me = (await client.get("/api/v1/me", headers={"Authorization": f"Bearer {token.json()['token']}"})).json()
    assert (me["id"], me["kind"], me["roles"]) == (staff_id, "staff", ["host@a"])
    assert me["rights"]["session.run"] == ["a"]
    assert me["rights"]["chat.send"] == ["*"]

    path = f"/api/v1/staff/{staff_id}"
    changed = await client.patch(path, json={"roles": ["moderator@a"], "password": "honey-and-tea"}, headers=operator)
    assert changed.json()["roles"] == ["moderator@a"]
    assert changed.json()["name"] == "Lin"
    assert (await client.post("/api/v1/sign-in", json={"login": "lin", "password": PASSWORD})).status_code == 401
    assert (await client.post("/api/v1/sign-in", json={"login": "lin", "password": "honey-and-tea"})).status_code == 200

    assert (await client.delete(path, headers=operator)).status_code == 204
    assert (await client.delete(path, headers=operator)).status_code == 404
    assert (await client.post("/api/v1/sign-in", json={"login": "lin", "password": "honey-and-tea"})).status_code == 401
    async with engines.sql.read() as session:
        actions = list(await session.scalars(select(AuditEntry.action).order_by(AuditEntry.id)))
        details = str(list(await session.scalars(select(AuditEntry.detail))))
    assert actions == ["staff.added", "staff.changed", "staff.removed"]
    assert "honey" not in details


async def test_whoever_manages_one_room_touches_that_room_alone(
    client: httpx2.AsyncClient, engines: Engines, operator: dict[str, str]
) -> None:
    there = (await client.post("/api/v1/staff", json=lin(login="there", roles=["host@b"]), headers=operator)).json()["id"]
    local = as_(engines, "local", "operator@a")
    assert (await client.post("/api/v1/staff", json=lin(), headers=local)).status_code == 201
    refused = [
        await client.post("/api/v1/staff", json=lin(login="x", roles=["host@b"]), headers=local),
        await client.post("/api/v1/staff", json=lin(login="x", roles=["operator"]), headers=local),
        await client.post("/api/v1/staff", json=lin(login="x", roles=[]), headers=local),
        await client.patch(f"/api/v1/staff/{there}", json={"password": "taken-over-now"}, headers=local),
        await client.delete(f"/api/v1/staff/{there}", headers=local),
        await client.get("/api/v1/api-keys", headers=local),
        await client.post("/api/v1/api-keys", json={"name": "x", "rights": ["order.view"]}, headers=local),
    ]
    assert [answer.status_code for answer in refused] == [403] * len(refused)
    listed = (await client.get("/api/v1/staff", headers=local)).json()
    assert [member["login"] for member in listed["items"]] == ["lin"]
    async with engines.sql.read() as session:
        assert await session.scalar(select(func.count()).select_from(Staff)) == 2


async def test_two_operators_who_remove_each_other_leave_one(
    client: httpx2.AsyncClient, engines: Engines, operator: dict[str, str]
) -> None:
    made = [await client.post("/api/v1/staff", json=lin(login=login, roles=["operator"]), headers=operator) for login in ("one", "two")]
    ids = [answer.json()["id"] for answer in made]
    answers = await asyncio.gather(*(client.delete(f"/api/v1/staff/{staff_id}", headers=operator) for staff_id in ids))
    assert sorted(answer.status_code for answer in answers) == [204, 409]
    last = ids[[answer.status_code for answer in answers].index(409)]
    demoted = await client.patch(f"/api/v1/staff/{last}", json={"roles": ["host"]}, headers=operator)
    assert demoted.status_code == 409
    async with engines.sql.read() as session:
        assert list(await session.scalars(select(Staff.id))) == [last]


@pytest.mark.parametrize(
    "changes",
    [{"roles": ["emperor"]}, {"roles": ["host@"]}, {"login": "a b"}, {"login": ""}, {"password": "short"}, {"extra": 1}, {"name": ""}],
)
async def test_a_member_of_the_wrong_shape_is_a_bad_request(
    client: httpx2.AsyncClient, operator: dict[str, str], changes: dict[str, Any]
) -> None:
    answer = await client.post("/api/v1/staff", json=lin(**changes), headers=operator)
    assert answer.status_code == 400
    assert answer.json()["word"] == "bad_request"


async def test_a_login_is_taken_once(client: httpx2.AsyncClient, operator: dict[str, str]) -> None:
    assert (await client.post("/api/v1/staff", json=lin(), headers=operator)).status_code == 201
    again = await client.post("/api/v1/staff", json=lin(login="LIN"), headers=operator)
    assert (again.status_code, again.json()["word"]) == (409, "conflict")


async def test_the_team_is_listed_in_pages(client: httpx2.AsyncClient, operator: dict[str, str]) -> None:
    for login in ("c", "a", "b"):
        assert (await client.post("/api/v1/staff", json=lin(login=login), headers=operator)).status_code == 201
    first = (await client.get("/api/v1/staff?limit=2", headers=operator)).json()
    second = (await client.get(f"/api/v1/staff?limit=2&cursor={first['next_cursor']}", headers=operator)).json()
    assert [[member["login"] for member in page["items"]] for page in (first, second)] == [["a", "b"], ["c"]]
    assert second["next_cursor"] == ""
    assert (await client.get("/api/v1/staff?cursor=nonsense", headers=operator)).status_code == 400


async def test_an_api_key_is_shown_once_works_and_is_revoked(client: httpx2.AsyncClient, operator: dict[str, str]) -> None:
    body = {"name": "shop", "rights": ["staff.manage"]}
    made = await client.post("/api/v1/api-keys", json=body, headers=operator)
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    key = made.json()["key"]
    listed = await client.get("/api/v1/api-keys", headers=operator)
    assert key not in listed.text
    assert listed.json()["items"][0]["name"] == "shop"
    as_key = {"Authorization": f"Bearer {key}"}
    assert (await client.get("/api/v1/staff", headers=as_key)).status_code == 200
    assert (await client.get("/api/v1/api-keys", headers=as_key)).status_code == 403
    # A key that manages the team hands out nothing that it lacks.
    assert (await client.post("/api/v1/staff", json=lin(), headers=as_key)).status_code == 403
    assert (await client.delete(f"/api/v1/api-keys/{made.json()['id']}", headers=operator)).status_code == 204
    assert (await client.get("/api/v1/staff", headers=as_key)).status_code == 401
    unknown = await client.post("/api/v1/api-keys", json={"name": "x", "rights": ["emperor"]}, headers=operator)
    assert unknown.status_code == 400


async def test_an_unknown_login_costs_the_same_hash(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways through sign-in check one password: what is counted is the call, not a time that a busy machine decides."""
    checked: list[str] = []
    real = service._password_matches  # pyright: ignore[reportPrivateUsage]

    def counting(password_hash: str, password: str) -> bool:
        checked.append(password_hash[:30])
        return real(password_hash, password)

    monkeypatch.setattr(service, "_password_matches", counting)
    async with engines.work() as work:
        await service.create_staff(work, login="lin", password=PASSWORD, name="Lin")
    for login in ("lin", "nobody"):
        with pytest.raises(Exception, match="login or password is wrong"):
            await service.sign_in(engines, login=login, password="wrong", address="192.0.2.1")
    assert len(checked) == 2
    assert checked[0] == checked[1]  # the same algorithm and the same costs


@pytest.mark.parametrize("change", ["roles", "password", "sign-out", "removed"])
async def test_what_a_token_states_is_worth_nothing_once_it_was_taken_away(
    client: httpx2.AsyncClient, operator: dict[str, str], runtime: TestRuntime, change: str
) -> None:
    """The token still names the roles it was made with."""
    body = {"login": "mei", "password": "tea-and-honey", "name": "Mei", "roles": ["host@r1", "moderator@r2"]}
    staff_id = (await client.post("/api/v1/staff", json=body, headers=operator)).json()["id"]

    async def sign_in(password: str) -> tuple[int, dict[str, str]]:
        answer = await client.post("/api/v1/sign-in", json={"login": "mei", "password": password})
        return answer.status_code, {"Authorization": f"Bearer {answer.json().get('token')}"}

    _, headers = await sign_in("tea-and-honey")
    assert (await client.get("/api/v1/me", headers=headers)).json()["roles"] == ["host@r1", "moderator@r2"]
    path = f"/api/v1/staff/{staff_id}"
    renamed = await client.patch(path, json={"name": "Mei Lin"}, headers=operator)
    assert (renamed.status_code, (await client.get("/api/v1/me", headers=headers)).status_code) == (200, 200)
    match change:
        case "roles":
            assert (await client.patch(path, json={"roles": ["moderator@r2"]}, headers=operator)).status_code == 200
        case "password":
            assert (await client.patch(path, json={"password": "honey-and-tea"}, headers=operator)).status_code == 200
        case "sign-out":
            assert (await client.post(f"{path}/sign-out", headers=operator)).status_code == 204
        case _:
            assert (await client.delete(path, headers=operator)).status_code == 204
    refused = await client.get("/api/v1/me", headers=headers)
    assert (refused.status_code, refused.json()["word"]) == (401, "unauthorized")
    runtime.advance(1_000)
    status, headers = await sign_in("honey-and-tea" if change == "password" else "tea-and-honey")
    assert status == (401 if change == "removed" else 200)
    if change == "roles":
        assert (await client.get("/api/v1/me", headers=headers)).json()["roles"] == ["moderator@r2"]
