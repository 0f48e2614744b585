"""Tokens signed with the company's own keys: which are good, and what a key server that rotates, lies or is away does to them."""

import asyncio
import base64
import hashlib
import hmac
import json
import random
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import ValidationError

from app.core.errors import AppError, SetupError
from app.core.registry import Registry
from app.core.settings import Settings
from app.domains.accounts import service, tokens
from app.main import create_app
from app.protocol.codes import SERVICE_UNAVAILABLE, TOKEN_EXPIRED, UNAUTHORIZED, ErrorCode
from app.storage.work import Engines
from tests.domains.accounts.key_server import KeyServer, private_key, public_entry, publishing, signed
from tests.support.leaks import assert_no_stray_tasks
from tests.support.runtime import TestRuntime
from tests.support.waiting import wait_until

ALGORITHMS = ("RS256", "ES256", "EdDSA")
ANNA = {"sub": "anna"}


def all_entries() -> list[dict[str, Any]]:
    return [public_entry(private_key(algorithm), kid=algorithm.lower()) for algorithm in ALGORITHMS]


@pytest.fixture
async def keys() -> AsyncGenerator[KeyServer]:
    async with publishing(*all_entries()) as server:
        yield server


@pytest.fixture
def settings(settings: Settings, keys: KeyServer) -> Settings:
    settings.jwks_url = keys.url
    return settings


async def refusal_of(engines: Engines, token: str) -> AppError:
    with pytest.raises(AppError) as refusal:
        await service.authenticate(engines, token)
    return refusal.value


async def code_for(engines: Engines, token: str) -> ErrorCode:
    return (await refusal_of(engines, token)).code


async def id_for(engines: Engines, token: str) -> str:
    return (await service.authenticate(engines, token)).id


