"""The admission script: the order of its checks, pace by the runtime's clock, idempotency, the archive stream."""

from datetime import UTC, datetime
from typing import Any

import pytest

from app.domains.chat import rules, store
from app.domains.chat.store import Admission, Mirror, Submission
from app.domains.chat.tables import ChatSanction
from app.storage.work import Engines
from tests.support.runtime import START_MS, TestRuntime

ROOM = "room1"
DIGEST = rules.digest_words([])
Batch = list[tuple[Submission, list[str]]]


def submission(key: str = "k1", *, viewer: str = "ann", text: str = "hello", words: tuple[str, ...] = (), staff: bool = False) -> Any:
    body = Submission(f"{ROOM}-{viewer}{key}", viewer, key, rules.digest_body(text, None), text, b'{"x":1}', staff)
    return body, list(words)


async def mirror(engines: Engines, *, slow_mode_s: int = 0, muted_until_ms: int | None = None, banned: bool = False) -> None:
    sanctions = []
    if muted_until_ms is not None:
        sanctions.append(ChatSanction(kind="mute", viewer_id="ann", until=datetime.fromtimestamp(muted_until_ms / 1000, UTC)))
    if banned:
        sanctions.append(ChatSanction(kind="ban", viewer_id="ann", until=None))
    await store.write_mirror(engines, ROOM, Mirror(DIGEST, slow_mode_s, ""), sanctions)


async def admit(engines: Engines, *batch: Any, session: str = "room1-s1", digest: str = DIGEST) -> list[Admission] | None:
    return await store.admit(engines, ROOM, session, words_digest=digest, batch=list(batch))


async def words_of(engines: Engines, *batch: Any, **options: Any) -> list[str]:
    admissions = await admit(engines, *batch, **options)
    assert admissions is not None
    return [admission.word for admission in admissions]


async def test_a_room_that_the_engine_does_not_know_is_stale(engines: Engines) -> None:
    assert await admit(engines, submission()) is None
    assert await store.read_archive(engines, ROOM) == []


async def test_another_word_list_is_stale_and_nothing_is_done(engines: Engines) -> None:
    await mirror(engines)
    assert await admit(engines, submission(), digest="other") is None
    assert await words_of(engines, submission()) == ["sent"]


# Each row breaks one rule more than the row below it; the first broken rule decides.
ORDER = [
    ("key_reused", {"used": True, "session": "", "banned": True, "muted": True, "slow": True, "fast": True}),
    ("closed", {"session": "", "banned": True, "muted": True, "slow": True, "fast": True}),
    ("banned", {"banned": True, "muted": True, "slow": True, "fast": True}),
    ("muted", {"muted": True, "slow": True, "fast": True}),
    ("slow_mode", {"slow": True, "fast": True}),
    ("too_fast", {"fast": True}),
    ("sent", {}),
]


@pytest.mark.parametrize(("word", "broken"), ORDER, ids=[word for word, _ in ORDER])
async def test_the_first_broken_rule_decides(engines: Engines, runtime: TestRuntime, word: str, broken: dict[str, Any]) -> None:
    await mirror(engines)
    if broken.get("used"):
        await admit(engines, submission("k1", text="another"))
    if broken.get("fast"):
        limit = engines.settings.chat_per_viewer_per_10_s - (1 if broken.get("used") else 0)
        assert set(await words_of(engines, *[submission(f"f{i}") for i in range(limit)])) == {"sent"}
    await mirror(
        engines,
        slow_mode_s=30 if broken.get("slow") else 0,
        muted_until_ms=runtime.now_ms() + 1 if broken.get("muted") else None,
        banned=broken.get("banned", False),
    )
    assert await words_of(engines, submission("k1"), session=broken.get("session", "room1-s1")) == [word]


async def test_the_same_key_has_the_same_answer_and_one_archive_entry(engines: Engines, runtime: TestRuntime) -> None:
    await mirror(engines)
    first = await admit(engines, submission(), submission())
    runtime.advance(5_000)
    later = await admit(engines, submission(), session="")  # the show is over; the answer stands
    assert first == [Admission("sent", START_MS, 0)] * 2
    assert later == [Admission("sent", START_MS, 0)]
    entries = await store.read_archive(engines, ROOM)
    assert [(entry.message_id, entry.at_ms, entry.session_id, entry.words, entry.line) for entry in entries] == [
        ("room1-annk1", START_MS, "room1-s1", [], b'{"x":1}')
    ]


