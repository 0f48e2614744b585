"""The command line alone: exact forms, one line for each mistake, never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import jwt
import pytest

from app.cli import main
from app.desk import parse_offer

SECRET = "a-secret-of-these-tests-that-is-long-enough"


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JISHI_TOKEN_SECRET", SECRET)
    monkeypatch.setenv("JISHI_DATA_DIR", str(tmp_path))


def claims(token: str) -> dict[str, object]:
    return jwt.decode(token, SECRET, algorithms=["HS256"])


def test_token_prints_a_token_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--viewer", "lin", "--name", "林", "--role", "host@tea", "--role", "planner", "--ttl", "60"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    found = claims(out.strip())
    assert (found["sub"], found["info"], found["roles"]) == ("lin", {"name": "林"}, ["host@tea", "planner"])
    assert found["exp"] - found["iat"] == 60  # type: ignore[operator]  # numbers, as just signed


def test_a_token_bears_the_viewer_as_name_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--viewer", "lin"]) == 0
    found = claims(capsys.readouterr().out.strip())
    assert found["info"] == {"name": "lin"}
    assert "roles" not in found


def test_the_script_itself_prints_only_the_token(tmp_path: Path) -> None:
    """Bug class: a warning of an imported library on stdout, which a shell script would take for part of the token."""
    command = [sys.executable, "-m", "app.cli", "token", "--viewer", "lin", "--data-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "JISHI_TOKEN_SECRET": SECRET})
    assert done.stderr == ""
    assert claims(done.stdout.removesuffix("\n"))["sub"] == "lin"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["token"], 2, "Missing option '--viewer'"),
        (["token", "--viewer", "a b"], 1, "subject 'a b'"),
        (["token", "--viewer", "lin", "--role", "king"], 1, "role 'king': one of host"),
        (["token", "--viewer", "lin", "--ttl", "0"], 2, "'--ttl': Input should be greater than or equal to 1"),
        (["dance"], 2, "No such command 'dance'"),
        (["room", "open", "--title", "Tea", "--offer", "Tea:cheap:3"], 2, "is not NAME:PRICE_MINOR:STOCK[:LIMIT]"),
        (["room", "open", "--title", "Tea"], 2, "Missing option '--offer'"),
        (["room", "open", "--title", "Tea", "--offer", "Tea:100:3"], 1, "REDIS_URL and DATABASE_URL not set, and no running product found"),
        (["report", "nothing"], 1, "REDIS_URL and DATABASE_URL not set"),
        (["reconcile"], 1, "REDIS_URL and DATABASE_URL not set"),
        (["rebuild"], 2, "name a room, or say --all"),
        (["rebuild", "tea"], 1, "REDIS_URL and DATABASE_URL not set"),
        (["dead-letters", "list"], 1, "REDIS_URL and DATABASE_URL not set"),
        (["dead-letters", "retry"], 2, "name the letters, or say --all"),
        (["dead-letters", "drop", "1"], 2, "Missing option '--reason'"),
        (["migrate"], 1, "DATABASE_URL is not set, and no running product found"),
        (["serve"], 1, "or run `jishi up`"),
        (["worker"], 1, "or run `jishi up`"),
        (["up", "--port", "70000"], 2, "'--port': Input should be less than or equal to 65535"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("jishi: ")
    assert said in err


def test_a_wrong_setting_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JISHI_DRAIN_S", "soon")
    assert main(["token", "--viewer", "lin"]) == 1
    assert capsys.readouterr().err.startswith("jishi: the setting JISHI_DRAIN_S is wrong: ")


def test_without_a_secret_no_token_is_made_that_nobody_would_accept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("JISHI_TOKEN_SECRET")
    assert main(["token", "--viewer", "lin"]) == 1
    assert capsys.readouterr().err == f"jishi: no token secret in {tmp_path}: run `jishi up` there first, or set JISHI_TOKEN_SECRET\n"


def test_an_engine_that_is_away_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REDIS_URL", f"unix://{tmp_path}/nobody.sock")
    monkeypatch.setenv("DATABASE_URL", f"postgresql://jishi@/postgres?host={tmp_path}")
    assert main(["report", "tea-1"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("jishi: an engine is out of reach")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["room"],
        ["up"],
        ["serve"],
        ["worker"],
        ["migrate"],
        ["token"],
        ["room", "open"],
        ["report"],
        ["reconcile"],
        ["dead-letters"],
        ["dead-letters", "retry"],
        ["rebuild"],
    ],
)
def test_everything_has_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--help"]) == 0
    out, err = capsys.readouterr()
    assert "Usage: jishi" in out
    assert err == ""


@pytest.mark.parametrize(
    ("text", "name", "price_minor", "total", "limit"),
    [
        ("Rice 5 kg:4990:100", "Rice 5 kg", 4990, 100, 0),
        ("Rice 5 kg:4990:100:2", "Rice 5 kg", 4990, 100, 2),
        ("Tea: spring harvest:8800:50:1", "Tea: spring harvest", 8800, 50, 1),
        ("明前茶:8800:50", "明前茶", 8800, 50, 0),
    ],
)
def test_offers_are_read_from_their_end(text: str, name: str, price_minor: int, total: int, limit: int) -> None:
    draft = parse_offer(text)
    assert (draft.name, draft.price_minor, draft.total, draft.limit_per_viewer) == (name, price_minor, total, limit)


def test_a_token_costs_no_engine_client_and_no_web_framework() -> None:
    """Scripts ask for one a viewer: what it need not load, it does not."""
    heavy = ("fastapi", "sqlalchemy", "redis", "uvicorn", "httpx2", "app.composition")
    program = (
        "import sys; from app.cli import main; code = main(['token', '--viewer', 'lin']);"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stderr.strip() == "[]"


@pytest.mark.parametrize("ttl", ["0", "99999999999999999999"])
def test_a_token_ends_within_reason(ttl: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--viewer", "lin", "--ttl", ttl]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize(("name", "value"), [("REDIS_URL", "http://x"), ("REDIS_URL", "nonsense"), ("DATABASE_URL", "mysql://x")])
def test_an_engine_of_another_kind_is_told_in_one_line(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/x")
    monkeypatch.setenv(name, value)
    for command in (["reconcile"], ["serve"], ["worker"], ["up", "--no-demo"]):
        assert main(command) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert name in err
