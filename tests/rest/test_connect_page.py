"""docs/connect.md names nothing that is not there: methods, events, channels, codes, versions, links. Its code is run in tests/journeys."""

import json
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from app.core.registry import Registry
from app.core.settings import Settings
from app.protocol.codes import CLOSES, ERRORS
from app.protocol.events import EVENTS
from app.rest.asyncapi import WEBSOCKET_PATH, tag_of
from app.rest.guides import GUIDES, read_guide, render_guide, slug
from tests.support.pages import blocks

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "connect.md").read_text()
SHOWS = {"iOS": "swift", "Android": "java", "Flutter": "dart", "Web": "js", "Python": "python"}


@pytest.mark.parametrize(("heading", "language"), SHOWS.items())
def test_each_platform_has_code_for_the_same_address_and_channels(heading: str, language: str) -> None:
    [code] = blocks(PAGE, heading, language)
    assert WEBSOCKET_PATH in code
    for channel in ("room:", "chat:"):
        assert channel in code
    assert "key" in code


def test_every_method_and_event_that_it_names_exists(registry: Registry) -> None:
    known = {*registry.commands, *(tag_of(event) for event in EVENTS)}
    namespaces = {name.partition(".")[0] for name in known}
    named = {f"{space}.{verb}" for space, verb in re.findall(r"""[`"']([a-z]+)\.([a-z_]+)[`"']""", PAGE) if space in namespaces}
    assert sorted(named - known) == []
    assert {"inventory.reserve", "order.place", "order.pay", "chat.send", "room.pulse", "order.paid", "hold.ended"} <= named


def test_its_table_of_close_codes_is_the_registry() -> None:
    rows = re.findall(r"^\| ((?:\d{4}(?:, )?)+) \| (.+) \|$", PAGE, re.MULTILINE)
    told = {int(number): text for numbers, text in rows for number in numbers.split(", ")}
    assert set(told) == {code.number for code in CLOSES}
    for code in CLOSES:
        assert ("reconnects" in told[code.number]) == code.reconnect, code.number


def test_it_names_the_temporary_errors_and_the_limits_in_force() -> None:
    temporary = ", ".join(str(code.number) for code in ERRORS if code.temporary)
    assert f"Temporary ({temporary})" in PAGE
    settings = Settings.model_construct()
    assert f"({settings.stage_history_events_max} events, {settings.stage_history_ttl_s // 60} minutes)" in PAGE
    assert f"Above {settings.chat_shown_per_s} lines a second" in PAGE
    assert f"no connect command within {settings.connect_timeout_s} s" in PAGE
    assert f"before the {settings.ping_interval_s} s ping" in PAGE


def test_the_versions_are_those_that_the_tests_run() -> None:
    packages = json.loads((ROOT / "tests" / "sdk" / "js" / "package.json").read_text())["dependencies"]
    assert f"| web | centrifuge-js | {packages['centrifuge']} |" in PAGE
    assert f"npm install centrifuge@{packages['centrifuge']}" in PAGE
    assert f"| Python | centrifuge-python | {version('centrifuge-python')} |" in PAGE
    assert f"centrifuge-python=={version('centrifuge-python')}" in PAGE


@pytest.mark.parametrize("name", sorted(GUIDES))
def test_links_of_the_guides_lead_somewhere(name: str) -> None:
    text = (ROOT / "docs" / f"{name}.md").read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        path = ROOT / "docs" / (file or f"{name}.md")
        assert path.exists(), target
        if anchor:
            assert anchor in {slug(heading) for heading in re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)}, target


# --- guides as pages ----------------------------------------------------------------------------------------------------------------


def test_a_guide_is_shown_with_its_code_and_its_links_lead_to_pages() -> None:
    title, html = read_guide("connect")
    assert title == "Connect a phone"
    assert '<h2 id="what-arrives">What arrives</h2>' in html
    assert 'href="/docs/reference#close-codes"' in html
    assert ".md" not in re.sub(r">[^<]*<", "><", html)
    assert html.count("<pre tabindex=") == html.count("<pre")
    assert html.count("<table>") == html.count('<div class="scroll"')


def test_what_a_guide_cannot_lead_to_stays_text_and_html_in_it_is_shown() -> None:
    title, html = render_guide(
        "# A *b* `c`\n\n[x](../app/cli.py) [y](glossary.md) [z](#here) <script>alert(1)</script>\n\n|a|\n|---|\n|1|\n"
    )
    assert title == "A *b* `c`"
    assert "cli.py" not in html
    assert '<a href="/docs/glossary">y</a> <a href="#here">z</a>' in html
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_every_guide_that_is_served_is_in_the_package() -> None:
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert {name for name in packed if name.startswith("docs/")} == {f"docs/{name}.md" for name in GUIDES}
    assert all(packed[f"docs/{name}.md"] == f"app/docs/{name}.md" for name in GUIDES)