def forged(header: dict[str, Any], claims: dict[str, Any], secret: bytes = b"") -> str:
    """What no library would sign: HMAC with whatever bytes, or nothing at all."""
    text = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims))
    mac = hmac.digest(secret, text, hashlib.sha256) if secret else b""
    return (text + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


# --- which tokens are good ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_each_algorithm_with_its_key(engines: Engines, keys: KeyServer, algorithm: str) -> None:
    claims = {"sub": "anna", "info": {"name": "Anna", "level": 3}, "rooms": ["a"], "exp": engines.runtime.now_ms() // 1000 + 60}
    caller = await service.authenticate(engines, signed(algorithm, claims, kid=algorithm.lower()))
    assert (caller.id, caller.name, caller.kind, caller.level, caller.rooms) == ("anna", "Anna", "viewer", 3, {"a"})
    assert caller.expires_at_s == claims["exp"]
    assert await code_for(engines, signed(algorithm, ANNA, kid=algorithm.lower(), key=private_key(algorithm, 1))) is UNAUTHORIZED
    assert keys.fetches == 1, "a wrong signature is no reason to fetch"


async def test_claims_mean_what_they_mean_in_a_token_of_the_shared_secret(engines: Engines) -> None:
    for claims, kind, roles in (
        ({"sub": "lin", "roles": ["host@a", "emperor"]}, "staff", {"host@a"}),
        ({"sub": "guest-1", "roles": ["operator"], "kind": "staff"}, "guest", set[str]()),
        ({"sub": "lin", "roles": ["operator"], "kind": "viewer"}, "viewer", {"operator"}),
    ):
        company = await service.authenticate(engines, signed("EdDSA", claims, kid="eddsa"))
        shared = await service.authenticate(engines, signed("HS256", claims, kid=None, key=engines.settings.secret_bytes))
        assert company == shared
        assert (company.kind, company.roles) == (kind, roles)
    assert await code_for(engines, signed("EdDSA", {"sub": "a:b"}, kid="eddsa")) is UNAUTHORIZED
    assert await code_for(engines, signed("EdDSA", {"sub": "anna", "kind": "king"}, kid="eddsa")) is UNAUTHORIZED


async def test_tokens_of_the_shared_secret_stay_good_and_need_no_key_server(engines: Engines, keys: KeyServer) -> None:
    token = service.make_token(engines.settings, subject="anna", name="", ttl_s=60, now_ms=engines.runtime.now_ms())
    assert await id_for(engines, token) == "anna"
    assert await id_for(engines, signed("HS256", ANNA, kid="rs256", key=engines.settings.secret_bytes)) == "anna"
    assert keys.fetches == 0


async def test_time_is_checked_each_time(engines: Engines, runtime: TestRuntime) -> None:
    now_s = runtime.now_ms() // 1000
    token = signed("ES256", {"sub": "anna", "nbf": now_s + 10, "exp": now_s + 60}, kid="es256")
    assert await code_for(engines, token) is UNAUTHORIZED
    runtime.advance(10_000)
    assert await id_for(engines, token) == "anna"
    runtime.advance(50_000)
    assert await code_for(engines, token) is TOKEN_EXPIRED


async def test_the_algorithm_and_the_key_must_fit(engines: Engines) -> None:
    public = private_key("RS256").public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    modulus = public_entry(private_key("RS256"))["n"].encode()
    claims = {"sub": "anna", "roles": ["operator"]}
    good = signed("RS256", claims, kid="rs256")
    head, body, signature = good.split(".")
    bad = [
        *(forged({"alg": "HS256", "kid": "rs256"}, claims, secret) for secret in (pem, pem.strip(), der, modulus)),
        *(forged({"alg": word, "kid": "rs256"}, claims) for word in ("none", "None", "NONE", "", "RS256")),
        forged({"alg": "RS256", "kid": "rs256"}, claims, pem),
        forged({"alg": "RS256", "kid": "rs256"}, claims, engines.settings.secret_bytes),
        forged({"alg": ["RS256"], "kid": "rs256"}, claims, pem),
        forged({"alg": "RS256", "kid": 7}, claims, pem),
        forged({"kid": "rs256"}, claims, pem),
        signed("ES256", claims, kid="rs256"),
        signed("RS256", claims, kid="es256"),
        signed("EdDSA", claims, kid="es256"),
        signed("RS384", claims, kid="rs256", key=private_key("RS256")),
        signed("PS256", claims, kid="rs256", key=private_key("RS256")),
        signed("RS256", claims, kid=None),  # the set has several keys
        f"{head}.{body}.",
        f"{head}.{body}",
        f"{head}.{body[:-2]}AA.{signature}",
        "ä.ö.ü",
        "\ud800.a.b",
        "..",
        "",
    ]
    assert await id_for(engines, good) == "anna"
    for token in bad:
        assert await code_for(engines, token) is UNAUTHORIZED, token[:100]
    assert await id_for(engines, good) == "anna"


async def test_a_token_does_not_bring_its_own_key(engines: Engines) -> None:
    thief = private_key("ES256", 7)
    for extra in ({"jwk": public_entry(thief)}, {"jku": "http://127.0.0.1:1/keys"}):
        header = {"alg": "ES256", "kid": "es256", **extra}
        token = tokens.jwt.encode(ANNA, thief, algorithm="ES256", headers=header)
        assert await code_for(engines, token) is UNAUTHORIZED


async def test_only_the_configured_algorithms(engines: Engines) -> None:
    engines.settings.jwks_algorithms = "ES256, EdDSA"
    assert await code_for(engines, signed("RS256", ANNA, kid="rs256")) is UNAUTHORIZED
    assert await id_for(engines, signed("ES256", ANNA, kid="es256")) == "anna"
    assert await id_for(engines, signed("EdDSA", ANNA, kid="eddsa")) == "anna"


async def test_off_without_a_url(engines: Engines, keys: KeyServer) -> None:
    engines.settings.jwks_url = ""
    for algorithm in ALGORITHMS:
        assert await code_for(engines, signed(algorithm, ANNA, kid=algorithm.lower())) is UNAUTHORIZED
    assert keys.fetches == 0


async def test_issuer_and_audience(engines: Engines) -> None:
    engines.settings.token_issuer = "https://shop.example"
    engines.settings.token_audience = "jishi"
    good = {"sub": "anna", "iss": "https://shop.example", "aud": "jishi"}
    assert await id_for(engines, signed("ES256", good, kid="es256")) == "anna"
    assert await id_for(engines, signed("ES256", good | {"aud": ["other", "jishi"]}, kid="es256")) == "anna"
    wrong: list[dict[str, Any]] = [
        good | {"iss": "https://shop.example/"},
        good | {"iss": ""},
        good | {"aud": "jishi2"},
        good | {"aud": []},
        good | {"aud": None},
        {"sub": "anna", "iss": "https://shop.example"},
        {"sub": "anna", "aud": "jishi"},
    ]
    for claims in wrong:
        assert await code_for(engines, signed("ES256", claims, kid="es256")) is UNAUTHORIZED, claims
    own = service.make_token(engines.settings, subject="anna", name="", ttl_s=60, now_ms=engines.runtime.now_ms())
    assert await id_for(engines, own) == "anna", "what this product signed for itself needs neither"


# --- rotation, and a server that is away --------------------------------------------------------------------------------------------


async def test_a_new_key_is_picked_up_and_an_old_one_dies(engines: Engines, keys: KeyServer, runtime: TestRuntime) -> None:
    old = signed("ES256", ANNA, kid="es256")
    new = signed("ES256", ANNA, kid="new", key=private_key("ES256", 1))
    assert await id_for(engines, old) == "anna"
    keys.publish(public_entry(private_key("ES256", 1), kid="new"))
    refusal = await refusal_of(engines, new)
    assert refusal.code is SERVICE_UNAVAILABLE, "the set is so fresh that it is not fetched again: no final no"
    assert refusal.retry_after_ms == tokens.FETCH_GAP_MS
    runtime.advance(tokens.FETCH_GAP_MS)
    assert await id_for(engines, new) == "anna"
    assert keys.fetches == 2
    runtime.advance(tokens.FETCH_GAP_MS)
    assert await code_for(engines, old) is UNAUTHORIZED, "also a token that was verified before"


async def test_a_storm_of_unknown_keys_costs_one_fetch_a_gap(engines: Engines, keys: KeyServer, runtime: TestRuntime) -> None:
    assert await id_for(engines, signed("EdDSA", ANNA, kid="eddsa")) == "anna"
    for round_number in range(3):
        runtime.advance(tokens.FETCH_GAP_MS)
        storm = [signed("EdDSA", ANNA, kid=f"{round_number}-{number}") for number in range(50)]
        assert {code.word for code in await asyncio.gather(*(code_for(engines, token) for token in storm))} == {"unauthorized"}
        late = [signed("EdDSA", ANNA, kid=f"late-{round_number}-{number}") for number in range(50)]
        assert {code.word for code in await asyncio.gather(*(code_for(engines, token) for token in late))} == {"service_unavailable"}
        assert await id_for(engines, signed("EdDSA", ANNA, kid="eddsa")) == "anna"
        assert keys.fetches == 2 + round_number


async def test_a_client_that_leaves_does_not_end_the_fetch_of_the_others(engines: Engines, keys: KeyServer) -> None:
    keys.gate = asyncio.Event()
    token = signed("RS256", ANNA, kid="rs256")
    first, second = (asyncio.create_task(service.authenticate(engines, token)) for _ in range(2))
    await wait_until(lambda: keys.fetches == 1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    keys.gate.set()
    assert (await second).id == "anna"
    assert keys.fetches == 1


async def test_away_at_the_start_then_there(engines: Engines, keys: KeyServer, runtime: TestRuntime) -> None:
    await keys.stop()
    token = signed("RS256", ANNA, kid="rs256")
    refusal = await refusal_of(engines, token)
    assert refusal.code is SERVICE_UNAVAILABLE
    assert refusal.code.temporary
    assert await code_for(engines, token) is SERVICE_UNAVAILABLE
    await keys.start()
    runtime.advance(tokens.FETCH_GAP_MS)
    assert await id_for(engines, token) == "anna"


async def test_away_later_keeps_the_keys(engines: Engines, keys: KeyServer, runtime: TestRuntime) -> None:
    assert await id_for(engines, signed("RS256", ANNA, kid="rs256")) == "anna"
    await keys.stop()
    runtime.advance(tokens.FETCH_GAP_MS)
    assert await code_for(engines, signed("RS256", ANNA, kid="new")) is SERVICE_UNAVAILABLE, "nobody can say whether this key is good"
    for algorithm in ALGORITHMS:
        assert await id_for(engines, signed(algorithm, {"sub": "bo"}, kid=algorithm.lower())) == "bo"
    await keys.start()


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("HTTP/1.1 200 OK\r\n", b'{"keys": ['),
        ("HTTP/1.1 200 OK\r\n", b"[]"),
        ("HTTP/1.1 200 OK\r\n", b'{"keys": {"kid": "rs256"}}'),
        ("HTTP/1.1 200 OK\r\n", b"{}"),
        ("HTTP/1.1 200 OK\r\n", b"[" * 100_000),
        ("HTTP/1.1 200 OK\r\n", b"\xff\xfe"),
        ("HTTP/1.1 200 OK\r\n", b""),
        ("HTTP/1.1 500 No\r\n", b'{"keys": []}'),
        ("HTTP/1.1 302 Away\r\nLocation: /elsewhere\r\n", b'{"keys": []}'),
        ("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n", b"\x1f\x8b\x08"),
        ("bytes that are no HTTP\r\n", b""),
    ],
    ids=["cut", "list", "dict", "nothing", "deep", "no-utf8", "empty", "500", "redirect", "gzip", "no-http"],
)
async def test_an_answer_that_is_no_key_set_changes_nothing(
    engines: Engines, keys: KeyServer, runtime: TestRuntime, head: str, body: bytes
) -> None:
    token = signed("RS256", ANNA, kid="rs256")
    good = keys.head, keys.body
    keys.head, keys.body = head, body
    assert await code_for(engines, token) is SERVICE_UNAVAILABLE
    keys.head, keys.body = good
    runtime.advance(tokens.FETCH_GAP_MS)
    assert await id_for(engines, token) == "anna"
    keys.head, keys.body = head, body
    runtime.advance(tokens.FETCH_GAP_MS)
    assert await code_for(engines, signed("RS256", ANNA, kid="new")) is SERVICE_UNAVAILABLE
    assert await id_for(engines, token) == "anna"
    assert keys.fetches == 3


async def test_a_body_is_read_up_to_its_limit(engines: Engines, keys: KeyServer, runtime: TestRuntime) -> None:
    token = signed("RS256", ANNA, kid="rs256")
    room = tokens.KEY_SET_BYTES_MAX - len(keys.body)
    keys.body += b" " * (room + 1)
    assert await code_for(engines, token) is SERVICE_UNAVAILABLE
    keys.body = keys.body[:-1]
    runtime.advance(tokens.FETCH_GAP_MS)
    assert await id_for(engines, token) == "anna"


async def test_a_server_that_does_not_answer_is_given_up(engines: Engines, keys: KeyServer) -> None:
    engines.settings.jwks_timeout_s = 1
    keys.gate = asyncio.Event()
    assert await code_for(engines, signed("RS256", ANNA, kid="rs256")) is SERVICE_UNAVAILABLE
    keys.gate.set()


# --- what counts as a key -----------------------------------------------------------------------------------------------------------


def ids_of(*entries: Any, algorithms: tuple[str, ...] = ALGORITHMS, keys_max: int = 32) -> list[tuple[str | None, str]]:
    body = json.dumps({"keys": entries, "more": 1}).encode()
    return [(key.id, key.algorithm) for key in tokens.read_keys(body, algorithms=algorithms, keys_max=keys_max)]


def test_entries_that_are_no_usable_key_are_passed_over() -> None:
    rsa_key, ec_key, ed_key = (private_key(algorithm) for algorithm in ALGORITHMS)
    short = public_entry(rsa.generate_private_key(65537, 1024))  # noqa: S505 - too short on purpose
    foreign: list[Any] = [
        None,
        7,
        "key",
        [],
        {},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "oct"},
        {"kty": "RSA", "kid": "no-numbers"},
        {"kty": "RSA", "n": 5, "e": None},
        {"kty": "RSA", "n": "AA", "e": "AA"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
        {"kty": "OKP", "crv": "X25519", "x": public_entry(ed_key)["x"]},
        {"kty": ["RSA"], "crv": {}},
        public_entry(ec.generate_private_key(ec.SECP384R1())),
        short,
        public_entry(rsa_key, use="enc"),
        public_entry(rsa_key, use=None, key_ops=["encrypt"]),
        public_entry(rsa_key, key_ops=7),
        public_entry(rsa_key, alg="PS256"),
        public_entry(rsa_key, alg="ES256"),
        public_entry(rsa_key, alg="HS256"),
        public_entry(rsa_key, kid=7),
        public_entry(ec_key, d="AA", kid="private part"),
    ]
    good = [
        public_entry(rsa_key, kid="r", use="sig", alg="RS256", x5c=["..."]),
        public_entry(ec_key, kid="e", key_ops=["verify"]),
        public_entry(ed_key),
    ]
    mixed = foreign + good
    random.Random(1).shuffle(mixed)
    assert sorted(ids_of(*mixed), key=str) == [("e", "ES256"), ("r", "RS256"), (None, "EdDSA")]
    assert ids_of(*foreign) == []
    assert ids_of(*good, algorithms=("ES256",)) == [("e", "ES256")]


def test_at_most_so_many_keys() -> None:
    entry = public_entry(private_key("EdDSA"))
    assert len(ids_of(*(entry | {"kid": str(number)} for number in range(10)), keys_max=4)) == 4


async def test_a_key_that_is_alone_needs_no_id(engines: Engines, keys: KeyServer, runtime: TestRuntime) -> None:
    keys.publish({"kty": "oct", "k": "AAAA"}, public_entry(private_key("ES256"), kid="one"))
    assert await id_for(engines, signed("ES256", ANNA, kid=None)) == "anna"
    assert await code_for(engines, signed("EdDSA", ANNA, kid=None)) is UNAUTHORIZED
    runtime.advance(tokens.FETCH_GAP_MS)
    assert await code_for(engines, signed("ES256", ANNA, kid="two")) is UNAUTHORIZED
    keys.publish(public_entry(private_key("ES256")))
    runtime.advance(tokens.FETCH_GAP_MS)
    assert await id_for(engines, signed("ES256", {"sub": "bo"}, kid="two")) == "bo"
    assert await id_for(engines, signed("ES256", {"sub": "bo"}, kid=None)) == "bo"


async def test_an_emptied_set_takes_all_keys_away(engines: Engines, keys: KeyServer, runtime: TestRuntime) -> None:
    token = signed("ES256", ANNA, kid="es256")
    assert await id_for(engines, token) == "anna"
    keys.publish()
    runtime.advance(tokens.FETCH_GAP_MS)
    assert await code_for(engines, signed("ES256", ANNA, kid="unknown")) is UNAUTHORIZED
    runtime.advance(tokens.FETCH_GAP_MS)
    assert await code_for(engines, token) is UNAUTHORIZED


# --- the whole process --------------------------------------------------------------------------------------------------------------


async def test_the_web_process_starts_at_once_and_fetches_behind(engines: Engines, keys: KeyServer, registry: Registry) -> None:
    keys.gate = asyncio.Event()
    app = create_app(engines=engines)
    async with app.router.lifespan_context(app):
        await wait_until(lambda: keys.fetches == 1 and not app.state.hub._tasks, what="the fetch is under way")
        assert tokens._key_set(engines).keys is None
        keys.gate.set()
        await wait_until(lambda: tokens._key_set(engines).keys is not None)
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://testserver") as client:
            header = {"Authorization": f"Bearer {signed('ES256', ANNA, kid='es256')}"}
            me = await client.get("/api/v1/me", headers=header)
            assert (me.status_code, me.json()["id"]) == (200, "anna")
            header = {"Authorization": f"Bearer {signed('ES256', ANNA, kid='new')}"}
            later = await client.get("/api/v1/me", headers=header)
            assert (later.status_code, later.json()["code"], later.headers["retry-after"]) == (503, SERVICE_UNAVAILABLE.number, "5")
    await assert_no_stray_tasks()


async def test_the_set_is_fetched_again_without_being_asked(engines: Engines, keys: KeyServer) -> None:
    engines.settings.jwks_refresh_s = 1
    async with tokens.keeping_keys_fresh(engines):
        await wait_until(lambda: tokens._key_set(engines).keys is not None)
        keys.publish(public_entry(private_key("ES256", 1), kid="new"))
        await wait_until(lambda: [key.id for key in tokens._key_set(engines).keys or ()] == ["new"])
    await assert_no_stray_tasks()


async def test_the_web_process_ends_in_the_midst_of_a_fetch(engines: Engines, keys: KeyServer) -> None:
    keys.gate = asyncio.Event()
    async with tokens.keeping_keys_fresh(engines):
        await wait_until(lambda: keys.fetches == 1)
    assert tokens._key_set(engines).fetch is None
    keys.gate.set()
    await assert_no_stray_tasks()


# --- settings -----------------------------------------------------------------------------------------------------------------------


def production(**values: Any) -> Settings:
    return Settings(environment="production", token_secret="x" * 32, **values)  # type: ignore[arg-type]  # pydantic wraps it


@pytest.mark.parametrize(
    "url",
    ["https://shop.example/keys", "http://localhost:9/keys", "http://127.0.0.1:9/keys", "http://127.9.9.9/", "http://[::1]:9/keys", ""],
)
def test_production_takes_keys_over_tls_or_from_this_machine(url: str) -> None:
    production(jwks_url=url).check_production()


@pytest.mark.parametrize(
    "url", ["http://shop.example/keys", "http://10.0.0.1/keys", "http://localhost.shop.example/", "http://127.0.0.1@shop.example/"]
)
def test_production_refuses_keys_that_can_be_exchanged_on_the_way(url: str) -> None:
    with pytest.raises(SetupError, match="JISHI_JWKS_URL"):
        production(jwks_url=url).check_production()
    Settings(environment="development", jwks_url=url).check_production()


@pytest.mark.parametrize("name", ["token_issuer", "token_audience"])
def test_an_issuer_that_nothing_would_check_is_refused(name: str) -> None:
    with pytest.raises(SetupError, match="JISHI_JWKS_URL"):
        production(**{name: "jishi"}).check_production()
    production(**{name: "jishi"}, jwks_url="https://shop.example/keys").check_production()


@pytest.mark.parametrize(
    "values",
    [
        {"jwks_url": "ftp://shop.example/keys"},
        {"jwks_url": "shop.example/keys"},
        {"jwks_url": "https:///keys"},
        {"jwks_algorithms": ""},
        {"jwks_algorithms": "none"},
        {"jwks_algorithms": "RS256,HS256"},
        {"jwks_algorithms": "rs256"},
        {"jwks_timeout_s": 5},
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**values)


def test_settings_have_these_names_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "JISHI_JWKS_URL": "https://shop.example/keys",
        "JISHI_JWKS_ALGORITHMS": "EdDSA",
        "JISHI_TOKEN_ISSUER": "shop",
        "JISHI_TOKEN_AUDIENCE": "jishi",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert [settings.jwks_url, settings.jwks_algorithms, settings.token_issuer, settings.token_audience] == list(values.values())
