"""Whatever a host's team does, in whatever order: a snapshot plus the events after its offset is a fresh snapshot.

Random commands run on the real services and engines. With each of them a viewer joins *at the same time*: reads the stream's top, then the
snapshot. At the end every one of these viewers, having applied what came after their offset, must see what a newcomer sees.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from app.core.errors import AppError
from app.domains.rooms import service as rooms
from app.domains.rooms.rules import LIFE_CYCLE, ON_AIR, SessionState
from app.domains.rooms.tables import ShowSession
from app.protocol.channels import room_channel
from app.storage.audit import verify_chain
from app.storage.work import Engines, Work
from tests.support.runtime import TestRuntime
from tests.support.stage import READINGS, apply_event

BY = "host-mei"
REFUSALS = {"conflict", "bad_request", "over_limit", "not_found"}
STEPS = {(before, after) for rows in LIFE_CYCLE.values() for before, after in rows.items()}

life_cycle = st.sampled_from(["schedule", "go_live", "go_live", "interrupt", "resume", "end", "archive"])
preparing = st.sampled_from(["retitle", "list", "list", "advance"])
offer_steps = st.sampled_from(["price", "stock", "window", "pause", "resume_offer", "withdraw", "withdraw", "pin", "pin", "pin"])
room_steps = st.sampled_from(["new_session", "unpin", "rename"])
commands = st.tuples(st.one_of(offer_steps, offer_steps, life_cycle, preparing, room_steps), st.integers(0, 2), st.integers(0, 40))


@dataclass(slots=True)
class Joined:
    """A viewer: the snapshot that they got, and the offset that they read before it."""

    stage: dict[str, Any]
    epoch: str
    offset: int


@dataclass(slots=True)
class Show:
    engines: Engines
    room_id: str
    sessions: list[str] = field(default_factory=list)
    offers: list[str] = field(default_factory=list)

    async def do(self, command: tuple[str, int, int]) -> None:
        """One command of the team. A refusal is an answer; it must be one of the words that this domain refuses with."""
        try:
            async with self.engines.work() as work:
                await self._step(work, *command)
        except AppError as refusal:
            assert refusal.code.word in REFUSALS, refusal

    async def _step(self, work: Work, name: str, which: int, number: int) -> None:  # noqa: PLR0912 - one branch a command
        session_id = self.sessions[which % len(self.sessions)]
        offer_id = self.offers[number % len(self.offers)] if self.offers else f"{self.room_id}-none"
        at = work.now + timedelta(minutes=number)
        match name:
            case "schedule":
                await rooms.schedule(work, session_id, BY, starts_at=at)
            case "go_live":
                await rooms.go_live(work, session_id, BY, empty_shelf_accepted=True)
            case "interrupt":
                await rooms.interrupt(work, session_id, BY, reason=f"cut {number}")
            case "resume":
                await rooms.resume(work, session_id, BY)
            case "end":
                await rooms.end_session(work, session_id, BY)
            case "archive":
                await rooms.archive(work, session_id, BY)
            case "retitle":
                await rooms.change_session(work, session_id, {"title": f"Show {number}"}, BY)
            case "list":
                draft = rooms.OfferDraft(name=f"Offer {number}", price_minor=1000, total=number + 1, price_max_minor=1030)
                self.offers.append((await rooms.list_offer(work, session_id, draft, BY)).id)
            case "advance":
                cues = [rooms.CueDraft(title=f"Cue {number}", offer_id=offer_id)]
                await rooms.set_run_of_show(work, session_id, cues, BY)
                await rooms.advance(work, session_id, BY)
            case "price":
                await rooms.reprice_offer(work, offer_id, 1000 + number, BY)
            case "stock":
                await rooms.top_up_offer(work, offer_id, number, BY)
            case "window":
                await rooms.change_offer(work, offer_id, {"closes_at": at, "limit_per_viewer": which}, BY)
            case "pause":
                await rooms.pause_offer(work, offer_id, BY)
            case "resume_offer":
                await rooms.resume_offer(work, offer_id, BY)
            case "withdraw":
                await rooms.withdraw_offer(work, offer_id, BY)
            case "pin":
                await rooms.pin_offer(work, self.room_id, offer_id, BY)
            case "unpin":
                await rooms.pin_offer(work, self.room_id, None, BY)
            case "rename":
                await rooms.change_room(work, self.room_id, {"title": f"Room {number}"}, BY)
            case "new_session":
                self.sessions.append((await rooms.create_session(work, self.room_id, title=f"Show {number}", by=BY)).id)
            case _:
                raise AssertionError(name)

    async def join(self) -> Joined:
        position = await self.engines.streams.position(room_channel(self.room_id))
        raw = msgspec.json.encode(await rooms.snapshot(self.engines, self.room_id))
        return Joined(msgspec.json.decode(raw), position.epoch, position.offset)

    async def catch_up(self, viewer: Joined) -> dict[str, Any]:
        publications, top = await self.engines.streams.history(room_channel(self.room_id), since_offset=viewer.offset)
        assert top.epoch == viewer.epoch
        assert [publication.offset for publication in publications] == list(range(viewer.offset + 1, top.offset + 1))
        stage = viewer.stage
        for publication in publications:
            stage = apply_event(stage, msgspec.json.decode(publication.data))
        return {name: value for name, value in stage.items() if name not in READINGS}

    async def states(self) -> dict[str, SessionState]:
        async with self.engines.sql.read() as session:
            rows = await session.scalars(select(ShowSession).where(ShowSession.room_id == self.room_id))
            return {row.id: SessionState(row.state) for row in rows}


async def open_show(engines: Engines) -> Show:
    async with engines.work() as work:
        room = await rooms.create_room(work, title="Room", host_name="Mei", by=BY)
        show = await rooms.create_session(work, room.id, title="Show", by=BY)
    opened = Show(engines, room.id, [show.id])
    for command in (("list", 0, 3), ("list", 0, 4), ("go_live", 0, 0)):  # most commands need a session on air
        await opened.do(command)
    return opened


async def check_state(show: Show, before: dict[str, SessionState]) -> dict[str, SessionState]:
    """Sessions move along the table alone; one is on air at most, and every node knows which; the pin is on its shelf."""
    after = await show.states()
    moves = {(before[name], state) for name, state in after.items() if name in before and before[name] is not state}
    assert moves <= STEPS
    on_air = [name for name, state in after.items() if state in ON_AIR]
    assert len(on_air) <= 1
    assert await rooms.live_session(show.engines, show.room_id, fresh=True) == (on_air[0] if on_air else None)
    seen = await rooms.snapshot(show.engines, show.room_id)
    assert seen["pin"] is None or seen["pin"] in {offer.id for offer in seen["offers"]}
    return after


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(team=st.lists(commands, min_size=8, max_size=20))
@example(team=[("pin", 0, 0), ("rename", 0, 1), ("withdraw", 0, 0)])  # the pin goes with its offer
@example(team=[("pin", 0, 1), ("interrupt", 0, 2), ("price", 0, 1), ("resume", 0, 0), ("pause", 0, 1), ("advance", 0, 0), ("end", 0, 0)])
@example(team=[("new_session", 0, 1), ("schedule", 1, 5), ("list", 1, 7), ("end", 0, 0), ("go_live", 1, 0), ("pin", 0, 2), ("end", 1, 0)])
async def test_snapshot_and_events_are_a_fresh_snapshot(engines: Engines, runtime: TestRuntime, team: list[tuple[str, int, int]]) -> None:
    show = await open_show(engines)
    joined = [await show.join()]
    states = await show.states()
    for command in team:
        runtime.advance(10)
        viewer, _ = await asyncio.gather(show.join(), show.do(command))
        joined.append(viewer)
        states = await check_state(show, states)
    newcomer = await show.catch_up(await show.join())
    for viewer in joined:
        assert await show.catch_up(viewer) == newcomer
    async with engines.sql.read() as session:
        assert await verify_chain(session, show.room_id) is None


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(team=st.lists(commands, min_size=8, max_size=24))
async def test_a_team_that_acts_all_at_once(engines: Engines, runtime: TestRuntime, team: list[tuple[str, int, int]]) -> None:
    """Four members of the team at a time: the room's lock puts their changes, and the events, in one order."""
    show = await open_show(engines)
    joined: list[Joined] = []
    for start in range(0, len(team), 4):
        runtime.advance(10)
        viewer, *_ = await asyncio.gather(show.join(), *[show.do(command) for command in team[start : start + 4]])
        joined.append(viewer)
    newcomer = await show.catch_up(await show.join())
    for viewer in joined:
        assert await show.catch_up(viewer) == newcomer
    on_air = [name for name, state in (await show.states()).items() if state in ON_AIR]
    assert len(on_air) <= 1
    assert await rooms.live_session(engines, show.room_id, fresh=True) == (on_air[0] if on_air else None)
