"""The web process: probes, problem details, headers, limits, the document."""

import asyncio
import json
import re
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from starlette.types import Message, Receive, Scope, Send

from app.core.errors import AppError
from app.core.settings import Settings
from app.main import create_app
from app.protocol.codes import SERVICE_UNAVAILABLE, TOO_MANY_REQUESTS
from app.rest.access import public
from app.rest.dispatch import RETRY_AFTER_MS, app_error
from app.rest.document import api_routes
from app.rest.middleware import WholeBody
from app.storage.work import Engines
from tests.rest.people import as_, token_for

PROBLEM = "application/problem+json"


async def test_probes_answer(client: httpx2.AsyncClient, app: FastAPI) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    ready = await client.get("/readyz")
    assert ready.status_code == 200
    weak = "the sales engine has appendfsync everysec, not always: a power cut takes the last acknowledged holds and orders with it"
    checks = {"sales": "ok", "fan-out": "ok", "sql": "ok", "bus": "ok"}
    assert ready.json() == {"status": "ok", "checks": checks, "warnings": [weak]}
    app.state.draining = True
    draining = await client.get("/readyz")
    assert draining.status_code == 503
    assert draining.json()["checks"]["process"] == "draining"


async def test_readiness_names_the_engine_that_is_away(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1"}))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://testserver") as client:
        answer = await client.get("/readyz")
    await app.state.engines.close()
    assert answer.status_code == 503
    checks = {"sales": "ConnectionError", "fan-out": "ConnectionError", "sql": "ok", "bus": "lost"}
    assert answer.json() == {"status": "unavailable", "checks": checks, "warnings": []}


async def test_every_metric_is_ours(client: httpx2.AsyncClient) -> None:
    await client.get("/healthz")
    text = (await client.get("/metrics")).text
    names = set(re.findall(r"^([a-zA-Z_:]+)", text, re.MULTILINE))
    assert {name for name in names if not name.startswith("jishi_")} == set()
    assert "jishi_deliveries_total" in text
    assert "jishi_process_resident_memory_bytes" in names
    assert re.search(r'jishi_requests_total\{method="GET",route="/healthz",status="2xx"\} [1-9]', text)


async def test_a_path_that_a_client_made_up_is_no_label(client: httpx2.AsyncClient) -> None:
    await client.get("/made-up-by-a-client")
    assert "made-up" not in (await client.get("/metrics")).text


async def test_a_guest_can_say_who_he_is(client: httpx2.AsyncClient) -> None:
    guest = await client.post("/api/v1/guests", json={"name": "Mei"})
    assert guest.status_code == 201
    me = await client.get("/api/v1/me", headers={"Authorization": f"Bearer {guest.json()['token']}"})
    assert me.json()["kind"] == "guest"
    assert me.json()["name"] == "Mei"
    assert (await client.post("/api/v1/guests")).status_code == 201


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "word"),
    [
        ("GET", "/api/v1/nothing", None, 404, "not_found"),
        ("PUT", "/api/v1/me", None, 405, "method_not_found"),
        ("GET", "/api/v1/me", None, 401, "unauthorized"),
        ("POST", "/api/v1/sign-in", b"{", 400, "bad_request"),
        ("POST", "/api/v1/sign-in", b"[]", 400, "bad_request"),
        ("POST", "/api/v1/sign-in", b'{"login": 1, "password": "x"}', 400, "bad_request"),
        ("POST", "/api/v1/sign-in", b'{"login": "a\\u0000", "password": "x"}', 400, "bad_request"),
        ("POST", "/api/v1/sign-in", b'{"login": "a\\ud800", "password": "x"}', 400, "bad_request"),
        ("POST", "/api/v1/sign-in", b'{"login": "\xff", "password": "x"}', 400, "bad_request"),
        ("GET", "/api/v1/me?x=%00", None, 400, "bad_request"),
        ("GET", "/api/v1/%00", None, 400, "bad_request"),
        ("POST", "/api/v1/sign-in", b"x" * (256 * 1024 + 1), 413, "limit_exceeded"),
        ("GET", "/api/v1/staff", None, 401, "unauthorized"),
    ],
)
async def test_errors_are_problem_details(
    client: httpx2.AsyncClient, method: str, path: str, body: bytes | None, status: int, word: str
) -> None:
    answer = await client.request(method, path, content=body, headers={"Content-Type": "application/json"})
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["word"]) == (status, status, word)
    assert answer.headers["content-type"] == PROBLEM
    assert problem["instance"] == httpx2.URL(path).path
    assert problem["type"] == f"/docs#error-{word}"
    assert set(problem) - {"fields"} == {"type", "title", "status", "detail", "instance", "code", "word", "temporary"}


