"""The routes of the pages and their static files.

Owns only shells: no page reads an engine, so every page answers while an engine is away, and a page can be cached. Texts are put in by
the browser (`static/js/i18n.js`); what a template holds is the English of it, for readers without scripts. Templates escape by default.
"""

import re
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates

from app.core.ids import ID_LENGTH_MAX

_HERE = Path(__file__).parent
_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{ID_LENGTH_MAX}}}")
# Always ask again, answered 304 by the ETag: a page and its modules never come from two releases.
_REVALIDATE = "no-cache"

router = APIRouter(include_in_schema=False)
_templates = Jinja2Templates(directory=_HERE / "templates")
_static = StaticFiles(directory=_HERE / "static")


@router.get("/", response_class=HTMLResponse)
async def lobby(request: Request) -> Response:
    return _page(request, "lobby.html")


@router.get("/r/{room}", response_class=HTMLResponse)
async def viewer(request: Request, room: str) -> Response:
    return _page(request, "viewer.html", room=_checked_id(room))


@router.get("/host", response_class=HTMLResponse)
async def host(request: Request) -> Response:
    return _page(request, "host.html")


@router.get("/reports/{session}", response_class=HTMLResponse)
async def report(request: Request, session: str) -> Response:
    return _page(request, "report.html", session=_checked_id(session))


@router.get("/favicon.ico")
async def favicon(request: Request) -> Response:
    return await static_file(request, "img/logo.svg")


@router.get("/static/{path:path}")
async def static_file(request: Request, path: str) -> Response:
    response = await _static.get_response(path, request.scope)
    response.headers["Cache-Control"] = _REVALIDATE
    return response


def _page(request: Request, template: str, **values: str) -> Response:
    response = _templates.TemplateResponse(request, template, values)
    response.headers["Cache-Control"] = _REVALIDATE
    return response


def _checked_id(text: str) -> str:
    """Whether the room exists is for the page to find out; an id that cannot be one is refused before it reaches a template."""
    if not _ID.fullmatch(text):
        raise HTTPException(404, "no such page")
    return text
