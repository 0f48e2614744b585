"""Bytes to messages and back."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from app.protocol.codec import Malformed
from app.protocol.json_codec import JSON
from app.protocol.messages import (
    Command,
    Error,
    HistoryResult,
    PresenceStatsResult,
    Publication,
    Reply,
    SubscribeResult,
    UnsubscribeResult,
    reply_with,
)


def test_a_frame_is_split_without_parsing() -> None:
    assert JSON.split(b'{"id":1}\n{"id":2}\n') == [b'{"id":1}', b'{"id":2}']


def test_unknown_fields_are_ignored() -> None:
    command = JSON.decode(b'{"id":2,"subscribe":{"channel":"room:1","flag":1,"delta":"fossil","tf":{},"data":{"a":1}},"later":[]}')
    assert command.id == 2
    assert command.subscribe is not None
    assert command.subscribe.channel == "room:1"


def test_the_id_of_a_message_that_is_too_large_to_be_taken() -> None:
    assert JSON.decode_id(b'{"rpc":{"data":"' + b"x" * 100_000 + b'"},"id":7}') == 7


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (
            Reply(id=3, error=Error(111, "too many requests", True)),
            b'{"id":3,"error":{"code":111,"message":"too many requests","temporary":true}}',
        ),
        (reply_with(3, UnsubscribeResult()), b'{"id":3,"unsubscribe":{}}'),
        (
            reply_with(2, SubscribeResult(recoverable=True, positioned=True, epoch="k7Qz", offset=120, data=Raw(b'{"a":1}'))),
            b'{"id":2,"subscribe":{"recoverable":true,"epoch":"k7Qz","offset":120,"positioned":true,"data":{"a":1}}}',
        ),
        (
            reply_with(
                2,
                SubscribeResult(
                    recoverable=True, epoch="k", offset=1, was_recovering=True, recovered=True, publications=[Publication(Raw(b"{}"), 2)]
                ),
            ),
            b'{"id":2,"subscribe":{"recoverable":true,"epoch":"k","publications":[{"data":{},"offset":2}],"recovered":true,"offset":1,'
            b'"was_recovering":true}}',
        ),
        (reply_with(4, PresenceStatsResult()), b'{"id":4,"presence_stats":{"num_clients":0,"num_users":0}}'),
        (reply_with(4, HistoryResult([], "e", 0)), b'{"id":4,"history":{"publications":[],"epoch":"e","offset":0}}'),
    ],
)
def test_replies(reply: Reply, expected: bytes) -> None:
    assert JSON.encode(reply) == expected


def test_a_publication_is_framed_around_the_payload() -> None:
    data = '{"type":"chat.sent","text":"早上好 \\"茶\\""}'.encode()
    assert JSON.publication("room:42", 121, data) == b'{"push":{"channel":"room:42","pub":{"data":' + data + b',"offset":121}}}'
    assert JSON.publication("room:42", 0, b"{}") == b'{"push":{"channel":"room:42","pub":{"data":{}}}}'


@given(st.text(max_size=40), st.integers(0, 2**63 - 1), st.recursive(st.none() | st.text() | st.integers(), st.lists))
def test_a_publication_is_json_whatever_the_channel(channel: str, offset: int, value: object) -> None:
    data = json.dumps(value).encode()
    push = json.loads(JSON.publication(channel, offset, data))["push"]
    assert push["channel"] == channel
    assert push["pub"]["data"] == value
    assert push["pub"].get("offset", 0) == offset


def test_frames_can_be_joined_again() -> None:
    frame = JSON.join([JSON.join([b"{}", b"{}"]), b"{}"])
    assert JSON.split(frame) == [b"{}", b"{}", b"{}"]


@given(st.binary(max_size=300))
def test_bytes_decode_or_are_malformed(raw: bytes) -> None:
    for decode in (JSON.split, JSON.decode, JSON.decode_id):
        with contextlib.suppress(Malformed):
            decode(raw)


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"id":1,"rpc":{"data":' + b"[" * 100_000, b'{"x":' * 50_000])
def test_deep_nesting_is_malformed(raw: bytes) -> None:
    """The decoder raises RecursionError for it, which is no DecodeError."""
    with pytest.raises(Malformed):
        JSON.decode(raw)
    with pytest.raises(Malformed):
        JSON.decode_id(raw)


def test_an_empty_command_is_a_pong() -> None:
    assert JSON.decode(b"{}") == Command()
    assert JSON.decode(b"{}").requests() == []
