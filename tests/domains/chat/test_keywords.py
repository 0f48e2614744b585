"""Buying by a word in the chat: the same rules as `inventory.reserve`, once a message, known to every process from the next line on."""

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from app.core.caller import Caller
from app.core.errors import AppError
from app.domains.accounts import service as accounts
from app.domains.chat import service as chat
from app.domains.inventory import service as inventory
from app.domains.rooms import service as rooms
from app.protocol.channels import chat_channel, room_channel, user_channel
from app.protocol.commands import ChatSent
from app.rest.dispatch import call_command
from app.storage.intake import take_in_room
from app.storage.work import Engines
from tests.support.auditor.stock import audit_stock
from tests.support.builders import OpenRoom, open_room

BY = "host-mei"


@pytest.fixture
async def room(engines: Engines) -> OpenRoom:
    room = await open_room(engines, offers=(("Honey", 1990, 3, 2), ("Tea", 990, 9)))
    await set_keyword(engines, room.offer_ids[0], "Honey")
    return room


@pytest.fixture
async def elsewhere(engines: Engines) -> AsyncGenerator[Engines]:
    """Another process."""
    other = Engines.connect(engines.settings, engines.runtime, engines.registry)
    yield other
    await other.close()


async def set_keyword(engines: Engines, offer: str, keyword: str) -> None:
    async with engines.work() as work:
        await rooms.change_offer(work, offer, {"keyword": keyword}, BY)


async def say(engines: Engines, room: OpenRoom, who: str, text: str, key: str, **claims: Any) -> ChatSent:
    token = accounts.make_token(engines.settings, subject=who, name=who.title(), ttl_s=3600, now_ms=engines.runtime.now_ms(), **claims)
    caller = await accounts.authenticate(engines, token)
    body = msgspec.json.encode({"room": room.room_id, "text": text, "key": key})
    return msgspec.json.decode(await call_command(engines, caller, engines.registry.commands["chat.send"], body), type=ChatSent)


async def bought(engines: Engines, room: OpenRoom, who: str, text: str, key: str = "k1", **claims: Any) -> tuple[str, int] | None:
    sent = await say(engines, room, who, text, key, **claims)
    assert sent.outcome == "sent"
    return (sent.reservation.outcome, sent.reservation.quantity) if sent.reservation else None


async def left(engines: Engines, room: OpenRoom) -> dict[str, int]:
    return await inventory.stock_reading(engines, room.room_id)


async def test_a_keyword_holds_what_the_rules_allow(engines: Engines, room: OpenRoom) -> None:
    honey, tea = room.offer_ids
    assert await bought(engines, room, "ann", "I like honey") is None
    first = await say(engines, room, "ann", " honey + 2", "k2")
    assert first.reservation
    assert (first.reservation.outcome, first.reservation.offer, first.reservation.price_minor) == ("held", honey, 1990)
    again = await say(engines, room, "ann", " honey + 2", "k2")
    assert again.reservation == msgspec.structs.replace(first.reservation, repeated=True)
    assert await left(engines, room) == {honey: 1, tea: 9}
    assert await bought(engines, room, "ann", "honey", "k3") == ("limit", 1)
    assert await bought(engines, room, "bob", "HONEY 2") == ("exhausted", 2)
    assert await bought(engines, room, "bob", "honey", "k2") == ("held", 1)
    publications, _ = await engines.streams.history(chat_channel(room.room_id))
    assert len(publications) == 5  # the lines themselves are chat as ever
    while await take_in_room(engines, room.room_id):
        pass
    assert len((await engines.streams.history(user_channel("ann")))[0]) == 1
    assert await audit_stock(engines, [room.room_id]) == []


async def test_who_may_not_buy_only_speaks(engines: Engines, room: OpenRoom) -> None:
    assert await bought(engines, room, "mod", "honey", roles=(f"moderator@{room.room_id}",)) is None  # the team shows how it is done
    assert await left(engines, room) == {room.offer_ids[0]: 3, room.offer_ids[1]: 9}
    async with engines.work() as work:
        await chat.set_words(work, Caller(id=BY, name=BY, kind="staff", grants={}), room.room_id, ["honey"])
    held = await say(engines, room, "ann", "honey", "k1")
    assert (held.outcome, held.reservation) == ("held_for_review", None)


async def test_every_process_knows_a_change_from_the_next_line_on(engines: Engines, elsewhere: Engines, room: OpenRoom) -> None:
    honey, tea = room.offer_ids
    assert await bought(elsewhere, room, "ann", "honey") == ("held", 1)
    await set_keyword(engines, honey, "")
    assert await bought(elsewhere, room, "ann", "honey", "k2") is None
    await set_keyword(elsewhere, tea, "honey")
    assert await bought(engines, room, "bob", "honey") == ("held", 1)
    assert await left(engines, room) == {honey: 2, tea: 8}
    retried = await say(engines, room, "ann", "honey", "k1")  # its word buys another offer by now, its hold is what it was
    assert (retried.outcome, retried.reservation) == ("sent", None)
    assert await left(engines, room) == {honey: 2, tea: 8}
    async with engines.work() as work:
        await rooms.withdraw_offer(work, tea, BY)
    assert await bought(elsewhere, room, "bob", "honey", "k2") is None


async def test_two_offers_of_a_session_do_not_share_a_keyword(engines: Engines, room: OpenRoom) -> None:
    honey, tea = room.offer_ids
    with pytest.raises(AppError, match="buys another offer of this session") as refused:
        await set_keyword(engines, tea, "ＨＯＮＥＹ")
    assert refused.value.code.word == "conflict"
    draft = rooms.OfferDraft(name="More honey", price_minor=100, total=1, keyword="honey")
    with pytest.raises(AppError, match="keyword"):
        async with engines.work() as work:
            await rooms.list_offer(work, room.session_id, draft, BY)
    await set_keyword(engines, honey, "HONEY")  # its own
    async with engines.work() as work:
        await rooms.withdraw_offer(work, honey, BY)
    await set_keyword(engines, tea, "honey")
    told, _ = await engines.streams.history(room_channel(room.room_id))
    assert msgspec.json.decode(told[-1].data)["offer"]["keyword"] == "honey"
