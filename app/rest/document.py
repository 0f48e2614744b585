"""The OpenAPI 3.1 document of all routes, and the page that shows it.

FastAPI writes what it sees in the signatures; added here are the commands' schemas (from the wire contract), problem details, the right
that each route needs, security and `Idempotency-Key`. The page at `/docs` is plain HTML: FastAPI's own loads its scripts from a CDN.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, cast

import msgspec
from fastapi import APIRouter, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from starlette.responses import HTMLResponse, Response

from app.core.registry import Command
from app.protocol.codes import ERRORS
from app.rest.access import NeedsRight, public
from app.rest.doc_shell import STYLE, html_page, html_table, json_block, paragraphs
from app.rest.problems import MEDIA_TYPE, Problem

SCHEMAS = "#/components/schemas/"
INTRODUCTION = """The REST control panel of Jishi, and a twin of every command of the websocket.

Send a token as `Authorization: Bearer <token>`: one that your backend signed, one from `/api/v1/sign-in`, or an API key (`jsk_...`).
Errors are problem details (RFC 9457) with the same words and numbers as over the websocket. Lists are paged by an opaque cursor.
Whatever changes something takes an `Idempotency-Key`. Times are RFC 3339 in UTC, money is in minor units.
"""
_CHANGING = frozenset({"post", "put", "patch", "delete"})

router = APIRouter(include_in_schema=False)


def install_document(app: FastAPI, *, commands: Iterable[Command], tags: Mapping[str, str]) -> None:
    """Makes `app.openapi()` the whole document; built once, when it is first asked for."""
    listed = list(commands)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = build_document(app, listed, tags)
        return app.openapi_schema

    app.openapi = openapi


def build_document(app: FastAPI, commands: Iterable[Command], tags: Mapping[str, str]) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary="Live commerce over websockets and REST",
        description=INTRODUCTION,
        routes=app.routes,
        tags=[{"name": name, "description": text} for name, text in tags.items()],
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    components: dict[str, Any] = document.setdefault("components", {})
    components["schemas"] = _merged_schemas(components.get("schemas", {}), commands)
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "a signed token (JWT), or an API key `jsk_...`"}
    }
    components["responses"] = {"Problem": {"description": "problem details", "content": {MEDIA_TYPE: {"schema": _reference("Problem")}}}}
    components["parameters"] = {"IdempotencyKey": _IDEMPOTENCY_KEY}
    rights = {(route.path, method.lower()): route.right for route in api_routes(app) for method in route.methods}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(operation, method, rights.get((path, method)))
    return document


class ApiRoute(msgspec.Struct, frozen=True):
    """A route as the document and the rights table see it."""

    path: str
    methods: frozenset[str]
    right: str | None  # None: public, or forgotten
    public: bool


def api_routes(app: FastAPI) -> Iterator[ApiRoute]:
    """Every route that is in the document."""
    for context in iter_route_contexts(app.routes):
        endpoint = getattr(context, "endpoint", None)
        if endpoint is None or not getattr(context, "include_in_schema", False):
            continue
        right = getattr(endpoint, "__jishi_right__", None) or _right_of(getattr(context, "dependant", None))
        methods = frozenset(cast("Iterable[str]", getattr(context, "methods", None) or ()))
        yield ApiRoute(str(getattr(context, "path", "")), methods, right, bool(getattr(endpoint, "__jishi_public__", False)))


def _right_of(dependant: Dependant | None) -> str | None:
    for needed in dependant.dependencies if dependant else ():
        if isinstance(needed.call, NeedsRight):
            return needed.call.right
    return None


def _merged_schemas(schemas: dict[str, Any], commands: Iterable[Command]) -> dict[str, Any]:
    """FastAPI's schemas and those of the commands. Two different schemas of one name are a mistake, told when the document is built."""
    structs = {struct for command in commands for struct in (command.request, command.reply)}
    ordered = sorted(structs, key=lambda struct: struct.__name__)
    _, components = msgspec.json.schema_components(ordered, ref_template=SCHEMAS + "{name}")
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    problem = Problem.model_json_schema(ref_template=SCHEMAS + "{model}")
    ours = {**components, **problem.pop("$defs", {}), "Problem": problem}
    both = sorted(schemas.keys() & ours.keys())
    if both:
        raise ValueError(f"REST models and wire types share the names {', '.join(both)}: rename the REST models")
    return dict(sorted({**schemas, **ours}.items()))


