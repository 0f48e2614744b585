"""The AsyncAPI document says what the wire is: all of it, valid, and the same as the page and docs/reference.md."""

import ast
import json
from pathlib import Path
from typing import Any

import httpx2
import jsonschema_rs
import msgspec
import pytest
from fastapi import FastAPI

from app.cli import main
from app.core.registry import Registry
from app.core.settings import Settings
from app.gateway.endpoint import CODECS
from app.gateway.subscribing import RIGHT_OF
from app.protocol.catalogue import CARRIED_BY, CHANNELS, READINGS, SUBSCRIBE_RIGHT, may_carry
from app.protocol.channels import Kind
from app.protocol.codes import CLOSES, ERRORS
from app.protocol.commands import Outcome
from app.protocol.events import EVENTS, HoldPlaced, Pulse
from app.protocol.examples import EVENT_EXAMPLES, REPLY_EXAMPLES
from app.protocol.views import RoomState
from app.rest.asyncapi import PROTOCOL_COMMANDS, WEBSOCKET_PATH, build_asyncapi, tag_of, takes_key
from app.rest.protocol_schemas import message_schemas
from app.rest.reference import render_reference

ROOT = Path(__file__).parents[2]
SPECS = ROOT / "tests" / "sdk" / "js" / "node_modules" / "@asyncapi" / "specs" / "schemas" / "3.0.0-without-$id.json"


@pytest.fixture
def document(registry: Registry) -> dict[str, Any]:
    return json.loads(json.dumps(build_asyncapi(registry, Settings.model_construct(), CODECS)))


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set[str]()
        return own.union(*(references(value) for value in node.values()))
    return set[str]().union(*(references(value) for value in node)) if isinstance(node, list) else set()


def resolve(document: Any, reference: str) -> Any:
    assert reference.startswith("#/"), reference
    node = document
    for part in reference[2:].split("/"):
        node = node[part]
    return resolve(document, node["$ref"]) if isinstance(node, dict) and set(node) == {"$ref"} else node


# --- the document -------------------------------------------------------------------------------------------------------------------


def test_it_is_a_document_of_asyncapi_3(document: dict[str, Any]) -> None:
    """By the specification's own JSON schema, where node's packages are installed; the tests below hold in any case."""
    if not SPECS.exists():
        pytest.skip("run `make sdk`: the specification is not installed")
    schema = json.loads(SPECS.read_text())
    problems = [
        f"{'/'.join(map(str, error.instance_path))}: {error.message[:200]}"
        for error in jsonschema_rs.Draft7Validator(schema).iter_errors(document)
    ]
    assert problems == []


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = references(document)
    assert len(found) > 200
    for reference in found:
        resolve(document, reference)


def test_every_command_is_a_request_with_its_reply(document: dict[str, Any], registry: Registry) -> None:
    requests = {name: one for name, one in document["operations"].items() if "x-rest" in one}
    assert set(requests) == set(registry.commands)
    for method, command in registry.commands.items():
        operation = requests[method]
        assert operation["action"] == "send"
        assert operation["channel"] == operation["reply"]["channel"] == {"$ref": "#/channels/connection"}
        [request], [reply, error] = operation["messages"], operation["reply"]["messages"]
        assert resolve(document, request["$ref"])["payload"] == {"$ref": f"#/components/schemas/{command.request.__name__}"}
        assert resolve(document, reply["$ref"])["payload"] == {"$ref": f"#/components/schemas/{command.reply.__name__}"}
        assert resolve(document, error["$ref"])["payload"] == {"$ref": "#/components/schemas/Error"}
        assert operation["x-right"] == command.right
        assert operation["x-rest"] == f"POST {command.path}"
        assert operation["x-calls-per-s-max"] == command.calls_per_s_max
        assert operation["x-idempotency-key"] == ("key" if takes_key(command.request) else None)
        assert resolve(document, request["$ref"])["headers"]["properties"]["method"]["const"] == method


def test_every_event_is_received_on_its_channels(document: dict[str, Any]) -> None:
    for row in CHANNELS:
        channel = document["channels"][row.kind.value]
        assert channel["address"] == f"{row.kind.value}:{{{row.parameter}}}"
        assert set(channel["parameters"]) == {row.parameter}
        expected = {tag_of(event) for event in EVENTS if row.kind in CARRIED_BY[event]}
        assert set(channel["messages"]) == expected
        operation = document["operations"][f"receive.{row.kind.value}"]
        assert operation["action"] == "receive"
        assert {reference["$ref"].rpartition("/")[2] for reference in operation["messages"]} == expected
        for reference in operation["messages"]:
            assert reference["$ref"].startswith(f"#/channels/{row.kind.value}/messages/")
    for event in EVENTS:
        message = document["components"]["messages"][tag_of(event)]
        assert message["payload"] == {"$ref": f"#/components/schemas/{event.__name__}"}
        assert ("offset" in message["headers"]["properties"]) == (event not in READINGS)
    assert document["channels"]["room"]["x-snapshot"] == {"$ref": f"#/components/schemas/{RoomState.__name__}"}


