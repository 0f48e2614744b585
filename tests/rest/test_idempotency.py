"""`Idempotency-Key`: one effect, one answer."""

import asyncio
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import Body, FastAPI
from sqlalchemy import func, select
from starlette.responses import JSONResponse

from app.main import create_app
from app.rest.access import public
from app.rest.idempotency import ABANDONED_S, expire_idempotency_records
from app.storage.tables import AuditEntry, IdempotencyRecord
from app.storage.work import Engines
from tests.rest.people import as_
from tests.support.runtime import TestRuntime
from tests.support.waiting import wait_until


class Counter:
    """A route that counts its calls, and can be held up or made to fail. With `effect` it also leaves a mark in SQL, once a call."""

    def __init__(self, engines: Engines) -> None:
        self.engines = engines
        self.calls = 0
        self.effect = False
        self.gate_in_work: asyncio.Event | None = None
        self.status = 201
        self.headers: dict[str, str] = {"Location": "/api/v1/things/1"}
        self.gate: asyncio.Event | None = None
        self.failure: Exception | None = None

    async def call(self, body: Annotated[dict[str, Any], Body()]) -> JSONResponse:
        self.calls += 1
        number = self.calls
        if self.effect:
            async with self.engines.work() as work:
                await work.audit("room1", "anna", "stock.add", f"call {number}")
                if self.gate_in_work:
                    await self.gate_in_work.wait()
        if self.gate:
            await self.gate.wait()
        if self.failure:
            raise self.failure
        return JSONResponse({"call": number, **body}, self.status, headers=self.headers)


@pytest.fixture
def counter(engines: Engines) -> Counter:
    return Counter(engines)


@pytest.fixture
def app(engines: Engines, counter: Counter) -> FastAPI:
    app = create_app(engines=engines)
    app.add_api_route("/api/v1/things", public(counter_route(counter)), methods=["POST", "PUT"])
    return app


def counter_route(counter: Counter) -> Any:
    async def things(body: Annotated[dict[str, Any], Body()]) -> JSONResponse:
        return await counter.call(body)

    return things


async def post(client: httpx2.AsyncClient, headers: dict[str, str], key: str = "k1", **body: Any) -> httpx2.Response:
    return await client.post("/api/v1/things", json=body, headers={**headers, "Idempotency-Key": key})


@pytest.fixture
def anna(engines: Engines) -> dict[str, str]:
    return as_(engines, "anna")


async def effects(engines: Engines) -> list[str]:
    async with engines.sql.read() as session:
        return list(await session.scalars(select(AuditEntry.subject).order_by(AuditEntry.id)))


async def count_records(engines: Engines) -> int:
    async with engines.sql.read() as session:
        return await session.scalar(select(func.count()).select_from(IdempotencyRecord)) or 0


async def test_the_same_call_has_one_effect_and_one_answer(client: httpx2.AsyncClient, counter: Counter, anna: dict[str, str]) -> None:
    first = await post(client, anna, a=1)
    second = await post(client, anna, a=1)
    assert counter.calls == 1
    assert (second.status_code, second.content) == (first.status_code, first.content) == (201, b'{"call":1,"a":1}')
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert second.headers["location"] == "/api/v1/things/1"
    assert second.headers["content-type"] == "application/json"


async def test_a_refusal_is_an_answer_too(client: httpx2.AsyncClient, counter: Counter, anna: dict[str, str]) -> None:
    counter.status = 409
    assert (await post(client, anna)).status_code == 409
    counter.status = 201
    again = await post(client, anna)
    assert (again.status_code, again.headers["idempotency-replayed"], counter.calls) == (409, "true", 1)


@pytest.mark.parametrize("other", ["body", "method", "query"])
async def test_another_call_with_the_key_is_refused(client: httpx2.AsyncClient, counter: Counter, anna: dict[str, str], other: str) -> None:
    await post(client, anna, a=1)
    headers = {**anna, "Idempotency-Key": "k1"}
    if other == "body":
        answer = await post(client, anna, a=2)
    elif other == "method":
        answer = await client.put("/api/v1/things", json={"a": 1}, headers=headers)
    else:
        answer = await client.post("/api/v1/things?x=1", json={"a": 1}, headers=headers)
    assert (answer.status_code, answer.json()["word"], counter.calls) == (409, "key_reused", 1)


async def test_keys_belong_to_their_caller(client: httpx2.AsyncClient, counter: Counter, engines: Engines, anna: dict[str, str]) -> None:
    await post(client, anna, a=1)
    other = await post(client, as_(engines, "bert"), a=1)
    assert other.json() == {"call": 2, "a": 1}
    for _ in range(2):  # nobody's keys are no keys: two strangers never share an answer
        assert "idempotency-replayed" not in (await post(client, {}, a=1)).headers
    assert counter.calls == 4
    assert await count_records(engines) == 2


async def test_a_call_that_is_under_way_is_not_begun_again(
    client: httpx2.AsyncClient, counter: Counter, engines: Engines, runtime: TestRuntime, anna: dict[str, str]
) -> None:
    counter.gate = asyncio.Event()
    first = asyncio.create_task(post(client, anna))
    await wait_until(lambda: counter.calls == 1)
    async with engines.sql.read() as session:
        idle = await session.scalar(select(func.count()).select_from(IdempotencyRecord).where(IdempotencyRecord.status == 0))
    assert idle == 1
    second = await post(client, anna)
    assert (second.status_code, second.json()["word"], second.headers["retry-after"]) == (409, "conflict", "1")
    runtime.advance(ABANDONED_S * 1000 + 1)
    third = asyncio.create_task(post(client, anna))  # the first looks dead by now: this one takes over
    await wait_until(lambda: counter.calls == 2)
    counter.gate.set()
    assert [answer.status_code for answer in await asyncio.gather(first, third)] == [201, 201]


