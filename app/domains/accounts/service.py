"""Sign-in, guests, staff and API keys.

Sign-in answers an unknown login and a wrong password alike and in the same time.
Whoever loses a role, the place on the team, or gets another password is signed out everywhere (tokens.py): a token states the roles it was
made with.
What it does not do: say what a token is worth (tokens.py).
"""

import asyncio
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.caller import ANYWHERE, Caller
from app.core.errors import AppError
from app.domains.accounts import rules, store
from app.domains.accounts.rules import Grant
from app.domains.accounts.tables import ApiKey, Staff
from app.domains.accounts.tokens import authenticate, make_token
from app.protocol.codes import (
    BAD_REQUEST,
    CONFLICT,
    NOT_AVAILABLE,
    NOT_FOUND,
    PERMISSION_DENIED,
    TOO_MANY_REQUESTS,
    UNAUTHORIZED,
)
from app.storage.work import Engines, Work

WINDOW_S = 60
PASSWORD_CHARS_MIN = 10
PASSWORD_CHARS_MAX = 200
API_KEY_MARK = "jsk_"

# OWASP's argon2id setting with the smaller memory: 19 MiB a check, so that a burst of sign-ins does not fill the machine.
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the team with what was granted."""

    staff: Staff
    grants: list[Grant]


@dataclass(frozen=True, slots=True)
class Token:
    token: str
    subject: str
    name: str
    expires_in_s: int


async def resolve(engines: Engines, token: str) -> Caller:
    """The caller of a REST request: a signed token, or an API key."""
    return await authenticate_api_key(engines, token) if token.startswith(API_KEY_MARK) else await authenticate(engines, token)


# --- sign-in and guests -------------------------------------------------------------------------------------------------------------


async def sign_in(engines: Engines, *, login: str, password: str, address: str) -> Token:
    """A token with the member's roles. Raises AppError `unauthorized` or `too_many_requests`. Holds no transaction while it hashes."""
    limit = engines.settings.sign_in_attempts_per_min
    login = normal_login(login)
    await _limit(engines, f"sign-in:login:{_digest(login)}", limit)
    await _limit(engines, f"sign-in:address:{_digest(address)}", limit * 5)  # one address may be a whole office
    async with engines.sql.read() as session:
        staff = await store.fetch_staff_by_login(session, login)
        grants = (await store.list_grants(session, [staff.id]))[staff.id] if staff else []
    matches = await asyncio.to_thread(_password_matches, staff.password_hash if staff else _decoy_hash(), password)
    if staff is None or not matches:
        raise AppError(UNAUTHORIZED, "login or password is wrong")
    ttl_s = engines.settings.token_ttl_s
    token = make_token(
        engines.settings,
        subject=staff.id,
        name=staff.name,
        roles=[rules.grant_text(grant) for grant in grants],
        ttl_s=ttl_s,
        now_ms=engines.runtime.now_ms(),
        kind="staff",
    )
    return Token(token, staff.id, staff.name, ttl_s)


async def admit_guest(engines: Engines, *, name: str, address: str) -> Token:
    """A short token with the guest's rights. Raises AppError `not_available` or `too_many_requests`."""
    settings = engines.settings
    if not settings.guests_allowed:
        raise AppError(NOT_AVAILABLE, "guests are switched off here: sign in with a token")
    await _limit(engines, f"guest:{_digest(address)}", settings.guests_per_address_per_min)
    tail = engines.runtime.new_short_id()
    subject = rules.GUEST_PREFIX + tail
    name = name.strip() or f"Guest {tail[:4]}"
    ttl_s = settings.guest_token_ttl_s
    token = make_token(settings, subject=subject, name=name, ttl_s=ttl_s, now_ms=engines.runtime.now_ms(), kind="guest")
    return Token(token, subject, name, ttl_s)


