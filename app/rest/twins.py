"""The REST twin of every command: `POST /api/v1/<namespace>/<verb>`, the same handler, rights, bodies and answers as over the websocket."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.core.registry import Command
from app.rest.access import CallerDep, EnginesDep
from app.rest.dispatch import call_command


def twin_router(commands: Iterable[Command], *, tag: str) -> APIRouter:
    router = APIRouter()
    for command in commands:
        endpoint = _endpoint(command)
        router.add_api_route(
            command.path,
            endpoint,
            methods=["POST"],
            tags=[tag],
            name=command.method,
            operation_id=command.method.replace(".", "_"),
            summary=command.summary,
            description=f"REST twin of the RPC method `{command.method}`. Needs the right `{command.right}`.",
            response_class=Response,
            responses={200: {"description": "the reply", "content": {"application/json": {"schema": _reference(command.reply)}}}},
            openapi_extra={"requestBody": _request_body(command)},
        )
    return router


def _endpoint(command: Command) -> Callable[..., Awaitable[Response]]:
    async def call(request: Request, engines: EnginesDep, caller: CallerDep) -> Response:
        reply = await call_command(engines, caller, command, await request.body())
        return Response(reply, media_type="application/json")

    call.__jishi_right__ = command.right  # type: ignore[attr-defined]  # read by the rights table's test
    return call


def _request_body(command: Command) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": _reference(command.request)}
    if command.example:
        content["example"] = dict(command.example)
    return {"required": True, "content": {"application/json": content}}


def _reference(struct: type[Any]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{struct.__name__}"}
