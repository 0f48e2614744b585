"""The AsyncAPI document, served and shown: `/asyncapi.json` for machines, `/docs/realtime` for people.

The page is made from the document alone, so it cannot say anything else. Both are built once a process, off the event loop.
"""

import asyncio
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Request
from starlette.responses import HTMLResponse, Response

from app.rest.access import public
from app.rest.asyncapi import CONNECTION, PROTOCOL_COMMANDS
from app.rest.doc_shell import html_page, html_table, inline, json_block, paragraphs

Document = Mapping[str, Any]

router = APIRouter(include_in_schema=False)


class Realtime:
    """The document of one process, and what is made from it: each built when it is first asked for."""

    def __init__(self, build: Callable[[], Document]) -> None:
        self._build = build
        self._lock = asyncio.Lock()
        self._document: Document | None = None

    async def document(self) -> Document:
        async with self._lock:
            if self._document is None:
                self._document = await asyncio.to_thread(self._build)
        return self._document


def install_realtime(app: FastAPI, build: Callable[[], Document]) -> None:
    app.state.realtime = Realtime(build)


@router.get("/asyncapi.json")
@public
async def asyncapi_json(request: Request) -> Response:
    return Response(msgspec.json.encode(await request.app.state.realtime.document()), media_type="application/json")


@router.get("/docs/realtime")
@public
async def realtime(request: Request) -> HTMLResponse:
    document = await request.app.state.realtime.document()
    return html_page(document["info"]["title"], await asyncio.to_thread(render, document), at="/docs/realtime")


def render(document: Document) -> str:
    channels = [name for name in document["channels"] if name != CONNECTION]
    namespaces = [tag["name"] for tag in document["info"]["tags"]]
    ways = {
        "Channels": {f"channel-{name}": name for name in channels},
        "Requests": {name: name for name in namespaces} | {"protocol": "what an SDK does by itself"},
        "Codes": {"errors": "errors", "close-codes": "close codes", "limits": "limits"},
    }
    return "".join(
        [
            f"<h1>{escape(document['info']['title'])}</h1>",
            paragraphs(document["info"]["description"]),
            '<p>For machines: <a href="/asyncapi.json">asyncapi.json</a> (AsyncAPI 3.0). '
            '<a href="/docs/connect">Connect a phone</a> takes you through it step by step.</p>',
            _server(document),
            _contents(ways),
            *(_channel(document, name) for name in channels),
            *(_namespace(document, name) for name in namespaces),
            _protocol(document),
            _errors(document),
            _closes(document),
            _limits(document),
        ]
    )


def _contents(ways: Mapping[str, Mapping[str, str]]) -> str:
    lines = (
        f"<p>{escape(title)}: " + " · ".join(f'<a href="#{escape(anchor)}">{escape(text)}</a>' for anchor, text in links.items()) + "</p>"
        for title, links in ways.items()
    )
    return f'<nav class="sections" aria-label="Sections">{"".join(lines)}</nav>'


def _server(document: Document) -> str:
    [server] = document["servers"].values()
    address = f"{server['protocol']}://{server['host']}{server['pathname']}"
    codecs = ", ".join(f"<code>{escape(codec['subprotocol'])}</code> ({escape(codec['frames'])} frames)" for codec in server["x-codecs"])
    return _facts({"address": f"<code>{escape(address)}</code>", "subprotocols": codecs})


