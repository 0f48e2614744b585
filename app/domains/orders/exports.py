"""A room's orders as a file for spreadsheet programs: CSV, written line by line, and XLSX, through a library that keeps one row in memory.

Read page by page, newest first, each page in a transaction of its own: an order that is placed meanwhile is not in the file, none is twice.
Who took a file is in the audit log. What buyers wrote must not run as a formula on the merchant's machine: CSV marks such cells with an
apostrophe, XLSX stores all texts as texts.
"""

import asyncio
import csv
import io
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import xlsxwriter

from app.core.errors import AppError
from app.core.money import exponent_of, major_text
from app.domains.orders import store
from app.domains.orders.tables import Order
from app.protocol.codes import LIMIT_EXCEEDED
from app.storage.work import Engines

PAGE = 500
CHUNK_BYTES = 64 * 1024
BOM = "\ufeff"  # without it, spreadsheet programs take UTF-8 for something else
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


@dataclass(frozen=True, slots=True)
class Money:
    minor: int
    currency: str


Cell = str | int | Money | datetime | None

_COLUMNS: dict[str, Callable[[Order], Cell]] = {
    "order": lambda row: row.id,
    "placed_at": lambda row: row.placed_at,
    "state": lambda row: row.state,
    "session": lambda row: row.session_id,
    "offer": lambda row: row.offer_id,
    "name": lambda row: row.name,
    "quantity": lambda row: row.quantity,
    "price": lambda row: Money(row.price_minor, row.currency),
    "amount": lambda row: Money(row.amount_minor, row.currency),
    "refunded": lambda row: Money(row.refunded_minor, row.currency),
    "currency": lambda row: row.currency,
    "returned": lambda row: row.returned,
    "prize": lambda row: "yes" if row.prize else "",
    "buyer": lambda row: row.buyer,
    "viewer": lambda row: row.viewer_id,
    "paid_at": lambda row: row.paid_at,
    "shipped_at": lambda row: row.shipped_at,
    "delivered_at": lambda row: row.delivered_at,
    "carrier": lambda row: row.carrier,
    "tracking": lambda row: row.tracking,
    "return_policy": lambda row: row.return_policy,
    "reason": lambda row: row.reason,
}
_ADDRESS = {"receiver": "name", "phone": "phone", "region": "region", "line": "line", "postcode": "postcode"}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which orders."""

    room_id: str
    filters: dict[str, str]
    since: datetime | None = None
    until: datetime | None = None


async def begin(engines: Engines, choice: Choice, *, by: str, file_type: str, with_address: bool) -> None:
    """Records who takes what. Raises AppError `limit_exceeded` for more than a file holds: half a file would pass for a whole one."""
    most = engines.settings.export_orders_max
    async with engines.work() as work:
        count = await store.count_chosen_orders(work.session, choice.room_id, choice.filters, choice.since, choice.until, limit=most + 1)
        if count > most:
            raise AppError(LIMIT_EXCEEDED, f"these are more than {most} orders: choose a session, or a shorter time")
        detail: dict[str, Any] = {"file_type": file_type, "orders": count, "with_address": with_address, **choice.filters}
        detail |= {name: at.isoformat() for name, at in (("since", choice.since), ("until", choice.until)) if at}
        await work.audit(choice.room_id, by, "order.export", choice.room_id, **detail)


async def _pages(engines: Engines, choice: Choice) -> AsyncGenerator[list[Order]]:
    after: tuple[datetime, str] | None = None
    while True:
        async with engines.sql.read() as session:
            rows = await store.list_chosen_orders(
                session, choice.room_id, choice.filters, choice.since, choice.until, after=after, limit=PAGE
            )
        yield rows
        if len(rows) < PAGE:
            return
        after = (rows[-1].placed_at, rows[-1].id)


def _header(*, with_address: bool) -> list[str]:
    return [*_COLUMNS, *(_ADDRESS if with_address else ())]


def _cells(row: Order, *, with_address: bool) -> list[Cell]:
    address = row.address or {}
    return [cell(row) for cell in _COLUMNS.values()] + ([address.get(name, "") for name in _ADDRESS.values()] if with_address else [])


# --- CSV -----------------------------------------------------------------------------------------------------------------------------


async def csv_lines(engines: Engines, choice: Choice, *, with_address: bool) -> AsyncGenerator[bytes]:
    yield (BOM + _csv([_header(with_address=with_address)])).encode()
    async for page in _pages(engines, choice):
        yield _csv([[csv_cell(cell) for cell in _cells(row, with_address=with_address)] for row in page]).encode()


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def csv_cell(cell: Cell) -> str:
    match cell:
        case None:
            return ""
        case str():
            return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell
        case Money():
            return major_text(cell.minor, cell.currency)
        case datetime():
            return cell.strftime("%Y-%m-%d %H:%M:%S")
        case _:
            return str(cell)


# --- XLSX ----------------------------------------------------------------------------------------------------------------------------


async def xlsx_bytes(engines: Engines, choice: Choice, *, with_address: bool) -> AsyncGenerator[bytes]:
    """Written to a file first: its directory of contents comes last. The file is gone with the answer, whatever ends it."""
    with tempfile.TemporaryDirectory(prefix="jishi-export-") as folder:
        path = Path(folder, "orders.xlsx")
        sheet = _Sheet(path)
        sheet.write(0, _header(with_address=with_address))
        count = 0
        async for page in _pages(engines, choice):
            rows = [_cells(row, with_address=with_address) for row in page]
            await asyncio.to_thread(sheet.write_all, count + 1, rows)
            count += len(rows)
        await asyncio.to_thread(sheet.close)
        with await asyncio.to_thread(path.open, "rb") as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield chunk


class _Sheet:
    def __init__(self, path: Path) -> None:
        as_they_are = {"strings_to_numbers": False, "strings_to_formulas": False, "strings_to_urls": False}
        self._book = xlsxwriter.Workbook(str(path), {"constant_memory": True, "tmpdir": str(path.parent), **as_they_are})
        self._sheet = self._book.add_worksheet("orders")
        self._time = self._book.add_format({"num_format": "yyyy-mm-dd hh:mm:ss"})
        self._money = {digits: self._book.add_format({"num_format": f"0.{'0' * digits}" if digits else "0"}) for digits in (0, 2, 3)}

    def write_all(self, first: int, rows: Sequence[Sequence[Cell]]) -> None:
        for index, row in enumerate(rows):
            self.write(first + index, row)

    def write(self, index: int, row: Sequence[Cell]) -> None:
        for column, cell in enumerate(row):
            match cell:
                case None | "":
                    continue
                case str():
                    self._sheet.write_string(index, column, cell)
                case Money():
                    digits = exponent_of(cell.currency)
                    self._sheet.write_number(index, column, cell.minor / 10**digits, self._money[digits])
                case datetime():
                    self._sheet.write_datetime(index, column, cell.replace(tzinfo=None), self._time)
                case _:
                    self._sheet.write_number(index, column, cell)

    def close(self) -> None:
        self._book.close()
