"""The AsyncAPI 3.0 document of the websocket: made from the registry of commands, the catalogue of channels and events, and the codes.

It is written from the phone's side, as whoever builds an app reads it: `receive` is what arrives at the client, `send` is what it asks,
and each request has its reply. A message's payload is the application's JSON, the same bytes in both codecs; what the protocol wraps around
it (id, method, channel, offset) is described as the message's headers, since every client SDK does the wrapping.
What AsyncAPI has no word for stands in `x-` fields: errors, close codes, rights, idempotency keys, outcomes, limits. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from app import __version__
from app.core.registry import Command, Registry
from app.core.settings import Settings
from app.protocol import messages
from app.protocol.catalogue import CHANNELS, READINGS, ChannelRow, what_sdks_do
from app.protocol.codec import Codec
from app.protocol.codes import CLOSES, ERRORS, UNSUBSCRIBED_BY_SERVER, UNSUBSCRIBED_INSUFFICIENT_STATE
from app.protocol.commands import Outcome
from app.protocol.events import EVENTS, Event
from app.protocol.examples import EVENT_EXAMPLES, REPLY_EXAMPLES
from app.protocol.views import RoomState
from app.rest.protocol_schemas import message_schemas

SCHEMAS = "#/components/schemas/"
MESSAGES = "#/components/messages/"
WEBSOCKET_PATH = "/connection/websocket"
CONNECTION = "connection"  # the channel on which requests and replies travel: the websocket itself
KEY_FIELD = "key"

INTRODUCTION = """One websocket carries everything: subscriptions and their events, and remote procedure calls. It speaks the Centrifugal
client protocol (version 2), for which maintained SDKs exist on every platform, with reconnect, token refresh and recovery.

The document is written from the client's side: `receive` is what arrives at the app, `send` is what the app asks. A payload is plain
JSON in both codecs; the headers of a message are what the protocol wraps around it, and what an SDK does by itself.

Connect with a token (JWT). Subscribe to `room:<id>` and `chat:<id>`; `user:<viewer>` comes by itself. A request that changes something
takes `key`, your idempotency key: the same key gives the same answer, with no second effect. An expected refusal is an outcome in the
reply, not an error. Times are RFC 3339 in UTC, money is in minor units.
"""

# What an SDK sends by itself: command, (request, result), what it is for.
PROTOCOL_COMMANDS: dict[str, tuple[type[Any], type[Any], str]] = {
    "connect": (messages.ConnectRequest, messages.ConnectResult, "The first command of a connection: who is calling, by a token"),
    "subscribe": (messages.SubscribeRequest, messages.SubscribeResult, "Take part in a channel, or come back to it where one left off"),
    "unsubscribe": (messages.UnsubscribeRequest, messages.UnsubscribeResult, "Leave a channel"),
    "refresh": (messages.RefreshRequest, messages.RefreshResult, "Bring a fresh token before the old one expires"),
    "history": (messages.HistoryRequest, messages.HistoryResult, "What is kept of a channel, and where it stands"),
    "presence_stats": (messages.PresenceStatsRequest, messages.PresenceStatsResult, "How many are there; never who"),
}


def build_asyncapi(registry: Registry, settings: Settings, codecs: Sequence[Codec]) -> dict[str, Any]:
    commands = list(registry.commands.values())
    return {
        "asyncapi": "3.0.0",
        "id": "urn:jishi:realtime",
        "info": {
            "title": "Jishi in real time",
            "version": __version__,
            "description": INTRODUCTION,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            "tags": [{"name": name} for name in sorted({_namespace(command) for command in commands})],
        },
        "defaultContentType": "application/json",
        "servers": {"jishi": _server(settings, codecs)},
        "channels": {CONNECTION: _connection_channel(commands, codecs), **{row.kind.value: _channel(row) for row in CHANNELS}},
        "operations": _operations(commands),
        "components": {
            "schemas": _schemas(commands),
            "messages": _messages(commands),
            "securitySchemes": {"token": _TOKEN},
        },
        "x-errors": error_rows(),
        "x-close-codes": close_rows(),
        "x-unsubscribe-codes": unsubscribe_rows(),
        "x-limits": limit_rows(settings),
    }


# --- rows that the page and the reference show too ----------------------------------------------------------------------------------


def error_rows() -> list[dict[str, Any]]:
    return [
        {
            "code": row.number,
            "word": row.word,
            "temporary": row.temporary,
            "http_status": row.http_status,
            "message": row.text,
            "issued_when": row.issued_when,
        }
        for row in ERRORS
    ]


def close_rows() -> list[dict[str, Any]]:
    return [
        {
            "code": row.number,
            "reason": row.reason,
            "reconnect": row.reconnect,
            "issued_when": row.issued_when,
            "sdks": what_sdks_do(row),
        }
        for row in CLOSES
    ]


def unsubscribe_rows() -> list[dict[str, Any]]:
    """Of the unsubscribe push; the connection stays."""
    return [
        {"code": UNSUBSCRIBED_BY_SERVER, "issued_when": "the right to the channel was taken away", "sdks": "the subscription ends"},
        {
            "code": UNSUBSCRIBED_INSUFFICIENT_STATE,
            "issued_when": "the channel's history was lost or has a gap",
            "sdks": "subscribes again by itself and recovers, or starts from a fresh snapshot",
        },
    ]


def limit_rows(settings: Settings) -> list[dict[str, Any]]:
    """What a client must know of the settings in force; each by the setting's own name, which has the unit in it."""
    names = {
        "message_bytes_max": "a protocol message; above it: error 106",
        "channel_bytes_max": "a channel's name",
        "channels_per_client_max": "channels of one connection",
        "commands_per_s_max": "commands a second of one connection, twice that in a burst; above it: error 111",
        "method_rates_factor": "times the rate that each method states",
        "ping_interval_s": "the server pings this often; SDKs answer by themselves",
        "pong_timeout_s": "a ping not answered by then: close 3012",
        "connect_timeout_s": "no connect command by then: close 3502",
        "stage_history_events_max": "events that room, user and staff channels keep for recovery",
        "stage_history_ttl_s": "how long they keep them",
        "chat_history_messages_max": "lines that a chat channel keeps for recovery",
        "chat_shown_per_s": "lines of one room that a viewer is shown a second; more are sampled",
        "chat_text_chars_max": "characters of a chat message",
    }
    return [{"name": name, "value": getattr(settings, name), "text": text} for name, text in names.items()]