async def test_a_call_that_died_after_its_commit_is_not_done_again(
    client: httpx2.AsyncClient, counter: Counter, engines: Engines, runtime: TestRuntime, anna: dict[str, str]
) -> None:
    """The answer is recorded after the commit. A process that was killed in between left the record under way, and a minute later the
    same call topped up the same stock a second time."""
    counter.effect, counter.gate = True, asyncio.Event()
    first = asyncio.create_task(post(client, anna))
    await wait_until(lambda: effects(engines))  # committed, and never to be answered
    second = await post(client, anna)
    assert (second.json()["word"], second.headers["retry-after"]) == ("conflict", "1")
    runtime.advance(ABANDONED_S * 1000 + 1)
    third = await post(client, anna)
    assert (third.status_code, third.json()["word"], third.json()["temporary"]) == (409, "already_done", False)
    assert "retry-after" not in third.headers
    assert await effects(engines) == ["call 1"]
    counter.gate.set()
    assert (await first).status_code == 201
    assert (await post(client, anna)).json() == {"call": 1}, "it was not dead after all: then its answer is the answer"


async def test_a_call_that_was_taken_over_cannot_commit(
    client: httpx2.AsyncClient, counter: Counter, engines: Engines, runtime: TestRuntime, anna: dict[str, str]
) -> None:
    counter.effect, counter.gate_in_work = True, asyncio.Event()
    first = asyncio.create_task(post(client, anna))
    await wait_until(lambda: counter.calls == 1)
    first_gate, counter.gate_in_work = counter.gate_in_work, None
    runtime.advance(ABANDONED_S * 1000 + 1)
    assert (await post(client, anna)).json() == {"call": 2}
    first_gate.set()
    answer = await first
    assert (answer.status_code, answer.json()["word"]) == (409, "conflict")
    assert await effects(engines) == ["call 2"]
    assert (await post(client, anna)).json() == {"call": 2}


async def test_a_failure_after_the_commit_does_not_let_it_happen_again(
    client: httpx2.AsyncClient, counter: Counter, engines: Engines, runtime: TestRuntime, anna: dict[str, str]
) -> None:
    counter.effect, counter.failure = True, RuntimeError("boom")
    assert (await post(client, anna)).status_code == 500
    runtime.advance(ABANDONED_S * 1000 + 1)
    assert (await post(client, anna)).json()["word"] == "already_done"
    assert await effects(engines) == ["call 1"]


async def test_many_at_once_have_one_effect(client: httpx2.AsyncClient, counter: Counter, anna: dict[str, str]) -> None:
    answers = await asyncio.gather(*(post(client, anna, a=1) for _ in range(10)))
    assert counter.calls == 1
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) <= {201, 409}
    assert {answer.content for answer in answers if answer.status_code == 201} == {b'{"call":1,"a":1}'}


@pytest.mark.parametrize("how", ["status", "exception"])
async def test_a_failure_of_ours_is_not_kept(client: httpx2.AsyncClient, counter: Counter, anna: dict[str, str], how: str) -> None:
    counter.status = 503 if how == "status" else 201
    counter.failure = RuntimeError("boom") if how == "exception" else None
    assert (await post(client, anna)).status_code == (503 if how == "status" else 500)
    counter.status, counter.failure = 201, None
    assert (await post(client, anna)).json() == {"call": 2}


async def test_an_answer_with_a_secret_is_kept_nowhere(
    client: httpx2.AsyncClient, counter: Counter, engines: Engines, anna: dict[str, str]
) -> None:
    counter.headers = {"Cache-Control": "no-store"}
    await post(client, anna)
    assert await count_records(engines) == 0


@pytest.mark.parametrize("key", ["", "x" * 129, "a\x7fb"])
async def test_a_key_that_is_none_is_refused(client: httpx2.AsyncClient, counter: Counter, anna: dict[str, str], key: str) -> None:
    assert (await post(client, anna, key=key)).status_code == 400
    assert counter.calls == 0


async def test_records_go_after_their_time(
    client: httpx2.AsyncClient, counter: Counter, engines: Engines, runtime: TestRuntime, anna: dict[str, str]
) -> None:
    await post(client, anna, key="old")
    runtime.advance(engines.settings.idempotency_key_ttl_s * 1000 - 3_600_000)
    anna = as_(engines, "anna")
    await post(client, anna, key="new")
    runtime.advance(3_599_999)
    await expire_idempotency_records(engines)
    assert await count_records(engines) == 2
    runtime.advance(2)
    await expire_idempotency_records(engines)
    assert await count_records(engines) == 1
    async with engines.sql.read() as session:
        assert list(await session.scalars(select(IdempotencyRecord.key))) == ["new"]


async def test_reading_needs_no_key(client: httpx2.AsyncClient, engines: Engines, anna: dict[str, str]) -> None:
    answer = await client.get("/api/v1/me", headers={**anna, "Idempotency-Key": "k1"})
    assert answer.status_code == 200
    assert await count_records(engines) == 0
