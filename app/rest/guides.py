"""The guides of `docs/` that whoever builds a client reads, shown by the product itself under `/docs/<name>`.

One source: the Markdown that lies in the repository goes into the package as it is. Links to a guide that is served lead there; other
relative links lose their address and stay as text, since there is nothing to lead to. Raw HTML in a guide is shown as text.
"""

import asyncio
import re
from functools import cache
from html import escape
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from fastapi import APIRouter
from markdown_it import MarkdownIt
from markdown_it.token import Token
from starlette.responses import HTMLResponse

from app.core.errors import AppError
from app.protocol.codes import NOT_FOUND
from app.rest.access import public
from app.rest.doc_shell import html_page

GUIDES = frozenset({"connect", "reference", "payments", "aftersales", "sampling", "sdk-conformance", "glossary"})
_GUIDE_LINK = re.compile(r"(?:\./)?([\w-]+)\.md(#[\w-]+)?")

router = APIRouter(include_in_schema=False)


@router.get("/docs/{name}")
@public
async def guide(name: str) -> HTMLResponse:
    if name not in GUIDES:
        raise AppError(NOT_FOUND, "no such page")
    title, body = await asyncio.to_thread(read_guide, name)
    return html_page(title, body, at=f"/docs/{name}")


@cache
def read_guide(name: str) -> tuple[str, str]:
    """Title and HTML. Raises AppError `not_found` where the guide was not packed."""
    folder = _folder()
    path = None if folder is None else folder / f"{name}.md"
    if path is None or not path.is_file():
        raise AppError(NOT_FOUND, "this guide is not part of the package")
    return render_guide(path.read_text(encoding="utf-8"))


def render_guide(markdown: str) -> tuple[str, str]:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    title = ""
    for opened, content in pairwise(tokens):
        if opened.type == "heading_open":
            title = title or content.content
            opened.attrSet("id", slug(content.content))
        elif opened.type == "table_open":
            opened.attrSet("tabindex", "0")
        for child in content.children or ():
            if child.type == "link_open":
                _redirect(child)
    return title, _scrolling(str(parser.renderer.render(tokens, parser.options, {})))


def slug(heading: str) -> str:
    """As code hosting sites make it, so that a link to a heading holds there and here."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _redirect(link: Token) -> None:
    target = str(link.attrGet("href") or "")
    if target.startswith(("#", "/", "https://", "http://")):
        return
    found = _GUIDE_LINK.fullmatch(target)
    if found and found[1] in GUIDES:
        link.attrSet("href", f"/docs/{found[1]}{found[2] or ''}")
    else:
        link.attrs = {}


def _scrolling(html: str) -> str:
    """What is wider than a phone scrolls by itself, with the keyboard too."""
    html = html.replace('<table tabindex="0">', f'<div class="scroll" role="region" aria-label="{escape("Table")}" tabindex="0"><table>')
    return html.replace("</table>", "</table></div>").replace("<pre>", '<pre tabindex="0">')


def _folder() -> Path | None:
    """Beside the package in a checkout, inside it in a wheel."""
    spec = find_spec("app")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    return next((folder for folder in (package.parent / "docs", package / "docs") if folder.is_dir()), None)
