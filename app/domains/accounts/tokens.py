"""Signed tokens: who is calling, without a database. And the keys of the company's backend that some of them are signed with.

Invariants
- The algorithm is ours to choose, never the token's. HS256 is verified with the shared secret alone; an asymmetric algorithm only when the
  settings name it, and only with a key of the company's set whose type fits it.
- The signature of one company-signed token is verified once a process and key; its time every time.
- Keys are fetched by one request at a time, and at most one in FETCH_GAP_MS on the word of a token. A failed fetch changes nothing: the
  keys at hand stay good. A key that left the set verifies nothing any more.
- Who signs is the company either way: the claims, roles included, mean the same. `iss` and `aud` are asked of company-signed tokens alone,
  whose keys may sign for other products too; the shared secret is this product's own.
- The sign-ins of a member of the team can be ended before they expire; the engine is asked for those tokens alone, which are few.
What it does not do: take a viewer's token back before it expires (a ban closes the room to it), or follow a token's own `jku`, `jwk` or
`x5u` to a key.
"""

import asyncio
import binascii
import hmac
import math
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import jwt
import msgspec
import structlog

from app.core.caller import Caller
from app.core.errors import AppError
from app.core.metrics import JWKS_FETCHES
from app.core.settings import COMPANY_ALGORITHMS, Settings, split_words
from app.core.tls import trusted_tls
from app.domains.accounts import rules
from app.domains.accounts.rules import Identity
from app.protocol.codes import BAD_REQUEST, CLOSE_PERMISSION_DENIED, SERVICE_UNAVAILABLE, TOKEN_EXPIRED, UNAUTHORIZED

if TYPE_CHECKING:  # `jishi token` makes tokens and needs no engine
    from app.storage.work import Engines

SHARED_ALGORITHM = "HS256"
TOKEN_BYTES_MAX = 8 * 1024
TOKEN_CACHE_SIZE = 20_000  # company-signed tokens a process remembers for each key: about one a connection, some 200 bytes each
TRUSTS_MAX = 16  # keys and settings that tokens are remembered for
HEADER_CACHE_SIZE = 1_000  # all tokens of one key have the same header

KEY_SET_BYTES_MAX = 256 * 1024  # 32 RSA keys with their certificates are some 150 KiB
RSA_BITS_MIN = 2048
RSA_BITS_MAX = 8192  # a check takes the square of this
FETCH_GAP_MS = 5_000
ENDED_TTL_S = 10 * 366 * 86400  # as long as `jishi token` makes any
RETRY_S = 15  # after a failed fetch nobody asked for

# What a key must be, and what of it is read: never its private part, never its certificates. (RFC 7518, 6.2 and 6.3; RFC 8037, 2)
_KEY_SHAPES: Mapping[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "RS256": ({"kty": "RSA"}, ("n", "e")),
    "ES256": ({"kty": "EC", "crv": "P-256"}, ("x", "y")),
    "EdDSA": ({"kty": "OKP", "crv": "Ed25519"}, ("x",)),
}
_PRIVATE_MEMBERS = {"d", "p", "q", "dp", "dq", "qi", "k"}

_objects = msgspec.json.Decoder(dict[str, Any])
# What is of the standard alphabet or padding alone becomes a letter that no alphabet has.
_FROM_URL_ALPHABET = bytes.maketrans(b"-_+/=", b"+/!!!")

log = structlog.get_logger()


# --- authenticate and make ----------------------------------------------------------------------------------------------------------


async def authenticate(engines: "Engines", token: str) -> Caller:
    """The caller of a signed token. Raises AppError `unauthorized` or `token_expired`; `service_unavailable` when the key that it names
    could not be looked for."""
    if len(token) > TOKEN_BYTES_MAX:
        raise AppError(UNAUTHORIZED, f"the token is longer than {TOKEN_BYTES_MAX} bytes")
    identity = _verify(token, await _trust_for(engines, token), engines.settings.guest_rights)
    now_s = engines.runtime.now_ms() / 1000
    expires_at_s = identity.caller.expires_at_s
    if expires_at_s is not None and now_s >= expires_at_s:
        raise AppError(TOKEN_EXPIRED, "the token has expired; get a fresh one")
    if now_s < identity.not_before_s:
        raise AppError(UNAUTHORIZED, "the token is not valid yet")
    await refuse_ended(engines, identity.caller)
    return identity.caller


