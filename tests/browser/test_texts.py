"""Both languages say everything, and nothing is said past them."""

import json
import re
from pathlib import Path

CONSOLE = Path(__file__).parents[2] / "app" / "console"
ENGLISH = json.loads((CONSOLE / "static/i18n/en.json").read_text())
CHINESE = json.loads((CONSOLE / "static/i18n/zh.json").read_text())
SOURCES = [*CONSOLE.glob("static/js/**/*.js"), *CONSOLE.glob("templates/*.html")]
# `t("a.b")` with a fixed key, and data-i18n attributes
USED = re.compile(r"""\bt\("([a-z0-9_.]+)"|data-i18n(?:-[a-z]+)?="([a-z0-9_.]+)"|_key %\}([a-z_.]+)\{%""")
# `t(`a.${…}`)`, and `word("a", …)`
GROUPS = re.compile(r"""\bt\(`([a-z_]+)\.|\bword\("([a-z_]+)\"""")


def test_both_dictionaries_have_the_same_keys_and_placeholders() -> None:
    assert list(ENGLISH) == list(CHINESE)
    for key, text in ENGLISH.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", CHINESE[key])), key
        assert text.strip(), key
        assert CHINESE[key].strip(), key


def test_every_text_that_is_used_is_there_and_no_other() -> None:
    used: set[str] = set()
    groups: set[str] = set()
    for source in SOURCES:
        text = source.read_text()
        used |= {key for found in USED.findall(text) for key in found if "." in key}
        groups |= {name for found in GROUPS.findall(text) for name in found if name}
        used |= set(re.findall(r'"([a-z_]+\.[a-z0-9_]+)"', text)) & ENGLISH.keys()
    assert sorted(used - ENGLISH.keys()) == []
    assert sorted(key for key in ENGLISH if key not in used and key.split(".")[0] not in groups) == []


def test_no_script_or_style_stands_inside_a_page() -> None:
    """The content security policy would refuse it."""
    for template in CONSOLE.glob("templates/*"):
        text = template.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", text), template.name
    for script in CONSOLE.glob("static/js/**/*.js"):
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(", script.read_text()), script.name
