"""Cursor pagination. A page is `{"items": [...], "next_cursor": "..."}`; an empty cursor is the end. Cursors are opaque to clients.

A cursor is the sort key of the last row, so rows that arrive or go in between are neither skipped nor repeated.
"""

import base64
import binascii
from datetime import UTC, datetime
from typing import Annotated, Generic, TypeVar

import msgspec
from fastapi import Query
from pydantic import BaseModel

from app.core.errors import AppError
from app.protocol.codes import BAD_REQUEST

Item = TypeVar("Item")

CursorParam = Annotated[str, Query(max_length=200, description="`next_cursor` of the page before; empty for the first page")]
LimitParam = Annotated[int, Query(ge=1, le=200, description="items a page")]


class Page(BaseModel, Generic[Item]):
    items: list[Item]
    next_cursor: str = ""


def encode_cursor(*key: str | int) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def decode_cursor(cursor: str, length: int) -> list[str | int] | None:
    """The sort key in a cursor, None for the first page. Raises AppError `bad_request` for anything that we did not make."""
    if not cursor:
        return None
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        key = msgspec.json.decode(raw, type=list[str | int])
    except (binascii.Error, ValueError, msgspec.DecodeError) as failure:
        raise AppError(BAD_REQUEST, "cursor: not one that this server gave out") from failure
    if len(key) != length:
        raise AppError(BAD_REQUEST, "cursor: belongs to another listing")
    return key


def encode_moment_cursor(at: datetime, row_id: str) -> str:
    """For listings ordered by (time, id); times in whole milliseconds, as everything that is stored."""
    return encode_cursor(round(at.timestamp() * 1000), row_id)


def decode_moment_cursor(cursor: str) -> tuple[datetime, str] | None:
    key = decode_cursor(cursor, 2)
    if key is None:
        return None
    at_ms, row_id = key
    if not isinstance(at_ms, int) or not isinstance(row_id, str) or not 0 <= at_ms < 10**14:
        raise AppError(BAD_REQUEST, "cursor: belongs to another listing")
    return datetime.fromtimestamp(at_ms / 1000, UTC), row_id