def _complete(operation: dict[str, Any], method: str, right: str | None) -> None:
    responses: dict[str, Any] = operation["responses"]
    responses.pop("422", None)  # a request of the wrong shape is the problem `bad_request`, 400
    responses["default"] = {"$ref": "#/components/responses/Problem"}
    operation["security"] = [{"bearer": []}] if right else [{}, {"bearer": []}]
    if right:
        operation["x-right"] = right
        sentence = f"Needs the right `{right}`."
        if sentence not in operation.get("description", ""):
            operation["description"] = "\n\n".join(part for part in (operation.get("description", ""), sentence) if part)
    if method in _CHANGING and right:
        operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/IdempotencyKey"})


def _reference(name: str) -> dict[str, str]:
    return {"$ref": SCHEMAS + name}


_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "any string of your choice: the same key and content give the same answer with no second effect. `already_done`: the "
    "answer was lost with the process that gave it; look at what the call changed",
    "schema": {"type": "string", "minLength": 1, "maxLength": 128},
}


# --- the page -----------------------------------------------------------------------------------------------------------------------


async def _document(request: Request) -> dict[str, Any]:
    """The first time takes half a second of a processor: apart, so that no viewer of this process waits for it."""
    return await asyncio.to_thread(request.app.openapi)


@router.get("/openapi.json")
@public
async def openapi_json(request: Request) -> Response:
    return Response(msgspec.json.encode(await _document(request)), media_type="application/json")


@router.get("/docs")
@public
async def docs(request: Request) -> HTMLResponse:
    document = await _document(request)
    return html_page(f"{document['info']['title']} API", render_page(document), at="/docs")


@router.get("/docs/style.css")
@public
async def style() -> Response:
    return Response(STYLE, media_type="text/css")


def render_page(document: Mapping[str, Any]) -> str:
    by_tag: dict[str, list[str]] = {tag["name"]: [] for tag in document.get("tags", [])}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            by_tag.setdefault((operation.get("tags") or ["other"])[0], []).append(_operation(document, path, method, operation))
    texts = {tag["name"]: tag["description"] for tag in document.get("tags", [])}
    sections = [
        f'<section id="{escape(tag)}"><h2>{escape(tag)}</h2><p>{escape(texts.get(tag, ""))}</p>{"".join(operations)}</section>'
        for tag, operations in by_tag.items()
        if operations
    ]
    links = " · ".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag, operations in by_tag.items() if operations)
    rows = (
        (f"error-{row.word}", [str(row.number), row.word, str(row.http_status), "yes" if row.temporary else "no", escape(row.issued_when)])
        for row in ERRORS
    )
    table = html_table("Errors", ["number", "word", "HTTP", "try again", "issued when"], rows)
    return (
        f"<h1>{escape(document['info']['title'])} API</h1>{paragraphs(INTRODUCTION)}"
        '<p>For machines: <a href="/openapi.json">openapi.json</a> (OpenAPI 3.1). The websocket has a document of its own: '
        '<a href="/docs/realtime">Real time</a>, <a href="/asyncapi.json">asyncapi.json</a> (AsyncAPI 3.0).</p>'
        f'<nav class="sections" aria-label="Sections">{links} · <a href="#errors">errors</a></nav>{"".join(sections)}'
        f'<section id="errors"><h2>errors</h2>{table}</section>'
    )


def _operation(document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> str:
    parts = [f"<p>{escape(operation.get('description', ''))}</p>"]
    parameters = [parameter for parameter in operation.get("parameters", []) if "name" in parameter]
    if parameters:
        items = "".join(
            f"<li><code>{escape(parameter['name'])}</code> in {escape(parameter['in'])}: {escape(parameter.get('description', ''))}</li>"
            for parameter in parameters
        )
        parts.append(f"<ul>{items}</ul>")
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body:
        parts.append(f"<h4>body</h4>{_schema_block(document, body)}")
    for status, response in operation["responses"].items():
        content = response.get("content", {}).get("application/json")
        if content:
            parts.append(f"<h4>{escape(status)}</h4>{_schema_block(document, content)}")
    summary = f"<code>{method.upper()} {escape(path)}</code> {escape(operation.get('summary', ''))}"
    return f"<details><summary>{summary}</summary>{''.join(parts)}</details>"


def _schema_block(document: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    if "example" in content:
        return json_block(content["example"])
    schema = content.get("schema", {})
    name = str(schema.get("$ref", "")).removeprefix(SCHEMAS)
    return json_block(document["components"]["schemas"].get(name, schema))