async def _limit(engines: Engines, bucket: str, limit: int) -> None:
    if await store.count_attempt(engines.fanout, bucket, WINDOW_S) > limit:
        raise AppError(TOO_MANY_REQUESTS, "too many attempts; wait a minute", retry_after_ms=WINDOW_S * 1000)


def normal_login(login: str) -> str:
    return login.strip().lower()


def _digest(text: str) -> str:
    """Buckets are named by a hash: whatever was typed as a login is neither kept nor able to name another key."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


@lru_cache(maxsize=1)
def _decoy_hash() -> str:
    """What an unknown login's password is checked against, so that it takes as long as a known one's."""
    return _hasher.hash("no member of the team has this password")


def _password_matches(password_hash: str, password: str) -> bool:
    try:
        return _hasher.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False


# --- staff --------------------------------------------------------------------------------------------------------------------------


async def create_staff(work: Work, *, login: str, password: str, name: str, grants: Sequence[Grant] = ()) -> Staff:
    """Raises AppError `conflict` when the login is taken. Whether the grants may be given is the caller's check (`check_may_grant`)."""
    return await insert_staff(work, login=login, password_hash=await hash_password(password), name=name, grants=grants)


async def insert_staff(work: Work, *, login: str, password_hash: str, name: str, grants: Sequence[Grant]) -> Staff:
    for role, _ in grants:
        if role not in rules.ROLES:
            raise AppError(BAD_REQUEST, f"role {role!r}: one of {', '.join(sorted(rules.ROLES))}")
    staff = Staff(
        id=rules.STAFF_PREFIX + work.runtime.new_short_id(),
        login=normal_login(login),
        name=name,
        password_hash=password_hash,
        created_at=work.now,
    )
    try:
        async with work.session.begin_nested():
            work.session.add(staff)
    except IntegrityError as failure:
        raise AppError(CONFLICT, "this login is taken; choose another") from failure
    await store.insert_grants(work.session, staff.id, grants)
    return staff


async def hash_password(password: str) -> str:
    """Call it before the transaction is opened. Raises AppError `bad_request` for a password that is too short or too long."""
    if not PASSWORD_CHARS_MIN <= len(password) <= PASSWORD_CHARS_MAX:
        raise AppError(BAD_REQUEST, f"password: {PASSWORD_CHARS_MIN} to {PASSWORD_CHARS_MAX} characters")
    return await asyncio.to_thread(_hasher.hash, password)


def check_may_grant(caller: Caller, grants: Iterable[Grant]) -> None:
    """Raises AppError `permission_denied` when the caller lacks a right that these grants give."""
    missing = rules.missing_right(caller, grants)
    if missing is not None:
        raise AppError(PERMISSION_DENIED, f"you cannot hand out, change or take away what you do not have: {missing}")


def check_right_in(caller: Caller, right: str, room_id: str | None) -> None:
    """Raises AppError `permission_denied` unless the right holds in the room; None: everywhere."""
    if not caller.may(right, room_id or ANYWHERE):
        raise AppError(PERMISSION_DENIED, f"this needs the right `{right}` " + (f"in room {room_id}" if room_id else "everywhere"))


def check_right_everywhere(caller: Caller, right: str) -> None:
    check_right_in(caller, right, None)


async def fetch_member(work: Work, caller: Caller, staff_id: str) -> Member:
    """The member, whom this caller may change. Raises AppError `not_found` or `permission_denied`."""
    staff = await store.fetch_staff(work.session, staff_id)
    if staff is None:
        raise AppError(NOT_FOUND, f"no member of staff has the id {staff_id}")
    grants = (await store.list_grants(work.session, [staff.id]))[staff.id]
    check_may_grant(caller, grants)
    return Member(staff, grants)


async def list_roles_of(session: AsyncSession, subject: str) -> frozenset[str]:
    """The roles that a person on the staff was granted, as a token states them; none for a viewer."""
    grants = await store.list_grants(session, [subject])
    return frozenset(rules.grant_text(grant) for grant in grants[subject])


