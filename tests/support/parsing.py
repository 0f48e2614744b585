"""`ast.parse` that a finalizer cannot disturb.

CPython 3.11 counts the depth of an AST under construction in one place for the whole interpreter. When the garbage collector runs in the
midst of it and a finalizer's complaint is formatted, the traceback parses its own line, and the outer parse ends in a SystemError. Tests
meet that by chance: pytest formats what `__del__` raises, and pytest, Hypothesis and our own tidy tests parse. Without a collection in
between it cannot happen; from Python 3.12 on it does not.
"""

import ast
import functools
import gc
import sys
from typing import Any


def steady(parse: Any) -> Any:
    """The same function, never interrupted by a collection."""

    @functools.wraps(parse)
    def parse_steadily(*arguments: Any, **options: Any) -> Any:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return parse(*arguments, **options)
        finally:
            if was_enabled:
                gc.enable()

    return parse_steadily


def steady_parsing() -> None:
    """For the whole interpreter, where it is needed. Again is harmless."""
    if sys.version_info < (3, 12) and not hasattr(ast.parse, "__wrapped__"):
        ast.parse = steady(ast.parse)
