"""Any frames, any clock, any gateway, to a session in either codec. What must hold is in tests/fuzz/sessions.py."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.protocol import codes
from app.protocol.messages import ConnectRequest
from tests.fuzz.sessions import (
    ERRORS,
    JSON_WORDS,
    PROTOBUF_WORDS,
    SESSION_TARGETS,
    Answer,
    Close,
    Conversation,
    Drain,
    Receive,
    Script,
    Step,
    TakeAway,
    Tick,
    Words,
    check_script,
)
from tests.fuzz.target import Target

pytestmark = pytest.mark.slow

INPUTS = 3_000
SEED = 20_251_122


@pytest.mark.parametrize("target", SESSION_TARGETS, ids=lambda target: target.name)
def test_whatever_is_made_of_the_corpus_ends_well(target: Target[Script]) -> None:
    target.run(SEED, INPUTS)


def steps(words: Words) -> st.SearchStrategy[list[Step]]:
    frame = st.one_of(st.sampled_from(words.right), st.sampled_from(words.seeds), st.binary(max_size=20))
    step = st.one_of(
        st.builds(Receive, frame),
        st.builds(Receive, st.lists(st.sampled_from(words.right), max_size=5).map(words.codec.join)),
        st.builds(Tick, st.sampled_from((0, 1, 40, 1_000, 4_000, 10_000, 25_000, 90_000))),
        st.builds(Answer, st.integers(0, 4), st.sampled_from((None, *ERRORS))),
        st.builds(TakeAway, st.sampled_from(("room:r1", "chat:r1", "user:ann", ""))),
        st.builds(Drain),
        st.builds(Close, st.sampled_from((None, codes.SLOW, codes.FORCE_DISCONNECT))),
    )
    return st.lists(step, max_size=12)


@pytest.mark.parametrize("words", [JSON_WORDS, PROTOBUF_WORDS], ids=lambda words: words.codec.name)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_order_of_things(words: Words, data: st.DataObject) -> None:
    begin: list[Step] = [Receive(words.write({"id": 1, "connect": {"token": "t"}})), Answer(0, None)]
    is_connected = data.draw(st.booleans())
    check_script(Script(words.codec, [*(begin if is_connected else []), *data.draw(steps(words))]))


def test_the_check_can_fail() -> None:
    """A session that answers twice is found: the check is no ornament."""
    words = JSON_WORDS
    script = Script(words.codec, [Receive(words.write({"id": 1, "connect": {"token": "t"}})), Answer(0, None)])
    check_script(script)
    conversation = Conversation(words.codec)
    for step in script.steps:
        conversation.take(step)
    assert isinstance(conversation.handed_out[0].request, ConnectRequest)
    conversation.session._await(1, 0)
    conversation.session.refuse(1, codes.INTERNAL, "", 0)
    with pytest.raises(AssertionError, match="more often than asked"):
        conversation.take(Tick(0))
