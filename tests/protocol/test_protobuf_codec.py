"""Bytes to messages and back in Protobuf, held against the SDK's own generated classes: each reads what the other writes."""

import contextlib
import json
from typing import Any, get_args, get_origin

import pytest
from centrifuge.protocol import client_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.json import encode as encode_json

from app.protocol.codec import MESSAGES_MAX, Malformed
from app.protocol.json_codec import JSON
from app.protocol.messages import (
    NO_DATA,
    Command,
    ConnectRequest,
    ConnectResult,
    Disconnected,
    Error,
    HistoryRequest,
    HistoryResult,
    PresenceStatsResult,
    Publication,
    Push,
    RefreshRequest,
    RefreshResult,
    Reply,
    RpcResult,
    StreamPosition,
    SubscribeRequest,
    SubscribeResult,
    Unsubscribed,
    UnsubscribeResult,
    reply_with,
)
from app.protocol.protobuf_codec import FIELDS_MAX, PROTOBUF, _fields

# --- the vectors of the protocol ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "command"),
    [
        ("0f0801220b0a03746f6b220464617274", Command(id=1, connect=ConnectRequest(token="tok", name="dart"))),
        ("0c08022a080a06726f6f6d3a31", Command(id=2, subscribe=SubscribeRequest(channel="room:1"))),
        ("00", Command()),  # the pong
    ],
)
def test_commands_by_hand(frame: str, command: Command) -> None:
    [message] = PROTOBUF.split(bytes.fromhex(frame))
    assert PROTOBUF.decode(message) == command


@pytest.mark.parametrize(
    ("reply", "frame"),
    [
        (reply_with(1, ConnectResult(client="c1", version="0.1", ping=25, pong=True)), "1108012a0d0a0263311203302e3138194001"),
        (
            reply_with(2, SubscribeResult(recoverable=True, positioned=True, epoch="abcd", offset=120)),
            "100802320c180132046162636448785001",
        ),
        (reply_with(3, UnsubscribeResult()), "0408033a00"),  # an empty result is there all the same
    ],
)
def test_replies_by_hand(reply: Reply, frame: str) -> None:
    assert PROTOBUF.encode(reply).hex() == frame


def test_a_push_and_a_ping_by_hand() -> None:
    assert PROTOBUF.publication("room:1", 121, b'{"t":1}').hex() == "1722151206726f6f6d3a31220b22077b2274223a317d3079"
    assert PROTOBUF.ping.hex() == "00"


# --- the model against the SDK's ----------------------------------------------------------------------------------------------------

_TYPE_OF = {str: FieldDescriptor.TYPE_STRING, bool: FieldDescriptor.TYPE_BOOL, Raw: FieldDescriptor.TYPE_BYTES}
_INTEGER_OF = {  # by the range that the model states
    (0, 2**32 - 1): FieldDescriptor.TYPE_UINT32,
    (0, None): FieldDescriptor.TYPE_UINT64,
    (-(2**31), 2**31 - 1): FieldDescriptor.TYPE_INT32,
}


def _assert_same(message: type[Any], theirs: Descriptor) -> int:
    """Every field of ours is in theirs with the same name, number and type. Returns how many messages were looked at."""
    looked_at = 1
    for field in _fields(message):
        descriptor = theirs.fields_by_name[field.name]
        assert descriptor.number == field.number, (message, field)
        assert descriptor.is_repeated == (get_origin(field.type) in {list, dict}), (message, field)
        if field.type is int:
            assert field.meta is not None
            assert descriptor.type == _INTEGER_OF[field.meta.ge, field.meta.le], (message, field)
        elif field.type in _TYPE_OF:
            assert descriptor.type == _TYPE_OF[field.type], (message, field)
        elif get_origin(field.type) is dict:
            assert descriptor.message_type.GetOptions().map_entry
            looked_at += _assert_same(get_args(field.type)[1], descriptor.message_type.fields_by_name["value"].message_type)
        else:
            looked_at += _assert_same(get_args(field.type)[0] if get_origin(field.type) is list else field.type, descriptor.message_type)
    return looked_at


def test_every_field_of_the_model_is_that_of_the_sdk() -> None:
    assert _assert_same(Command, client_pb2.Command.DESCRIPTOR) == 15
    assert _assert_same(Reply, client_pb2.Reply.DESCRIPTOR) == 18


