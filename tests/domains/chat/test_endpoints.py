"""Chat over HTTP: the command twins, the moderators' listings, the word lists, rights."""

import json
from typing import Any

import httpx2
import pytest

from app.domains.chat import service
from app.storage.redis import blocking_client
from app.storage.streams import CONTROL_CHANNEL
from app.storage.work import Engines
from tests.rest.people import as_
from tests.support.builders import OpenRoom, open_room
from tests.support.runtime import TestRuntime


@pytest.fixture
async def room(engines: Engines) -> OpenRoom:
    return await open_room(engines)


async def say(client: httpx2.AsyncClient, engines: Engines, room: OpenRoom, text: str, *, viewer: str = "ann", key: str = "") -> Any:
    body = {"room": room.room_id, "text": text, "key": key or text}
    answer = await client.post("/api/v1/chat/send", json=body, headers=as_(engines, viewer))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_twin_answers_like_the_method(client: httpx2.AsyncClient, engines: Engines, room: OpenRoom) -> None:
    first = await say(client, engines, room, "hello", key="k")
    assert first == {"outcome": "sent", "message": first["message"], "wait_ms": 0, "reservation": None}
    assert await say(client, engines, room, "hello", key="k") == first
    reused = await client.post("/api/v1/chat/send", json={"room": room.room_id, "text": "other", "key": "k"}, headers=as_(engines, "ann"))
    assert (reused.status_code, reused.headers["content-type"]) == (409, "application/problem+json")
    history = await client.post("/api/v1/chat/history", json={"room": room.room_id}, headers=as_(engines, "bob"))
    assert [line["text"] for line in history.json()["messages"]] == ["hello"]


async def test_the_archive_is_paged_newest_first(
    client: httpx2.AsyncClient, engines: Engines, runtime: TestRuntime, room: OpenRoom
) -> None:
    for index in range(5):
        await say(client, engines, room, f"line {index}", viewer="ann" if index % 2 else "bob")
        runtime.advance(100 if index else 0)  # the first two at the same time
    await service.archive_chat(engines)
    headers, path = as_(engines, "mod", f"moderator@{room.room_id}"), f"/api/v1/rooms/{room.room_id}/chat/messages"
    seen: list[str] = []
    cursor = ""
    for _ in range(4):
        page = (await client.get(path, params={"limit": 2, "cursor": cursor}, headers=headers)).json()
        seen += [item["text"] for item in page["items"]]
        cursor = page["next_cursor"]
        if not cursor:
            break
    assert seen[:3] == ["line 4", "line 3", "line 2"]
    assert sorted(seen) == [f"line {index}" for index in range(5)]
    only = (await client.get(path, params={"viewer": "ann"}, headers=headers)).json()["items"]
    assert [item["text"] for item in only] == ["line 3", "line 1"]
    wrong = await client.get(path, params={"cursor": "nonsense"}, headers=headers)
    assert wrong.status_code == 400


async def test_words_and_reviews(client: httpx2.AsyncClient, engines: Engines, room: OpenRoom) -> None:
    headers, base = as_(engines, "mod", f"moderator@{room.room_id}"), f"/api/v1/rooms/{room.room_id}/chat"
    put = await client.put(f"{base}/words", json={"words": ["Ｆａｋｅ", "加 微信", "fake"]}, headers=headers)
    assert put.json() == {"words": ["fake", "加微信"], "platform": []}
    operator = as_(engines, "root", "operator")
    assert (await client.put("/api/v1/chat/words", json={"words": ["scam"]}, headers=operator)).json() == {"words": ["scam"]}
    assert (await client.get(f"{base}/words", headers=headers)).json() == {"words": ["fake", "加微信"], "platform": ["scam"]}
    held = [await say(client, engines, room, text) for text in ("加微信吧", "a SCAM")]
    assert [answer["outcome"] for answer in held] == ["held_for_review"] * 2
    await service.archive_chat(engines)
    reviews = (await client.get(f"{base}/reviews", headers=headers)).json()["items"]
    assert sorted((item["message"]["text"], *item["words"]) for item in reviews) == [("a SCAM", "scam"), ("加微信吧", "加微信")]
    body = {"room": room.room_id, "message": held[0]["message"], "approve": False, "key": "r1"}
    assert (await client.post("/api/v1/chat/review", json=body, headers=headers)).json() == {"outcome": "done"}
    waiting, rejected = [
        (await client.get(f"{base}/reviews", params={"state": state}, headers=headers)).json()["items"] for state in ("waiting", "rejected")
    ]
    assert [item["message"]["text"] for item in waiting] == ["a SCAM"]
    assert [(item["message"]["text"], item["decided_by"]) for item in rejected] == [("加微信吧", "mod")]


