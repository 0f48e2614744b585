"""Regression: a complaint formatted by a finalizer in the midst of a parse made tests fail at random on Python 3.11."""

import ast
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


class _Parsing:
    """Garbage in a cycle, whose finalizer parses from deeper down, as the formatting of a traceback does."""

    parsed = 0

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        self._descend(5)

    def _descend(self, depth: int) -> None:
        if depth:
            self._descend(depth - 1)
        else:
            ast.parse("1 + 1")
            _Parsing.parsed += 1


@pytest.fixture
def eager_collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    gc.set_threshold(50, 2, 2)
    yield
    gc.set_threshold(*thresholds)


@pytest.mark.usefixtures("eager_collector")
def test_a_finalizer_that_parses_does_not_disturb_a_parse() -> None:
    source = Path(__file__).read_text() * 20
    for _ in range(20):
        for _ in range(3):
            _Parsing()
        assert len(ast.parse(source).body) > 100
    gc.collect()
    assert _Parsing.parsed == 60


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the interpreter's own parse is steady from 3.12 on, and stays as it is")
def test_pytest_and_hypothesis_parse_steadily_too() -> None:
    assert hasattr(ast.parse, "__wrapped__")
