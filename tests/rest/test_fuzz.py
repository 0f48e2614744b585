"""No route answers 500 to anything that can be generated: right and wrong types, long and odd texts, missing and unknown fields.

Examples are drawn from the OpenAPI document itself, so a new route is fuzzed without a line here. A 503 would mean that a request can push
an engine away, and is a failure too.
"""

import json
import re
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from app.storage.work import Engines
from tests.rest.people import as_
from tests.support.builders import open_room

EXAMPLES = 12  # a route; enough that each field meets a wrong type, an extreme and an odd text

ODD_TEXTS = [
    "",
    " ",
    "x" * 300,
    "%",
    "'; drop table staff; --",
    "../..",
    "{room}",
    "\x00",
    "\ud800",
    "茶",
    "\u202e",
    "🍵" * 20,
    "-",
    "a-b",
    "NaN",
    "*",
]
ODD_NUMBERS = [0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0]
ODD_VALUES = [None, True, [], {}, [[]], {"": None}, *ODD_TEXTS, *ODD_NUMBERS]


def odd_value() -> st.SearchStrategy[Any]:
    return st.sampled_from(ODD_VALUES)


def value_of(schema: dict[str, Any], document: dict[str, Any], known: list[str], depth: int = 0) -> st.SearchStrategy[Any]:
    """Mostly what the schema asks for, with the ids of a real room among the texts; now and then something else."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if depth > 6:
        return odd_value()
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return st.one_of([value_of(part, document, known, depth + 1) for part in schema[union]])
    if "enum" in schema or "const" in schema:
        return st.one_of(st.sampled_from(schema.get("enum", [schema.get("const")])), odd_value())
    match schema.get("type"):
        case "object":
            return st.one_of(object_of(schema, document, known, depth), object_of(schema, document, known, depth), odd_value())
        case "array":
            return st.one_of(st.lists(value_of(schema.get("items", {}), document, known, depth + 1), max_size=3), odd_value())
        case "string":
            return st.one_of(st.sampled_from(known), st.text(max_size=40), st.sampled_from(ODD_TEXTS))
        case "integer" | "number":
            return st.one_of(st.integers(0, 100), st.sampled_from(ODD_NUMBERS), odd_value())
        case "boolean":
            return st.one_of(st.booleans(), odd_value())
        case _:
            return odd_value()


def object_of(schema: dict[str, Any], document: dict[str, Any], known: list[str], depth: int) -> st.SearchStrategy[Any]:
    properties = {name: value_of(part, document, known, depth + 1) for name, part in schema.get("properties", {}).items()}
    required = {name: properties[name] for name in schema.get("required", []) if name in properties}
    optional = {name: part for name, part in properties.items() if name not in required}
    return st.fixed_dictionaries(required, optional=optional)


def body_of(operation: dict[str, Any], document: dict[str, Any], known: list[str]) -> st.SearchStrategy[bytes | None]:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return st.one_of(st.none(), st.binary(max_size=20))
    examples = [content["example"]] if "example" in content else []
    values = st.one_of(value_of(content["schema"], document, known), *(st.just(example) for example in examples))
    return st.one_of(values.map(lambda value: json.dumps(value).encode()), st.binary(max_size=20))


def url_of(path: str, operation: dict[str, Any], known: list[str]) -> st.SearchStrategy[str]:
    part = st.one_of(st.sampled_from(known), st.sampled_from(known), st.text(max_size=20), st.sampled_from(ODD_TEXTS))
    names = re.findall(r"\{(\w+)\}", path)
    queries = [parameter["name"] for parameter in operation.get("parameters", []) if parameter.get("in") == "query"]

    def build(values: tuple[list[str], dict[str, str]]) -> str:
        parts, query = values
        filled = path
        for name, value in zip(names, parts, strict=True):
            filled = filled.replace(f"{{{name}}}", quote(value, safe="", errors="surrogatepass") or "x")
        text = "&".join(f"{name}={quote(value, safe='', errors='surrogatepass')}" for name, value in query.items())
        return f"{filled}?{text}" if text else filled

    numbers = st.sampled_from(["0", "1", "200", "201", "-1", "1e9", "9" * 40])
    query = st.dictionaries(st.sampled_from(queries), st.one_of(part, numbers), max_size=3) if queries else st.just(dict[str, str]())
    return st.tuples(st.lists(part, min_size=len(names), max_size=len(names)), query).map(build)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_no_route_answers_500_to_generated_input(client: httpx2.AsyncClient, app: FastAPI, engines: Engines) -> None:
    engines.settings.guests_per_address_per_min = engines.settings.sign_in_attempts_per_min = 10**6
    room = await open_room(engines)
    known = [room.room_id, room.session_id, *room.offer_ids, f"{room.room_id}-nothing", "nothing"]
    document = app.openapi()
    headers = {**as_(engines, "root", "operator"), "Content-Type": "application/json"}
    failures: dict[str, str] = {}
    answered: dict[int, int] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for url, body in draws(st.tuples(url_of(path, operation, known), body_of(operation, document, known))):
                answer = await client.request(method.upper(), url, content=body, headers=headers)
                answered[answer.status_code // 100] = answered.get(answer.status_code // 100, 0) + 1
                if answer.status_code >= 500:
                    failures[f"{method.upper()} {path}"] = f"{url[:200]} {body!r:.300} -> {answer.status_code} {answer.text[:200]}"
    assert failures == {}
    assert answered[2] > len(document["paths"])  # the input is not all nonsense: it gets past the checks of shape


def draws(strategy: st.SearchStrategy[tuple[str, bytes | None]]) -> list[tuple[str, bytes | None]]:
    """The same examples in every run: Hypothesis only generates here, the calls need the test's own event loop."""
    found: list[tuple[str, bytes | None]] = []

    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.generate],
        database=None,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example: tuple[str, bytes | None]) -> None:
        found.append(example)

    collect()
    return found
