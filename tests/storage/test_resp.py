"""The hot path's line to the engine, against a real engine and through lines that break."""

import asyncio
import ssl
from pathlib import Path

import pytest
from redis.asyncio.connection import parse_url
from redis.exceptions import ConnectionError as EngineConnectionError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as EngineTimeoutError

from app.storage import resp
from app.storage.redis import Script
from app.storage.resp import EngineLine
from app.storage.work import Engines
from tests.support.certificates import make_certificates
from tests.support.faulty_proxy import deaf_line, faulty_proxy
from tests.support.servers import Servers


async def test_each_caller_gets_the_answer_to_its_own_question(engines: Engines) -> None:
    line = engines.sales.line
    answers = await asyncio.gather(
        *[line.call(("ECHO", f"{number}")) for number in range(500)], line.call_all([("GET", "none"), ("PING",)])
    )
    assert answers == [*(f"{number}".encode() for number in range(500)), [None, b"PONG"]]
    assert await engines.sales.client_list(client_type="normal") != [], "redis-py still has its own connections"
    names = [client["name"] for client in await engines.sales.client_list()]
    assert names.count("jishi-line") == 1, "one connection, however many ask"


async def test_an_error_is_the_callers_alone(engines: Engines) -> None:
    line = engines.sales.line
    bad, good, unknown = await asyncio.gather(
        line.call(("INCR",)), line.call(("INCR", "n")), line.call(("EVALSHA", "0" * 40, 0)), return_exceptions=True
    )
    assert isinstance(bad, ResponseError)
    assert good == 1
    assert isinstance(unknown, NoScriptError)
    with pytest.raises(ResponseError, match="wrong number"):
        await line.call_all([("PING",), ("INCR",), ("PING",)])
    assert await line.call(("PING",)) == b"PONG"


async def test_a_caller_that_goes_away_does_not_shift_the_answers(engines: Engines) -> None:
    line = engines.sales.line
    await line.call(("PING",))
    gone = asyncio.ensure_future(line.call(("ECHO", "gone")))
    await asyncio.sleep(0)
    gone.cancel()
    assert await line.call(("ECHO", "stays")) == b"stays"


async def test_a_script_that_the_engine_forgot_is_sent_again(engines: Engines, tmp_path: Path) -> None:
    source = tmp_path / "add.lua"
    source.write_text("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    script = Script(source)
    assert [await script(engines.sales, ["{a}:n"], [2]), await script(engines.sales, ["{a}:n"], [3])] == [2, 5]
    await engines.sales.script_flush()
    assert await script.call_all(engines.sales, [(["{a}:n"], [1]), (["{b}:n"], [1])]) == [6, 1]


async def test_a_cut_line_fails_all_who_wait_and_opens_again(engines: Engines, servers: Servers) -> None:
    async with faulty_proxy(servers.valkey.socket_path) as proxy:
        line = EngineLine(parse_url(proxy.url))
        await line.call(("PING",))
        proxy.mode = "cut_request"
        failures = await asyncio.gather(*[line.call(("PING",)) for _ in range(20)], return_exceptions=True)
        assert {type(failure) for failure in failures} == {EngineConnectionError}
        assert len({id(failure) for failure in failures}) == 20, "a traceback must not be shared"
        assert 4 <= proxy.cuts <= 40, "three retries, together"
        proxy.heal()
        assert await line.call(("PING",)) == b"PONG"
        await line.aclose()


async def test_a_request_whose_reply_was_lost_is_asked_again(engines: Engines, servers: Servers) -> None:
    async with faulty_proxy(servers.valkey.socket_path) as proxy:
        line = EngineLine(parse_url(proxy.url))
        await line.call(("PING",))
        proxy.mode, proxy.only, proxy.cuts_max = "cut_reply", b"incr", 2
        assert await line.call(("INCR", "n")) == 3, "done each time: whoever calls must bear it"
        await line.aclose()


async def test_a_deaf_engine_is_given_up(engines: Engines, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resp, "ANSWER_S_MAX", 0.2)
    monkeypatch.setattr(resp, "CONNECT_S_MAX", 0.2)
    async with deaf_line(servers.valkey.socket_path) as deaf:
        line = EngineLine(parse_url(deaf.url))
        await line.call(("PING",))
        deaf.deafen()
        with pytest.raises((EngineTimeoutError, EngineConnectionError)):
            await line.call(("PING",))
        deaf.heal()
        assert await line.call(("PING",)) == b"PONG"
        await line.aclose()


async def test_nobody_there(engines: Engines) -> None:
    line = EngineLine(parse_url("redis://127.0.0.1:1"))
    failures = await asyncio.gather(*[line.call(("PING",)) for _ in range(3)], return_exceptions=True)
    assert [type(failure) for failure in failures] == [EngineConnectionError] * 3
    await line.aclose()


async def test_closing_fails_who_waits(engines: Engines, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resp, "RETRIES_MAX", 0)
    async with deaf_line(servers.valkey.socket_path) as deaf:
        line = EngineLine(parse_url(deaf.url))
        await line.call(("PING",))
        deaf.deafen()
        waiting = asyncio.ensure_future(line.call_all([("PING",), ("PING",)]))
        await asyncio.sleep(0)
        await line.aclose()
        with pytest.raises(EngineConnectionError, match="lost"):
            await waiting


async def test_more_than_may_wait_is_refused(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resp, "WAITING_MAX", 2)
    line = engines.sales.line
    with pytest.raises(ResponseError, match="more than 2"):
        await line.call_all([("PING",)] * 3)
    assert await line.call_all([("PING",)] * 2) == [b"PONG"] * 2


async def test_password_and_database(engines: Engines, servers: Servers) -> None:
    await engines.sales.config_set("requirepass", "a secret")
    try:
        stranger = EngineLine(parse_url(servers.valkey.url))
        with pytest.raises(ResponseError, match="NOAUTH"):
            await stranger.call(("PING",))
        line = EngineLine(parse_url(f"{servers.valkey.url}?password=a%20secret&db=3"))
        assert b" db=3 " in await line.call(("CLIENT", "INFO"))
        await line.aclose()
        await stranger.aclose()
    finally:
        await engines.sales.config_set("requirepass", "")


async def test_over_tcp_with_tls(engines: Engines, servers: Servers, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.certificate, certificates.key)
    async with faulty_proxy(servers.valkey.socket_path) as proxy:
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=context)
        address = f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        line, distrustful = EngineLine(parse_url(f"{address}?ssl_ca_certs={certificates.certificate}")), EngineLine(parse_url(address))
        assert await line.call(("ECHO", "safe")) == b"safe"
        with pytest.raises(EngineConnectionError, match="SSLCertVerificationError"):
            await distrustful.call(("PING",))
        await line.aclose()
        server.close()