async def test_wrong_fields_are_named(client: httpx2.AsyncClient) -> None:
    problem = (await client.post("/api/v1/sign-in", json={"login": "a", "pasword": "x"})).json()
    assert {field["field"] for field in problem["fields"]} == {"body.password", "body.pasword"}


async def test_a_refusal_keeps_the_methods_that_are_allowed(client: httpx2.AsyncClient) -> None:
    assert (await client.put("/api/v1/me")).headers["allow"] == "GET"


async def test_a_body_without_a_length_is_cut_off_at_the_limit(client: httpx2.AsyncClient, engines: Engines) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while sent < 10 * engines.settings.body_bytes_max:
            sent += 1024
            yield b"x" * 1024

    answer = await client.post("/api/v1/sign-in", content=endless())
    assert answer.status_code == 413
    assert sent == engines.settings.body_bytes_max + 1024


async def test_a_body_that_does_not_come_is_not_awaited_for_ever() -> None:
    """The server has no time-out for bodies: a length in the head and nothing behind it kept connection and task until the client went."""
    sent: list[Message] = []

    async def unreached(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("there is no whole body")

    async def receive() -> Message:
        if not sent:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [(b"content-length", b"9")]}
    await WholeBody(unreached, bytes_max=10, timeout_s=0.01)(scope, receive, send)
    assert sent[0]["status"] == 400
    assert json.loads(sent[1]["body"])["word"] == "bad_request"


