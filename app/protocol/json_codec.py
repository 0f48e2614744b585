r"""The JSON codec: text frames of objects joined by `\n`.

An object holds no raw newline (JSON escapes it), so a frame is split without parsing, and a publication's frame is a prefix, the payload
and a suffix. Whatever bytes come in, the only exception that goes out is `Malformed`.
"""

from collections.abc import Sequence
from functools import lru_cache

import msgspec

from app.protocol.codec import MESSAGES_MAX, Malformed
from app.protocol.messages import Command, Identified, Reply, Result, reply_with

_commands = msgspec.json.Decoder(Command)
_encoder = msgspec.json.Encoder()
_ids = msgspec.json.Decoder(Identified)

# What a decoder raises for bad input: nesting beyond the interpreter's depth is a RecursionError, text that is not UTF-8 a UnicodeError.
_BAD_INPUT = (msgspec.DecodeError, RecursionError, UnicodeError)


class JsonCodec:
    name = "json"
    subprotocol = "centrifuge-json"
    is_text = True
    ping = b"{}"

    def split(self, frame: bytes) -> list[bytes]:
        if b"\n" not in frame and frame.strip():
            return [frame]  # as nearly always
        if frame.count(b"\n") > MESSAGES_MAX:
            raise Malformed(f"a frame of more than {MESSAGES_MAX} lines")
        messages = [line for line in frame.split(b"\n") if line.strip()]
        if not 0 < len(messages) <= MESSAGES_MAX:
            raise Malformed(f"a frame is empty, or of more than {MESSAGES_MAX} messages")
        return messages

    def decode(self, message: bytes) -> Command:
        try:
            return _commands.decode(message)
        except _BAD_INPUT as failure:
            raise Malformed(str(failure)) from failure

    def decode_id(self, message: bytes) -> int:
        try:
            return _ids.decode(message).id
        except _BAD_INPUT as failure:
            raise Malformed(str(failure)) from failure

    def encode(self, reply: Reply) -> bytes:
        return _encoder.encode(reply)

    def result(self, result: Result) -> bytes:
        return _encoder.encode(reply_with(0, result))[1:]

    def reply(self, command_id: int, result: bytes) -> bytes:
        return b'{"id":%d,%b' % (command_id, result)

    def publication(self, channel: str, offset: int, data: bytes) -> bytes:
        if offset:
            return b'%b%b,"offset":%d}}}' % (_opening(channel), data, offset)
        return b"%b%b}}}" % (_opening(channel), data)

    def join(self, messages: Sequence[bytes]) -> bytes:
        return b"\n".join(messages)


@lru_cache(maxsize=4096)
def _opening(channel: str) -> bytes:
    return b'{"push":{"channel":%b,"pub":{"data":' % _encoder.encode(channel)


JSON = JsonCodec()
