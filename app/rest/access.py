"""Dependencies of every REST route: the engines, the caller, and the right that the route needs.

    router = APIRouter(prefix="/api/v1", tags=["rooms"])

    @router.post("/sessions/{session_id}/go-live")
    async def go_live(session_id: str, engines: EnginesDep, caller: Annotated[Caller, require("session.run")]) -> SessionOut: ...

`require(right)` refuses a caller who has the right in no room at all; the route then calls `check_right(caller, right, room_id)` once it
knows the room. Every route under /api/v1 declares its right with `require`, or says `public` aloud; the rights-table test reads both.
"""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Request

from app.core.caller import Caller
from app.core.errors import AppError
from app.protocol.codes import PERMISSION_DENIED, UNAUTHORIZED
from app.storage.work import Engines


def _engines(request: Request) -> Engines:
    return request.app.state.engines


def _caller(request: Request) -> Caller:
    return request.state.caller


EnginesDep = Annotated[Engines, Depends(_engines)]
CallerDep = Annotated[Caller, Depends(_caller)]  # anybody, also nobody: for public routes


class NeedsRight:
    """The dependency behind `require`; `right` is there for the rights-table test and the OpenAPI document."""

    def __init__(self, right: str) -> None:
        self.right = right

    def __call__(self, caller: CallerDep) -> Caller:
        if not caller.id:
            raise AppError(UNAUTHORIZED, "sign in, or send a token as `Authorization: Bearer ...`")
        if not caller.may_somewhere(self.right):
            raise AppError(PERMISSION_DENIED, f"this needs the right `{self.right}`")
        return caller


def require(right: str) -> Any:
    """A dependency that yields the Caller, who has `right` in at least one room."""
    return Depends(NeedsRight(right))


def check_right(caller: Caller, right: str, room_id: str) -> None:
    """Raises AppError `permission_denied` unless the caller has the right in this room."""
    if not caller.may(right, room_id):
        raise AppError(PERMISSION_DENIED, f"this needs the right `{right}` in room {room_id}")


def public(route: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a route that asks for no right, so that a forgotten `require` is noticed."""
    route.__jishi_public__ = True  # type: ignore[attr-defined]  # a mark that twins and tests read
    return route
