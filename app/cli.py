"""`jishi`: what an operator types. Finds a running product by its data directory or by the engines' addresses in the environment.

Every failure is one line on stderr that says what to do, with exit code 1, or 2 when the command line itself was wrong; never a traceback.
What is for other programs (a token, JSON) goes to stdout alone.
"""

# Only what every command needs stands here: a script that asks for a token a viewer must not wait for the web framework and the engines'
# clients each time. The commands import what is theirs; what they do in a running product is in desk.py.
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.exceptions import Abort, TyperException

from app.core.errors import AppError, SetupError
from app.core.runtime import Runtime
from app.core.settings import DEMO_SECRET, Settings
from app.storage.data_dir import find_product

app = typer.Typer(
    help="A self-hosted backend for live commerce.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
room_app = typer.Typer(help="Rooms.", no_args_is_help=True)
app.add_typer(room_app, name="room")
letters_app = typer.Typer(help="What was set aside because it kept failing.", no_args_is_help=True)
app.add_typer(letters_app, name="dead-letters")

DataDir = Annotated[Path, typer.Option("--data-dir", envvar="JISHI_DATA_DIR", help="Where the product keeps its data and run.json.")]
LetterId = Annotated[int, typer.Argument(help="Its id, from `list`.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]
DATA_DIR = Path(".jishi")
TTL_S_MAX = 10 * 366 * 86400  # a token cannot be taken back: one that outlives the product helps nobody


@app.command()
def up(
    port: Annotated[int | None, typer.Option(help="Where to listen. [default: 8000]", min=0, max=65535, show_default=False)] = None,
    data_dir: DataDir = DATA_DIR,
    web: Annotated[int, typer.Option(help="Web processes; 0: one a processor, at most four.", min=0, max=64)] = 0,
    workers: Annotated[int, typer.Option(help="Worker processes: they share the rooms.", min=1, max=64)] = 1,
    no_demo: Annotated[bool, typer.Option("--no-demo", help="Start with an empty product.")] = False,
) -> None:
    """Start the whole product on this machine, with its engines, and keep it running."""
    from rich.console import Console

    from app.supervisor import Supervisor

    settings = _read_settings(data_dir, **({} if port is None else {"port": port}))
    count = web or max(1, min(4, os.cpu_count() or 1))
    Supervisor(settings, data_dir.resolve(), count, with_demo=not no_demo, console=Console(), worker_count=workers).run()


@app.command()
def serve(
    data_dir: DataDir = DATA_DIR,
    fd: Annotated[int | None, typer.Option(hidden=True, help="A listening socket inherited from `jishi up`.")] = None,
    ready_fd: Annotated[int | None, typer.Option(hidden=True, help="Where `jishi up` waits for the word that this process serves.")] = None,
) -> None:
    """Run one web process: websockets, REST, pages."""
    from app.serve import serve as run

    settings = find_product(_read_settings(data_dir))
    settings.check_engines()
    settings.check_production()
    run(settings, descriptor=fd, ready_descriptor=ready_fd)


@app.command()
def worker(data_dir: DataDir = DATA_DIR) -> None:
    """Run one worker: intake to SQL, deadlines, projections, webhooks."""
    import uvloop

    from app.core.logs import configure_logs
    from app.worker import run_worker

    settings = find_product(_read_settings(data_dir))
    settings.check_engines()
    configure_logs(settings, "worker")
    uvloop.run(run_worker(settings))


@app.command()
def migrate(data_dir: DataDir = DATA_DIR) -> None:
    """Bring the tables to this version. Several at once wait for each other."""
    from app.supervisor import prepare_schema

    settings = find_product(_read_settings(data_dir))
    if not settings.database_url:
        raise SetupError(f"DATABASE_URL is not set, and no running product found in {data_dir}: set it, or run `jishi up`")
    prepare_schema(settings.database_url)


@app.command()
def token(
    viewer: Annotated[str, typer.Option(help="Who: the subject of the token, your own id of the viewer.")],
    name: Annotated[str, typer.Option(help="The name that others see. [default: the viewer]", show_default=False)] = "",
    role: Annotated[list[str] | None, typer.Option(help="A staff role, as `operator` or `host@ROOM`; may be repeated.")] = None,
    ttl: Annotated[int | None, typer.Option(help="Seconds it lasts. [default: 12 hours]", min=1, max=TTL_S_MAX, show_default=False)] = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Print a token for a viewer or a member of staff, and nothing else."""
    from app.domains.accounts.tokens import make_token

    settings = find_product(_read_settings(data_dir))
    _check_secret(settings)
    ttl_s = ttl or settings.token_ttl_s
    made = make_token(settings, subject=viewer, name=name or viewer, roles=role or (), ttl_s=ttl_s, now_ms=Runtime().now_ms())
    typer.echo(made)


@room_app.command("open")
def open_room(
    title: Annotated[str, typer.Option(help="Title of the room and of its first session.")],
    offer: Annotated[list[str], typer.Option(help="NAME:PRICE_MINOR:STOCK[:LIMIT], price in fen or cents; may be repeated.")],
    as_json: AsJson = False,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Create a host, a room, a session and its offers, and go live."""
    from app import desk

    drafts = [desk.parse_offer(text) for text in offer]
    settings = find_product(_read_settings(data_dir))
    _check_secret(settings)
    opened = desk.open_room(settings, title, drafts)
    if as_json:
        typer.echo(json.dumps(opened, ensure_ascii=False))
        return
    typer.echo(f"room {opened['room']} is live: {settings.base_url}/r/{opened['room']}")
    for line in opened["offers"]:
        typer.echo(f"  {line['id']}  {line['name']}")
    typer.echo(f"host token: {opened['host_token']}")


@app.command()
def report(session: Annotated[str, typer.Argument(help="Id of a session.")], as_json: AsJson = False, data_dir: DataDir = DATA_DIR) -> None:
    """Print the figures of a session: the summary, or with --json the whole report."""
    from rich.console import Console
    from rich.table import Table as Grid

    from app import desk

    figures = desk.report(find_product(_read_settings(data_dir)), session)
    if as_json:
        typer.echo(json.dumps(figures, ensure_ascii=False, default=str))
        return
    grid = Grid(title=f"{figures['title']} ({figures['state']})", show_header=False)
    for key, value in figures["summary"].items():
        grid.add_row(key.removesuffix("_minor").replace("_", " "), _figure(key, value, figures["currency"]))
    Console().print(grid)


@app.command()
def reconcile(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what follows from the rest, and say what was done.")] = False,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Compare both engines, room by room, and say what differs; what is under way does not. Exit code 1 when anything is left."""
    from app import desk

    lines, agree = desk.reconcile(find_product(_read_settings(data_dir)), mend=repair)
    for line in lines:
        typer.echo(line)
    if not agree:
        raise typer.Exit(1)
    typer.echo("both engines agree now" if lines else "both engines agree")


@app.command()
def rebuild(
    room: Annotated[str | None, typer.Argument(help="Id of a room.")] = None,
    all_rooms: Annotated[bool, typer.Option("--all", help="Every room whose sales are not long over.")] = False,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Work out a room's stock again from its orders and holds, its sales frozen meanwhile. After a loss the worker does it by itself."""
    from app import desk

    if bool(room) == all_rooms:
        raise typer.BadParameter("name a room, or say --all")
    for done in desk.rebuild(find_product(_read_settings(data_dir)), room):
        changes = (
            f"{done.offers} offers and {done.holds} holds written, {done.void} holds void" if done.offers or done.holds else "all was right"
        )
        typer.echo(f"{done.room}: {changes}; epoch {done.epoch}")


@letters_app.command("list")
def list_letters(
    room: Annotated[str | None, typer.Option(help="Only of this room.")] = None, as_json: AsJson = False, data_dir: DataDir = DATA_DIR
) -> None:
    """List them, the oldest first: id, time, room, type, what it failed of."""
    from app import desk

    letters = desk.list_letters(find_product(_read_settings(data_dir)), room)
    if as_json:
        typer.echo(json.dumps(letters, ensure_ascii=False))
        return
    for letter in letters:
        typer.echo("  ".join(str(letter[name]) for name in ("id", "at", "room", "source", "type", "error")))
    typer.echo(f"{len(letters)} dead letters" if letters else "no dead letters")


@letters_app.command("show")
def show_letter(letter: LetterId, data_dir: DataDir = DATA_DIR) -> None:
    """Print all that is known of one, as JSON."""
    from app import desk

    typer.echo(json.dumps(desk.show_letter(find_product(_read_settings(data_dir)), letter), ensure_ascii=False, indent=2))


@letters_app.command("retry")
def retry_letters(
    letters: Annotated[list[int] | None, typer.Argument(help="Their ids.")] = None,
    all_letters: Annotated[bool, typer.Option("--all", help="Every one, the oldest first.")] = False,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Try again what was set aside: after the cause was mended. Exit code 1 when one still fails; it is kept then."""
    from app import desk

    if bool(letters) == all_letters:
        raise typer.BadParameter("name the letters, or say --all")
    settings = find_product(_read_settings(data_dir))
    results = desk.retry_letters(settings, letters or [letter["id"] for letter in desk.list_letters(settings, None)])
    for letter, problem in results:
        typer.echo(f"{letter}: {'still fails: ' + problem if problem else 'done'}")
    if any(problem for _, problem in results):
        raise typer.Exit(1)


@letters_app.command("drop")
def drop_letter(
    letter: LetterId, reason: Annotated[str, typer.Option(help="Why, for the room's audit log.")], data_dir: DataDir = DATA_DIR
) -> None:
    """Throw one away for good. Its content goes into the room's audit log."""
    from app import desk

    desk.drop_letter(find_product(_read_settings(data_dir)), letter, reason)
    typer.echo(f"{letter}: dropped")


@app.command()
def reference(
    as_json: Annotated[
        bool, typer.Option("--asyncapi", help="Print the AsyncAPI document (JSON) instead of the tables (Markdown).")
    ] = False,
) -> None:
    """Print the reference of the wire: channels, events, requests, errors and codes. Needs no running product."""
    from app.composition import build_registry
    from app.gateway.endpoint import CODECS
    from app.rest.asyncapi import build_asyncapi
    from app.rest.reference import render_reference

    defaults = Settings.model_construct()  # not from the environment: the same text for everybody
    document = build_asyncapi(build_registry(), defaults, CODECS)
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False) if as_json else render_reference(document), nl=False)


def _figure(key: str, value: Any, currency: str) -> str:
    from app.core.money import format_minor

    return format_minor(value, currency) if key.endswith("_minor") and isinstance(value, int) else str(value)


def _read_settings(data_dir: Path, **given: Any) -> Settings:
    try:
        return Settings(data_dir=data_dir, **given)
    except ValidationError as failure:
        problem = failure.errors()[0]
        name = str(problem["loc"][0]) if problem["loc"] else ""
        variable = name if name.isupper() else f"JISHI_{name.upper()}"
        raise SetupError(f"the setting {variable} is wrong: {problem['msg']}") from failure


def _check_secret(settings: Settings) -> None:
    """A token that nobody will accept helps nobody."""
    if settings.token_secret.get_secret_value() == DEMO_SECRET and settings.environment == "production":
        raise SetupError(f"no token secret in {settings.data_dir}: run `jishi up` there first, or set JISHI_TOKEN_SECRET")


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        result = app(args=None if arguments is None else list(arguments), prog_name="jishi", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except TyperException as failure:
        text = failure.format_message()  # empty when the help was shown for want of a command
        return _fail(f"{text} (see `jishi --help`)", failure.exit_code) if text else failure.exit_code
    except (SetupError, AppError) as failure:
        return _fail(str(failure))
    except (KeyboardInterrupt, Abort):
        return 130
    except Exception as failure:  # the engines' clients are not imported here: whether it is one of theirs is asked when it happens
        if not _is_of_an_engine(failure):
            raise
        return _fail(f"an engine is out of reach or refused: {_first_line(failure)}; check REDIS_URL and DATABASE_URL, or run `jishi up`")


def _is_of_an_engine(failure: Exception) -> bool:
    from redis.exceptions import RedisError
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(failure, RedisError | SQLAlchemyError | OSError)


def _fail(reason: str, code: int = 1) -> int:
    sys.stderr.write(f"jishi: {' '.join(reason.split())}\n")
    return code


def _first_line(failure: Exception) -> str:
    return (str(failure).splitlines() or [type(failure).__name__])[0]


if __name__ == "__main__":
    sys.exit(main())
