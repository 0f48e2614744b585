"""A session from draft to archive, the shelf, the pin, the run-of-show: what is stored, announced and refused."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from app.core.errors import AppError
from app.domains.rooms import service as rooms
from app.protocol.channels import room_channel, staff_channel
from app.storage.audit import verify_chain
from app.storage.tables import AuditEntry
from app.storage.work import Engines, Work
from tests.support.builders import open_room
from tests.support.runtime import TestRuntime

BY = "host-mei"
Act = Callable[[Work], Awaitable[Any]]


async def act(engines: Engines, step: Act) -> Any:
    async with engines.work() as work:
        return await step(work)


async def refusal(engines: Engines, step: Act) -> tuple[str, str]:
    with pytest.raises(AppError) as refused:
        await act(engines, step)
    return refused.value.code.word, refused.value.detail


async def events(engines: Engines, channel: str) -> list[dict[str, Any]]:
    publications, _ = await engines.streams.history(channel)
    return [msgspec.json.decode(publication.data) for publication in publications]


async def types(engines: Engines, channel: str) -> list[str]:
    return [event["type"] for event in await events(engines, channel)]


async def draft_session(engines: Engines) -> tuple[str, str]:
    room = await open_room(engines, live=False)
    return room.room_id, room.session_id


async def audited(engines: Engines, room_id: str) -> list[tuple[str, str, str]]:
    async with engines.sql.read() as session:
        rows = await session.scalars(select(AuditEntry).where(AuditEntry.room_id == room_id).order_by(AuditEntry.id))
        assert await verify_chain(session, room_id) is None
        return [(row.actor, row.action, row.subject) for row in rows]


# --- life cycle ---------------------------------------------------------------------------------------------------------------------


async def test_a_show_from_draft_to_archive(engines: Engines, runtime: TestRuntime) -> None:
    room_id, session_id = await draft_session(engines)
    starts_at = engines.runtime.now() + timedelta(hours=1)
    await act(engines, lambda work: rooms.schedule(work, session_id, BY, starts_at=starts_at))
    await act(engines, lambda work: rooms.go_live(work, session_id, BY))
    runtime.advance(1000)
    await act(engines, lambda work: rooms.interrupt(work, session_id, BY, reason="no network"))
    runtime.advance(2500)
    await act(engines, lambda work: rooms.resume(work, session_id, BY))
    await act(engines, lambda work: rooms.end_session(work, session_id, BY))
    show = await act(engines, lambda work: rooms.archive(work, session_id, BY))
    assert (show.state, show.interrupted_ms, show.interrupted_at, show.reason) == ("archived", 2500, None, "")
    seen = ["session.scheduled", "session.went_live", "offer.listed", "session.interrupted", "session.resumed", "session.ended"]
    assert await types(engines, room_channel(room_id)) == seen
    assert await types(engines, staff_channel(room_id)) == ["offer.listed", *seen, "session.archived"]
    steps = [action for _, action, _ in await audited(engines, room_id)]
    assert steps[:3] == ["room.created", "session.created", "offer.listed"]
    assert steps[3:] == [f"session.{step}" for step in ("schedule", "go_live", "interrupt", "resume", "end", "archive")]


async def test_viewers_hear_nothing_of_a_draft(engines: Engines) -> None:
    room_id, session_id = await draft_session(engines)
    await act(engines, lambda work: rooms.end_session(work, session_id, BY))
    assert await events(engines, room_channel(room_id)) == []
    assert await types(engines, staff_channel(room_id)) == ["offer.listed", "session.ended"]


async def test_a_show_that_is_called_off_is_no_longer_upcoming(engines: Engines) -> None:
    room_id, session_id = await draft_session(engines)
    await act(engines, lambda work: rooms.schedule(work, session_id, BY, starts_at=work.now))
    upcoming = (await rooms.snapshot(engines, room_id))["upcoming"]
    assert [(row.session, row.starts_at) for row in upcoming] == [(session_id, "2025-06-15T15:06:40.000Z")]
    await act(engines, lambda work: rooms.end_session(work, session_id, BY))
    assert (await rooms.snapshot(engines, room_id))["upcoming"] == []
    assert await types(engines, room_channel(room_id)) == ["session.scheduled", "session.ended"]


async def test_going_live_says_all_that_is_missing(engines: Engines) -> None:
    async with engines.work() as work:
        room = await rooms.create_room(work, title="Empty")
        show = await rooms.create_session(work, room.id, title="Nothing yet")
    word, text = await refusal(engines, lambda work: rooms.go_live(work, show.id, BY))
    assert word == "conflict"
    assert text == "name the room's host; put an offer on the shelf, or go live with an empty shelf on purpose"
    assert await rooms.live_session(engines, room.id) is None
    await act(engines, lambda work: rooms.change_room(work, room.id, {"host_name": "Mei"}, BY))
    await act(engines, lambda work: rooms.go_live(work, show.id, BY, empty_shelf_accepted=True))
    assert await rooms.live_session(engines, room.id) == show.id


async def test_one_session_on_air_a_room(engines: Engines) -> None:
    room = await open_room(engines)
    second = await act(engines, lambda work: rooms.create_session(work, room.room_id, title="Second"))
    word, text = await refusal(engines, lambda work: rooms.go_live(work, second.id, BY, empty_shelf_accepted=True))
    assert (word, text) == ("conflict", "end the room's other session first: it is still on air")
    await act(engines, lambda work: rooms.interrupt(work, room.session_id, BY))
    assert (await refusal(engines, lambda work: rooms.go_live(work, second.id, BY, empty_shelf_accepted=True)))[1] == text
    await act(engines, lambda work: rooms.end_session(work, room.session_id, BY))
    await act(engines, lambda work: rooms.go_live(work, second.id, BY, empty_shelf_accepted=True))
    assert await rooms.live_session(engines, room.room_id) == second.id


async def test_two_go_lives_at_once_make_one(engines: Engines) -> None:
    room_id, first = await draft_session(engines)
    second = await act(engines, lambda work: rooms.create_session(work, room_id, title="Second"))
    results = await asyncio.gather(
        *[act(engines, lambda work, name=name: rooms.go_live(work, name, BY, empty_shelf_accepted=True)) for name in (first, second.id)],
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == ["AppError", "ShowSession"]


async def test_unknown_ids_are_not_found(engines: Engines) -> None:
    for unknown in ("", "nodash", "no-room", "t000000001-x"):
        assert (await refusal(engines, lambda work, name=unknown: rooms.go_live(work, name, BY)))[0] == "not_found"
        assert (await refusal(engines, lambda work, name=unknown: rooms.reprice_offer(work, name, 1, BY)))[0] == "not_found"
    assert (await refusal(engines, lambda work: rooms.create_session(work, "nowhere", title="x")))[0] == "not_found"
    assert (await refusal(engines, lambda work: rooms.pin_offer(work, "nowhere", None, BY)))[0] == "not_found"


async def test_title_and_start_change_until_live(engines: Engines) -> None:
    room_id, session_id = await draft_session(engines)
    await act(engines, lambda work: rooms.change_session(work, session_id, {"title": "Later"}, BY))
    assert await events(engines, room_channel(room_id)) == []
    assert (await refusal(engines, lambda work: rooms.schedule(work, session_id, BY)))[1] == "say when the session starts (starts_at)"
    await act(engines, lambda work: rooms.schedule(work, session_id, BY, starts_at=work.now))
    await act(engines, lambda work: rooms.change_session(work, session_id, {"title": "Latest"}, BY))
    assert [event["title"] for event in await events(engines, room_channel(room_id))] == ["Later", "Latest"]
    assert (await refusal(engines, lambda work: rooms.change_session(work, session_id, {"starts_at": None}, BY)))[0] == "bad_request"
    await act(engines, lambda work: rooms.go_live(work, session_id, BY))
    assert (await refusal(engines, lambda work: rooms.change_session(work, session_id, {"title": "x"}, BY)))[0] == "conflict"


# --- the shelf ----------------------------------------------------------------------------------------------------------------------


async def test_each_change_of_an_offer_is_announced_whole_and_audited(engines: Engines) -> None:
    room = await open_room(engines)
    offer_id = room.offer_ids[0]
    closes_at = engines.runtime.now() + timedelta(minutes=5)
    await act(engines, lambda work: rooms.reprice_offer(work, offer_id, 1590, BY))
    await act(engines, lambda work: rooms.top_up_offer(work, offer_id, 5, BY))
    await act(engines, lambda work: rooms.change_offer(work, offer_id, {"closes_at": closes_at, "limit_per_viewer": 2}, BY))
    await act(engines, lambda work: rooms.pause_offer(work, offer_id, BY, reason="wrong label"))
    await act(engines, lambda work: rooms.resume_offer(work, offer_id, BY))
    await act(engines, lambda work: rooms.withdraw_offer(work, offer_id, BY, reason="sold elsewhere"))
    heard = (await events(engines, room_channel(room.room_id)))[2:]
    told = [(e["offer"]["version"], e["offer"]["price_minor"], e["offer"]["total"], e["offer"]["state"]) for e in heard[:5]]
    assert told == [
        (2, 1590, 10, "listed"),
        (3, 1590, 15, "listed"),
        (5, 1590, 15, "listed"),  # window and limit: two changes, one event
        (6, 1590, 15, "paused"),
        (7, 1590, 15, "listed"),
    ]
    assert [e["type"] for e in heard] == ["offer.updated"] * 5 + ["offer.withdrawn"]
    assert (heard[2]["offer"]["closes_at"], heard[2]["offer"]["limit_per_viewer"]) == ("2025-06-15T15:11:40.000Z", 2)
    assert (heard[3]["reason"], heard[5]["offer"], heard[5]["reason"]) == ("wrong label", offer_id, "sold elsewhere")
    acts = [(actor, action) for actor, action, subject in await audited(engines, room.room_id) if subject == offer_id][1:]
    assert acts == [(BY, f"offer.{what}") for what in ("repriced", "topped_up", "changed", "paused", "resumed", "withdrawn")]


async def test_what_changes_nothing_is_not_announced(engines: Engines) -> None:
    room = await open_room(engines)
    offer_id = room.offer_ids[0]
    before = await events(engines, room_channel(room.room_id))
    await act(engines, lambda work: rooms.reprice_offer(work, offer_id, 1990, BY))
    await act(engines, lambda work: rooms.resume_offer(work, offer_id, BY))
    await act(engines, lambda work: rooms.change_offer(work, offer_id, {"limit_per_viewer": 0, "opens_at": None}, BY))
    await act(engines, lambda work: rooms.pin_offer(work, room.room_id, None, BY))
    assert await events(engines, room_channel(room.room_id)) == before


async def test_a_discount_or_a_total_outside_the_delegated_limits(engines: Engines) -> None:
    _, session_id = await draft_session(engines)
    terms: dict[str, Any] = {"list_price_minor": 9900, "discount_percent_max": 30, "total_max": 5}
    draft = rooms.OfferDraft(name="Honey", price_minor=9000, total=3, **terms)
    offer = await act(engines, lambda work: rooms.list_offer(work, session_id, draft, BY))
    word, text = await refusal(engines, lambda work: rooms.reprice_offer(work, offer.id, 6929, BY))
    assert (word, text) == ("over_limit", "price_minor: delegated to the host is at least 6930; ask an operator for more")
    assert (await act(engines, lambda work: rooms.reprice_offer(work, offer.id, 6930, BY))).price_minor == 6930
    word, text = await refusal(engines, lambda work: rooms.change_offer(work, offer.id, {"list_price_minor": 9901}, BY))
    assert (word, text) == ("bad_request", "price_minor: more than 30 % off the list price")
    word, text = await refusal(engines, lambda work: rooms.top_up_offer(work, offer.id, 3, BY))
    assert (word, text) == ("over_limit", "add: delegated to the host is a total of 5, and it is 3; ask an operator for more")
    assert (await act(engines, lambda work: rooms.top_up_offer(work, offer.id, 2, BY))).total == 5
    assert (await act(engines, lambda work: rooms.top_up_offer(work, offer.id, 1, "operator", limits_bind=False))).total == 6
    # What the operator did beyond the limits keeps the host from nothing else.
    assert (await act(engines, lambda work: rooms.change_offer(work, offer.id, {"keyword": "honey"}, BY))).keyword == "honey"


async def test_a_price_outside_the_delegated_limits(engines: Engines) -> None:
    _, session_id = await draft_session(engines)
    draft = rooms.OfferDraft(name="Honey", price_minor=5000, total=3, price_min_minor=4500, price_max_minor=6000)
    offer = await act(engines, lambda work: rooms.list_offer(work, session_id, draft, BY))
    word, text = await refusal(engines, lambda work: rooms.reprice_offer(work, offer.id, 4499, BY))
    assert (word, text) == ("over_limit", "price_minor: delegated to the host is 4500 to 6000; ask an operator for more")
    assert (await act(engines, lambda work: rooms.reprice_offer(work, offer.id, 4500, BY))).price_minor == 4500
    changed = await act(engines, lambda work: rooms.reprice_offer(work, offer.id, 100, "operator", limits_bind=False))
    assert (changed.price_minor, changed.version) == (100, 3)


async def test_a_withdrawn_offer_stays_withdrawn(engines: Engines) -> None:
    room = await open_room(engines)
    offer_id = room.offer_ids[0]
    await act(engines, lambda work: rooms.withdraw_offer(work, offer_id, BY))
    for step in (
        lambda work: rooms.resume_offer(work, offer_id, BY),
        lambda work: rooms.pause_offer(work, offer_id, BY),
        lambda work: rooms.reprice_offer(work, offer_id, 1, BY),
        lambda work: rooms.top_up_offer(work, offer_id, 1, BY),
    ):
        assert (await refusal(engines, step))[0] == "conflict"
    await act(engines, lambda work: rooms.withdraw_offer(work, offer_id, BY))
    assert (await types(engines, room_channel(room.room_id))).count("offer.withdrawn") == 1


async def test_top_ups_at_once_all_count(engines: Engines) -> None:
    room = await open_room(engines)
    await asyncio.gather(*[act(engines, lambda work: rooms.top_up_offer(work, room.offer_ids[0], 1, BY)) for _ in range(8)])
    offers = (await rooms.snapshot(engines, room.room_id))["offers"]
    assert [(offer.total, offer.version) for offer in offers] == [(18, 9)]
    heard = [e["offer"]["version"] for e in await events(engines, room_channel(room.room_id)) if e["type"] == "offer.updated"]
    assert heard == list(range(2, 10))  # the order of commits is the order of events


async def test_the_shelf_of_a_session_that_is_over_is_closed(engines: Engines) -> None:
    room = await open_room(engines)
    await act(engines, lambda work: rooms.end_session(work, room.session_id, BY))
    for step in (
        lambda work: rooms.list_offer(work, room.session_id, rooms.OfferDraft(name="x", price_minor=1, total=1), BY),
        lambda work: rooms.top_up_offer(work, room.offer_ids[0], 1, BY),
        lambda work: rooms.set_run_of_show(work, room.session_id, [], BY),
    ):
        assert (await refusal(engines, step))[0] == "conflict"


# --- pin ----------------------------------------------------------------------------------------------------------------------------


async def test_pin_unpin_and_what_takes_the_pin_away(engines: Engines) -> None:
    room = await open_room(engines, offers=[("Tea", 1990, 10), ("Honey", 5900, 5)])
    tea, honey = room.offer_ids
    pin = lambda offer: act(engines, lambda work: rooms.pin_offer(work, room.room_id, offer, BY))  # noqa: E731 - four uses below
    await pin(tea)
    await pin(tea)
    await pin(honey)
    await act(engines, lambda work: rooms.withdraw_offer(work, honey, BY))
    await pin(tea)
    await act(engines, lambda work: rooms.pause_offer(work, tea, BY))
    assert (await rooms.snapshot(engines, room.room_id))["pin"] == tea
    await act(engines, lambda work: rooms.end_session(work, room.session_id, BY))
    assert (await rooms.snapshot(engines, room.room_id))["pin"] is None
    pins = [e["offer"] for e in await events(engines, room_channel(room.room_id)) if e["type"] == "offer.pinned"]
    assert pins == [tea, honey, None, tea]


async def test_only_a_listed_offer_of_the_session_on_air_can_be_pinned(engines: Engines) -> None:
    room = await open_room(engines)
    other = await open_room(engines)
    pin = rooms.pin_offer
    assert (await refusal(engines, lambda work: pin(work, room.room_id, other.offer_ids[0], BY)))[0] == "not_found"
    await act(engines, lambda work: rooms.pause_offer(work, room.offer_ids[0], BY))
    assert (await refusal(engines, lambda work: pin(work, room.room_id, room.offer_ids[0], BY)))[0] == "conflict"
    draft = await open_room(engines, live=False)
    assert (await refusal(engines, lambda work: pin(work, draft.room_id, draft.offer_ids[0], BY)))[0] == "conflict"


# --- run-of-show --------------------------------------------------------------------------------------------------------------------


async def test_the_run_of_show_advances_and_pins(engines: Engines) -> None:
    room = await open_room(engines)
    tea = room.offer_ids[0]
    drafts = [rooms.CueDraft(title="Welcome"), rooms.CueDraft(title="Tea", offer_id=tea, minutes=10), rooms.CueDraft(title="Bye")]
    cues = await act(engines, lambda work: rooms.set_run_of_show(work, room.session_id, drafts, BY))
    titles = []
    for _ in range(4):
        cue = await act(engines, lambda work: rooms.advance(work, room.session_id, BY))
        titles.append(cue.title if cue else None)
    assert titles == ["Welcome", "Tea", "Bye", None]
    assert (await rooms.snapshot(engines, room.room_id))["pin"] == tea
    advanced = [(e["cue"], e["title"]) for e in await events(engines, staff_channel(room.room_id)) if e["type"] == "cue.advanced"]
    assert advanced == [(cue.id, cue.title) for cue in cues] + [(None, "")]


async def test_a_cue_whose_offer_is_gone_does_not_stop_the_show(engines: Engines) -> None:
    room = await open_room(engines)
    await act(
        engines, lambda work: rooms.set_run_of_show(work, room.session_id, [rooms.CueDraft(title="Tea", offer_id=room.offer_ids[0])], BY)
    )
    await act(engines, lambda work: rooms.withdraw_offer(work, room.offer_ids[0], BY))
    cue = await act(engines, lambda work: rooms.advance(work, room.session_id, BY))
    assert (cue.title, cue.state) == ("Tea", "now")
    assert (await rooms.snapshot(engines, room.room_id))["pin"] is None


async def test_replacing_the_run_of_show_keeps_the_state_of_known_cues(engines: Engines) -> None:
    room = await open_room(engines)
    put = lambda *drafts: act(engines, lambda work: rooms.set_run_of_show(work, room.session_id, drafts, BY))  # noqa: E731 - a shorthand
    welcome, bye = await put(rooms.CueDraft(title="Welcome"), rooms.CueDraft(title="Bye"))
    await act(engines, lambda work: rooms.advance(work, room.session_id, BY))
    await put(rooms.CueDraft(title="Welcome!", id=welcome.id), rooms.CueDraft(title="Song"))
    async with engines.sql.read() as session:
        cues = await rooms.list_cues(session, room.session_id)
    assert [(cue.title, cue.state) for cue in cues] == [("Welcome!", "now"), ("Song", "waiting")]
    with pytest.raises(AppError, match="no such cue"):
        await put(rooms.CueDraft(title="Bye", id=bye.id))
    with pytest.raises(AppError, match="not on this session's shelf"):
        await put(rooms.CueDraft(title="x", offer_id="t000000001-other"))


async def test_the_run_of_show_does_not_advance_off_air(engines: Engines) -> None:
    _, session_id = await draft_session(engines)
    assert (await refusal(engines, lambda work: rooms.advance(work, session_id, BY)))[0] == "conflict"
