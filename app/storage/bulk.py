"""Many rows in one statement with one parameter a column: `insert into t (..) select .. from unnest($1::text[], $2::bigint[], ..)`.

The text is the same for any number of rows, so it is compiled and prepared once; a `values` list of 500 rows is compiled anew each time,
which costs more than the insert itself. Rows keep their order. Python-side defaults of a table do not apply: every column is named.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
from sqlalchemy import CursorResult, TextClause, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from app.storage.sql import Table

_dialect = postgresql.dialect()


class BulkInsert:
    """`BulkInsert(Order, "id", "state", after="on conflict do nothing returning id")`; call it with a session and rows."""

    def __init__(self, table: type[Table], *columns: str, after: str = "") -> None:
        self._columns = columns
        self._is_json = {name: isinstance(table.__table__.c[name].type, JSONB) for name in columns}
        self._statement = self._build(table, after)

    def _build(self, table: type[Table], after: str) -> TextClause:
        types = {name: "text" if self._is_json[name] else table.__table__.c[name].type.compile(_dialect) for name in self._columns}
        arrays = ", ".join(f"cast(:{name} as {kind}[])" for name, kind in types.items())
        values = ", ".join(f"cast(u.{name} as jsonb)" if self._is_json[name] else f"u.{name}" for name in self._columns)
        names = ", ".join(self._columns)
        # An identity column counts in the order of the rows: the sort comes before it.
        return text(
            f"insert into {table.__tablename__} ({names})"  # noqa: S608 - names of our own tables
            f" select {values} from unnest({arrays}) with ordinality as u({names}, n) order by u.n {after}"
        )

    async def __call__(self, session: AsyncSession, rows: Sequence[Mapping[str, Any]]) -> CursorResult[Any]:
        parameters = {name: self._values(name, rows) for name in self._columns}
        return cast("CursorResult[Any]", await session.execute(self._statement, parameters))

    def _values(self, name: str, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        if self._is_json[name]:
            return [None if row[name] is None else msgspec.json.encode(row[name]).decode() for row in rows]
        return [row[name] for row in rows]
