"""The benchmark's crowd counts what it is told, no more and no less: in Python everywhere, in C where there is a compiler."""

import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from loadtests.bench import crowds
from loadtests.bench.crowds import Crowd, Trouble, running_crowd
from loadtests.bench.machine import compile_native
from tests.loadtests.room_server import CLOSE, PING, PONG, TEXT, RoomServer, frame, running_room_server
from tests.support.waiting import wait_until

IN_PYTHON = [sys.executable, "-m", "loadtests.crowd"]
IN_C, _ = compile_native("crowd")
OLD_NS = 1_700_000_000_000_000_000  # long ago

Joining = Callable[..., AbstractAsyncContextManager[Crowd]]


@pytest.fixture(params=[IN_PYTHON, *([[str(IN_C)]] if IN_C else [])], ids=lambda command: "python" if command is IN_PYTHON else "c")
def joining(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Joining:
    monkeypatch.setattr(crowds, "crowd_program", lambda: (request.param, ""))

    @asynccontextmanager
    async def join(room: RoomServer, greetings: tuple[str, ...] = (), stage: str = "-") -> AsyncGenerator[Crowd]:
        async with running_room_server(room), running_crowd(port=room.port, path="/ws", greetings=greetings, stage=stage) as crowd:
            yield crowd

    return join


async def test_counts_every_delivery(joining: Joining) -> None:
    async with joining(RoomServer()) as crowd:
        told = await crowd.open(7, at_once=3)
        assert (told["ready"], told["errors"]) == (7, {})
        told = await crowd.speak("t=%T;x", rate=50, seconds=0.4, grace_s=20)
        assert (told["sent"], told["wanted"], told["deliveries"], told["lost"]) == (20, 140, 140, 0)
        told = await crowd.speak("nothing that counts", rate=50, seconds=0.1, grace_s=0.1)
        assert (told["sent"], told["deliveries"], told["samples"]) == (5, 0, 0)


async def test_counts_messages_that_were_joined_in_one_frame_and_frames_that_come_in_pieces(joining: Joining) -> None:
    message = b'{"push":{"text":"t=%d;"}}' % OLD_NS
    large = b"\n".join([message, b"no stamp", b"t=12;" + b"-" * 40_000] * 16)
    answers = iter([frame(b"\n".join([message] * 3)), frame(large), frame(message)])
    async with joining(RoomServer(answer=lambda _visit, _message: next(answers, b""))) as crowd:
        await crowd.open(1)
        told = await crowd.speak("go", rate=100, seconds=0.2, grace_s=20)  # done when as many arrived as were sent
        assert (told["sent"], told["deliveries"]) == (20, 3 + 16 + 1)


async def test_latency_is_the_age_of_the_stamp(joining: Joining) -> None:
    stamps = b"".join(b"t=%d;" % OLD_NS for _ in range(31))
    async with joining(RoomServer(answer=lambda _visit, _message: frame(stamps))) as crowd:
        await crowd.open(1)
        told = await crowd.speak("t=%T;", rate=10, seconds=0.1, grace_s=20)
        assert (told["deliveries"], told["samples"]) == (31, 1)
        assert told["p50_ms"] == told["p99_ms"] == told["max_ms"] > 31_536_000_000  # a year


async def test_greets_in_one_frame_and_is_ready_with_the_last_reply(joining: Joining) -> None:
    room = RoomServer(answer=lambda _visit, _message: frame(b'{"id":1,"connect":{}}') + frame(b'{"id":2,"subscribe":{}}'))
    async with joining(room, ('{"id":1,"connect":{}}\t{"id":2,"subscribe":{}}', '{"id":1}\t{"id":2}')) as crowd:
        await crowd.open(1)
        await crowd.close()
        await crowd.open(1)
        assert room.heard == {
            0: [(TEXT, b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{}}')],
            1: [(TEXT, b'{"id":1}\n{"id":2}')],  # who comes after `close` has the next line
        }


async def test_one_who_is_not_answered_is_not_ready(joining: Joining) -> None:
    async with joining(RoomServer(answer=lambda _visit, _message: frame(b'{"id":1}')), ('{"id":1}\t{"id":2}',)) as crowd:
        with pytest.raises(Trouble, match="0 of 1 viewers came in"):
            await crowd.open(1, seconds_max=0.3)


async def test_comes_again_when_it_is_refused(joining: Joining) -> None:
    later = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 0\r\nContent-Length: 0\r\n\r\n"
    async with joining(RoomServer(refusals=[later] * 3)) as crowd:
        told = await crowd.open(2)
        assert (told["ready"], told["errors"]) == (2, {"503": 3})


async def test_answers_pings_of_both_kinds(joining: Joining) -> None:
    room = RoomServer(answer=lambda _visit, message: frame(b"ab", PING) + frame(b"{}") if message == b"go" else frame(b"t=%d;" % OLD_NS))
    async with joining(room) as crowd:
        await crowd.open(1)
        await crowd.speak("go", rate=10, seconds=0.1, grace_s=20)  # done with the stamp, which answers the pong
        assert room.heard[0] == [(TEXT, b"go"), (PONG, b"ab"), (TEXT, b"{}")]


async def test_tells_who_was_closed_and_why(joining: Joining) -> None:
    last_words = frame(b"t=%d;t=%d;" % (OLD_NS, OLD_NS)) + frame(b"\x0b\xc0slow", CLOSE)
    async with joining(RoomServer(answer=lambda _visit, _message: last_words)) as crowd:
        await crowd.open(2)
        told = await crowd.speak("go", rate=10, seconds=0.1, grace_s=20)
        assert (told["lost"], told["ready"], told["errors"]) == (1, 1, {"closed_3008": 1})


async def test_closed_loop_counts_accepted_and_refused(joining: Joining) -> None:
    replies = iter([b'{"id":1,"rpc":{"held":1}}', b'{"id":2,"error":{"code":111}}', b'{"id":3,"rpc":{"sold out":1}}'])
    room = RoomServer(answer=lambda _visit, _message: frame(reply) if (reply := next(replies, b"")) else b"")
    async with joining(room) as crowd:
        await crowd.open(1)
        told = await crowd.loop("buy %N", mark='"held"', seconds=1)
        assert (told["accepted"], told["refused"], told["samples"], told["errors"]) == (1, 2, 3, {"reply_111": 1})
        assert room.heard[0] == [(TEXT, b"buy %d" % number) for number in (1001, 1002, 1003, 1004)]


def subscribed(offset: int, *publications: int, recovered: bool = False) -> bytes:
    listed = b",".join(b'{"data":{},"offset":%d}' % one for one in publications)
    how = b',"was_recovering":true,"recovered":true,"publications":[%b]' % listed if recovered else b""
    return frame(b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"recoverable":true,"epoch":"k7","offset":%d%b}}' % (offset, how))


def pushed(offset: int) -> bytes:
    return frame(b'{"push":{"channel":"room:1","pub":{"data":{"a":{}},"offset":%d}}}' % offset)


READING = frame(b'{"push":{"channel":"room:1","pub":{"data":{"type":"room.pulse"}}}}')
GREETING = '{"id":1,"connect":{}}\t{"id":2,"subscribe":{"channel":"room:1","recover":false}}'


async def stands_at(crowd: Crowd, offset: int) -> dict[str, Any]:
    stages: list[dict[str, Any]] = []

    async def is_there() -> bool:
        stages.append(await crowd.stage())
        return stages[-1]["lowest"] == offset

    await wait_until(is_there)
    return stages[-1]


@pytest.mark.parametrize(
    ("again", "expected"),
    [
        (subscribed(8, 9, 10, recovered=True) + pushed(11), (11, 0, 0)),
        (subscribed(8, recovered=True) + READING + pushed(9), (9, 0, 0)),
        (subscribed(8, 9, 11, recovered=True), (11, 1, 0)),
        (subscribed(8, 9, 10, recovered=True) + pushed(12), (12, 1, 0)),
        (subscribed(8, 8, 9, recovered=True), (9, 0, 1)),
        (subscribed(8, 9, recovered=True) + pushed(9) + pushed(10), (10, 0, 1)),
    ],
    ids=["whole", "nothing missed", "gap in what was recovered", "gap behind it", "one from before", "repeated by a push"],
)
async def test_storm_sees_gaps_and_duplicates(joining: Joining, again: bytes, expected: tuple[int, int, int]) -> None:
    room = RoomServer(answer=lambda visit, _message: again if visit else subscribed(7) + pushed(8))
    async with joining(room, (GREETING,), "room:1") as crowd:
        await crowd.open(1)
        await stands_at(crowd, 8)  # the push behind the reply
        told = await crowd.storm(spread_s=0.1, seconds_max=20)
        assert (told["ready"], told["recovered"], told["afresh"], told["errors"]) == (1, 1, 0, {})
        assert room.heard[1] == [(TEXT, GREETING.replace("\t", "\n").replace("false", 'true,"epoch":"k7","offset":8').encode())]
        stage = await stands_at(crowd, expected[0])
        assert (stage["highest"], stage["gaps"], stage["duplicates"]) == expected
