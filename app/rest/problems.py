"""Problem details (RFC 9457): every REST error, whoever raised it, in one shape with the word and number of the wire's registry.

{"type": "/docs#error-conflict", "title": "conflict", "status": 409, "detail": "...", "instance": "/api/v1/...",
 "code": 401, "word": "conflict", "temporary": false}
"""

from collections.abc import Mapping
from typing import Any, cast

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.core.errors import AppError, ErrorCode
from app.protocol import codes
from app.rest.dispatch import app_error, retry_after_s

MEDIA_TYPE = "application/problem+json"
FIELD_ERRORS_MAX = 20

_BY_STATUS: Mapping[int, ErrorCode] = {
    400: codes.BAD_REQUEST,
    401: codes.UNAUTHORIZED,
    403: codes.PERMISSION_DENIED,
    404: codes.NOT_FOUND,
    405: codes.METHOD_NOT_FOUND,
    409: codes.CONFLICT,
    413: codes.LIMIT_EXCEEDED,
    429: codes.TOO_MANY_REQUESTS,
    503: codes.SERVICE_UNAVAILABLE,
}


class FieldError(BaseModel):
    field: str = Field(description="where: `body.price_minor`, `query.limit`")
    text: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(examples=["/docs#error-conflict"])
    title: str = Field(examples=["conflict"])
    status: int = Field(examples=[409])
    detail: str = Field(examples=["the session is live already"])
    instance: str = Field(examples=["/api/v1/sessions/k3m9-7q2x/go-live"])
    code: int = Field(description="number of the error; the same over the websocket", examples=[401])
    word: str = Field(description="name of the error; the same over the websocket", examples=["conflict"])
    temporary: bool = Field(description="the same call may succeed later, unchanged", examples=[False])
    fields: list[FieldError] | None = Field(None, description="which parts of the request were wrong")


def problem_response(
    error: AppError, instance: str, *, fields: list[FieldError] | None = None, status: int = 0, headers: Mapping[str, str] | None = None
) -> Response:
    """`status` and `headers` are for errors that HTTP itself names, such as 405 with `Allow`."""
    code = error.code
    body: dict[str, Any] = {
        "type": f"/docs#error-{code.word}",
        "title": code.text,
        "status": status or code.http_status,
        "detail": error.detail,
        "instance": instance,
        "code": code.number,
        "word": code.word,
        "temporary": code.temporary,
    }
    if fields is not None:
        body["fields"] = [field.model_dump() for field in fields]
    all_headers = dict(headers or {})
    wait_s = retry_after_s(error)
    if wait_s is not None:
        all_headers["Retry-After"] = str(wait_s)
    if body["status"] == 401:
        all_headers["WWW-Authenticate"] = "Bearer"
    return Response(msgspec.json.encode(body), body["status"], headers=all_headers, media_type=MEDIA_TYPE)


def failure_response(failure: Exception, instance: str) -> Response:
    """For what escaped every handler: logged, told as `internal` or `service_unavailable`."""
    return problem_response(app_error(failure, path=instance), instance)


def install_problem_handlers(app: FastAPI) -> None:
    app.add_exception_handler(AppError, _on_app_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)


async def _on_app_error(request: Request, failure: Exception) -> Response:
    return problem_response(cast("AppError", failure), request.url.path)


async def _on_validation_error(request: Request, failure: Exception) -> Response:
    errors = cast("RequestValidationError", failure).errors()
    fields = [FieldError(field=".".join(str(part) for part in error["loc"]), text=error["msg"]) for error in errors[:FIELD_ERRORS_MAX]]
    summary = "; ".join(f"{field.field}: {field.text}" for field in fields[:3])
    return problem_response(AppError(codes.BAD_REQUEST, summary), request.url.path, fields=fields)


async def _on_http_error(request: Request, failure: Exception) -> Response:
    error = cast("HTTPException", failure)
    code = _BY_STATUS.get(error.status_code, codes.BAD_REQUEST if error.status_code < 500 else codes.INTERNAL)
    detail = {404: "no such route; /docs lists them all", 405: f"this route does not answer {request.method}"}.get(
        error.status_code, str(error.detail)
    )
    return problem_response(AppError(code, detail), request.url.path, status=error.status_code, headers=error.headers)