def outcomes(reply: type[Any]) -> list[Outcome]:
    """The words that a reply's `outcome` can be, in the order of their class; none for a reply without one."""
    kind = reply.__annotations__.get("outcome")
    return list(kind) if isinstance(kind, type) and issubclass(kind, Outcome) else []


def takes_key(request: type[Any]) -> bool:
    return KEY_FIELD in getattr(request, "__struct_fields__", ())


def tag_of(event: type[Event]) -> str:
    return str(event.__struct_config__.tag)


def summary_of(kind: type[Any]) -> str:
    """The first sentence of the class's own docstring; empty for a class without one."""
    text = " ".join((vars(kind).get("__doc__") or "").split())
    return text.split(". ")[0].rstrip(".")


# --- parts of the document ----------------------------------------------------------------------------------------------------------


def _server(settings: Settings, codecs: Sequence[Codec]) -> dict[str, Any]:
    base = urlsplit(settings.base_url)
    return {
        "host": base.netloc,
        "pathname": base.path + WEBSOCKET_PATH,
        "protocol": "wss" if base.scheme == "https" else "ws",
        "protocolVersion": "13",
        "title": "The gateway",
        "description": "One address for both codecs: JSON in text frames, Protobuf in binary ones, chosen by the websocket subprotocol.",
        "security": [{"$ref": "#/components/securitySchemes/token"}],
        "x-codecs": [
            {"name": codec.name, "subprotocol": codec.subprotocol, "frames": "text" if codec.is_text else "binary"} for codec in codecs
        ],
    }


def _connection_channel(commands: Iterable[Command], codecs: Sequence[Codec]) -> dict[str, Any]:
    names = ["error", *(name for command in commands for name in (_request_name(command), _reply_name(command)))]
    names += [name for command in PROTOCOL_COMMANDS for name in (command, f"{command}.result")]
    return {
        "address": WEBSOCKET_PATH,
        "title": "The connection",
        "description": "The websocket itself: requests and their replies, told apart by `id`.",
        "messages": {name: _message_reference(name) for name in names},
        "bindings": {
            "ws": {
                "method": "GET",
                "headers": {
                    "type": "object",
                    "properties": {"Sec-WebSocket-Protocol": {"type": "string", "enum": [codec.subprotocol for codec in codecs]}},
                },
                "query": {
                    "type": "object",
                    "properties": {
                        "format": {
                            "type": "string",
                            "enum": [codec.name for codec in codecs],
                            "description": "for clients that name no subprotocol",
                        }
                    },
                },
                "bindingVersion": "0.1.0",
            }
        },
    }


def _channel(row: ChannelRow) -> dict[str, Any]:
    channel: dict[str, Any] = {
        "address": row.address,
        "title": row.title,
        "description": row.text,
        "parameters": {row.parameter: {"description": row.parameter_text}},
        "messages": {tag_of(event): _message_reference(tag_of(event)) for event in row.events},
        "x-lane": row.lane.value,
        "x-recoverable": True,
        "x-right": row.right,
        "x-subscribed-by": "client" if row.right else "server",
    }
    if row.snapshot:
        channel["x-snapshot"] = {"$ref": SCHEMAS + RoomState.__name__}
    return channel


def _operations(commands: Iterable[Command]) -> dict[str, Any]:
    operations: dict[str, Any] = {}
    for row in CHANNELS:
        operations[f"receive.{row.kind.value}"] = {
            "action": "receive",
            "title": row.title,
            "summary": f"Events of `{row.address}`",
            "channel": _reference("channels", row.kind.value),
            "messages": [_channel_message(row.kind.value, tag_of(event)) for event in row.events],
        }
    for name, (_, _, text) in PROTOCOL_COMMANDS.items():
        operations[name] = _request_operation(name, f"{name}.result", name, text)
    for command in commands:
        operations[command.method] = _request_operation(
            _request_name(command), _reply_name(command), command.method, command.summary
        ) | _extras(command)
    return operations