# --- both directions ----------------------------------------------------------------------------------------------------------------

words = st.text(max_size=12)
channels = st.sampled_from(["room:1", "chat:1", "user:早"]) | st.text(min_size=1, max_size=12)
offsets = st.integers(0, 2**64 - 1) | st.integers(0, 300)
payloads = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | words, lambda inner: st.lists(inner, max_size=3), max_leaves=4
).map(lambda value: json.dumps(value, ensure_ascii=False).encode())
ids = st.integers(0, 2**32 - 1)
subscribes = st.builds(SubscribeRequest, channels, st.booleans(), words, offsets)
requests = st.one_of(
    st.fixed_dictionaries({"connect": st.builds(ConnectRequest, words, st.dictionaries(words, subscribes, max_size=3), words, words)}),
    st.fixed_dictionaries({"subscribe": subscribes}),
    st.fixed_dictionaries(
        {
            "history": st.builds(
                HistoryRequest,
                channels,
                st.integers(-(2**31), 2**31 - 1),
                st.none() | st.builds(StreamPosition, offsets, words),
                st.booleans(),
            )
        }
    ),
    st.fixed_dictionaries({"refresh": st.builds(RefreshRequest, words)}),
    *[
        st.fixed_dictionaries({name: st.fixed_dictionaries({"channel": channels})})
        for name in ("unsubscribe", "publish", "presence", "presence_stats", "sub_refresh")
    ],
    *[st.fixed_dictionaries({name: st.just({})}) for name in ("ping", "send")],
)


def _their_command(raw_json: bytes) -> bytes:
    return ParseDict(json.loads(raw_json), client_pb2.Command()).SerializeToString()


@given(ids, requests)
def test_json_and_protobuf_say_the_same(number: int, request: dict[str, Any]) -> None:
    """One command as JSON, and as the SDK's own classes make Protobuf of that JSON, is one and the same to us."""
    raw_json = encode_json({"id": number, **request})
    from_json = JSON.decode(raw_json)
    assert PROTOBUF.decode(_their_command(raw_json)) == from_json
    assert PROTOBUF.decode_id(_their_command(raw_json)) == number


@given(ids, words, payloads)
def test_a_call_carries_its_payload_as_it_is(number: int, method: str, payload: bytes) -> None:
    raw = client_pb2.Command(id=number, rpc=client_pb2.RPCRequest(method=method, data=payload)).SerializeToString()
    command = PROTOBUF.decode(raw)
    assert command.rpc is not None
    assert (command.id, command.rpc.method, bytes(command.rpc.data)) == (number, method, payload)
    assert command == Command(id=number, rpc=command.rpc)


publications = st.builds(Publication, payloads.map(Raw), offsets)
subscribed = st.builds(
    SubscribeResult,
    recoverable=st.booleans(),
    epoch=words,
    publications=st.lists(publications, max_size=3),
    recovered=st.booleans(),
    offset=offsets,
    positioned=st.booleans(),
    data=payloads.map(Raw) | st.just(NO_DATA),
    was_recovering=st.booleans(),
)
results = st.one_of(
    st.builds(
        ConnectResult,
        client=words,
        version=words,
        ping=st.integers(1, 90),
        pong=st.booleans(),
        expires=st.booleans(),
        ttl=ids,
        subs=st.dictionaries(words, subscribed, max_size=2),
        node=words,
    ),
    subscribed,
    st.builds(UnsubscribeResult),
    st.builds(PresenceStatsResult, ids, ids),
    st.builds(HistoryResult, st.lists(publications, max_size=3), words, offsets),
    st.builds(RpcResult, payloads.map(Raw)),
    st.builds(RefreshResult, words, words, st.booleans(), ids),
)
replies = st.one_of(
    st.builds(reply_with, ids, results),
    st.builds(Reply, id=ids, error=st.builds(Error, ids, words, st.booleans())),
    st.builds(Push, channels, unsubscribe=st.builds(Unsubscribed, ids, words)).map(lambda push: Reply(push=push)),
    st.builds(Push, disconnect=st.builds(Disconnected, ids, words, st.booleans())).map(lambda push: Reply(push=push)),
    st.builds(Push, channels, pub=publications).map(lambda push: Reply(push=push)),
)


