"""JSON schemas of the client protocol's own messages, for the document.

msgspec writes the schemas of commands and events; it cannot for these, whose payloads are raw bytes by default. Only what messages.py is
made of is known here: texts, numbers, truth values, raw payloads, lists, maps and other messages.
"""

from collections.abc import Iterable
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec


def message_schemas(kinds: Iterable[type[msgspec.Struct]], ref_template: str) -> dict[str, Any]:
    """By name: a schema of each of these messages, and of every message inside one."""
    found: dict[str, Any] = {}
    waiting = list(kinds)
    while waiting:
        kind = waiting.pop()
        if kind.__name__ not in found:
            hints = get_type_hints(kind, include_extras=True)
            found[kind.__name__] = _object(kind, hints, ref_template)
            waiting += [inner for hint in hints.values() for inner in _inside(hint)]
    return found


def _object(kind: type[msgspec.Struct], hints: dict[str, Any], ref_template: str) -> dict[str, Any]:
    required = [field.name for field in msgspec.structs.fields(kind) if field.required]
    schema: dict[str, Any] = {
        "title": kind.__name__,
        "type": "object",
        "properties": {name: _schema(hint, ref_template) for name, hint in hints.items() if name in kind.__struct_fields__},
        "required": required,
    }
    if vars(kind).get("__doc__"):
        schema["description"] = " ".join(str(kind.__doc__).split())
    return schema


def _schema(hint: Any, ref_template: str) -> dict[str, Any]:
    bare = _bare(hint)
    if bare is msgspec.Raw:
        return {"description": "JSON of the application"}
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        return {"$ref": ref_template.format(name=bare.__name__)}
    arguments = get_args(bare)
    if get_origin(bare) is list:
        return {"type": "array", "items": _schema(arguments[0], ref_template)}
    if get_origin(bare) is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], ref_template)}
    if type(None) in arguments:
        return _schema(next(part for part in arguments if part is not type(None)), ref_template)  # left out rather than null
    return msgspec.json.schema(hint)


def _inside(hint: Any) -> list[type[msgspec.Struct]]:
    bare = _bare(hint)
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        return [bare]
    return [inner for part in get_args(bare) for inner in _inside(part)]


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint
