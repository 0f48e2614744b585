"""What a process knows of a room's words: those that hold a message for review, and those that buy. Part of the chat service.

The engine has a digest of both beside the room's settings; a message that was checked against others is checked again. So a change of the
list or of the shelf holds from the next message on in every process, and an ordinary line costs no question more.
"""

from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncSession

from app.domains.catalogue import service as catalogue
from app.domains.chat import rules, store
from app.domains.chat.rules import WordList
from app.domains.chat.store import Mirror
from app.domains.rooms import service as rooms
from app.storage.work import Engines

ROOMS_MAX = 1000  # whose words a process remembers


@dataclass(frozen=True, slots=True)
class RoomWords:
    listed: WordList = field(default_factory=lambda: WordList.of(()))
    keywords: dict[str, str] = field(default_factory=dict[str, str])  # folded -> offer
    digest: str = rules.digest_words(())


_NO_WORDS = RoomWords()


def room_words(engines: Engines, room_id: str) -> RoomWords:
    """Those that this process last used. Only a guess: the script compares their digest with the room's."""
    return _remembered(engines).get(room_id, _NO_WORDS)


async def mirror_room(engines: Engines, room_id: str) -> Mirror:
    """Brings the engine in line with SQL and remembers the words."""
    async with store.announcer_lock(engines, room_id) as session:
        return await mirror(engines, session, room_id)


async def mirror(engines: Engines, session: AsyncSession, room_id: str) -> Mirror:
    """The caller holds the room's announcer lock."""
    lists = await store.list_words(session, [store.PLATFORM, room_id])
    words = sorted({word for words in lists.values() for word in words})
    show = await rooms.fetch_on_air(session, room_id)
    keywords = await catalogue.list_keywords(session, show.id) if show else {}
    digest = rules.digest_words([*words, "", *sorted(f"{word}\t{offer_id}" for word, offer_id in keywords.items())] if keywords else words)
    _remember(_remembered(engines), room_id, words, keywords, digest)
    room = await store.fetch_room(session, room_id)
    state = Mirror(digest, room.slow_mode_s if room else 0, room.notice if room else "")
    sanctions = await store.list_sanctions_in_force(session, room_id, engines.runtime.now())
    await store.write_mirror(engines, room_id, state, sanctions)
    return state


def _remembered(engines: Engines) -> dict[str, RoomWords]:
    return engines.local.setdefault("chat.room_words", {})


def _remember(rooms_known: dict[str, RoomWords], room_id: str, words: list[str], keywords: dict[str, str], digest: str) -> None:
    known = rooms_known.pop(room_id, _NO_WORDS)
    while len(rooms_known) >= ROOMS_MAX:
        del rooms_known[next(iter(rooms_known))]
    listed = known.listed if known.listed.digest == rules.digest_words(words) else WordList.of(words)
    rooms_known[room_id] = RoomWords(listed, keywords, digest)