@given(replies)
def test_the_sdk_reads_what_we_write(reply: Reply) -> None:
    [message] = PROTOBUF.split(PROTOBUF.encode(reply))
    theirs = client_pb2.Reply()
    theirs.ParseFromString(message)
    assert _plain(theirs) == _expected(reply)
    assert theirs.SerializeToString(deterministic=True) == _same_in_theirs(theirs)  # nothing in it that they do not know


def _same_in_theirs(message: Any) -> bytes:
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    return known.SerializeToString(deterministic=True)


def _plain(message: Any) -> Any:
    """As plain values, without the fields that are empty; payloads as bytes."""
    plain: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            plain[descriptor.name] = value
        elif descriptor.message_type.GetOptions().map_entry:
            plain[descriptor.name] = {key: _plain(inner) for key, inner in value.items()}
        elif descriptor.is_repeated:
            plain[descriptor.name] = [_plain(inner) for inner in value]
        else:
            plain[descriptor.name] = _plain(value)
    return plain


def _expected(value: Any) -> Any:
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, list):
        return [_expected(inner) for inner in value]
    if isinstance(value, dict):
        return {key: _expected(inner) for key, inner in value.items()}
    if not hasattr(value, "__struct_fields__"):
        return value
    fields = {name: getattr(value, name) for name in value.__struct_fields__}
    return {name: _expected(inner) for name, inner in fields.items() if inner or hasattr(inner, "__struct_fields__")}


@given(channels, offsets, payloads)
def test_a_publication_is_what_the_model_would_say(channel: str, offset: int, payload: bytes) -> None:
    """It is framed around its payload, apart from the model: the two must not drift."""
    push = Reply(push=Push(channel=channel, pub=Publication(Raw(payload), offset)))
    assert PROTOBUF.publication(channel, offset, payload) == PROTOBUF.encode(push)
    assert json.loads(JSON.publication(channel, offset, payload))["push"]["pub"] == json.loads(JSON.encode(push))["push"]["pub"]


@given(ids, results)
def test_a_result_encoded_once_serves_every_id(number: int, result: Any) -> None:
    for codec in (PROTOBUF, JSON):
        frame = codec.reply(number, codec.result(result))
        if codec is PROTOBUF and number:
            assert frame == codec.encode(reply_with(number, result))
        if codec is JSON:
            assert json.loads(frame) == {"id": number, **json.loads(codec.encode(reply_with(0, result)))}


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_frames_are_joined_and_split(messages: list[bytes]) -> None:
    framed = [b"".join([_varint(len(message)), message]) for message in messages]
    assert PROTOBUF.split(PROTOBUF.join([PROTOBUF.join(framed[:2]), PROTOBUF.join(framed[2:])])) == messages


def _varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return out + bytes((value,))


# --- as Protobuf has it -------------------------------------------------------------------------------------------------------------


def test_unknown_fields_are_ignored() -> None:
    """Also those of the protocol that we do not offer, whatever is in them."""
    theirs = client_pb2.Command(
        id=2,
        subscribe=client_pb2.SubscribeRequest(
            channel="room:1", token="t", data=b"{}", delta="fossil", flag=1, tf=client_pb2.FilterNode(op="and", nodes=[{"op": "eq"}])
        ),
    )
    raw = theirs.SerializeToString() + bytes.fromhex("f8 07 01  f1 07 0000000000000000  f5 07 00000000  fa 07 02 ffff")  # field 126
    assert PROTOBUF.decode(raw) == Command(id=2, subscribe=SubscribeRequest(channel="room:1"))


def test_the_last_of_a_scalar_counts_and_messages_are_merged() -> None:
    first = client_pb2.Command(id=1, subscribe=client_pb2.SubscribeRequest(channel="room:1", epoch="a", recover=True))
    second = client_pb2.Command(id=2, subscribe=client_pb2.SubscribeRequest(channel="room:2", offset=7))
    raw = first.SerializeToString() + second.SerializeToString()
    theirs = client_pb2.Command()
    theirs.ParseFromString(raw)
    assert MessageToDict(theirs)["subscribe"] == {"channel": "room:2", "epoch": "a", "recover": True, "offset": "7"}
    assert PROTOBUF.decode(raw) == Command(id=2, subscribe=SubscribeRequest("room:2", True, "a", 7))


