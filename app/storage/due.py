"""What is due in SQL: one statement asks for all loops of the worker at once, so that waiting costs next to nothing.

A loop that looks for itself opens a transaction, four times a second, to find nothing: eight of them took a tenth of a core of an idle
machine. So a domain states in its `store.py` when there is something to do, as a condition over these two times, and the worker begins a
loop's pass when its condition holds. The pass itself still looks, under its own locks; a condition only spares it the looking.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, DateTime, bindparam, select

from app.storage.work import Engines

Condition = ColumnElement[bool]
Time = datetime | ColumnElement[datetime]

NOW = bindparam("now", type_=DateTime(timezone=True))  # this process's clock, by which calls and deliveries are leased and put off
ENGINE_NOW = bindparam("engine_now", type_=DateTime(timezone=True))  # the clock that decides deadlines of viewers


class Watch:
    """Looks for all of them, by name. The statement is built once: building it would cost more than the asking."""

    def __init__(self, conditions: Mapping[str, Condition]) -> None:
        self._statement = select(*[condition.label(name) for name, condition in conditions.items()])

    async def find_due(self, engines: Engines) -> list[str]:
        now_ms = await engines.sales_now_ms()
        times = {"now": engines.runtime.now(), "engine_now": datetime.fromtimestamp(now_ms / 1000, UTC)}
        async with engines.sql.engine.connect() as connection:
            row = (await connection.execute(self._statement, times)).mappings().one()
        return [name for name, is_due in row.items() if is_due]