def test_messages_of_a_channel_are_components(document: dict[str, Any]) -> None:
    used: set[str] = set()
    for channel in document["channels"].values():
        for name, message in channel["messages"].items():
            assert message == {"$ref": f"#/components/messages/{name}"}
            used.add(name)
    assert used == set(document["components"]["messages"])
    for operation in document["operations"].values():
        allowed = {
            f"{operation['channel']['$ref']}/messages/{name}" for name in resolve(document, operation["channel"]["$ref"])["messages"]
        }
        assert {message["$ref"] for message in [*operation["messages"], *operation.get("reply", {}).get("messages", [])]} <= allowed


def test_every_example_fits_its_schema(document: dict[str, Any]) -> None:
    checked = 0
    for name, message in document["components"]["messages"].items():
        schema = {**message["payload"], "components": document["components"]}
        validator = jsonschema_rs.Draft202012Validator(schema)
        for example in message.get("examples", []):
            assert [error.message for error in validator.iter_errors(example["payload"])] == [], name
            checked += 1
        if name not in {*PROTOCOL_COMMANDS, *(f"{command}.result" for command in PROTOCOL_COMMANDS)}:
            assert len(message["examples"]) == 1, f"{name} has no example"
    assert checked == len(EVENTS) + 2 * len([one for one in document["operations"].values() if "x-rest" in one]) + 1


def test_a_wrong_payload_does_not_fit(document: dict[str, Any]) -> None:
    """The schemas can say no: a missing field, another type, another tag, a field that no request has."""
    components = {"components": document["components"]}
    reserve = jsonschema_rs.Draft202012Validator({"$ref": "#/components/schemas/Reserve", **components})
    assert reserve.is_valid({"offer": "o", "quantity": 1, "key": "k"})
    assert not reserve.is_valid({"offer": "o", "quantity": 1})
    assert not reserve.is_valid({"offer": "o", "quantity": 0, "key": "k"})
    assert not reserve.is_valid({"offer": "o", "quantity": 1, "key": "k", "quantitiy": 2})
    pinned = jsonschema_rs.Draft202012Validator({"$ref": "#/components/schemas/OfferPinned", **components})
    assert pinned.is_valid({"type": "offer.pinned", "at": "2026-10-02T12:00:05Z", "offer": None})
    assert not pinned.is_valid({"type": "offer.sold_out", "at": "2026-10-02T12:00:05Z", "offer": None})


def test_codes_server_and_codecs_are_those_of_the_product(document: dict[str, Any], app: FastAPI) -> None:
    assert [row["code"] for row in document["x-errors"]] == [row.number for row in ERRORS]
    assert [(row["code"], row["reconnect"]) for row in document["x-close-codes"]] == [(row.number, row.reconnect) for row in CLOSES]
    server = document["servers"]["jishi"]
    assert (server["protocol"], server["host"], server["pathname"]) == ("ws", "127.0.0.1:8000", WEBSOCKET_PATH)
    assert app.url_path_for("connection_websocket") == WEBSOCKET_PATH
    assert [codec["subprotocol"] for codec in server["x-codecs"]] == [codec.subprotocol for codec in CODECS]
    assert server["security"] == [{"$ref": "#/components/securitySchemes/token"}]


def test_the_public_address_is_what_phones_are_told(registry: Registry) -> None:
    settings = Settings.model_construct(public_url="https://live.example/shop/")
    server = build_asyncapi(registry, settings, CODECS)["servers"]["jishi"]
    assert (server["protocol"], server["host"], server["pathname"]) == ("wss", "live.example", "/shop/connection/websocket")


# --- the catalogue ------------------------------------------------------------------------------------------------------------------


def test_the_catalogue_is_complete_and_agrees_with_the_gateway() -> None:
    assert list(CARRIED_BY) == list(EVENTS)
    assert [row.kind for row in CHANNELS] == list(Kind)
    assert SUBSCRIBE_RIGHT == RIGHT_OF
    assert set(EVENT_EXAMPLES) == set(EVENTS)
    assert {type(one) for one in EVENT_EXAMPLES.values()} == set(EVENTS)


def test_every_reply_has_an_example_and_every_outcome_a_meaning(registry: Registry) -> None:
    assert set(REPLY_EXAMPLES) == {command.reply for command in registry.commands.values()}
    for kind in Outcome.__subclasses__():
        assert [word for word in kind if not word.meaning] == []
        assert msgspec.json.decode(msgspec.json.encode(list(kind)), type=list[kind]) == list(kind)


