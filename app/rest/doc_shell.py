"""The frame of the pages under `/docs`: head, ways between the documents, tables, style. Plain HTML: no script, nothing from elsewhere."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import msgspec
from starlette.responses import HTMLResponse

PAGE_POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
PAGES = (("/docs", "REST API"), ("/docs/realtime", "Real time"), ("/docs/connect", "Connect a phone"), ("/docs/reference", "Reference"))

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
* { box-sizing: border-box; }
body { margin: 0; overflow-wrap: anywhere; }
main, header { max-width: 60rem; margin: 0 auto; padding: 1rem; }
header { padding-bottom: 0; }
header nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
header nav a, .sections a { display: inline-block; padding: .35rem 0; }
header nav a[aria-current] { color: inherit; font-weight: 600; text-decoration: none; }
.skip { position: absolute; left: -100vw; }
.skip:focus { position: static; }
:focus-visible { outline: 3px solid #1f5fbf; outline-offset: 2px; }
section, h2, h3, details, tr { scroll-margin-top: 1rem; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
h2 code { font-size: .9em; }
pre { overflow-x: auto; overflow-wrap: normal; padding: .75rem; border: 1px solid #8886; border-radius: 6px; }
details { border-bottom: 1px solid #8884; padding: .4rem 0; }
details details { border: 0; padding-left: 1rem; }
summary { cursor: pointer; overflow-wrap: anywhere; padding: .25rem 0; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8884; vertical-align: top; overflow-wrap: normal; }
td:first-child, th:first-child { padding-left: 0; }
td code { overflow-wrap: anywhere; }
td:last-child { min-width: 12rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt { opacity: .75; }
dd { margin: 0; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } h1 { font-size: 1.6rem; } }
"""


def html_page(title: str, body: str, *, at: str) -> HTMLResponse:
    """`body` is HTML that was escaped where it had to be; `at` is the page's own path."""
    links = "".join(f'<a href="{path}"{" aria-current=page" if path == at else ""}>{escape(text)}</a>' for path, text in PAGES)
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="stylesheet" href="/docs/style.css"></head><body class="docs">'
        f'<a class="skip" href="#content">Skip to the content</a><header><nav aria-label="Documents">{links}</nav></header>'
        f'<main id="content" tabindex="-1">{body}</main></body></html>',
        headers={"Content-Security-Policy": PAGE_POLICY},
    )


def html_table(caption: str, head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table that scrolls sideways by itself, with the keyboard too. A row is its anchor (or nothing) and its cells, already HTML."""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    lines = "".join(
        f"<tr{f' id={chr(34)}{escape(anchor)}{chr(34)}' if anchor else ''}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for anchor, cells in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0">'
        f"<table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def json_block(value: Any) -> str:
    return f'<pre tabindex="0">{escape(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())}</pre>'


def paragraphs(text: str) -> str:
    return "".join(f"<p>{inline(part)}</p>" for part in text.strip().split("\n\n"))


def inline(text: str) -> str:
    """Plain text with `code` in backticks, as docstrings and summaries have it."""
    parts = escape(text).split("`")
    if len(parts) % 2 == 0:  # a backtick without its other: leave them alone
        return escape(text)
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
