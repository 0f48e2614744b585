"""`Idempotency-Key` on whatever changes something over REST: the same call twice has one effect and one answer.

The first call with a key records that it is under way, in a transaction of its own, and its answer afterwards; no transaction is open
while the call runs. A second one with the same key, method, path and body gets that answer with `Idempotency-Replayed: true`.
Keys belong to a caller. Not kept: answers 5xx (try again), and answers that hold a secret (`Cache-Control: no-store`).
A process that dies during a call leaves a record that is under way; after `ABANDONED_S` the next call takes it over. If it died after the
commit, the record says so (storage/claims.py): the effect is there, its answer is lost, and the next call is told `already_done`.
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
from app.protocol.codes import ALREADY_DONE, BAD_REQUEST, CONFLICT, KEY_REUSED
from app.rest.middleware import replay
from app.rest.problems import problem_response
from app.storage.claims import DONE, UNDER_WAY, Claim, claimed
from app.storage.tables import IdempotencyRecord
from app.storage.work import Engines

KEY_CHARS_MAX = 128
ABANDONED_S = 10  # a call that was only slow cannot commit once it was taken over
EXPIRE_BATCH_MAX = 1000
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
            begun = await _begin(self._engines, caller_id, key, _digest(scope, body))
        except AppError as error:
            await problem_response(error, scope["path"])(scope, receive, send)
            return
        if isinstance(begun, Response):
            await begun(scope, receive, send)
            return
        with claimed(begun):
            await self._run(scope, replay(body, receive), send, begun)

    async def _run(self, scope: Scope, receive: Receive, send: Send, claim: Claim) -> None:
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
                    await _finish(self._engines, claim, start, bytes(body))
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception:  # re-raised: the call had no answer, so the next one with this key may try
            await _forget(self._engines, claim)
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


async def _begin(engines: Engines, caller_id: str, key: str, digest: str) -> Response | Claim:
    """A claim: this call is the first and must run. Otherwise the answer of the first. Raises AppError when there is none to give."""
    now = engines.runtime.now()
    row = {"caller_id": caller_id, "key": key, "digest": digest, "status": UNDER_WAY, "body": b"", "headers": {}, "created_at": now}
    async with engines.sql.begin() as session:
        if await session.scalar(insert(IdempotencyRecord).values(row).on_conflict_do_nothing().returning(IdempotencyRecord.key)):
            return Claim(caller_id, key, now)
        query = select(IdempotencyRecord).filter_by(caller_id=caller_id, key=key).with_for_update()
        record = (await session.scalars(query)).one_or_none()
        if record is None:  # the first call failed and was forgotten between the two statements
            raise _under_way()
        expired = record.created_at < now - timedelta(seconds=engines.settings.idempotency_key_ttl_s)
        if record.digest != digest and not expired:
            raise AppError(KEY_REUSED, "this Idempotency-Key came before with another method, path or body; use a new one")
        abandoned = record.created_at < now - timedelta(seconds=ABANDONED_S)
        if expired or (record.status == UNDER_WAY and abandoned):
            record.digest, record.status, record.body, record.headers, record.created_at = digest, UNDER_WAY, b"", {}, now
            return Claim(caller_id, key, now)
        if record.status == DONE and abandoned:
            raise AppError(ALREADY_DONE, "the first call with this Idempotency-Key was done, its answer was lost: look at what it changed")
        if record.status in {UNDER_WAY, DONE}:
            raise _under_way()
        return Response(record.body, record.status, headers={**record.headers, "Idempotency-Replayed": "true"})


def _under_way() -> AppError:
    return AppError(CONFLICT, "the first call with this Idempotency-Key is still under way; try again", retry_after_ms=1000)


async def _finish(engines: Engines, claim: Claim, start: Message, body: bytes) -> None:
    headers = Headers(raw=start["headers"])
    is_secret = "no-store" in headers.get("cache-control", "")
    if start["status"] >= 500 or is_secret:
        await _forget(engines, claim, also_done=is_secret)
        return
    kept: dict[str, Any] = {header: headers[header] for header in _KEPT_HEADERS if header in headers}
    change = update(IdempotencyRecord).where(*claim.conditions).values(status=start["status"], body=body, headers=kept)
    try:
        async with engines.sql.begin() as session:
            await session.execute(change)
    except (SQLAlchemyError, OSError) as failure:  # the call itself is done: its answer matters more than the record of it
        log.warning("an idempotent answer was not recorded", error=repr(failure)[:500])


async def _forget(engines: Engines, claim: Claim, *, also_done: bool = False) -> None:
    """So that the next call with this key runs. What was committed before the failure is not forgotten: it must not happen twice."""
    query = delete(IdempotencyRecord).where(*claim.conditions)
    try:
        async with engines.sql.begin() as session:
            await session.execute(query if also_done else query.where(IdempotencyRecord.status == UNDER_WAY))
    except (SQLAlchemyError, OSError) as failure:  # left under way, and taken over after ABANDONED_S
        log.warning("an idempotency record was not removed", error=repr(failure)[:500])


async def expire_idempotency_records(engines: Engines) -> None:
    """One pass of the worker's loop: removes at most EXPIRE_BATCH_MAX records that are past their time."""
    before = engines.runtime.now() - timedelta(seconds=engines.settings.idempotency_key_ttl_s)
    old = select(IdempotencyRecord.caller_id, IdempotencyRecord.key).where(IdempotencyRecord.created_at < before).limit(EXPIRE_BATCH_MAX)
    async with engines.sql.begin() as session:
        rows = (await session.execute(old.with_for_update(skip_locked=True))).all()
        for caller_id, key in rows:
            await session.execute(delete(IdempotencyRecord).filter_by(caller_id=caller_id, key=key))
