"""Tokens, sign-in, guests and API keys against real engines."""

import base64
import json
from typing import Any

import jwt
import pytest

from app.core.errors import AppError
from app.core.settings import Settings, split_words
from app.domains.accounts import service, tokens
from app.domains.accounts.tables import ApiKey
from app.protocol.codes import BAD_REQUEST, CONFLICT, NOT_AVAILABLE, TOKEN_EXPIRED, TOO_MANY_REQUESTS, UNAUTHORIZED, ErrorCode
from app.storage.work import Engines
from tests.support.runtime import TestRuntime

PASSWORD = "tea-and-honey"


def code_of(refusal: pytest.ExceptionInfo[AppError]) -> ErrorCode:
    return refusal.value.code


def signed(engines: Engines, claims: dict[str, Any], *, algorithm: str = "HS256", key: bytes | None = None) -> str:
    return jwt.encode(claims, engines.settings.secret_bytes if key is None else key, algorithm=algorithm)


async def test_a_made_token_comes_back_as_its_caller(engines: Engines) -> None:
    now_ms = engines.runtime.now_ms()
    token = service.make_token(
        engines.settings, subject="anna", name="Anna", roles=["host@a"], rooms=["a", "b"], ttl_s=60, now_ms=now_ms, avatar="/a.png", level=3
    )
    caller = await service.authenticate(engines, token)
    assert (caller.id, caller.name, caller.kind, caller.avatar, caller.level) == ("anna", "Anna", "staff", "/a.png", 3)
    assert caller.roles == {"host@a"}
    assert caller.rooms == {"a", "b"}
    assert caller.expires_at_s == now_ms // 1000 + 60


async def test_a_remembered_token_still_expires(engines: Engines, runtime: TestRuntime) -> None:
    token = service.make_token(engines.settings, subject="anna", name="", ttl_s=60, now_ms=runtime.now_ms())
    runtime.advance(59_999)
    await service.authenticate(engines, token)
    runtime.advance(1)
    with pytest.raises(AppError) as refusal:
        await service.authenticate(engines, token)
    assert code_of(refusal) is TOKEN_EXPIRED


