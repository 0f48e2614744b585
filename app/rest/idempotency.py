"""`Idempotency-Key` on whatever changes something over REST: the same call twice has one effect and one answer.

The first call with a key records that it is under way, in a transaction of its own, and its answer afterwards; no transaction is open
while the call runs. A second one with the same key, method, path and body gets that answer with `Idempotency-Replayed: true`.
Keys belong to a caller. Not kept: answers 5xx (try again), and answers that hold a secret (`Cache-Control: no-store`).
A process that dies during a call leaves a record that is under way; after `ABANDONED_S` the next call takes it over.
"""

import hashlib
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import AppError
from app.protocol.codes import BAD_REQUEST, CONFLICT, KEY_REUSED
from app.rest.middleware import replay
from app.rest.problems import problem_response
from app.storage.tables import IdempotencyRecord
from app.storage.work import Engines

KEY_CHARS_MAX = 128
ABANDONED_S = 60
EXPIRE_BATCH_MAX = 1000
UNDER_WAY = 0
_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_KEPT_HEADERS = ("content-type", "location")

log = structlog.get_logger()


class Idempotency:
    """Inside `WholeBody` and `WhoCalls`."""

    def __init__(self, app: ASGIApp, engines: Engines) -> None:
        self._app = app
        self._engines = engines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _key(scope)
        if key is None:
            await self._app(scope, receive, send)
            return
        caller_id: str = scope["state"]["caller"].id
        body = (await receive()).get("body", b"")
        try:
            if not 1 <= len(key) <= KEY_CHARS_MAX or not key.isprintable():
                raise AppError(BAD_REQUEST, f"Idempotency-Key: 1 to {KEY_CHARS_MAX} printable characters")
            answer = await _begin(self._engines, caller_id, key, _digest(scope, body))
        except AppError as error:
            await problem_response(error, scope["path"])(scope, receive, send)
            return
        if answer is not None:
            await answer(scope, receive, send)
            return
        await self._run(scope, replay(body, receive), send, (caller_id, key))

    async def _run(self, scope: Scope, receive: Receive, send: Send, name: tuple[str, str]) -> None:
        """The answer is recorded before its last byte leaves: who has it may rely on a repeat."""
        start: Message = {"status": 500, "headers": []}
        body = bytearray()

        async def send_on(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
            else:
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    await _finish(self._engines, name, start, bytes(body))
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception:  # re-raised: the call had no answer, so the next one with this key may try
            await _forget(self._engines, name)
            raise


def _key(scope: Scope) -> str | None:
    """None when this request needs no record. A caller without a name has no keys: two strangers must never share an answer."""
    if scope["type"] != "http" or scope["method"] not in _METHODS or not scope["path"].startswith("/api/v1/"):
        return None
    key = Headers(scope=scope).get("idempotency-key")
    return key if key is not None and scope["state"]["caller"].id else None


def _digest(scope: Scope, body: bytes) -> str:
    digest = hashlib.sha256()
    for part in (scope["method"].encode(), scope["path"].encode(), scope["query_string"], body):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


async def _begin(engines: Engines, caller_id: str, key: str, digest: str) -> Response | None:
    """None: this call is the first and must run. Otherwise the answer of the first. Raises AppError when there is none to give."""
    now = engines.runtime.now()
    row = {"caller_id": caller_id, "key": key, "digest": digest, "status": UNDER_WAY, "body": b"", "headers": {}, "created_at": now}
    async with engines.sql.begin() as session:
        if await session.scalar(insert(IdempotencyRecord).values(row).on_conflict_do_nothing().returning(IdempotencyRecord.key)):
            return None
        query = select(IdempotencyRecord).where(*_is((caller_id, key))).with_for_update()
        record = (await session.scalars(query)).one_or_none()
        if record is None:  # the first call failed and was forgotten between the two statements
            raise _under_way()
        expired = record.created_at < now - timedelta(seconds=engines.settings.idempotency_key_ttl_s)
        if record.digest != digest and not expired:
            raise AppError(KEY_REUSED, "this Idempotency-Key came before with another method, path or body; use a new one")
        if expired or (record.status == UNDER_WAY and record.created_at < now - timedelta(seconds=ABANDONED_S)):
            record.digest, record.status, record.body, record.headers, record.created_at = digest, UNDER_WAY, b"", {}, now
            return None
        if record.status == UNDER_WAY:
            raise _under_way()
        return Response(record.body, record.status, headers={**record.headers, "Idempotency-Replayed": "true"})


def _under_way() -> AppError:
    return AppError(CONFLICT, "the first call with this Idempotency-Key is still under way; try again", retry_after_ms=1000)


async def _finish(engines: Engines, name: tuple[str, str], start: Message, body: bytes) -> None:
    headers = Headers(raw=start["headers"])
    if start["status"] >= 500 or "no-store" in headers.get("cache-control", ""):
        await _forget(engines, name)
        return
    kept: dict[str, Any] = {header: headers[header] for header in _KEPT_HEADERS if header in headers}
    change = update(IdempotencyRecord).where(*_is(name)).values(status=start["status"], body=body, headers=kept)
    try:
        async with engines.sql.begin() as session:
            await session.execute(change)
    except (SQLAlchemyError, OSError) as failure:  # the call itself is done: its answer matters more than the record of it
        log.warning("an idempotent answer was not recorded", error=repr(failure)[:500])


async def _forget(engines: Engines, name: tuple[str, str]) -> None:
    try:
        async with engines.sql.begin() as session:
            await session.execute(delete(IdempotencyRecord).where(*_is(name)))
    except (SQLAlchemyError, OSError) as failure:  # left under way, and taken over after ABANDONED_S
        log.warning("an idempotency record was not removed", error=repr(failure)[:500])


def _is(name: tuple[str, str]) -> tuple[Any, Any]:
    return IdempotencyRecord.caller_id == name[0], IdempotencyRecord.key == name[1]


async def expire_idempotency_records(engines: Engines) -> None:
    """One pass of the worker's loop: removes at most EXPIRE_BATCH_MAX records that are past their time."""
    before = engines.runtime.now() - timedelta(seconds=engines.settings.idempotency_key_ttl_s)
    old = select(IdempotencyRecord.caller_id, IdempotencyRecord.key).where(IdempotencyRecord.created_at < before).limit(EXPIRE_BATCH_MAX)
    async with engines.sql.begin() as session:
        rows = (await session.execute(old.with_for_update(skip_locked=True))).all()
        for caller_id, key in rows:
            await session.execute(delete(IdempotencyRecord).where(*_is((caller_id, key))))
