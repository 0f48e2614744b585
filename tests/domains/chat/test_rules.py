"""Text, words, standing: decided from values alone."""

import pytest

from app.domains.chat import rules
from app.domains.chat.rules import TextRefusal, WordList


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello", "hello"),
        ("  hello  ", "hello"),
        ("　你好　", "你好"),  # the ideographic space is a space
        ("a" * 10, "a" * 10),
        ("字" * 10, "字" * 10),  # characters count, not bytes
        ("a" * 11, TextRefusal.TOO_LONG),
        (" " + "a" * 10 + " ", "a" * 10),  # length after trimming
        ("", TextRefusal.EMPTY),
        ("   ", TextRefusal.EMPTY),
        ("\u200b\u200d", TextRefusal.EMPTY),  # nothing anybody could see
        ("a\nb", TextRefusal.CONTROL_CHARACTERS),
        ("a\x00b", TextRefusal.CONTROL_CHARACTERS),
        ("a\x7fb", TextRefusal.CONTROL_CHARACTERS),
        ("a\u2028b", TextRefusal.CONTROL_CHARACTERS),
        ("a\u202eb", TextRefusal.CONTROL_CHARACTERS),  # turns the reading direction around
        ("👨‍👩‍👧", "👨‍👩‍👧"),  # joined by an invisible character, which must survive
    ],
)
def test_text_is_trimmed_or_refused(text: str, expected: object) -> None:
    assert rules.check_text(text, 10) == expected


LISTED = ["fake", "ASS", "加微信", "QQ群", "ﾊﾞｶ", "Straße"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("this tea is fake", ["fake"]),
        ("FAKE!", ["fake"]),
        ("ＦＡＫＥ tea", ["fake"]),  # full width
        ("f\u200bake", ["fake"]),  # an invisible character inside
        ("fakery", []),  # a part of a longer word
        ("a class act", []),
        ("you ass.", ["ass"]),
        ("加微信", ["加微信"]),
        ("快来加 微 信吧", ["加微信"]),
        ("加-微.信", ["加微信"]),
        ("加　微　信", ["加微信"]),  # ideographic spaces
        ("加了微信", []),
        ("进ｑｑ群", ["qq群"]),
        ("q q 群", ["qq群"]),
        ("バカ", ["バカ"]),  # listed in half-width katakana
        ("STRASSE", ["strasse"]),  # case folding is more than lower case
        ("fake 加微信 ass fake", ["ass", "fake", "加微信"]),
        ("", []),
        ("这茶不错fake了", ["fake"]),  # no spaces around a Latin word in Chinese text
    ],
)
def test_listed_words_are_found_however_they_are_written(text: str, found: list[str]) -> None:
    assert WordList.of(rules.clean_words(LISTED)).find(text) == found


def test_an_empty_list_finds_nothing() -> None:
    assert WordList.of(()).find("anything") == []


def test_a_list_is_kept_normalised_once_and_in_order() -> None:
    assert rules.clean_words(["Ｂad", "bad", " BAD ", "!!", "", "黑 茶", "黑茶", "bad tea"]) == ["bad", "bad tea", "黑茶"]


def test_the_digest_names_the_content() -> None:
    assert rules.digest_words(["a", "b"]) == rules.digest_words(["a", "b"])
    assert rules.digest_words(["a", "b"]) != rules.digest_words(["ab"])
    assert rules.digest_words([]) == WordList.of(()).digest


def test_a_body_digest_tells_text_and_reply_apart() -> None:
    assert len({rules.digest_body("a", None), rules.digest_body("b", None), rules.digest_body("a", "m")}) == 3


@pytest.mark.parametrize(
    ("roles", "shown", "standing"),
    [
        (set(), "", 0),
        ({"moderator@r1"}, "moderator", 1),
        ({"moderator@r2"}, "", 0),
        ({"host@r1", "moderator@r1"}, "host", 2),
        ({"operator"}, "operator", 3),
        ({"supervisor"}, "", 1),  # stands with the team, does not speak for it
        ({"nobody"}, "", 0),
    ],
)
def test_roles_count_in_their_room(roles: set[str], shown: str, standing: int) -> None:
    assert (rules.shown_role(roles, "r1"), rules.standing(roles, "r1")) == (shown, standing)


@pytest.mark.parametrize(
    ("actor", "subject", "allowed"), [(0, 0, True), (1, 0, True), (1, 1, False), (2, 1, True), (1, 2, False), (3, 3, False)]
)
def test_nobody_sanctions_equal_or_higher_standing(actor: int, subject: int, allowed: bool) -> None:
    assert rules.may_sanction(actor, subject) is allowed


@pytest.mark.parametrize(("now_ms", "said"), [(5_000, 3), (5_999, 3), (6_000, 7), (6_999, 7), (7_000, 0), (60_000, 0)])
def test_said_is_of_the_last_full_second(now_ms: int, said: int) -> None:
    assert rules.said_last_second(now_ms, second=5, count=7, before=3) == said


def test_a_name_from_a_token_is_cleaned() -> None:
    assert rules.printable_name(" Li\x00\u202e Na ") == "Li Na"