@pytest.mark.parametrize("header", ["Bearer nonsense", "Basic dTpw", "Bearer", "Bearer  ", "nonsense", "Bearer jsk_1_2"])
async def test_a_wrong_token_is_refused_where_none_is_needed(client: httpx2.AsyncClient, header: str) -> None:
    answer = await client.get("/healthz", headers={"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["word"] == "unauthorized"


async def test_an_expired_token_says_so(client: httpx2.AsyncClient, engines: Engines, runtime: Any) -> None:
    headers = as_(engines, "anna")
    runtime.advance(3600_000)
    problem = (await client.get("/api/v1/me", headers=headers)).json()
    assert (problem["status"], problem["code"], problem["word"]) == (401, 109, "token_expired")


async def test_every_answer_has_security_headers_and_an_id(client: httpx2.AsyncClient) -> None:
    for path in ("/healthz", "/api/v1/nothing", "/docs"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        policy = headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert len(headers["x-request-id"]) == 26
    kept = await client.get("/healthz", headers={"X-Request-Id": "proxy-7"})
    assert kept.headers["x-request-id"] == "proxy-7"
    replaced = await client.get("/healthz", headers={"X-Request-Id": "bad id; drop"})
    assert len(replaced.headers["x-request-id"]) == 26


async def test_a_host_header_cannot_write_into_the_policy(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/healthz", headers={"Host": "evil; script-src *"})
    assert "evil" not in answer.headers["content-security-policy"]
    named = await client.get("/healthz", headers={"Host": "shop.example:8443"})
    assert "connect-src 'self' ws://shop.example:8443 wss://shop.example:8443;" in named.headers["content-security-policy"]


async def test_what_nobody_foresaw_is_internal_and_tells_nothing(engines: Engines) -> None:
    app = create_app(engines=engines)

    @app.get("/boom")
    @public
    async def boom() -> None:
        raise RuntimeError("the secret is 42")

    @app.get("/busy")
    @public
    async def busy() -> None:
        raise AppError(TOO_MANY_REQUESTS, "later", retry_after_ms=1001)

    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://testserver") as client:
        failed = await client.get("/boom")
        later = await client.get("/busy")
    assert failed.status_code == 500
    assert failed.json()["code"] == 100
    assert failed.json()["temporary"] is True
    assert "42" not in failed.text
    assert failed.headers["content-type"] == PROBLEM
    assert later.status_code == 429
    assert later.headers["retry-after"] == "2"


async def test_other_origins_read_answers_only_when_they_are_allowed(engines: Engines) -> None:
    origin = {"Origin": "https://shop.example"}
    for allowed, expected in (("", None), ("https://shop.example", "https://shop.example")):
        engines.settings.allowed_origins = allowed
        app = create_app(engines=engines)
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://testserver") as client:
            answer = await client.get("/healthz", headers=origin)
            assert answer.headers.get("access-control-allow-origin") == expected


# --- the document -------------------------------------------------------------------------------------------------------------------


async def test_every_route_names_its_right_or_says_that_it_is_public(app: FastAPI) -> None:
    forgotten = [(route.path, sorted(route.methods)) for route in api_routes(app) if route.right is None and not route.public]
    assert forgotten == []
    rights = app.state.engines.registry.rights
    assert {route.right for route in api_routes(app) if route.right} <= set(rights)


async def test_the_document_is_whole(client: httpx2.AsyncClient, app: FastAPI) -> None:
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    missing = [reference for reference in references(document) if resolve(document, reference) is None]
    assert missing == []
    documented = {(path, method.upper()) for path, operations in document["paths"].items() for method in operations}
    assert documented == {(route.path, method) for route in api_routes(app) for method in route.methods}
    ids = [operation["operationId"] for operations in document["paths"].values() for operation in operations.values()]
    assert len(ids) == len(set(ids))
    described = {tag["name"] for tag in document["tags"]}
    assert {tag for operations in document["paths"].values() for operation in operations.values() for tag in operation["tags"]} <= described
    for operations in document["paths"].values():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert operation["responses"]["default"] == {"$ref": "#/components/responses/Problem"}


async def test_every_command_has_a_twin_with_its_schema_and_example(client: httpx2.AsyncClient, app: FastAPI) -> None:
    document = (await client.get("/openapi.json")).json()
    for command in app.state.engines.registry.commands.values():
        operation = document["paths"][command.path]["post"]
        content = operation["requestBody"]["content"]["application/json"]
        assert content["schema"] == {"$ref": f"#/components/schemas/{command.request.__name__}"}
        assert content.get("example", {}) == dict(command.example)
        assert operation["x-right"] == command.right


async def test_the_page_shows_every_route_without_a_script(client: httpx2.AsyncClient, app: FastAPI) -> None:
    page = await client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "<script" not in page.text
    assert "//cdn" not in page.text
    for route in api_routes(app):
        for method in route.methods:
            assert f"<code>{method} {route.path}</code>" in page.text
    assert 'id="error-key_reused"' in page.text
    assert (await client.get("/docs/style.css")).headers["content-type"].startswith("text/css")


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(references(value) for value in node.values()))
    return set[str]().union(*(references(value) for value in node)) if isinstance(node, list) else set()


def resolve(document: Any, reference: str) -> Any:
    node = document
    for part in reference.removeprefix("#/").split("/"):
        node = node.get(part) if isinstance(node, dict) else None
    return node


async def test_a_twin_answers_as_the_command_does(client: httpx2.AsyncClient, engines: Engines) -> None:
    headers = as_(engines, "anna")
    assert (await client.post("/api/v1/wallet/balance", headers=headers)).json() == {"currency": "CNY", "available_minor": 0}
    wrong = await client.post("/api/v1/wallet/balance", json={"surprise": 1}, headers=headers)
    assert (wrong.status_code, wrong.json()["word"]) == (400, "bad_request")
    assert "surprise" in wrong.json()["detail"]
    assert (await client.post("/api/v1/wallet/balance")).status_code == 401
    read_only = {"Authorization": f"Bearer {token_for(engines, 'sun', 'supervisor')}"}
    assert (await client.post("/api/v1/wallet/balance", headers=read_only)).status_code == 403


async def test_a_lock_that_is_not_to_be_had_is_temporary(engines: Engines) -> None:
    """Also a deadlock, and whatever else PostgreSQL gives up for no fault of the transaction: clients come again with the same key."""
    lock = text("select pg_advisory_xact_lock(1)")
    async with engines.sql.begin() as first, engines.sql.begin() as second:
        await first.execute(lock)
        await second.execute(text("set local lock_timeout = 1"))
        with pytest.raises(DBAPIError) as failure:
            await second.execute(lock)
        await second.rollback()
    error = app_error(failure.value)
    assert (error.code, error.retry_after_ms) == (SERVICE_UNAVAILABLE, RETRY_AFTER_MS)