async def test_keys_belong_to_their_viewer(engines: Engines) -> None:
    await mirror(engines)
    assert await words_of(engines, submission(viewer="ann"), submission(viewer="bob", text="other")) == ["sent", "sent"]


async def test_a_refusal_is_not_remembered(engines: Engines, runtime: TestRuntime) -> None:
    await mirror(engines, muted_until_ms=START_MS + 1000)
    assert await admit(engines, submission()) == [Admission("muted", START_MS, 1000)]
    runtime.advance(999)
    assert await admit(engines, submission()) == [Admission("muted", START_MS + 999, 1)]
    runtime.advance(1)
    assert await admit(engines, submission()) == [Admission("sent", START_MS + 1000, 0)]


async def test_slow_mode_counts_from_the_last_message_of_the_viewer(engines: Engines, runtime: TestRuntime) -> None:
    await mirror(engines, slow_mode_s=30)
    assert await words_of(engines, submission("k1")) == ["sent"]
    runtime.advance(29_999)
    assert await admit(engines, submission("k2")) == [Admission("slow_mode", START_MS + 29_999, 1)]
    assert await words_of(engines, submission("k2", viewer="bob")) == ["sent"]
    assert await words_of(engines, submission("k3", staff=True)) == ["sent"]  # the team is exempt
    runtime.advance(1)
    assert await admit(engines, submission("k2")) == [Admission("slow_mode", START_MS + 30_000, 29_999)]


async def test_the_general_rate_is_a_sliding_window(engines: Engines, runtime: TestRuntime) -> None:
    await mirror(engines)
    limit = engines.settings.chat_per_viewer_per_10_s
    for i in range(limit):
        assert await words_of(engines, submission(f"k{i}")) == ["sent"]
        runtime.advance(100)
    waited = limit * 100
    assert await admit(engines, submission("late")) == [Admission("too_fast", START_MS + waited, 10_000 - waited)]
    runtime.advance(10_000 - waited - 1)
    assert await words_of(engines, submission("late")) == ["too_fast"]
    runtime.advance(1)
    assert await words_of(engines, submission("late"), submission("later")) == ["sent", "too_fast"]


async def test_the_rate_holds_inside_one_batch(engines: Engines) -> None:
    await mirror(engines)
    limit = engines.settings.chat_per_viewer_per_10_s
    assert await words_of(engines, *[submission(f"k{i}") for i in range(limit + 2)]) == ["sent"] * limit + ["too_fast"] * 2


async def test_a_listed_word_is_held_with_its_words(engines: Engines) -> None:
    await mirror(engines)
    assert await words_of(engines, submission(words=("a", "b c"))) == ["held_for_review"]
    assert await words_of(engines, submission(words=("a", "b c"))) == ["held_for_review"]
    (entry,) = await store.read_archive(engines, ROOM)
    assert entry.words == ["a", "b c"]


async def test_said_counts_what_was_sent(engines: Engines, runtime: TestRuntime) -> None:
    await mirror(engines)
    batch = [submission(f"k{i}", viewer=f"v{i}") for i in range(3)]
    await admit(engines, *batch, submission("held", words=("x",)))
    await admit(engines, *batch)  # repeated
    await admit(engines, submission("one"))
    runtime.advance(1000)
    await admit(engines, submission("next"))
    now_ms, fields = await store.read_said(engines, ROOM)
    assert (now_ms, fields) == (START_MS + 1000, {"second": (START_MS + 1000) // 1000, "count": 1, "before": 4})


async def test_a_full_archive_stops_the_room(engines: Engines) -> None:
    await mirror(engines)
    engines.settings.outbox_entries_max = 2
    assert await words_of(engines, *[submission(f"k{i}") for i in range(3)]) == ["sent", "sent", "full"]