async def change_grants(work: Work, member: Member, grants: Sequence[Grant]) -> Member:
    """Raises AppError `conflict` when it would leave the product without an operator."""
    await _keep_an_operator(work, member, grants)
    await store.delete_grants(work.session, member.staff.id)
    await store.insert_grants(work.session, member.staff.id, grants)
    return Member(member.staff, list(dict.fromkeys(grants)))


async def remove_staff(work: Work, member: Member) -> None:
    """Raises AppError `conflict` for the last operator."""
    await _keep_an_operator(work, member, ())
    await store.delete_staff(work.session, member.staff.id)


async def _keep_an_operator(work: Work, member: Member, grants_after: Sequence[Grant]) -> None:
    await store.lock_operators(work.session)
    others = await store.count_other_operators(work.session, member.staff.id)
    if rules.leaves_no_operator(others, member.grants, grants_after):
        raise AppError(CONFLICT, "this is the last operator: make another one first")


# --- API keys -----------------------------------------------------------------------------------------------------------------------


async def create_api_key(
    work: Work, caller: Caller, *, name: str, rights: Sequence[str], rooms: Sequence[str] | None
) -> tuple[ApiKey, str]:
    """The key's row and the key itself, which is shown this once. Raises AppError when a right is unknown or not the caller's."""
    scopes = [ANYWHERE] if rooms is None else list(rooms)
    for right in rights:
        if right not in rules.ALL_RIGHTS:
            raise AppError(BAD_REQUEST, f"right {right!r}: one of {', '.join(sorted(rules.ALL_RIGHTS))}")
        if not all(caller.may(right, room_id) for room_id in scopes):
            raise AppError(PERMISSION_DENIED, f"you cannot hand out what you do not have: {right}")
    secret = work.runtime.token_bytes(32).hex()
    row = ApiKey(
        id=work.runtime.new_short_id(),
        name=name,
        secret_hash=_secret_hash(secret),
        rights=sorted(set(rights)),
        rooms=None if rooms is None else sorted(set(rooms)),
        created_by=caller.id,
        created_at=work.now,
        last_used_at=None,
        revoked_at=None,
    )
    work.session.add(row)
    await work.session.flush()
    return row, f"{API_KEY_MARK}{row.id}_{secret}"


async def revoke_api_key(work: Work, key_id: str) -> None:
    """Takes effect at the next request. Again is no error."""
    row = await store.fetch_api_key(work.session, key_id)
    if row is None:
        raise AppError(NOT_FOUND, f"no API key has the id {key_id}")
    row.revoked_at = row.revoked_at or work.now
    await work.session.flush()


async def authenticate_api_key(engines: Engines, token: str) -> Caller:
    """Raises AppError `unauthorized`; the answer does not tell an unknown key from a wrong secret or a revoked key."""
    key_id, _, secret = token.removeprefix(API_KEY_MARK).partition("_")
    refusal = AppError(UNAUTHORIZED, "the API key is wrong or was revoked")
    if not key_id.isalnum() or not key_id.isascii() or not secret.isascii() or len(token) > 200:
        raise refusal
    async with engines.sql.read() as session:
        row = await store.fetch_api_key(session, key_id)
    matches = hmac.compare_digest(row.secret_hash if row else "", _secret_hash(secret))
    if row is None or not matches or row.revoked_at is not None:
        raise refusal
    now = engines.runtime.now()
    before = now - timedelta(minutes=1)
    if row.last_used_at is None or row.last_used_at < before:
        async with engines.sql.begin() as session:
            await store.mark_api_key_used(session, key_id, now=now, before=before)
    everywhere = frozenset({ANYWHERE})
    return Caller(
        id=rules.API_KEY_PREFIX + row.id,
        name=row.name,
        kind="api_key",
        grants=dict.fromkeys(row.rights, everywhere),
        rooms=None if row.rooms is None else frozenset(row.rooms),
    )


def _secret_hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
