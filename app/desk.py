"""What the command line does in a running product: open a room, read a report, compare the engines, see to dead letters.

Each call connects to the engines, does one thing and disconnects. Apart from cli.py, so that commands which need no engine load none.
"""

import asyncio
import json
import re
import secrets
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import structlog
import typer

from app.composition import build_registry
from app.core.runtime import Runtime
from app.core.settings import Settings
from app.domains.accounts import service as accounts
from app.domains.analytics import service as analytics
from app.domains.catalogue.service import OfferDraft
from app.domains.inventory import renewal
from app.domains.orders import reconciliation
from app.domains.rooms import service as rooms
from app.storage import dead_letters
from app.storage.intake import list_rooms
from app.storage.tables import DeadLetter
from app.storage.work import Engines, Work, is_away

Result = TypeVar("Result")

_OFFER = re.compile(r"(?P<name>.+?):(?P<price>\d{1,13}):(?P<stock>\d{1,9})(?::(?P<limit>\d{1,9}))?")


def parse_offer(text: str) -> OfferDraft:
    """`"Rice 5 kg:4990:100:2"`. The name may hold colons: the numbers are read from the end."""
    match = _OFFER.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f'{text!r} is not NAME:PRICE_MINOR:STOCK[:LIMIT], for instance "Rice 5 kg:4990:100:2"')
    limit = int(match["limit"] or 0)
    return OfferDraft(name=match["name"].strip(), price_minor=int(match["price"]), total=int(match["stock"]), limit_per_viewer=limit)


def open_room(settings: Settings, title: str, drafts: Sequence[OfferDraft]) -> dict[str, Any]:
    """A room that is live, with a host of its own: ids, and the host's token."""

    async def run(engines: Engines) -> dict[str, Any]:
        async with engines.work() as work:
            return await _open_room(work, title, drafts)

    return _with_engines(settings, run)


def report(settings: Settings, session_id: str) -> dict[str, Any]:
    return _with_engines(settings, lambda engines: analytics.report(engines, session_id))


def reconcile(settings: Settings, *, mend: bool) -> tuple[list[str], bool]:
    """What differs between the engines, one sentence each, and what was done about it; whether they agree now."""

    async def run(engines: Engines) -> tuple[list[str], bool]:
        if not mend:
            lines = await reconciliation.reconcile(engines)
            return lines, not lines
        lines = [line for room_id in await list_rooms(engines) for line in await reconciliation.repair(engines, room_id)]
        return lines, not await reconciliation.reconcile(engines)

    return _with_engines(settings, run)


def rebuild(settings: Settings, room_id: str | None) -> list[renewal.Renewal]:
    """Of one room, or of all whose sales are not long over. Rooms that somebody else was renewing at that moment are left out."""

    async def run(engines: Engines) -> list[renewal.Renewal]:
        if room_id:
            async with engines.sql.read() as session:
                await rooms.get_room(session, room_id)
        concerned = [room_id] if room_id else await renewal.list_rooms_in_play(engines)
        done = [await renewal.rebuild_room(engines, room) for room in concerned]
        return [one for one in done if one is not None]

    return _with_engines(settings, run)


def list_letters(settings: Settings, room_id: str | None) -> list[dict[str, Any]]:
    async def run(engines: Engines) -> list[dict[str, Any]]:
        async with engines.sql.read() as session:
            return [_letter(letter) for letter in await dead_letters.list_letters(session, room_id)]

    return _with_engines(settings, run)


def show_letter(settings: Settings, letter_id: int) -> dict[str, Any]:
    async def run(engines: Engines) -> dict[str, Any]:
        async with engines.sql.read() as session:
            letter = await dead_letters.get_letter(session, letter_id)
            return _letter(letter) | {"entry": letter.entry, "channels": letter.channels, "payload": json.loads(letter.payload)}

    return _with_engines(settings, run)


def retry_letters(settings: Settings, letter_ids: Sequence[int]) -> list[tuple[int, str]]:
    """Each in a transaction of its own; with what it failed of, empty when it had its effect."""

    async def run(engines: Engines) -> list[tuple[int, str]]:
        return [(letter_id, await _retry(engines, letter_id)) for letter_id in letter_ids]

    return _with_engines(settings, run)


async def _retry(engines: Engines, letter_id: int) -> str:
    try:
        async with engines.work() as work:
            await dead_letters.retry_letter(work, letter_id)
    except Exception as failure:  # whatever its handler found wrong is what the operator wants to read; the letter is still there
        if is_away(failure):
            raise
        return str(failure) or type(failure).__name__
    return ""


def drop_letter(settings: Settings, letter_id: int, reason: str) -> None:
    async def run(engines: Engines) -> None:
        async with engines.work() as work:
            await dead_letters.drop_letter(work, letter_id, reason)

    return _with_engines(settings, run)


def _letter(letter: DeadLetter) -> dict[str, Any]:
    row = {"id": letter.id, "at": letter.at.isoformat(), "room": letter.room_id, "source": letter.source, "type": letter.type}
    return row | {"error": letter.error}


async def _open_room(work: Work, title: str, drafts: Sequence[OfferDraft]) -> dict[str, Any]:
    room = await rooms.create_room(work, title=title, host_name=title)
    login = f"host-{room.id}"
    host = await accounts.create_staff(work, login=login, password=secrets.token_urlsafe(24), name=title, grants=[("host", room.id)])
    session = await rooms.create_session(work, room.id, title=title, by=host.id)
    offers = [await rooms.list_offer(work, session.id, draft, host.id) for draft in drafts]
    await rooms.go_live(work, session.id, host.id)
    settings = work.engines.settings
    roles = [f"host@{room.id}"]
    made = accounts.make_token(settings, subject=host.id, name=title, roles=roles, ttl_s=settings.token_ttl_s, now_ms=work.now_ms)
    listed = [{"id": offer.id, "name": offer.name} for offer in offers]
    return {"room": room.id, "session": session.id, "offers": listed, "host_token": made}


def _with_engines(settings: Settings, run: Callable[[Engines], Awaitable[Result]]) -> Result:
    settings.check_engines()
    if not structlog.is_configured():  # a command's stdout is for its result
        structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    engines = Engines.connect(settings, Runtime(), build_registry())

    async def connected() -> Result:
        try:
            return await run(engines)
        finally:
            await engines.close()

    return asyncio.run(connected())
