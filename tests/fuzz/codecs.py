"""Both codecs: whatever bytes come in, a command comes out or `Malformed` does, and it is the command that others read in them.

The others are Python's own JSON parser and the classes that Google's library makes of the protocol's definition. Where ours refuses what
they take, it must be for a reason that the codec states; what they refuse, ours may not take.
"""

import json
import random
import re
from collections.abc import Callable
from typing import Any

import msgspec
from centrifuge.protocol import client_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from app.protocol import messages
from app.protocol.codec import MESSAGES_MAX, Codec, Malformed
from app.protocol.json_codec import JSON
from app.protocol.messages import Command
from app.protocol.protobuf_codec import PROTOBUF
from tests.fuzz.target import Target
from tests.support.corpus import seeds
from tests.support.corpus.mutations import mutate

Oracle = Callable[[bytes, Command | None, str], None]
BODIES = tuple(name for name in Command.__struct_fields__ if name != "id")
TEXTS = ("channel", "token", "method", "epoch", "name", "version")


def check_codec(codec: Codec, oracle: Oracle, raw: bytes) -> None:
    check_message(codec, oracle, raw)
    try:
        parts = codec.split(raw)
    except Malformed:
        return
    assert 0 < len(parts) <= MESSAGES_MAX, f"{len(parts)} messages in a frame"
    for message in parts:
        check_message(codec, oracle, message)


def check_message(codec: Codec, oracle: Oracle, message: bytes) -> None:
    command, reason = _decoded(codec.decode, message)
    command_id, _ = _decoded(codec.decode_id, message)
    assert command is None or command_id == command.id, "both ways to read the id agree"
    if command is not None:
        _check_command(command)
    oracle(message, command, reason)


def _decoded(decode: Callable[[bytes], Any], message: bytes) -> tuple[Any, str]:
    try:
        return decode(message), ""
    except Malformed as failure:
        return None, str(failure)


def _check_command(command: Command) -> None:
    """What the session takes for granted."""
    assert 0 <= command.id < 2**32
    for request in command.requests():
        for name in TEXTS:
            getattr(request, name, "").encode()  # a lone surrogate could be sent back to nobody
        offset = getattr(request, "offset", 0)
        assert isinstance(offset, int) and offset >= 0
        data = getattr(request, "data", None)
        assert data is None or isinstance(bytes(data), bytes)
    assert len(command.requests()) == sum(getattr(command, name) is not None for name in BODIES)


# --- what others read in the same bytes ----------------------------------------------------------------------------------------------


def against_python_json(message: bytes, command: Command | None, reason: str) -> None:
    """A command must be JSON to Python too, with the same id. Names that come twice: the last counts, for both."""
    if command is None:
        return
    value = json.loads(message.decode(errors="replace"))  # the frame layer has refused text that is not UTF-8 before
    assert isinstance(value, dict)
    assert value.get("id", 0) == command.id
    present = {name for name in BODIES if value.get(name) is not None}
    assert present == {name for name in BODIES if getattr(command, name) is not None}
    again = JSON.decode(msgspec.json.encode(command))
    assert again == command, "what is written of it is read as the same"


def _google_command() -> Any:
    """Google's class of a command, in which all that our messages leave out is bytes: ours passes it over without looking into it."""
    file = descriptor_pb2.FileDescriptorProto()
    client_pb2.DESCRIPTOR.CopyToProto(file)
    for described in file.message_type:
        ours = getattr(messages, described.name, None)
        for one in described.field:
            if ours is not None and one.name not in ours.__struct_fields__ and one.type in {one.TYPE_STRING, one.TYPE_MESSAGE}:
                one.type = one.TYPE_BYTES
                one.ClearField("type_name")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(client_pb2.Command.DESCRIPTOR.full_name))


_GoogleCommand = _google_command()


def against_google_protobuf(message: bytes, command: Command | None, reason: str) -> None:
    try:
        other = _GoogleCommand.FromString(message)
    except DecodeError:
        assert command is None or LONG_VARINT.search(message), "taken, though it is no message to Google's library"
        return
    if command is None:
        assert reason.startswith(STRICTER), f"refused, though it is a message to Google's library: {reason}"
        return
    assert other.id == command.id
    for name in BODIES:
        request = getattr(command, name)
        assert other.HasField(name) == (request is not None), name
        if request is not None:
            _compare_fields(getattr(other, name), request)


LONG_VARINT = re.compile(rb"[\x80-\xff]{5}")  # Google's library for Python takes keys and lengths of 5 bytes at most, others of 10 as ours
# As its module says.
STRICTER = ("a field of the wrong type", "a number beyond its range", "a varint of more", "a group", "a message of more than")


def _compare_fields(other: Any, request: Any) -> None:
    for name in request.__struct_fields__:
        ours, theirs = getattr(request, name), getattr(other, name)
        match name:
            case "data":
                assert bytes(ours) == theirs
            case "subs":
                assert set(theirs) <= set(ours)  # entries with an unknown field are no entries to Google's library
                for channel, sub in theirs.items():
                    _compare_fields(sub, ours[channel])
            case "since":
                assert other.HasField("since") == (ours is not None)
                if ours is not None:
                    assert (ours.offset, ours.epoch) == (theirs.offset, theirs.epoch)
            case _:
                assert ours == theirs, name


# --- the targets --------------------------------------------------------------------------------------------------------------------


def _target(codec: Codec, oracle: Oracle, right: dict[str, bytes], huge: Callable[[], dict[str, bytes]]) -> Target[bytes]:
    short = seeds.as_list(right, 4_000)

    def make(rng: random.Random) -> bytes:
        return mutate(rng, short)

    def check(raw: bytes) -> None:
        check_codec(codec, oracle, raw)

    return Target(codec.name, 0.3, make, check, lambda: [*right.values(), *huge().values()])


JSON_TARGET = _target(JSON, against_python_json, seeds.json_seeds(seeds.Vocabulary()), seeds.huge_json)
PROTOBUF_TARGET = _target(PROTOBUF, against_google_protobuf, seeds.protobuf_seeds(seeds.Vocabulary()), seeds.huge_protobuf)
