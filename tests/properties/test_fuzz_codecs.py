"""Any bytes at all, to both codecs: a command or `Malformed`, and the command that independent decoders read in them.

The inputs are those of `make fuzz`, fewer; what is more here is Hypothesis, which finds the smallest.
"""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.protocol.codec import MESSAGES_MAX, Codec, Malformed
from app.protocol.json_codec import JSON
from app.protocol.messages import Command
from app.protocol.protobuf_codec import PROTOBUF
from tests.fuzz.codecs import JSON_TARGET, PROTOBUF_TARGET
from tests.fuzz.target import Target
from tests.support.corpus import seeds

pytestmark = pytest.mark.slow

INPUTS = 15_000
SEED = 20_251_122
TARGETS = (JSON_TARGET, PROTOBUF_TARGET)
CODECS: tuple[Codec, ...] = (JSON, PROTOBUF)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_whatever_is_made_of_the_corpus_is_a_command_or_malformed(target: Target[bytes]) -> None:
    target.run(SEED, INPUTS)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@given(raw=st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_noise_is_a_command_or_malformed(target: Target[bytes], raw: bytes) -> None:
    target.check(raw)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_frame_has_so_many_messages_and_not_one_more(codec: Codec) -> None:
    """JSON counted newlines: behind the last message there need not be one, so a frame could hold one message too many."""
    assert len(codec.split(codec.join([codec.ping] * MESSAGES_MAX))) == MESSAGES_MAX
    with pytest.raises(Malformed):
        codec.split(codec.join([codec.ping] * (MESSAGES_MAX + 1)))


# --- right ones come through ----------------------------------------------------------------------------------------------------------

text = st.text(max_size=20)  # Hypothesis makes no lone surrogates of it
offset = st.integers(0, 2**64 - 1)
payload = st.recursive(st.none() | st.booleans() | st.integers() | text, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
sub = st.fixed_dictionaries(
    {}, optional={"channel": text, "recover": st.booleans(), "epoch": text, "offset": offset, "flag": st.integers(0, 9)}
)
bodies: list[st.SearchStrategy[dict[str, Any]]] = [
    st.fixed_dictionaries({}, optional={"token": text, "name": text, "version": text, "subs": st.dictionaries(text, sub, max_size=3)}).map(
        lambda body: {"connect": body}
    ),
    sub.map(lambda body: {"subscribe": body}),
    st.fixed_dictionaries(
        {},
        optional={
            "channel": text,
            "limit": st.integers(-(2**31), 2**31 - 1),
            "since": st.fixed_dictionaries({}, optional={"offset": offset, "epoch": text}),
            "reverse": st.booleans(),
        },
    ).map(lambda body: {"history": body}),
    st.fixed_dictionaries({"data": payload}, optional={"method": text}).map(lambda body: {"rpc": body}),
    *(
        st.fixed_dictionaries({}, optional={"channel": text}).map(lambda body, name=name: {name: body})
        for name in ("unsubscribe", "publish", "presence", "presence_stats", "sub_refresh")
    ),
    st.fixed_dictionaries({}, optional={"token": text}).map(lambda body: {"refresh": body}),
    st.sampled_from([{"ping": {}}, {"send": {}}]),
]


@given(command_id=st.integers(0, 2**32 - 1), body=st.one_of(bodies))
@settings(max_examples=300, deadline=None)
def test_a_command_is_the_same_in_both_codecs(command_id: int, body: dict[str, Any]) -> None:
    """Written by others: Python's JSON, and the classes that the SDK ships."""
    command = {"id": command_id, **body}
    by_codec = {codec.name: decoded(codec, write(command)) for codec, write in ((JSON, seeds.to_json), (PROTOBUF, seeds.to_protobuf))}
    assert plain(by_codec["json"]) == plain(by_codec["protobuf"])
    assert by_codec["json"].id == command_id
    assert len(by_codec["json"].requests()) == 1


def decoded(codec: Codec, message: bytes) -> Command:
    [one] = codec.split(message)
    command = codec.decode(one)
    assert codec.decode_id(one) == command.id
    return command


def plain(value: Any) -> Any:
    """For comparison: payloads by what they mean, since writers set blanks as they like."""
    if hasattr(value, "__struct_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if type(value).__name__ == "Raw":
        return json.loads(bytes(value)) if bytes(value) else None
    return value