def test_of_a_channel_that_resumes_twice_the_last_counts_whole() -> None:
    entries = [bytes.fromhex("1a0a 0a0175 1205 380a 320161"), bytes.fromhex("1a07 0a0175 1202 380b"), bytes.fromhex("1a03 0a0176")]
    inner = b"".join(entries)
    command = PROTOBUF.decode(b"\x08\x01\x22" + _varint(len(inner)) + inner)
    assert command == Command(id=1, connect=ConnectRequest(subs={"u": SubscribeRequest(offset=11), "v": SubscribeRequest()}))


def test_two_requests_in_one_command_are_seen_as_two() -> None:
    """Protobuf has no `oneof` here; the session closes for it, so the codec must not hide it."""
    command = PROTOBUF.decode(bytes.fromhex("0801 5a00 6200"))
    assert len(command.requests()) == 2


def test_the_id_of_a_message_that_is_too_large_to_be_taken() -> None:
    large = client_pb2.Command(id=7, rpc=client_pb2.RPCRequest(data=b"x" * 100_000)).SerializeToString()
    assert PROTOBUF.decode_id(large) == 7


# --- what is malformed --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("08", "no value"),
        ("0880", "a value that is cut off"),
        ("88", "a key that is cut off"),
        ("08ffffffffffffffffffff01", "a varint of eleven bytes"),
        ("08ffffffffffffffffff02", "a varint of more than 64 bits"),
        ("0880808080808080808080808000", "an endless varint"),
        ("08ffffffffffffffffff01", "a negative id"),
        ("088080808010", "an id of 33 bits"),
        ("5201", "a message that is cut off"),
        ("2a0a0a06726f6f6d3a31", "a message shorter than it says"),
        ("2affffffffffffffffff01", "a length of 2**64 - 1"),
        ("2affffffff07", "a length of 2**31 - 1"),
        ("2a020a01", "text that runs out of its message"),
        ("2a033880 80", "a number that runs out of its message"),
        ("2a0138 01", "a number that begins in one message and ends in the next"),
        ("2a040a02fffe", "text that is no UTF-8"),
        ("2a050a03eda080", "text with half a surrogate pair"),
        ("0a0101", "an id with a length"),
        ("0d01000000", "an id of 32 fixed bits"),
        ("2801", "a request that is a number"),
        ("2a020801", "a channel that is a number"),
        ("6a020801", "a payload that is a number"),
        ("2b2c", "a group in place of a request"),
        ("1314", "a group that is not known"),
        ("14", "the end of no group"),
        ("2e", "wire type 6"),
        ("17", "wire type 7"),
        ("0001", "field number 0"),
        ("8080808010 00", "a field number of 30 bits"),
        ("5208388080808080808010", "a limit beyond 32 bits"),
        ("f107 00", "fixed bits that are cut off"),
        ("fa07 05 00", "an unknown field that is cut off"),
        ("fa07 ffffffffffffffffff01", "an unknown field of endless length"),
    ],
)
def test_malformed(raw: str, why: str) -> None:
    with pytest.raises(Malformed):
        PROTOBUF.decode(bytes.fromhex(raw))


@pytest.mark.parametrize("frame", ["", "05", "0500", "80", "ffffffffffffffffff01", "ffffffffffffffffffff01", "00 02 08"])
def test_malformed_frames(frame: str) -> None:
    with pytest.raises(Malformed):
        PROTOBUF.split(bytes.fromhex(frame))


@pytest.mark.parametrize("codec", [PROTOBUF, JSON], ids=lambda codec: codec.name)
def test_a_frame_of_nothing_but_empty_messages_ends_early(codec: Any) -> None:
    """A frame of 1 MiB holds a million of the smallest messages; telling them apart would hold up everybody else."""
    small = codec.join([codec.ping])
    separator = b"" if codec is PROTOBUF else b"\n"
    assert len(codec.split(separator.join([small] * MESSAGES_MAX))) == MESSAGES_MAX
    with pytest.raises(Malformed):
        codec.split(separator.join([small] * (MESSAGES_MAX + 2)))


