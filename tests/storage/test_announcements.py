"""What happens to committed events while an engine is away."""

import pytest
from redis.exceptions import RedisError
from sqlalchemy import select

from app.protocol.channels import room_channel
from app.protocol.events import NoticePinned
from app.storage.announcements import announce_room
from app.storage.redis import command_client
from app.storage.streams import Streams
from app.storage.tables import Announcement, DeadLetter
from app.storage.work import Engines


async def test_an_outage_never_sets_an_event_aside(engines: Engines) -> None:
    """Attempts were once counted against the event while the fan-out engine was away: a few seconds of outage lost it to viewers."""
    engines.settings = engines.settings.model_copy(update={"outbox_attempts_max": 1})
    there, away = engines.streams, command_client("redis://127.0.0.1:1")
    engines.streams = Streams(away, engines.settings, engines.runtime)
    async with engines.work() as work:
        work.emit("r", [room_channel("r")], NoticePinned(at=work.at, text="still here"))
    with pytest.raises((RedisError, OSError)):
        await announce_room(engines, "r")
    await away.aclose()
    engines.streams = there
    async with engines.sql.read() as session:
        assert (await session.scalars(select(Announcement.attempts))).all() == [0]
        assert (await session.scalars(select(DeadLetter.id))).all() == []
    await announce_room(engines, "r")
    assert (await engines.streams.position(room_channel("r"))).offset == 1
