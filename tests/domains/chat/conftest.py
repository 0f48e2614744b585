"""A live room with its people, for all tests of chat that act through its commands."""

from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from app.core.caller import Caller
from app.core.errors import AppError
from app.domains.accounts import service as accounts
from app.domains.chat.tables import ChatMessageRow
from app.domains.rooms import service as rooms
from app.protocol.channels import chat_channel
from app.protocol.commands import ChatSent
from app.protocol.events import decode_event
from app.rest.dispatch import call_command
from app.storage.work import Engines


async def caller(engines: Engines, subject: str, *roles: str) -> Caller:
    token = accounts.make_token(
        engines.settings, subject=subject, name=subject.title(), roles=roles, ttl_s=3600, now_ms=engines.runtime.now_ms()
    )
    return await accounts.authenticate(engines, token)


class Room:
    """A live room with its people, and short ways to act in it."""

    def __init__(self, engines: Engines, room_id: str, session_id: str, people: dict[str, Caller]) -> None:
        self.engines, self.id, self.session, self.people = engines, room_id, session_id, people
        self._keys = 0

    async def call(self, who: str, method: str, **fields: Any) -> Any:
        """Through the dispatcher, as the websocket and the REST twin do. `key` is a fresh one unless given."""
        command = self.engines.registry.commands[method]
        if "key" not in fields and method != "chat.history":
            self._keys += 1
            fields["key"] = f"key{self._keys}"
        body = msgspec.json.encode({"room": self.id, **fields})
        return msgspec.json.decode(await call_command(self.engines, self.people[who], command, body), type=command.reply)

    async def say(self, who: str, text: str, **fields: Any) -> ChatSent:
        return await self.call(who, "chat.send", text=text, **fields)

    async def events(self, channel: str) -> list[Any]:
        publications, _ = await self.engines.streams.history(channel)
        return [decode_event(publication.data) for publication in publications]

    async def lines(self) -> list[str]:
        """The texts in the chat channel, in order."""
        return [event.message.text for event in await self.events(chat_channel(self.id))]

    async def rows(self) -> list[tuple[str, str]]:
        async with self.engines.sql.read() as session:
            query = select(ChatMessageRow.text, ChatMessageRow.state).order_by(ChatMessageRow.at, ChatMessageRow.text)
            return [(row[0], row[1]) for row in await session.execute(query)]

    async def refused(self, who: str, method: str, **fields: Any) -> str:
        with pytest.raises(AppError) as refusal:
            await self.call(who, method, **fields)
        return refusal.value.code.word


@pytest.fixture
async def room(engines: Engines) -> Room:
    async with engines.work() as work:
        made = await rooms.create_room(work, title="Tea", host_name="Lin")
    async with engines.work() as work:
        session = await rooms.create_session(work, made.id, title="Spring tea")
    async with engines.work() as work:
        await rooms.go_live(work, session.id, "system", empty_shelf_accepted=True)
    people = {
        "ann": await caller(engines, "ann"),
        "bob": await caller(engines, "bob"),
        "mod": await caller(engines, "mod", f"moderator@{made.id}"),
        "mod2": await caller(engines, "mod2", f"moderator@{made.id}"),
        "host": await caller(engines, "host", f"host@{made.id}"),
        "operator": await caller(engines, "operator", "operator"),
        "elsewhere": await caller(engines, "elsewhere", "host@other"),
    }
    return Room(engines, made.id, session.id, people)
