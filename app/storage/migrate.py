"""Brings the tables to what this version needs. Several may start at once: an advisory lock lets one work and the others wait."""

from importlib.util import find_spec
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from app.core.errors import SetupError

LOCK_WAIT_S = 120
LOCK_NUMBER = 6_310_714_042  # any number, the same for every version


def migration_config(database_url: str) -> Config:
    """Alembic's configuration. `database_url` goes by attribute: in an option, `%` would be read as interpolation."""
    folder = _folder()
    root = folder.parent
    config = Config(toml_file=root / "pyproject.toml") if (root / "pyproject.toml").exists() else Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes["database_url"] = database_url
    return config


def migrate(database_url: str, to: str = "head") -> None:
    """Blocks until done; must not be called from a running event loop. Raises what PostgreSQL raised, with everything rolled back."""
    command.upgrade(migration_config(database_url), to)


def has_migrations() -> bool:
    return ScriptDirectory.from_config(migration_config("")).get_current_head() is not None


def _folder() -> Path:
    """Beside the package in a checkout, inside it in a wheel."""
    spec = find_spec("app")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    for folder in (package.parent / "migrations", package / "migrations"):
        if (folder / "env.py").exists():
            return folder
    raise SetupError(f"the migrations are missing beside {package}: install Jishi again")
