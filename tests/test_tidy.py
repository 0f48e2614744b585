"""House rules that no linter knows. Each failure names the file, the line and what to do instead."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
LUA_LINES_MAX = 120
LUA_HEADER_PARTS = ("KEYS", "ARGV")

PYTHON = sorted(path for folder in ("app", "tests", "loadtests", "migrations") for path in (ROOT / folder).rglob("*.py"))
APP = [path for path in PYTHON if path.is_relative_to(ROOT / "app")]
LUA = sorted((ROOT / "app").rglob("*.lua"))

DOMAIN_FILES = {"__init__.py", "rules.py", "store.py", "service.py", "endpoints.py", "tables.py"}
# A domain that outgrew one file keeps a second of a kind under the noun it is about.
DOMAIN_FILES_OF = {
    "inventory": {"renewal.py"},
    "lottery": {"escrow.py"},
    "accounts": {"tokens.py"},
    "chat": {"bans.py", "mirror.py"},
    "orders": {
        *("payments.py", "providers.py", "sandbox.py", "stripe.py", "disputes.py"),
        *("aftersales.py", "returns.py", "returns_endpoints.py", "exports.py", "books.py", "reconciliation.py"),
    },
    "rooms": {"show.py", "shelf.py", "shelf_endpoints.py", "audience.py"},
}
BANNED_NAMES = {"utils", "helpers", "common", "base", "manager", "misc"}

# call -> (what to use instead, where it may stand)
BANNED_CALLS = {
    "time.time": ("runtime.now_ms()", {"app/core/runtime.py", "app/demo/"}),
    "time.time_ns": ("runtime.now_ms()", {"app/core/runtime.py"}),
    "datetime.now": ("runtime.now()", {"app/core/runtime.py"}),
    "datetime.utcnow": ("runtime.now()", set[str]()),
    "random.random": ("runtime.rng", {"app/core/runtime.py", "app/demo/"}),
    "random.choice": ("runtime.rng", {"app/core/runtime.py", "app/demo/"}),
    "random.randint": ("runtime.rng", {"app/core/runtime.py", "app/demo/"}),
    "uuid.uuid4": ("runtime.new_id()", {"app/demo/"}),
    "os.urandom": ("runtime.token_bytes()", {"app/core/runtime.py"}),
    "print": ("a logger, or typer.echo in the command line", {"app/demo/"}),
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def called(node: ast.Call) -> str:
    """`a.b.c()` is `b.c`, `f()` is `f`."""
    function = node.func
    if isinstance(function, ast.Name):
        return function.id
    if isinstance(function, ast.Attribute):
        owner = function.value
        before = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
        return f"{before}.{function.attr}"
    return ""


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def own_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without the definitions nested in it, which are counted for themselves."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    nested = [node for node in function.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    return lines - sum((node.end_lineno or 0) - node.lineno + 1 for node in nested)


def test_files_and_functions_stay_small() -> None:
    found: list[str] = []
    for path in PYTHON:
        if path.is_relative_to(ROOT / "migrations" / "versions"):
            continue  # generated, and never changed afterwards
        source = path.read_text()
        lines = source.count("\n")
        if lines > FILE_LINES_MAX:
            found.append(f"{name(path)}: {lines} lines, at most {FILE_LINES_MAX}; split it by what it is about")
        for function in functions(ast.parse(source)):
            length = own_lines(function)
            told_in_one_go = path.parent.name == "journeys"  # a journey reads as one story, from beginning to end
            if length > FUNCTION_LINES_MAX and not told_in_one_go:
                found.append(f"{name(path)}:{function.lineno}: {function.name} has {length} lines, at most {FUNCTION_LINES_MAX}")
    assert found == [], "\n".join(found)


def test_domains_hold_only_the_known_kinds_of_file() -> None:
    found: list[str] = []
    for path in sorted((ROOT / "app" / "domains").rglob("*")):
        if path.is_dir() or "__pycache__" in path.parts or path.parent.name == "domains":
            continue
        allowed = DOMAIN_FILES | DOMAIN_FILES_OF.get(path.parent.name, set())
        if path.name not in allowed and path.suffix != ".lua":
            found.append(
                f"{name(path)}: a domain has {', '.join(sorted(allowed))} and .lua files (architecture: where does this line belong?)"
            )
    assert found == [], "\n".join(found)


def test_no_module_is_named_after_nothing() -> None:
    found = [name(path) for path in PYTHON if path.stem in BANNED_NAMES]
    assert found == [], "name the module after what it is about"


def test_banned_calls() -> None:
    found: list[str] = []
    for path in APP:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or (call := called(node)) not in BANNED_CALLS:
                continue
            instead, allowed = BANNED_CALLS[call]
            if not any(name(path).startswith(place) for place in allowed):
                found.append(f"{name(path)}:{node.lineno}: {call}: use {instead}")
    assert found == [], "\n".join(found)


def test_a_broad_except_states_its_reason() -> None:
    """On its line, on the line above, or as the first line below it."""
    found: list[str] = []
    for path in APP:
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if re.match(r"\s*except (Base)?Exception\b", line):
                around = [line, lines[number - 1], *lines[number + 1 : number + 3]]
                if not any("# " in text or '"""' in text for text in around):
                    found.append(f"{name(path)}:{number + 1}: say in a comment why everything is caught here")
    assert found == [], "\n".join(found)


def test_suppressions_state_their_reason() -> None:
    found: list[str] = []
    for path in [*APP, *(path for path in PYTHON if path.is_relative_to(ROOT / "loadtests"))]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = re.search(r"# (?:noqa: [A-Z0-9, ]+|type: ignore\[[^\]]+\]|pyright: ignore\[[^\]]+\])(.*)$", line)
            if match and len(match[1].strip(" -#")) < 8:
                found.append(f"{name(path)}:{number}: say after the code why the rule does not hold here")
            if re.search(r"# (noqa|type: ignore|pyright: ignore)\s*$", line):
                found.append(f"{name(path)}:{number}: name the rule")
    assert found == [], "\n".join(found)


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK")) + r")\b")
    found = [
        f"{name(path)}:{number}"
        for path in [*PYTHON, *LUA, *(ROOT / "app" / "console").rglob("*.js"), *(ROOT / "app" / "console").rglob("*.html")]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert found == [], "do it, or file it"


@pytest.mark.parametrize("path", LUA, ids=name)
def test_scripts_are_short_and_begin_with_their_contract(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= LUA_LINES_MAX, f"{len(lines)} lines, at most {LUA_LINES_MAX}"
    header = "\n".join(line for line in lines[: next((i for i, line in enumerate(lines) if not line.startswith("--")), len(lines))])
    assert header, "begins with its purpose"
    missing = [part for part in LUA_HEADER_PARTS if part not in header]
    assert missing == [] or "included" in header.lower(), f"the header names {missing}"


@pytest.mark.parametrize("path", APP, ids=name)
def test_modules_say_what_they_own(path: Path) -> None:
    source = path.read_text()
    assert not source.strip() or ast.get_docstring(ast.parse(source)), "begins with what it owns and what it deliberately does not do"
