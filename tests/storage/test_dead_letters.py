"""Dead letters: told to the team, tried again with one effect, dropped with a trace; and the command that does it."""

import asyncio
import json

import pytest
from sqlalchemy import func, select

from app.cli import main
from app.core.errors import AppError
from app.core.registry import Domain, Registry
from app.protocol.channels import room_channel, staff_channel
from app.protocol.events import NoticePinned, encode_event
from app.storage.dead_letters import drop_letter, list_letters, retry_letter
from app.storage.intake import OutboxEntry, outbox_key, take_in_room
from app.storage.tables import Announcement, AuditEntry, DeadLetter
from app.storage.work import Engines, Work


async def set_aside(engines: Engines, *, ill: bool = True) -> tuple[list[OutboxEntry], dict[str, bool]]:
    """Three entries of which the second fails while `state["ill"]`; what had an effect."""
    engines.settings = engines.settings.model_copy(update={"outbox_attempts_max": 2})
    taken: list[OutboxEntry] = []
    state = {"ill": ill}

    async def handler(work: Work, entries: list[OutboxEntry]) -> None:
        if state["ill"] and any(entry.data["n"] == 2 for entry in entries):
            raise ValueError("the second is ill")
        work.emit("tea", [room_channel("tea")], NoticePinned(at=work.at, text=str([entry.data["n"] for entry in entries])))
        taken.extend(entries)

    engines.registry = Registry.of([Domain("test", intake={"test.counted": handler})])
    for number in (1, 2, 3):
        await engines.sales.xadd(outbox_key("tea"), {"t": "test.counted", "d": json.dumps({"n": number})})
    await take_in_room(engines, "tea")
    return taken, state


async def letters(engines: Engines) -> list[DeadLetter]:
    async with engines.sql.read() as session:
        return list(await list_letters(session))


async def test_an_entry_that_keeps_failing_is_told_to_the_team_and_has_its_effect_later_once(engines: Engines) -> None:
    taken, state = await set_aside(engines)
    assert [entry.data["n"] for entry in taken] == [1, 3]
    (letter,) = await letters(engines)
    told, _ = await engines.streams.history(staff_channel("tea"))
    assert [json.loads(row.data)["word"] for row in told] == ["dead_letter"]
    assert f"dead letter {letter.id}" in json.loads(told[0].data)["text"]
    with pytest.raises(ValueError, match="the second is ill"):
        async with engines.work() as work:
            await retry_letter(work, letter.id)
    assert len(await letters(engines)) == 1, "it is kept while it fails"
    state["ill"] = False
    results = await asyncio.gather(*[_retry(engines, letter.id) for _ in range(3)])
    assert sorted(results) == ["done", "not_found", "not_found"], "three at once: one effect"
    assert [entry.data["n"] for entry in taken] == [1, 3, 2]
    assert (taken[-1].id, taken[-1].at_ms) == (letter.entry, int((letter.entry or "").partition("-")[0]))
    assert await letters(engines) == []


async def _retry(engines: Engines, letter_id: int) -> str:
    try:
        async with engines.work() as work:
            await retry_letter(work, letter_id)
    except AppError as refusal:
        return refusal.code.word
    return "done"


async def test_an_announcement_is_announced_again(engines: Engines) -> None:
    event = encode_event(NoticePinned(at="2026-01-01T00:00:00.000Z", text="closed on Monday"))
    channels = [room_channel("tea")]
    async with engines.sql.begin() as session:
        for known in (channels, None):
            session.add(
                DeadLetter(
                    source="announcement",
                    room_id="tea",
                    type="notice.pinned",
                    payload=event,
                    error="",
                    at=engines.runtime.now(),
                    channels=known,
                )
            )
    first, older = await letters(engines)
    assert [await _retry(engines, first.id), await _retry(engines, older.id)] == ["done", "conflict"]
    delivered, _ = await engines.streams.history(room_channel("tea"))
    assert [row.data for row in delivered] == [event]
    async with engines.sql.read() as session:
        assert await session.scalar(select(func.count()).select_from(Announcement)) == 0


async def test_what_is_dropped_is_in_the_audit_log(engines: Engines) -> None:
    await set_aside(engines)
    (letter,) = await letters(engines)
    async with engines.work() as work:
        await drop_letter(work, letter.id, "a test entry")
    assert await letters(engines) == []
    async with engines.sql.read() as session:
        (entry,) = await session.scalars(select(AuditEntry))
    assert (entry.room_id, entry.actor, entry.action, entry.subject) == ("tea", "operator", "dead_letter.drop", str(letter.id))
    assert entry.detail == {"type": "test.counted", "payload": '{"n":2}', "reason": "a test entry"}


async def test_the_command_lists_shows_tries_and_drops(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await set_aside(engines)
    (letter,) = await letters(engines)
    monkeypatch.setenv("REDIS_URL", engines.settings.redis_url)
    monkeypatch.setenv("DATABASE_URL", engines.settings.database_url)
    capsys.readouterr()

    async def run(*arguments: str) -> tuple[int, str]:
        code = await asyncio.to_thread(main, ["dead-letters", *arguments])
        return code, capsys.readouterr().out

    code, out = await run("list")
    assert code == 0
    assert f"{letter.id}  {letter.at.isoformat()}  tea  intake  test.counted  ValueError('the second is ill')\n1 dead letters\n" == out
    code, out = await run("show", str(letter.id))
    assert (code, json.loads(out)["payload"], json.loads(out)["entry"]) == (0, {"n": 2}, letter.entry)
    assert await run("retry", "--all") == (1, f"{letter.id}: still fails: no intake handler for test.counted\n")
    assert await run("drop", str(letter.id), "--reason", "test") == (0, f"{letter.id}: dropped\n")
    assert await run("list", "--room", "tea") == (0, "no dead letters\n")