def _facts(facts: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{fact}</dd>" for name, fact in facts.items()) + "</dl>"


def _channel(document: Document, name: str) -> str:
    channel = document["channels"][name]
    right = channel["x-right"]
    facts = {
        "lane": escape(channel["x-lane"]),
        "who may subscribe": f"the right <code>{escape(right)}</code>" if right else "nobody: the server does it at connect",
    }
    if "x-snapshot" in channel:
        facts["snapshot"] = "the subscribe reply's <code>data</code>"
    messages = "".join(_event(document, document["components"]["messages"][tag], name) for tag in channel["messages"])
    snapshot = _schema_details(document, channel["x-snapshot"], "schema of the snapshot") if "x-snapshot" in channel else ""
    return (
        f'<section id="channel-{escape(name)}"><h2><code>{escape(channel["address"])}</code> {escape(channel["title"])}</h2>'
        f"<p>{inline(channel['description'])}</p>{_facts(facts)}{snapshot}{messages}</section>"
    )


def _event(document: Document, message: Document, channel: str) -> str:
    tag = message["name"]
    reading = "<p>A reading: it has no offset and is kept nowhere; only the newest matters.</p>" if message.get("x-reading") else ""
    return (
        f'<details id="{escape(channel)}-{escape(tag)}"><summary><code>{escape(tag)}</code> {inline(message["summary"])}</summary>'
        f"{reading}{json_block(message['examples'][0]['payload'])}{_schema_details(document, message['payload'])}</details>"
    )


def _namespace(document: Document, namespace: str) -> str:
    operations = [
        _request(document, name, operation)
        for name, operation in document["operations"].items()
        if {"name": namespace} in operation.get("tags", [])
    ]
    return f'<section id="{escape(namespace)}"><h2>Requests: {escape(namespace)}</h2>{"".join(operations)}</section>'


def _request(document: Document, name: str, operation: Document) -> str:
    facts: dict[str, str] = {}
    if "x-right" in operation:
        facts["needs the right"] = f"<code>{escape(operation['x-right'])}</code>"
        facts["idempotency key"] = "<code>key</code>" if operation["x-idempotency-key"] else "none needed: it changes nothing that counts"
        facts["calls a second"] = f"{operation['x-calls-per-s-max']:g}, twice that in a burst"
        facts["REST twin"] = f"<code>{escape(operation['x-rest'])}</code>"
    request, reply = (_resolved(document, reference) for reference in (operation["messages"][0], operation["reply"]["messages"][0]))
    words = operation.get("x-outcomes", [])
    rows = ((f"{name}-{row['word']}", [f"<code>{escape(row['word'])}</code>", inline(row["meaning"])]) for row in words)
    table = html_table(f"Outcomes of {name}", ["outcome", "meaning"], rows) if words else ""
    return (
        f'<details id="{escape(name)}"><summary><code>{escape(name)}</code> {inline(operation["summary"])}</summary>{_facts(facts)}'
        f"{_shown(document, request, 'request')}{_shown(document, reply, 'reply')}{table}</details>"
    )


def _shown(document: Document, message: Document, what: str) -> str:
    example = json_block(message["examples"][0]["payload"]) if "examples" in message else ""
    return f"<h3>{what}</h3>{example}{_schema_details(document, message['payload'], f'schema of the {what}')}"


def _schema_details(document: Document, reference: Document, title: str = "schema") -> str:
    return f"<details><summary>{escape(title)}</summary>{json_block(_resolved(document, reference))}</details>"


def _resolved(document: Document, value: Document) -> Document:
    while "$ref" in value:
        node: Any = document
        for part in value["$ref"].removeprefix("#/").split("/"):
            node = node[part]
        value = node
    return value


def _protocol(document: Document) -> str:
    requests = "".join(_request(document, name, document["operations"][name]) for name in PROTOCOL_COMMANDS)
    return f'<section id="protocol"><h2>What an SDK does by itself</h2>{requests}</section>'


def _errors(document: Document) -> str:
    rows = (
        (f"error-{row['word']}", [str(row["code"]), f"<code>{row['word']}</code>", _yes(row["temporary"]), escape(row["issued_when"])])
        for row in document["x-errors"]
    )
    table = html_table("Errors", ["code", "word", "try again", "issued when"], rows)
    return f'<section id="errors"><h2>Errors</h2><p>The same numbers and words as over REST.</p>{table}</section>'


def _closes(document: Document) -> str:
    rows = (
        (f"close-{row['code']}", [str(row["code"]), escape(row["reason"]), inline(row["issued_when"]), escape(row["sdks"])])
        for row in document["x-close-codes"]
    )
    closes = html_table("Close codes", ["code", "reason", "issued when", "what SDKs do"], rows)
    ends = ((f"unsubscribe-{row['code']}", [str(row["code"]), *map(escape, _texts(row))]) for row in document["x-unsubscribe-codes"])
    unsubscribes = html_table("Unsubscribe codes", ["code", "issued when", "what SDKs do"], ends)
    return (
        f'<section id="close-codes"><h2>Close codes</h2>{closes}<h3>Unsubscribe codes</h3>'
        f"<p>One subscription ends or starts again; the connection stays.</p>{unsubscribes}</section>"
    )


def _texts(row: Document) -> tuple[str, str]:
    return row["issued_when"], row["sdks"]


def _limits(document: Document) -> str:
    rows = (("", [f"<code>{escape(row['name'])}</code>", str(row["value"]), inline(row["text"])]) for row in document["x-limits"])
    return f'<section id="limits"><h2>Limits</h2>{html_table("Limits", ["setting", "value", "what it bounds"], rows)}</section>'


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"