async def end_sign_ins(engines: "Engines", staff_id: str) -> None:
    """All tokens of this member that were issued until now are worth nothing, on every node; open connections are closed 3507."""
    await engines.sales.set(_ended_key(staff_id), engines.runtime.now_ms() // 1000, ex=ENDED_TTL_S)
    await engines.streams.control({"do": "disconnect", "user": staff_id, "code": str(CLOSE_PERMISSION_DENIED.number)})


async def refuse_ended(engines: "Engines", caller: Caller, room_id: str = "") -> None:
    """Raises AppError `unauthorized`. Also an admission, so that a connection whose end a node did not hear of is found."""
    if not caller.id.startswith(rules.STAFF_PREFIX):
        return
    ended_at_s = await engines.sales.get(_ended_key(caller.id))
    if ended_at_s is not None and caller.issued_at_s <= int(ended_at_s):
        raise AppError(UNAUTHORIZED, "this sign-in was ended; sign in again")


def _ended_key(staff_id: str) -> str:
    return f"jishi:sign_ins_ended:{staff_id}"


@dataclass(frozen=True, slots=True)
class Trust:
    """What a token is held against."""

    algorithm: str
    key: Any
    issuer: str = ""
    audience: str = ""


async def _trust_for(engines: "Engines", token: str) -> Trust:
    settings = engines.settings
    if settings.jwks_url:
        algorithm, key_id = _read_header(token.partition(".")[0])
        if algorithm in split_words(settings.jwks_algorithms):
            key = await _find_key(engines, algorithm, key_id)
            return Trust(key.algorithm, key.key, settings.token_issuer, settings.token_audience)
    return Trust(SHARED_ALGORITHM, settings.secret_bytes)


@lru_cache(maxsize=HEADER_CACHE_SIZE)
def _read_header(segment: str) -> tuple[str, str | None]:
    """`alg` and `kid` as the token claims them: good for choosing where to look, not for trusting."""
    try:
        header = jwt.get_unverified_header(f"{segment}..")
    except (jwt.InvalidTokenError, ValueError) as failure:  # ValueError: text that is no base64, or no UTF-8
        raise AppError(UNAUTHORIZED, "the token is not valid: it must be a JWT") from failure
    algorithm = header.get("alg")
    return algorithm if isinstance(algorithm, str) else "", header.get("kid")


def _verify(token: str, trust: Trust, guest_rights: str) -> Identity:
    """Signature and claims, not time.

    Company-signed tokens are remembered under a digest: an asymmetric signature costs a storm of returning viewers a hundred microseconds
    each. One of the shared secret costs 5, less than its place among 20,000 others.
    """
    if trust.algorithm == SHARED_ALGORITHM:
        return _verify_afresh(token, trust, guest_rights)
    verified = _verified(trust, guest_rights)
    digest = blake2b(token.encode(errors="surrogatepass"), digest_size=16).digest()
    identity = verified.get(digest)
    if identity is None:
        identity = _verify_afresh(token, trust, guest_rights)
        if len(verified) >= TOKEN_CACHE_SIZE:
            del verified[next(iter(verified))]  # the oldest
        verified[digest] = identity
    return identity


@lru_cache(maxsize=TRUSTS_MAX)
def _verified(trust: Trust, guest_rights: str) -> dict[bytes, Identity]:
    return {}


def _verify_afresh(token: str, trust: Trust, guest_rights: str) -> Identity:
    """`none` and confused keys fail here."""
    try:
        claims = _read_shared(token, trust.key) if trust.algorithm == SHARED_ALGORITHM else _read_company(token, trust)
        return rules.identity_of(claims, guest_rights=split_words(guest_rights))
    except rules.BadClaims as failure:
        raise AppError(UNAUTHORIZED, f"token: {failure}") from failure
    except (jwt.InvalidIssuerError, jwt.InvalidAudienceError, jwt.MissingRequiredClaimError) as failure:
        raise AppError(UNAUTHORIZED, f"token: {failure}") from failure
    except (jwt.InvalidTokenError, ValueError) as failure:  # ValueError: text that is no base64, or no UTF-8
        whose = "this server's secret" if trust.algorithm == SHARED_ALGORITHM else "the key that it names"
        raise AppError(UNAUTHORIZED, f"the token is not valid: it must be a JWT signed with {trust.algorithm} and {whose}") from failure


def _read_company(token: str, trust: Trust) -> dict[str, Any]:
    options: Any = dict.fromkeys(("verify_exp", "verify_nbf", "verify_iat", "verify_jti"), False)
    options |= {"verify_iss": bool(trust.issuer), "verify_aud": bool(trust.audience)}
    return jwt.decode(
        token, trust.key, algorithms=[trust.algorithm], options=options, issuer=trust.issuer or None, audience=trust.audience or None
    )


def _read_shared(token: str, secret: bytes) -> dict[str, Any]:
    """The claims of a token that the shared secret signed (RFC 7515, 5.2). Raises jwt.InvalidTokenError or ValueError.

    Every viewer's first join comes by here. The library takes 35 µs, half of them to find out each time anew what kind of key the secret
    is; this takes 5. Asymmetric signatures, which cost more than that anyway, stay with the library.
    """
    signed, _, signature = token.rpartition(".")
    header, _, payload = signed.partition(".")
    _check_shared_header(header)
    expected = hmac.digest(secret, signed.encode("ascii"), "sha256")
    if not hmac.compare_digest(expected, _decode_segment(signature)):
        raise jwt.InvalidSignatureError("the signature does not fit")
    return _read_object(payload)


@lru_cache(maxsize=HEADER_CACHE_SIZE)
def _check_shared_header(segment: str) -> None:
    """The one algorithm, and nothing that must be understood besides (`crit`; with it goes `b64`, RFC 7797)."""
    header = _read_object(segment)
    if header.get("alg") != SHARED_ALGORITHM:
        raise jwt.InvalidAlgorithmError("another algorithm")
    if "crit" in header or "b64" in header:
        raise jwt.InvalidTokenError("a header that is not understood")


def _read_object(segment: str) -> dict[str, Any]:
    try:
        return _objects.decode(_decode_segment(segment))
    except (msgspec.DecodeError, RecursionError) as failure:
        raise jwt.DecodeError("no JSON object") from failure


def _decode_segment(segment: str) -> bytes:
    """Base64 of the URL alphabet without padding, and nothing else. Raises ValueError."""
    text = segment.encode("ascii").translate(_FROM_URL_ALPHABET)
    return binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)


