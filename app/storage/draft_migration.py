"""Writes a migration for what changed in the tables: `make migration NAME=what`. Compares with an empty PostgreSQL of its own."""

import sys
import tempfile
from pathlib import Path

from alembic import command

from app.core.errors import SetupError
from app.storage.embedded import Postgres
from app.storage.migrate import migrate, migration_config


def draft(what: str) -> None:
    """All migrations run first, so that the draft holds the difference alone. Read it before you commit it."""
    with tempfile.TemporaryDirectory(prefix="jishi-migration-") as folder:
        postgres = Postgres(Path(folder), durable=False)
        try:
            postgres.start()
            migrate(postgres.url)
            command.revision(migration_config(postgres.url), message=what, autogenerate=True)
        finally:
            postgres.stop()


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].strip():
        raise SystemExit("name the change in a few words: make migration NAME='offers get a lot'")
    try:
        draft(sys.argv[1].strip())
    except SetupError as failure:
        raise SystemExit(str(failure)) from None