async def test_a_token_is_not_good_before_its_time(engines: Engines, runtime: TestRuntime) -> None:
    token = signed(engines, {"sub": "anna", "nbf": runtime.now_ms() // 1000 + 10})
    with pytest.raises(AppError) as refusal:
        await service.authenticate(engines, token)
    assert code_of(refusal) is UNAUTHORIZED
    runtime.advance(10_000)
    assert (await service.authenticate(engines, token)).id == "anna"


def unsigned(header: dict[str, Any], claims: dict[str, Any]) -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (header, claims)]
    return ".".join([*parts, ""])


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")  # the forger signs with what he has
async def test_the_algorithm_is_ours_to_choose(engines: Engines) -> None:
    claims = {"sub": "anna", "roles": ["operator"]}
    good = signed(engines, claims)
    header, body, signature = good.split(".")
    other_body = base64.urlsafe_b64encode(json.dumps({"sub": "root"}).encode()).decode().rstrip("=")
    forged = [
        unsigned({"alg": "none", "typ": "JWT"}, claims),
        unsigned({"alg": "None"}, claims),
        signed(engines, claims, algorithm="HS384"),
        signed(engines, claims, algorithm="HS512"),
        signed(engines, claims, key=b"x" * 32),
        f"{header}.{other_body}.{signature}",
        f"{header}.{body}.",
        f"{header}.{body}",
        "a.b.c",
        "...",
        "",
        "ä.ö.ü",
        "\ud800",
        "x" * (tokens.TOKEN_BYTES_MAX + 1),
    ]
    for token in forged:
        with pytest.raises(AppError) as refusal:
            await service.authenticate(engines, token)
        assert code_of(refusal) is UNAUTHORIZED, token[:80]
    assert (await service.authenticate(engines, good)).id == "anna"


@pytest.mark.parametrize(("subject", "roles"), [("a:b", ()), ("", ()), ("anna", ("emperor",)), ("anna", ("host@",))])
def test_a_token_that_could_not_come_back_is_not_made(settings: Settings, subject: str, roles: tuple[str, ...]) -> None:
    with pytest.raises(AppError) as refusal:
        service.make_token(settings, subject=subject, name="", roles=roles, ttl_s=60, now_ms=0)
    assert code_of(refusal) is BAD_REQUEST


async def test_sign_in_gives_the_roles_that_were_granted(engines: Engines) -> None:
    async with engines.work() as work:
        staff = await service.create_staff(work, login=" Lin ", password=PASSWORD, name="Lin", grants=[("host", "a"), ("moderator", None)])
    token = await service.sign_in(engines, login="LIN", password=PASSWORD, address="192.0.2.1")
    caller = await service.authenticate(engines, token.token)
    assert caller.id == staff.id == token.subject
    assert caller.roles == {"host@a", "moderator"}
    assert caller.kind == "staff"
    assert PASSWORD not in staff.password_hash


async def test_an_unknown_login_and_a_wrong_password_are_answered_alike(engines: Engines) -> None:
    async with engines.work() as work:
        await service.create_staff(work, login="lin", password=PASSWORD, name="Lin")
    answers: list[tuple[ErrorCode, str]] = []
    for login, password in (("lin", "wrong-password"), ("nobody", PASSWORD)):
        with pytest.raises(AppError) as refusal:
            await service.sign_in(engines, login=login, password=password, address="192.0.2.1")
        answers.append((refusal.value.code, refusal.value.detail))
    assert answers[0] == answers[1]
    assert answers[0][0] is UNAUTHORIZED


async def test_sign_in_is_limited_by_login_from_wherever_it_comes(engines: Engines) -> None:
    limit = engines.settings.sign_in_attempts_per_min
    engines.settings.sign_in_attempts_per_min = 2
    try:
        for number in range(2):
            with pytest.raises(AppError) as refusal:
                await service.sign_in(engines, login="lin", password="wrong", address=f"192.0.2.{number}")
            assert code_of(refusal) is UNAUTHORIZED
        with pytest.raises(AppError) as refusal:
            await service.sign_in(engines, login=" LIN", password="wrong", address="192.0.2.9")
        assert code_of(refusal) is TOO_MANY_REQUESTS
        assert refusal.value.retry_after_ms == 60_000
        with pytest.raises(AppError) as refusal:
            await service.sign_in(engines, login="mei", password="wrong", address="192.0.2.9")
        assert code_of(refusal) is UNAUTHORIZED
    finally:
        engines.settings.sign_in_attempts_per_min = limit


async def test_a_login_is_taken_once_and_a_password_has_a_length(engines: Engines) -> None:
    async with engines.work() as work:
        await service.create_staff(work, login="lin", password=PASSWORD, name="Lin")
        with pytest.raises(AppError) as refusal:
            await service.create_staff(work, login="LIN", password=PASSWORD, name="Other")
        assert code_of(refusal) is CONFLICT
        with pytest.raises(AppError) as refusal:
            await service.create_staff(work, login="mei", password="short", name="Mei")
        assert code_of(refusal) is BAD_REQUEST
        with pytest.raises(AppError) as refusal:
            await service.create_staff(work, login="mei", password=PASSWORD, name="Mei", grants=[("emperor", None)])
        assert code_of(refusal) is BAD_REQUEST


async def test_guests_can_be_switched_off_and_are_limited_by_address(engines: Engines) -> None:
    settings = engines.settings
    settings.guests_per_address_per_min = 1
    guest = await service.admit_guest(engines, name=" ", address="192.0.2.1")
    assert guest.subject.startswith("guest-")
    assert guest.name == f"Guest {guest.subject[6:10]}"
    caller = await service.authenticate(engines, guest.token)
    assert set(caller.grants) == set(split_words(settings.guest_rights))
    with pytest.raises(AppError) as refusal:
        await service.admit_guest(engines, name="", address="192.0.2.1")
    assert code_of(refusal) is TOO_MANY_REQUESTS
    await service.admit_guest(engines, name="", address="192.0.2.2")
    settings.guests_allowed = False
    with pytest.raises(AppError) as refusal:
        await service.admit_guest(engines, name="", address="192.0.2.3")
    assert code_of(refusal) is NOT_AVAILABLE


async def test_an_api_key_is_kept_as_a_hash_and_dies_when_it_is_revoked(engines: Engines, runtime: TestRuntime) -> None:
    operator = await service.authenticate(
        engines, service.make_token(engines.settings, subject="lin", name="", roles=["operator"], ttl_s=60, now_ms=runtime.now_ms())
    )
    async with engines.work() as work:
        row, key = await service.create_api_key(work, operator, name="shop", rights=["order.view"], rooms=["a"])
    assert key.startswith(f"jsk_{row.id}_")
    assert key.rpartition("_")[2] not in row.secret_hash
    caller = await service.resolve(engines, key)
    assert (caller.id, caller.kind) == (f"key-{row.id}", "api_key")
    assert caller.may("order.view", "a")
    assert not caller.may("order.view", "b")
    assert not caller.may("room.watch", "a")
    first_use = runtime.now()
    runtime.advance(59_000)
    await service.resolve(engines, key)
    assert await last_used(engines, row.id) == first_use
    runtime.advance(2_000)
    await service.resolve(engines, key)
    assert await last_used(engines, row.id) == runtime.now()
    for wrong in (key + "0", key[:-1], f"jsk_{row.id}_", "jsk_", f"jsk_x{row.id}_{key.rpartition('_')[2]}", f"jsk_{row.id}_ä"):
        with pytest.raises(AppError) as refusal:
            await service.resolve(engines, wrong)
        assert code_of(refusal) is UNAUTHORIZED, wrong
    async with engines.work() as work:
        await service.revoke_api_key(work, row.id)
    with pytest.raises(AppError) as refusal:
        await service.resolve(engines, key)
    assert code_of(refusal) is UNAUTHORIZED


async def last_used(engines: Engines, key_id: str) -> Any:
    async with engines.sql.read() as session:
        row = await session.get(ApiKey, key_id)
    assert row is not None
    return row.last_used_at