def make_token(  # noqa: PLR0913 - keyword-only, one for each claim
    settings: Settings,
    *,
    subject: str,
    name: str,
    ttl_s: int | None,
    now_ms: int,
    roles: Iterable[str] = (),
    rooms: Iterable[str] | None = None,
    kind: str | None = None,
    avatar: str = "",
    level: int = 0,
) -> str:
    """A token signed with the shared secret. `ttl_s` None never expires. Raises AppError `bad_request` for a subject or role that could not
    come back in."""
    if not rules.is_subject(subject):
        raise AppError(BAD_REQUEST, f"subject {subject!r}: 1 to {rules.SUBJECT_CHARS_MAX} characters of A-Z a-z 0-9 . _ @ | + = ~ -")
    role_texts = list(roles)
    for role in role_texts:
        if rules.parse_grant(role) is None:
            raise AppError(BAD_REQUEST, f"role {role!r}: one of {', '.join(sorted(rules.ROLES))}, alone or as `role@room`")
    info = {"name": name, "avatar": avatar, "level": level}
    claims: dict[str, Any] = {"sub": subject, "iat": now_ms // 1000, "info": {key: value for key, value in info.items() if value}}
    optional = {
        "exp": None if ttl_s is None else now_ms // 1000 + ttl_s,
        "roles": role_texts or None,
        "rooms": None if rooms is None else list(rooms),
        "kind": kind,
    }
    claims |= {key: value for key, value in optional.items() if value is not None}
    return jwt.encode(claims, settings.secret_bytes, algorithm=SHARED_ALGORITHM)


# --- the company's keys -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CompanyKey:
    """A public key and the one algorithm that its type fits."""

    id: str | None
    algorithm: str
    key: jwt.PyJWK


@dataclass(slots=True)
class KeySet:
    """This process's copy of the set. `keys` None: never fetched."""

    keys: tuple[CompanyKey, ...] | None = None
    fetch: "asyncio.Task[bool] | None" = None
    begun_ms: float = -math.inf


def _key_set(engines: "Engines") -> KeySet:
    return engines.local.setdefault("accounts.key_set", KeySet())


async def _find_key(engines: "Engines", algorithm: str, key_id: str | None) -> CompanyKey:
    """Looks again when the key is not at hand: the company may have begun to use a new one."""
    known = _key_set(engines)
    key = choose_key(known.keys or (), algorithm, key_id)
    if key is not None:
        return key
    looked = await _look_again(engines, known)
    key = choose_key(known.keys or (), algorithm, key_id)
    if key is not None:
        return key
    if not looked:  # the token may be as good as any, so the client must not take this for a final no
        raise AppError(SERVICE_UNAVAILABLE, "the key of this token cannot be looked up just now; try again", retry_after_ms=FETCH_GAP_MS)
    raise AppError(UNAUTHORIZED, "the token is signed with a key that is not in the company's key set")


def choose_key(keys: Iterable[CompanyKey], algorithm: str, key_id: str | None) -> CompanyKey | None:
    """None when the set may be too old to have it. Raises AppError `unauthorized` when no newer set could help."""
    keys = tuple(keys)
    alone = len(keys) == 1 and (key_id is None or keys[0].id is None)
    found = keys if alone else [key for key in keys if key_id is not None and key.id == key_id]
    if not found:
        if key_id is None and keys:
            raise AppError(UNAUTHORIZED, "the token does not say which of the company's keys signed it: set `kid` in its header")
        return None
    for key in found:
        if key.algorithm == algorithm:
            return key
    raise AppError(UNAUTHORIZED, f"the token says {algorithm}, but the key that it names is of another type")


async def _look_again(engines: "Engines", known: KeySet) -> bool:
    """Whether the set was fetched on behalf of this call. Not when it failed, or was done so shortly before that it must wait."""
    if known.fetch is None and engines.runtime.monotonic_ms() - known.begun_ms < FETCH_GAP_MS:
        return False
    return await _fetch(engines, known)


async def _fetch(engines: "Engines", known: KeySet) -> bool:
    """Joins the fetch that is under way or begins one, which goes on when this caller leaves."""
    if known.fetch is None or known.fetch.done():
        known.begun_ms = engines.runtime.monotonic_ms()
        known.fetch = asyncio.create_task(_refresh(engines.settings, known), name="fetch the company's keys")
    return await asyncio.shield(known.fetch)


async def _refresh(settings: Settings, known: KeySet) -> bool:
    try:
        async with asyncio.timeout(settings.jwks_timeout_s):  # the whole exchange: the client's own limits are per step
            body = await _download(settings)
        known.keys = read_keys(body, algorithms=split_words(settings.jwks_algorithms), keys_max=settings.jwks_keys_max)
    except Exception as failure:  # whatever is wrong with the answer, the keys at hand stay good. No URL in the log: it may hold a secret
        JWKS_FETCHES.labels("failed").inc()
        log.warning("the company's keys could not be fetched", error=type(failure).__name__, kept=len(known.keys or ()))
        return False
    finally:
        known.fetch = None
    JWKS_FETCHES.labels("fetched").inc()
    if not known.keys:
        log.warning("the company's key set has no usable key: tokens signed with one are refused")
    return True


async def _download(settings: Settings) -> bytes:
    import httpx2  # noqa: PLC0415 - only where keys are fetched; `jishi token` starts in half the time without it

    # Neither the environment's proxies nor a redirect decide where keys come from.
    async with httpx2.AsyncClient(timeout=settings.jwks_timeout_s, follow_redirects=False, trust_env=False, verify=trusted_tls()) as client:
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        async with client.stream("GET", settings.jwks_url, headers=headers) as response:
            if response.status_code != 200:
                raise ValueError(f"status {response.status_code}")
            body = bytearray()
            async for chunk in response.aiter_raw():  # as sent: a small answer cannot unpack to a large one
                body += chunk
                if len(body) > KEY_SET_BYTES_MAX:
                    raise ValueError(f"more than {KEY_SET_BYTES_MAX} bytes")
            return bytes(body)


class _Document(msgspec.Struct):
    keys: list[Any]


def read_keys(body: bytes, *, algorithms: Iterable[str], keys_max: int) -> tuple[CompanyKey, ...]:
    """The usable keys of a JWK set (RFC 7517, 5), at most `keys_max`; entries of other kinds are passed over. Raises when it is no set."""
    wanted = tuple(algorithms)
    keys: list[CompanyKey] = []
    for entry in msgspec.json.decode(body, type=_Document).keys:
        if len(keys) == keys_max:
            log.warning("the company's key set is too long: the rest is passed over", keys_max=keys_max)
            break
        key = _read_key(entry, wanted)
        if key is not None:
            keys.append(key)
    return tuple(keys)


def _read_key(entry: Any, wanted: tuple[str, ...]) -> CompanyKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    uses = entry.get("key_ops", ["verify"])
    if not isinstance(uses, list) or "verify" not in uses:
        return None
    for algorithm in COMPANY_ALGORITHMS:
        shape, members = _KEY_SHAPES[algorithm]
        if any(entry.get(name) != value for name, value in shape.items()):
            continue
        if algorithm not in wanted or entry.get("alg", algorithm) != algorithm:
            return None
        key_id = entry.get("kid")
        if not isinstance(key_id, str | None):
            return None
        if not _PRIVATE_MEMBERS.isdisjoint(entry):
            log.warning("a key of the company's key set was published with its private part: it is not used", key=key_id)
            return None
        return _load_key(key_id, algorithm, shape | {name: entry.get(name) for name in members})
    return None


def _load_key(key_id: str | None, algorithm: str, public: dict[str, Any]) -> CompanyKey | None:
    try:
        key = jwt.PyJWK(public, algorithm)
    except Exception:  # numbers that are no key fail in many ways, and cost only this entry
        log.warning("a key of the company's key set cannot be read", key=key_id)
        return None
    if algorithm == "RS256" and not RSA_BITS_MIN <= key.key.key_size <= RSA_BITS_MAX:
        log.warning("an RSA key of the company's key set is too short or too long", key=key_id, bits=key.key.key_size)
        return None
    return CompanyKey(key_id, algorithm, key)


@asynccontextmanager
async def keeping_keys_fresh(engines: "Engines") -> AsyncGenerator[None]:
    """Fetches the keys now and then, in the background; nothing when the settings name no URL. Start-up does not wait for the first."""
    if not engines.settings.jwks_url:
        yield
        return
    task = asyncio.create_task(_keep_keys_fresh(engines), name="keep the company's keys fresh")
    try:
        yield
    finally:
        fetch = _key_set(engines).fetch
        tasks: list[asyncio.Task[Any]] = [task] if fetch is None else [task, fetch]
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep_keys_fresh(engines: "Engines") -> None:
    refresh_s = engines.settings.jwks_refresh_s
    while True:
        fetched = await _fetch(engines, _key_set(engines))
        await asyncio.sleep(refresh_s if fetched else min(refresh_s, RETRY_S))
