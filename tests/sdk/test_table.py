"""The table of traps and their tests does not drift from the tests."""

import re
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "sdk-conformance.md"
SOURCES = [path.read_text() for path in sorted(HERE.glob("test_*.py"))]


def test_every_test_of_the_table_is_there() -> None:
    told = set(re.findall(r"`(test_[a-z_]+)`", DOCUMENT.read_text()))
    there = {name for source in SOURCES for name in re.findall(r"def (test_[a-z_]+)\(", source)}
    assert told - there == set()


def test_every_trap_has_a_row_and_is_named_in_a_test() -> None:
    rows = re.findall(r"^\| (\d+) \|", DOCUMENT.read_text(), re.MULTILINE)
    named = {number for source in SOURCES for number in re.findall(r'"""Trap (\d+)', source)}
    assert rows == [str(number) for number in range(1, 13)]
    assert named == set(rows)