async def test_sanctions_are_listed(client: httpx2.AsyncClient, engines: Engines, runtime: TestRuntime, room: OpenRoom) -> None:
    headers, path = as_(engines, "mod", f"moderator@{room.room_id}"), f"/api/v1/rooms/{room.room_id}/chat/sanctions"
    for index, viewer in enumerate(("ann", "bob", "cat")):
        body = {"room": room.room_id, "viewer": viewer, "seconds": 60 * (index + 1), "key": viewer}
        assert (await client.post("/api/v1/chat/mute", json=body, headers=headers)).json() == {"outcome": "done"}
    runtime.advance(60_000)
    everything = (await client.get(path, headers=headers)).json()["items"]
    assert [(item["viewer"], item["kind"], item["by"]) for item in everything] == [(v, "mute", "mod") for v in ("cat", "bob", "ann")]
    in_force = (await client.get(path, params={"in_force": True}, headers=headers)).json()["items"]
    assert [item["viewer"] for item in in_force] == ["cat", "bob"]
    first = (await client.get(path, params={"limit": 2}, headers=headers)).json()
    second = (await client.get(path, params={"limit": 2, "cursor": first["next_cursor"]}, headers=headers)).json()
    assert [item["viewer"] for item in second["items"]] == ["ann"]


PEOPLE = {
    "nobody": (401, 401),
    "viewer": (403, 403),
    "host elsewhere": (403, 403),
    "supervisor": (403, 403),
    "moderator": (200, 403),
    "host": (200, 403),
    "operator": (200, 200),
}


@pytest.mark.parametrize("who", PEOPLE)
async def test_listings_and_lists_are_for_moderators_of_the_room(
    client: httpx2.AsyncClient, engines: Engines, room: OpenRoom, who: str
) -> None:
    here = f"@{room.room_id}"
    headers = {
        "nobody": {},
        "viewer": as_(engines, "ann"),
        "host elsewhere": as_(engines, "far", "host@other"),
        "supervisor": as_(engines, "sue", "supervisor"),
        "moderator": as_(engines, "mod", f"moderator{here}"),
        "host": as_(engines, "lin", f"host{here}"),
        "operator": as_(engines, "root", "operator"),
    }[who]
    in_room, everywhere = PEOPLE[who]
    for part in ("messages", "reviews", "sanctions", "words"):
        answer = await client.get(f"/api/v1/rooms/{room.room_id}/chat/{part}", headers=headers)
        assert (part, answer.status_code) == (part, in_room)
    put = await client.put(f"/api/v1/rooms/{room.room_id}/chat/words", json={"words": ["x"]}, headers=headers)
    assert put.status_code == in_room
    assert (await client.get("/api/v1/chat/words", headers=headers)).status_code == everywhere
    assert (await client.put("/api/v1/chat/words", json={"words": ["y"]}, headers=headers)).status_code == everywhere
    async with engines.sql.read() as session:
        assert await service.list_words(session, room.room_id) == (["x"] if in_room == 200 else [])
        assert await service.list_words(session, "") == (["y"] if everywhere == 200 else [])


async def test_the_history_of_a_room_that_is_not_there_leaves_nothing_in_the_engine(client: httpx2.AsyncClient, engines: Engines) -> None:
    for made_up in ("nowhere", "{a}"):
        answer = await client.post("/api/v1/chat/history", json={"room": made_up}, headers=as_(engines, "ann"))
        assert (answer.status_code, answer.json()["word"]) == (404, "not_found")
    assert await engines.fanout.dbsize() == 0


async def test_a_viewer_is_disconnected_from_one_room_on_every_node(client: httpx2.AsyncClient, engines: Engines, room: OpenRoom) -> None:
    listener = blocking_client(engines.fanout.line.options)
    async with listener.pubsub() as bus:
        await bus.ssubscribe(CONTROL_CHANNEL)
        assert await bus.get_message(timeout=5)
        headers = as_(engines, "mod", f"moderator@{room.room_id}")
        assert (await client.post(f"/api/v1/rooms/{room.room_id}/viewers/ann/disconnect", headers=headers)).status_code == 204
        message = await bus.get_message(timeout=5)
    await listener.aclose()
    assert json.loads(message["data"]) == {"do": "disconnect", "user": "ann", "room": room.room_id, "code": "3503"}