def test_an_event_goes_to_the_channels_of_its_row_alone() -> None:
    hold, pulse = EVENT_EXAMPLES[HoldPlaced], EVENT_EXAMPLES[Pulse]
    assert may_carry(["user:ann"], hold)
    assert not may_carry(["user:ann", "room:r1"], hold)
    assert may_carry(["room:r1"], pulse)
    assert not may_carry(["lobby"], pulse)


def test_only_known_places_publish_past_the_unit_of_work() -> None:
    """`Work.emit` checks each event against the catalogue; what is encoded elsewhere is not checked: look at its row before adding one."""
    found: set[str] = set()
    for path in (ROOT / "app").rglob("*.py"):
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        if any(isinstance(call.func, ast.Name) and call.func.id == "encode_event" for call in calls):
            found.add(path.relative_to(ROOT / "app").as_posix())
    assert found == {
        "storage/work.py",
        "domains/analytics/service.py",  # figures.updated on staff:
        "domains/chat/service.py",  # chat.sent on chat:, chat.deleted in recovered chat
        "domains/inventory/renewal.py",  # sales.frozen on room:
        "domains/inventory/service.py",  # hold.placed, hold.ended on user:
        "domains/rooms/audience.py",  # room.pulse on room:
        "storage/intake.py",  # alert.raised on staff:, when SQL is probably away
    }


def test_schemas_of_the_protocols_own_messages() -> None:
    class Inner(msgspec.Struct):
        data: msgspec.Raw

    class Outer(msgspec.Struct):
        """Has one of each."""

        name: str
        inner: Inner | None = None
        many: list[Inner] = []
        by_name: dict[str, Inner] = {}
        raw: msgspec.Raw = msgspec.Raw(b"")

    reference = {"$ref": "#/Inner"}
    schemas = message_schemas([Outer], "#/{name}")
    assert set(schemas) == {"Outer", "Inner"}
    assert schemas["Outer"]["required"] == ["name"]
    assert schemas["Outer"]["properties"]["inner"] == reference
    assert schemas["Outer"]["properties"]["many"] == {"type": "array", "items": reference}
    assert schemas["Outer"]["properties"]["by_name"] == {"type": "object", "additionalProperties": reference}
    assert schemas["Outer"]["description"] == "Has one of each."


# --- what is made from it -----------------------------------------------------------------------------------------------------------


async def test_it_is_served_and_tells_no_secret(client: httpx2.AsyncClient, app: FastAPI, registry: Registry) -> None:
    settings = app.state.engines.settings
    answer = await client.get("/asyncapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == json.loads(json.dumps(build_asyncapi(registry, settings, CODECS)))
    for secret in (settings.token_secret.get_secret_value(), settings.redis_url, settings.database_url, str(settings.data_dir)):
        assert secret not in answer.text


async def test_the_page_shows_everything_without_a_script(client: httpx2.AsyncClient, registry: Registry) -> None:
    page = await client.get("/docs/realtime")
    assert page.headers["content-type"].startswith("text/html")
    assert "<script" not in page.text
    assert "https://" not in page.text.replace("https://www.apache.org", "").replace("https://shop.example", "")
    for method in registry.commands:
        assert f'<details id="{method}"><summary><code>{method}</code>' in page.text
    for row in CHANNELS:
        for event in row.events:
            assert f'<details id="{row.kind.value}-{tag_of(event)}">' in page.text
    for code in CLOSES:
        assert f'id="close-{code.number}"' in page.text
    for code in ERRORS:
        assert f'id="error-{code.word}"' in page.text


async def test_the_documents_lead_to_each_other(client: httpx2.AsyncClient) -> None:
    for path in ("/docs", "/docs/realtime", "/docs/connect", "/docs/reference"):
        page = await client.get(path)
        assert page.status_code == 200, path
        for other in ("/docs", "/docs/realtime", "/docs/connect", "/docs/reference"):
            assert f'<a href="{other}"' in page.text
        assert page.text.count("aria-current=page") == 1
    assert "/docs/connect" in (await client.get("/")).text
    assert (await client.get("/docs/nothing")).json()["word"] == "not_found"
    assert (await client.get("/docs/..%2fdeploy")).status_code == 404


def test_the_reference_in_the_docs_is_what_the_registry_yields(document: dict[str, Any]) -> None:
    """After a change of a command, an event, an outcome or a code: `make reference`."""
    assert (ROOT / "docs" / "reference.md").read_text() == render_reference(document), "run `make reference`"


def test_the_command_line_prints_both_and_needs_no_product(capsys: pytest.CaptureFixture[str], document: dict[str, Any]) -> None:
    assert main(["reference"]) == 0
    assert capsys.readouterr().out == render_reference(document)
    assert main(["reference", "--asyncapi"]) == 0
    assert json.loads(capsys.readouterr().out) == document