@pytest.mark.parametrize("field", ["0801", "1001", "1200", "2a00", "22021a00"], ids=["id", "number", "text", "request", "entry"])
def test_a_message_of_too_many_fields_ends_early(field: str) -> None:
    """64 KiB hold 32,000 of the smallest fields, on whatever level."""
    cost = 2 if field == "22021a00" else 1
    PROTOBUF.decode(bytes.fromhex(field) * (FIELDS_MAX // cost))
    with pytest.raises(Malformed):
        PROTOBUF.decode(bytes.fromhex(field) * (FIELDS_MAX // cost + 1))


def test_fields_are_counted_on_all_levels_together() -> None:
    def nested(entries: int) -> bytes:
        inner = bytes.fromhex("1a02 1200") * entries  # an entry, and its empty value
        return b"\x22" + _varint(len(inner)) + inner

    PROTOBUF.decode(nested((FIELDS_MAX - 1) // 2))
    with pytest.raises(Malformed):
        PROTOBUF.decode(nested(FIELDS_MAX // 2 + 1))


def test_what_a_full_connect_needs_is_within_the_limit() -> None:
    position = client_pb2.SubscribeRequest(channel="room:1", recover=True, epoch="e", offset=2**63, flag=1)
    full = client_pb2.ConnectRequest(token="t", name="js", version="1", subs={f"room:{n}": position for n in range(128)})
    command = PROTOBUF.decode(client_pb2.Command(id=1, connect=full).SerializeToString())
    assert command.connect is not None
    assert len(command.connect.subs) == 128
    assert {one.offset for one in command.connect.subs.values()} == {2**63}


@given(st.binary(max_size=300))
def test_bytes_decode_or_are_malformed(raw: bytes) -> None:
    for decode in (PROTOBUF.split, PROTOBUF.decode, PROTOBUF.decode_id):
        with contextlib.suppress(Malformed):
            decode(raw)


def _library_of_our_fields() -> Any:
    """The SDK's own description of a command, less the fields that our model does not have: those we pass over, the library reads them."""
    file = FileDescriptorProto()
    client_pb2.DESCRIPTOR.CopyToProto(file)
    known: dict[str, set[str]] = {}

    def keep(model: type[Any], theirs: Descriptor) -> None:
        known[theirs.name] = {field.name for field in _fields(model)}
        for field in _fields(model):
            inner = theirs.fields_by_name[field.name].message_type
            if get_origin(field.type) is dict:
                keep(get_args(field.type)[1], inner.fields_by_name["value"].message_type)
            elif inner is not None:
                keep(field.type, inner)

    keep(Command, client_pb2.Command.DESCRIPTOR)
    for message in file.message_type:
        if message.name in known:
            kept = [field for field in message.field if field.name in known[message.name]]
            del message.field[:]
            message.field.extend(kept)
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(client_pb2.Command.DESCRIPTOR.full_name))


LibraryCommand = _library_of_our_fields()
SUBS = client_pb2.ConnectRequest.DESCRIPTOR.fields_by_name["subs"].number


def _as_the_library_has_it(model: type[Any], theirs: Any) -> Any:
    """Our message, made of theirs field by field."""
    ours = model()
    for field in _fields(model):
        value = getattr(theirs, field.name)
        if get_origin(field.type) is dict:
            setattr(ours, field.name, {key: _as_the_library_has_it(get_args(field.type)[1], one) for key, one in value.items()})
        elif field.type is Raw:
            setattr(ours, field.name, Raw(value))
        elif field.type in {str, int, bool}:
            setattr(ours, field.name, value)
        elif theirs.HasField(field.name):
            setattr(ours, field.name, _as_the_library_has_it(field.type, value))
    return ours


@given(st.lists(st.tuples(ids, requests), min_size=1, max_size=3), st.data())
def test_what_we_take_the_library_takes_as_the_same(commands: list[tuple[int, dict[str, Any]]], data: st.DataObject) -> None:
    """Cut, bent and strung together: bytes are malformed, or they mean to us what they mean to the library."""
    raw = bytearray(b"".join(_their_command(encode_json({"id": number, **request})) for number, request in commands))
    for _ in range(data.draw(st.integers(0, 3))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))]
    with contextlib.suppress(Malformed):
        command = PROTOBUF.decode(bytes(raw))
        theirs = LibraryCommand.FromString(bytes(raw))
        # An entry of a map with something unknown in it is as a whole unknown to this library, though not to others.
        if SUBS not in [field.field_number for field in UnknownFieldSet(theirs.connect)]:
            assert command == _as_the_library_has_it(Command, theirs)
