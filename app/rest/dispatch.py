"""One way to call a command, for the websocket's RPC and for its REST twin: decode, check right and ban, call, count, encode.

What leaves here as an exception is an AppError, always: an engine that is away is `service_unavailable`, and what nobody foresaw is logged
and becomes `internal`. A caller never learns more than that.
"""

import re
from functools import lru_cache
from time import perf_counter
from typing import Any

import msgspec
import structlog
from redis.exceptions import ResponseError as RedisResponseError
from sqlalchemy.exc import DBAPIError

from app.core.caller import Caller
from app.core.errors import AppError
from app.core.ids import room_of
from app.core.metrics import command_counter, command_seconds, outcome_counter
from app.core.registry import Command
from app.protocol.codes import BAD_REQUEST, INTERNAL, PERMISSION_DENIED, SERVICE_UNAVAILABLE, UNAUTHORIZED
from app.storage.work import Engines, is_away

RETRY_AFTER_MS = 1000
_SCOPED = ("offer", "hold", "order", "draw", "envelope")  # fields of requests; their ids carry the room
NUL_REFUSED = "the character NUL is not allowed in any text"

# `\\u0000` as an escape; with an even number of backslashes before it, it is the text `\\u0000` and means no harm.
_NUL_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")

# A transaction that PostgreSQL gave up for no fault of its own: serialization failure, deadlock, lock or statement timeout.
_GIVEN_UP = frozenset({"40001", "40P01", "55P03", "57014"})

log = structlog.get_logger()
_encoder = msgspec.json.Encoder()


async def call_command(engines: Engines, caller: Caller, command: Command, raw_body: bytes) -> bytes:
    """The encoded reply. Raises AppError, and nothing else."""
    started = perf_counter()
    result = "ok"
    try:
        return await _call(engines, caller, command, raw_body)
    except AppError as refusal:
        result = refusal.code.word
        raise
    except Exception as failure:  # whatever it was, the caller gets an error of the registry
        error = app_error(failure, method=command.method)
        result = error.code.word
        raise error from failure
    finally:
        command_counter(command.method, result).inc()
        command_seconds(command.method).observe(perf_counter() - started)


async def _call(engines: Engines, caller: Caller, command: Command, raw_body: bytes) -> bytes:
    check_somewhere(caller, command.right)
    request = decode_request(command.request, raw_body)
    await _admit(engines, caller, command, request)
    reply = await command.handler(engines, caller, request)
    outcome = getattr(reply, "outcome", None)
    if outcome is not None:
        outcome_counter(command.method, str(outcome)).inc()
    return _encoder.encode(reply)


def check_somewhere(caller: Caller, right: str) -> None:
    """The first, cheap check: a caller who has the right in no room at all needs no further look."""
    if not caller.id:
        raise AppError(UNAUTHORIZED, "sign in, or send a token as `Authorization: Bearer ...`")
    if not caller.may_somewhere(right):
        raise AppError(PERMISSION_DENIED, f"this needs the right `{right}`")


async def _admit(engines: Engines, caller: Caller, command: Command, request: Any) -> None:
    """Raises AppError `banned`. Here, once for all commands: one that is added later is closed to the banned unless it says otherwise."""
    room_id = "" if command.is_open_to_banned else room_named_by(request)
    if room_id:
        for check in engines.registry.command_admission:
            await check(engines, caller, room_id)


def room_named_by(request: Any) -> str:
    """The room that a request is about: it names the room, or something whose id begins with it. Empty: it is about none, or made up."""
    room_id = getattr(request, "room", None)
    if room_id:
        return room_id
    for name in _SCOPED:
        scoped = getattr(request, name, None)
        if scoped:
            return room_of(scoped)
    return ""


def decode_request(request_type: type[Any], raw_body: bytes) -> Any:
    """Raises AppError `bad_request` with the path of the field that is wrong. No body at all is an empty object."""
    refuse_nul(raw_body)
    try:
        return _decoder(request_type).decode(raw_body or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as failure:
        raise AppError(BAD_REQUEST, str(failure)) from failure


def refuse_nul(raw: bytes) -> None:
    """Raises AppError `bad_request` for the character NUL, plain or as a JSON escape: PostgreSQL can store it in no text."""
    if b"\0" in raw or (b"\\u0000" in raw and _NUL_ESCAPE.search(raw)):
        raise AppError(BAD_REQUEST, NUL_REFUSED)


@lru_cache(maxsize=256)
def _decoder(request_type: type[Any]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(request_type)


def app_error(failure: Exception, **context: Any) -> AppError:
    """What the caller is told of a failure that is no AppError. Logs it once, here."""
    if isinstance(failure, AppError):
        return failure
    if _value_refused(failure):
        log.warning("SQL refused a value", error=repr(failure)[:500], **context)
        return AppError(BAD_REQUEST, "a value is outside of what can be stored")
    if _may_come_again(failure):
        log.warning("an engine did not answer", error=repr(failure)[:500], **context)
        return AppError(SERVICE_UNAVAILABLE, "an engine did not answer; try again with the same key", retry_after_ms=RETRY_AFTER_MS)
    log.error("unexpected failure", exc_info=failure, **context)
    return AppError(INTERNAL)


def _value_refused(failure: Exception) -> bool:
    """PostgreSQL's class 22 (out of range, bad encoding), whether the driver or the server noticed."""
    return isinstance(failure, DBAPIError) and str(getattr(failure.orig, "sqlstate", "") or "").startswith("22")


def _may_come_again(failure: Exception) -> bool:
    """An engine is away, or PostgreSQL gave the transaction up. What Redis refuses is not among them: that is a fault of ours."""
    if isinstance(failure, RedisResponseError):
        return False
    given_up = isinstance(failure, DBAPIError) and getattr(failure.orig, "sqlstate", None) in _GIVEN_UP
    return given_up or is_away(failure)


def retry_after_s(error: AppError) -> int | None:
    """Whole seconds for the `Retry-After` header, rounded up; None when the error sets no time."""
    return None if error.retry_after_ms is None else max(1, -(-error.retry_after_ms // 1000))