def _request_operation(request: str, reply: str, title: str, summary: str) -> dict[str, Any]:
    return {
        "action": "send",
        "title": title,
        "summary": summary,
        "channel": _reference("channels", CONNECTION),
        "messages": [_channel_message(CONNECTION, request)],
        "reply": {
            "channel": _reference("channels", CONNECTION),
            "messages": [_channel_message(CONNECTION, reply), _channel_message(CONNECTION, "error")],
        },
    }


def _extras(command: Command) -> dict[str, Any]:
    return {
        "tags": [{"name": _namespace(command)}],
        "x-right": command.right,
        "x-idempotency-key": KEY_FIELD if takes_key(command.request) else None,
        "x-outcomes": [{"word": word.value, "meaning": word.meaning} for word in outcomes(command.reply)],
        "x-calls-per-s-max": command.calls_per_s_max,
        "x-rest": f"POST {command.path}",
    }


def _schemas(commands: Iterable[Command]) -> dict[str, Any]:
    kinds: set[type[Any]] = {kind for command in commands for kind in (command.request, command.reply)}
    ordered = sorted({*kinds, *EVENTS, RoomState}, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=SCHEMAS + "{name}")
    of_protocol = message_schemas(
        [messages.Error, *(kind for request, result, _ in PROTOCOL_COMMANDS.values() for kind in (request, result))], SCHEMAS + "{name}"
    )
    both = sorted(schemas.keys() & of_protocol.keys())
    if both:
        raise ValueError(f"commands or events and the protocol's messages share the names {', '.join(both)}")
    return dict(sorted({**schemas, **of_protocol}.items()))


def _messages(commands: Iterable[Command]) -> dict[str, Any]:
    found: dict[str, Any] = {tag_of(event): _event_message(event) for event in EVENTS}
    for command in commands:
        method = {"type": "string", "const": command.method}
        found[_request_name(command)] = _exchange(command.request, command.method, command.summary, dict(command.example), method=method)
        reply = msgspec.to_builtins(REPLY_EXAMPLES[command.reply])
        found[_reply_name(command)] = _exchange(command.reply, f"{command.method} reply", f"The answer to `{command.method}`", reply)
    for name, (request, result, text) in PROTOCOL_COMMANDS.items():
        found[name] = _exchange(request, name, text, None)
        found[f"{name}.result"] = _exchange(result, f"{name} result", f"The answer to `{name}`", None)
    refused = {"code": 111, "message": "too many requests", "temporary": True}
    found["error"] = _exchange(messages.Error, "error", "The request failed; try again only when it is `temporary`", refused)
    return found


def _event_message(event: type[Event]) -> dict[str, Any]:
    tag = tag_of(event)
    offset = {} if event in READINGS else {"offset": {"type": "integer", "minimum": 1, "description": "place in the channel's stream"}}
    message: dict[str, Any] = {
        "name": tag,
        "title": tag,
        "summary": summary_of(event) or tag.replace(".", " ").replace("_", " "),
        "contentType": "application/json",
        "headers": {"type": "object", "properties": {"channel": {"type": "string"}, **offset}},
        "payload": {"$ref": SCHEMAS + event.__name__},
        "examples": [{"name": tag, "payload": msgspec.to_builtins(EVENT_EXAMPLES[event])}],
    }
    if event in READINGS:
        message["x-reading"] = True
    return message


def _exchange(
    kind: type[Any], title: str, summary: str, example: Mapping[str, Any] | None, *, method: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A request or a reply: `id` ties the two together."""
    properties: dict[str, Any] = {"id": {"type": "integer", "minimum": 1, "description": "chosen by the client, repeated in the reply"}}
    if method is not None:
        properties["method"] = method
    message: dict[str, Any] = {
        "name": title,
        "title": title,
        "summary": summary,
        "contentType": "application/json",
        "headers": {"type": "object", "properties": properties, "required": list(properties)},
        "correlationId": {"location": "$message.header#/id"},
        "payload": {"$ref": SCHEMAS + kind.__name__},
    }
    if example is not None:
        message["examples"] = [{"name": title, "payload": dict(example)}]
    return message


def _namespace(command: Command) -> str:
    return command.method.partition(".")[0]


def _request_name(command: Command) -> str:
    return f"rpc.{command.method}"


def _reply_name(command: Command) -> str:
    return f"rpc.{command.method}.reply"


def _reference(*path: str) -> dict[str, str]:
    return {"$ref": "#/" + "/".join(path)}


def _channel_message(channel: str, name: str) -> dict[str, str]:
    return _reference("channels", channel, "messages", name)


def _message_reference(name: str) -> dict[str, str]:
    return {"$ref": MESSAGES + name}


_TOKEN = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": "Sent in the `token` field of the connect command, not in a header: HS256 with the shared secret, or RS256, ES256 or "
    "EdDSA with a key of the company's JWK set. Guests get one from `POST /api/v1/guests`.",
}
