"""Figures and report over HTTP."""

import httpx2
import pytest

from app.storage.work import Engines
from tests.rest.people import as_
from tests.support.builders import open_room


@pytest.mark.parametrize("part", ["figures", "report"])
@pytest.mark.parametrize(
    ("role", "status"),
    [
        ("", 403),
        ("moderator@{room}", 403),
        ("host@other", 403),
        ("host@{room}", 200),
        ("planner@{room}", 200),
        ("supervisor", 200),
        ("operator", 200),
    ],
)
async def test_who_may_see_the_figures(client: httpx2.AsyncClient, engines: Engines, part: str, role: str, status: int) -> None:
    room = await open_room(engines)
    headers = as_(engines, "someone", *([role.format(room=room.room_id)] if role else []))
    answer = await client.get(f"/api/v1/sessions/{room.session_id}/{part}", headers=headers)
    assert answer.status_code == status
    if status == 200:
        assert answer.json()["session"] == room.session_id
        assert [offer["name"] for offer in answer.json()["offers"]] == ["Tea"]


async def test_an_unknown_session_is_not_found(client: httpx2.AsyncClient, engines: Engines) -> None:
    for session_id in ("nothing", "room1-nothing"):
        for part in ("figures", "report"):
            answer = await client.get(f"/api/v1/sessions/{session_id}/{part}", headers=as_(engines, "root", "operator"))
            assert answer.status_code == 404
