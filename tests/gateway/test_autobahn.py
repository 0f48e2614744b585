"""The server cases of the Autobahn test suite, groups 1 to 7, 9 and 10, in essence: written from their published descriptions and RFC 6455,
against an echo in both shells. docs/websocket-conformance.md has the result of the suite itself, and how to repeat it.

Where uvicorn's framing, which the plain shell has, is not strict, only the close code is asked for: what was whole before a broken frame
in the same read is not answered, and a close inside a message is answered 1002 (`asgi_code`).
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from tests.gateway.conftest import SHELLS
from tests.gateway.echo import EchoServer
from tests.support.frames import BINARY, CLOSE, FIN, PING, PONG, TEXT, RawSocket, masked
from tests.support.waiting import wait_until

AT_ONCE = 25  # cases side by side

Frame = tuple[int, bytes]
HELLO = b"Hello, world!"
GREEK = "κόσμε".encode()


@dataclass(frozen=True)
class Case:
    id: str
    sent: Sequence[bytes]  # pieces, each in a write of its own
    frames: Sequence[Frame] = ()  # that come back, in order
    code: int = 1000  # of the server's close frame; 1000 also where the client closes, at the end of a case that breaks nothing
    closes: bool = True  # the client sends a close of its own, once the frames are here
    asgi_code: int = 0  # what uvicorn's framing closes with, not strictly as the case demands


def octets(data: bytes) -> list[bytes]:
    return [data[index : index + 1] for index in range(len(data))]


def chopped(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def parts(opcode: int, payloads: Sequence[bytes]) -> list[bytes]:
    """One message in as many frames."""
    last = len(payloads) - 1
    return [masked((FIN if index == last else 0) | (0 if index else opcode), payload) for index, payload in enumerate(payloads)]


def echoed(name: str, sent: Sequence[bytes], *frames: Frame) -> Case:
    return Case(name, sent, frames)


def refused(name: str, sent: Sequence[bytes], code: int, *frames: Frame) -> Case:
    return Case(name, sent, frames, code, closes=False)


# --- 1 to 5: framing, pings, reserved bits, opcodes, fragmentation --------------------------------------------------------------------


def framing() -> Iterator[Case]:
    for group, first, filling in (("1.1", TEXT, b"*"), ("1.2", BINARY, b"\xfe")):
        for number, size in enumerate((0, 125, 126, 127, 128, 65535, 65536), 1):
            yield echoed(f"{group}.{number}", [masked(first, filling * size)], (first, filling * size))
        yield echoed(f"{group}.8", chopped(masked(first, filling * 65536), 997), (first, filling * 65536))


def pings() -> Iterator[Case]:
    binary = bytes.fromhex("00fffefdfcfb00ff")
    for number, payload in enumerate((b"", HELLO, binary, b"\xfe" * 125), 1):
        yield echoed(f"2.{number}", [masked(PING, payload)], (PONG, payload))
    yield refused("2.5", [masked(PING, b"\xfe" * 126)], 1002)
    yield echoed("2.6", octets(masked(PING, b"\xfe" * 125)), (PONG, b"\xfe" * 125))
    yield echoed("2.7", [masked(PONG, b"")])
    yield echoed("2.8", [masked(PONG, b"unsolicited")])
    yield echoed("2.9", [masked(PONG, b"unsolicited"), masked(PING, b"asked")], (PONG, b"asked"))
    ten = [masked(PING, b"payload-%d" % number) for number in range(10)]
    answers = [(PONG, b"payload-%d" % number) for number in range(10)]
    yield echoed("2.10", ten, *answers)
    yield echoed("2.11", octets(b"".join(ten)), *answers)


def reserved() -> Iterator[Case]:
    def bits(value: int, first: int = TEXT) -> bytes:
        return masked(first | value << 4, HELLO)

    hello = (TEXT, HELLO)
    yield refused("3.1", [bits(1)], 1002)
    yield refused("3.2", [masked(TEXT, HELLO) + bits(2) + masked(PING, b"")], 1002, hello)
    yield refused("3.3", [masked(TEXT, HELLO), bits(3), masked(PING, b"")], 1002, hello)
    yield refused("3.4", octets(masked(TEXT, HELLO) + bits(4)), 1002, hello)
    yield refused("3.5", [bits(5, BINARY)], 1002)
    yield refused("3.6", [bits(6, PING)], 1002)
    yield refused("3.7", [bits(7, CLOSE)], 1002)
    for group, opcodes in (("4.1", (3, 4, 5, 6, 7)), ("4.2", (11, 12, 13, 14, 15))):
        payloads = (b"", b"reserved opcode payload", b"", b"reserved opcode payload", b"")
        for number, (opcode, payload) in enumerate(zip(opcodes, payloads, strict=True), 1):
            bad = masked(FIN | opcode, payload)
            if number <= 2:
                yield refused(f"{group}.{number}", [bad], 1002)
            else:
                sent = [masked(TEXT, HELLO), bad, masked(PING, b"")] if number < 5 else octets(masked(TEXT, HELLO) + bad)
                yield refused(f"{group}.{number}", sent, 1002, hello)


def fragments() -> Iterator[Case]:
    yield refused("5.1", parts(9, [b"fragment1", b"fragment2"]), 1002)
    yield refused("5.2", parts(10, [b"fragment1", b"fragment2"]), 1002)
    first, last = parts(1, [b"fragment1", b"fragment2"])
    whole, ping, pong = (TEXT, b"fragment1fragment2"), masked(PING, b"pongme"), (PONG, b"pongme")
    yield echoed("5.3", [first + last], whole)
    yield echoed("5.4", [first, last], whole)
    yield echoed("5.5", octets(first + last), whole)
    yield echoed("5.6", [first + ping + last], pong, whole)
    yield echoed("5.7", [first, ping, last], pong, whole)
    yield echoed("5.8", octets(first + ping + last), pong, whole)
    for base, opcode in ((9, FIN), (12, 0)):
        stray, text = masked(opcode, b"non-continuation payload"), masked(TEXT, HELLO)
        yield refused(f"5.{base}", [stray + text], 1002)
        yield refused(f"5.{base + 1}", [stray, text], 1002)
        yield refused(f"5.{base + 2}", octets(stray + text), 1002)
    yield refused("5.15", [first + last + masked(0, b"fragment3") + masked(TEXT, b"fragment4")], 1002, whole)
    for number, opcode in ((16, 0), (17, FIN)):
        yield refused(f"5.{number}", [masked(opcode, b"fragment1"), masked(1, b"fragment2"), masked(FIN, b"fragment3")] * 2, 1002)
    yield refused("5.18", [first, masked(TEXT, b"fragment2")], 1002)
    five = parts(1, [b"fragment%d" % number for number in range(1, 6)])
    sent = [*five[:2], masked(PING, b"pongme 1"), *five[2:4], masked(PING, b"pongme 2"), five[4]]
    answers = ((PONG, b"pongme 1"), (PONG, b"pongme 2"), (TEXT, b"fragment1fragment2fragment3fragment4fragment5"))
    yield echoed("5.19", [b"".join(sent)], *answers)
    yield echoed("5.20", sent, *answers)


# --- 6: UTF-8 (sequences after Markus Kuhn's decoder stress test) ---------------------------------------------------------------------

FEW_VALID = [
    *("κόσμε", "\x00", "\x80", "\u0800", "\U00010000", "\x7f", "\u07ff", "\uffff", "\ud7ff", "\ue000", "\ufffd", "\U0010ffff", "a\x00b"),
    *("\ufdd0", "\ufdef", "\ufffe", "\U0001fffe", "\U0010fffe", "Hello-µ@ßöäüàá-UTF-8!!", "\U0001f600\u200d\u20ac"),
]
INVALID = [
    *("f8888080 80", "fc8480808080", "f7bfbfbf", "fbbfbfbfbf", "fdbfbfbfbfbf", "f4908080"),  # beyond Unicode
    *("80", "bf", "80bf", "80bf80", "80bf80bf80bf80", "".join(f"{byte:02x}" for byte in range(0x80, 0xC0))),  # continuations alone
    *("".join(f"{byte:02x}20" for byte in group) for group in (range(0xC0, 0xE0), range(0xE0, 0xF0), range(0xF0, 0xF8))),  # starts alone
    *("c0", "e080", "f08080", "f8808080", "fc80808080", "df", "efbf", "f7bfbf", "fbbfbfbf", "fdbfbfbfbf", "c0e080f08080"),  # cut
    *("fe", "ff", "fefeffff"),  # no part of anything
    *("c0af", "e080af", "f08080af", "f8808080af", "fc80808080af", "c1bf", "e09fbf", "f08fbfbf", "c080", "e08080", "f0808080"),  # overlong
    *("eda080", "edadbf", "edae80", "edafbf", "edb080", "edbe80", "edbfbf", "eda080edb080", "edadbfedbfbf"),  # surrogates
    *("cebae1bdb9cf83cebcceb5eda080656469746564", "cebae1bd"),
]


def texts() -> Iterator[Case]:
    yield echoed("6.1.1", [masked(TEXT, b"")], (TEXT, b""))
    yield echoed("6.1.2", parts(1, [b"", b"", b""]), (TEXT, b""))
    yield echoed("6.1.3", parts(1, [b"", b"middle", b""]), (TEXT, b"middle"))
    for number, text in enumerate(FEW_VALID):
        payload = text.encode()
        yield echoed(f"6 valid {number} whole", [masked(TEXT, payload)], (TEXT, payload))
        yield echoed(f"6 valid {number} in octets", [b"".join(parts(1, octets(payload)))], (TEXT, payload))
    for number, digits in enumerate(INVALID):
        payload = bytes.fromhex(digits)
        yield refused(f"6 invalid {number} whole", [masked(TEXT, b"a" + payload)], 1007)
        yield refused(f"6 invalid {number} in octets", [b"".join(parts(1, octets(payload)))], 1007)


def early() -> Iterator[tuple[str, bytes]]:
    """6.4: streams that can only be wrong, of which the end never comes."""
    bad = b"\xf4\x90\x80\x80"
    yield "6.4.1", masked(1, GREEK) + masked(0, bad)
    yield "6.4.2", masked(1, GREEK + bad[:1]) + masked(0, bad[1:2])
    yield "6.4.3", masked(TEXT, GREEK + bad + b"edited")[: 6 + len(GREEK + bad)]
    yield "6.4.4", masked(TEXT, GREEK + bad + b"edited")[: 6 + len(GREEK) + 2]


# --- 7: closing -----------------------------------------------------------------------------------------------------------------------

CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
NO_CODES = (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65535)


def closes() -> Iterator[Case]:
    close, hello = masked(CLOSE, b"\x03\xe8"), masked(TEXT, HELLO)
    yield refused("7.1.1", [hello, close], 1000, (TEXT, HELLO))
    yield refused("7.1.2", [close + close], 1000)
    yield refused("7.1.3", [close + masked(PING, b"")], 1000)
    yield refused("7.1.4", [close + hello], 1000)
    yield Case("7.1.5", [masked(1, b"fragment1") + close + masked(FIN, b"fragment2")], closes=False, asgi_code=1002)
    yield refused("7.3.1", [masked(CLOSE, b"")], 1000)
    yield refused("7.3.2", [masked(CLOSE, b"a")], 1002)
    yield refused("7.3.4", [masked(CLOSE, b"\x03\xe8Hello World!")], 1000)
    yield refused("7.3.5", [masked(CLOSE, b"\x03\xe8" + b"*" * 123)], 1000)
    yield refused("7.3.6", [masked(CLOSE, b"\x03\xe8" + b"*" * 124)], 1002)
    yield refused("7.5.1", [masked(CLOSE, b"\x03\xe8" + GREEK + b"\xed\xa0\x80edited")], 1007)
    for code in CODES:
        yield refused(f"7.7 {code}", [masked(CLOSE, code.to_bytes(2, "big"))], code)
    for code in NO_CODES:
        yield refused(f"7.9 {code}", [masked(CLOSE, code.to_bytes(2, "big") + b"reason")], 1002)


# --- 9 and 10: limits -----------------------------------------------------------------------------------------------------------------

MIB = 1024 * 1024


def sizes() -> Iterator[Case]:
    for group, first in (("9.1", TEXT), ("9.2", BINARY)):
        for size in (MIB // 16, MIB // 4, MIB, 4 * MIB):
            payload = b"*" * size
            yield echoed(f"{group} {size}", [masked(first, payload)], (first, payload))
    payload = b"*" * MIB
    for group, first, opcode in (("9.3", TEXT, 1), ("9.4", BINARY, 2)):
        for size in (256, 4096, 65536):
            yield echoed(f"{group} {size}", [b"".join(parts(opcode, chopped(payload, size)))], (first, payload))
    for group, first in (("9.5", TEXT), ("9.6", BINARY)):
        for size in (1024, 16384):
            yield echoed(f"{group} {size}", chopped(masked(first, payload), size), (first, payload))
    for group, first in (("9.7", TEXT), ("9.8", BINARY)):
        for size in (0, 16, 64, 256, 1024, 4096):
            yield echoed(f"{group} {size}", [masked(first, b"*" * size) * 200], *[(first, b"*" * size)] * 200)
    yield echoed("10.1.1", parts(1, chopped(b"*" * 65536, 1300)), (TEXT, b"*" * 65536))


GROUPS = {"1": framing, "2": pings, "3 and 4": reserved, "5": fragments, "6": texts, "7": closes, "9 and 10": sizes}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("group", GROUPS)
async def test_the_cases_of(group: str, shell: str) -> None:
    async with EchoServer(shell) as server:
        cases = list(GROUPS[group]())
        for start in range(0, len(cases), AT_ONCE):
            await asyncio.gather(*(run(server, case, shell) for case in cases[start : start + AT_ONCE]))
        await wait_until(lambda: not server.hub.connections)


async def run(server: EchoServer, case: Case, shell: str) -> None:
    async with await RawSocket.upgraded(server.port) as client:
        sending = asyncio.create_task(send(client, case.sent))
        if shell == "asgi" and not case.closes:
            await sending
            assert await end_of(client) in {case.asgi_code or case.code, 0}, case.id
            return
        seen = [await client.frame() for _ in case.frames]
        assert seen == list(case.frames), case.id
        await sending
        if case.closes:
            client.send(masked(CLOSE, b"\x03\xe8"))
        assert (case.id, await client.close_code()) == (case.id, case.code)
        assert await client.at_end(), case.id


async def end_of(client: RawSocket) -> int:
    """The close code after whatever comes before; 0 for an empty close, and for a reset, as from a server that closes with bytes unread."""
    try:
        first, payload = await client.frame()
        while first != CLOSE:
            first, payload = await client.frame()
    except (ConnectionResetError, asyncio.IncompleteReadError):
        return 0
    return int.from_bytes(payload[:2], "big")


async def send(client: RawSocket, pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        if client.writer.transport.is_closing():
            return  # the server had seen enough
        client.send(piece)
        await asyncio.sleep(0)  # so that each is a write of its own


async def test_text_that_can_only_be_wrong_is_refused_at_once() -> None:
    """6.4, of sockets handed over: uvicorn waits for the message's end, which here never comes."""
    async with EchoServer("socket") as server:
        for name, data in early():
            async with await RawSocket.upgraded(server.port) as client:
                client.send(data)
                assert (name, await client.close_code()) == (name, 1007)
