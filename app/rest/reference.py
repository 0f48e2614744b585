"""docs/reference.md: channels, events, requests, errors and codes as tables. Made from the AsyncAPI document, so that the two say the same.

`jishi reference` prints it, `make reference` writes the file, and a test fails when the file says something else than the registry.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.rest.asyncapi import CONNECTION

Document = Mapping[str, Any]

_HEAD = """# Reference of the wire

Made from the registry of commands and events by `make reference`; do not edit it by hand. For machines there are `/asyncapi.json`
(AsyncAPI 3.0) and `/openapi.json` (the REST twins), for people with a running product `/docs/realtime`, which also shows every schema
and example. [connect.md](connect.md) takes you through it step by step; [sampling.md](sampling.md) tells which chat lines are shown.
"""


def render_reference(document: Document) -> str:
    channels = [name for name in document["channels"] if name != CONNECTION]
    parts = [
        _HEAD,
        "## Channels\n",
        _table(["channel", "lane", "who may subscribe", "what it is"], (_channel_row(document["channels"][name]) for name in channels)),
        *(_events(document, name) for name in channels),
        "## Requests\n",
        "Send them as RPC with the SDK, or as `POST` to the REST twin: `order.place` is `/api/v1/order/place`. *Key*: it takes `key`,\n"
        "your idempotency key; the same key and body give the same answer with no second effect. *A second*: how often one viewer may\n"
        "call it over one node's websockets, twice that in a burst; above it: error 111.\n",
        *(_requests(document, tag["name"]) for tag in document["info"]["tags"]),
        _codes(document),
    ]
    return "\n".join(parts)


def _channel_row(channel: Document) -> list[str]:
    right = f"the right `{channel['x-right']}`" if channel["x-right"] else "nobody: the server does it at connect"
    return [f"`{channel['address']}`", channel["x-lane"], right, channel["title"]]


def _events(document: Document, name: str) -> str:
    channel = document["channels"][name]
    rows: list[list[str]] = []
    for tag in channel["messages"]:
        message = document["components"]["messages"][tag]
        schema = document["components"]["schemas"][message["payload"]["$ref"].rpartition("/")[2]]
        fields = [f"`{field}`" for field in schema["properties"] if field not in {"type", "at", "v"}]
        reading = " (a reading: kept nowhere)" if message.get("x-reading") else ""
        rows.append([f"`{tag}`", message["summary"] + reading, " ".join(fields)])
    table = _table(["event", "what happened", "fields, beside `type`, `at`, `v`"], rows)
    return f"### Events of `{channel['address']}`\n\n{channel['description']}\n\n{table}"


def _requests(document: Document, namespace: str) -> str:
    named = {name: one for name, one in document["operations"].items() if {"name": namespace} in one.get("tags", [])}
    table = _table(
        ["method", "what it does", "needs", "key", "a second", "outcomes"], (_request_row(name, one) for name, one in named.items())
    )
    meanings = [
        [f"`{name}`", f"`{row['word']}`", row["meaning"]] for name, one in named.items() for row in one["x-outcomes"] if row["meaning"]
    ]
    explained = _table(["method", "outcome", "meaning"], meanings) if meanings else ""
    return "\n".join(part for part in (f"### {namespace}\n", table, explained) if part)


def _request_row(name: str, operation: Document) -> list[str]:
    key = "yes" if operation["x-idempotency-key"] else ""
    rate = f"{operation['x-calls-per-s-max']:g}"
    words = " ".join(f"`{row['word']}`" for row in operation["x-outcomes"])
    return [f"`{name}`", operation["summary"].rstrip("."), f"`{operation['x-right']}`", key, rate, words]


def _codes(document: Document) -> str:
    errors = (
        [str(row["code"]), f"`{row['word']}`", str(row["http_status"]), "yes" if row["temporary"] else "no", row["issued_when"]]
        for row in document["x-errors"]
    )
    closes = ([str(row["code"]), row["reason"], row["issued_when"], row["sdks"]] for row in document["x-close-codes"])
    ends = ([str(row["code"]), row["issued_when"], row["sdks"]] for row in document["x-unsubscribe-codes"])
    limits = ([f"`{row['name']}`", str(row["value"]), row["text"]] for row in document["x-limits"])
    return "\n".join(
        [
            "## Errors\n",
            "In a reply's `error`: `code`, `message`, `temporary`. REST answers the same as problem details (RFC 9457).\n",
            _table(["code", "word", "HTTP", "try again", "issued when"], errors),
            "## Close codes\n",
            "A disconnect push with the code comes first, then the websocket closes with it.\n",
            _table(["code", "reason", "issued when", "what SDKs do"], closes),
            "## Unsubscribe codes\n",
            "One subscription ends or starts again; the connection stays.\n",
            _table(["code", "issued when", "what SDKs do"], ends),
            "## Limits\n",
            "As a product has them that changes nothing; each is a setting, `JISHI_` and the name in capitals.\n",
            _table(["setting", "value", "what it bounds"], limits),
        ]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        assert len(row) == len(head), f"{row} does not fit under {head}"
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")
    return "\n".join(lines) + "\n"
