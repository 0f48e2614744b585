"""What may be said: text checks, the word list, who may sanction whom. Pure.

A listed word does not refuse a message: a moderator decides. Words are compared after NFKC (full-width and half-width forms become one) and
case folding. A word in a Latin-like script counts only as a whole word ("ass" is not in "class"); one with Chinese, Japanese or Korean
characters counts anywhere, also when the writer put spaces or punctuation between its characters ("加 微-信").
Deliberately not here: look-alike letters, pinyin, and meaning. They need a model or a person, and the review queue has the person.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ahocorasick_rs import AhoCorasick

from app.protocol.events import ChatDeleted, decode_event

RATE_WINDOW_MS = 10_000
WORDS_MAX = 5_000
WORD_CHARS_MAX = 60

# Text that turns the reading direction around can make a line say the opposite of its bytes. Cc: control; Cs: half a character.
_DIRECTION_MARKS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})

# Who stands above whom when it comes to sanctions. A role that is not here stands with the viewers.
STANDING = {"moderator": 1, "planner": 1, "supervisor": 1, "host": 2, "operator": 3}
ROLES_SHOWN = ("operator", "host", "moderator", "planner")  # beside a line, the highest first

_DELETION = b'"type":"chat.deleted"'  # in an event as it is encoded: the others need no decoding


class TextRefusal(StrEnum):
    EMPTY = "empty"
    TOO_LONG = "too_long"
    CONTROL_CHARACTERS = "control_characters"


def check_text(text: str, chars_max: int) -> str | TextRefusal:
    """The text as it will be shown, or why not. Length counts characters, so a Chinese line may be as long as an English one."""
    if any(_is_refused(char) for char in text):
        return TextRefusal.CONTROL_CHARACTERS
    shown = text.strip()
    if not any(unicodedata.category(char) not in {"Cf", "Zs"} for char in shown):
        return TextRefusal.EMPTY
    return TextRefusal.TOO_LONG if len(shown) > chars_max else shown


def _is_refused(char: str) -> bool:
    return char in _DIRECTION_MARKS or unicodedata.category(char) in _REFUSED_CATEGORIES


def printable_name(name: str) -> str:
    """A display name without what `check_text` refuses: it comes from a token, so it is cleaned and not refused."""
    return "".join(char for char in name if not _is_refused(char)).strip()[:80]


# --- the word list -------------------------------------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """One form for all ways to write the same: NFKC, case folded, without invisible characters, single spaces."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(char for char in folded if unicodedata.category(char) != "Cf").split())


def tighten(normalised: str) -> str:
    """Letters and digits only."""
    return "".join(char for char in normalised if char.isalnum())


def is_ideographic(word: str) -> bool:
    """Whether the word is written in a script that puts no spaces between words."""
    return any(unicodedata.name(char, "").startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL")) for char in word)


def clean_words(words: Iterable[str]) -> list[str]:
    """The list as it is kept: normalised, once each, sorted; what has no letter or digit is left out."""
    normal = (normalise(word) for word in words)
    return sorted({tighten(word) if is_ideographic(word) else word for word in normal if tighten(word)})


def digest_words(words: Sequence[str]) -> str:
    """Names the content of a list, so that two processes can tell whether they check against the same one."""
    return hashlib.blake2b("\n".join(words).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class WordList:
    """A compiled list. Made from `clean_words`; `digest` is `digest_words` of it."""

    digest: str
    whole: list[str] = field(default_factory=list[str])
    anywhere: list[str] = field(default_factory=list[str])
    _whole: AhoCorasick = field(default_factory=lambda: AhoCorasick([]))
    _anywhere: AhoCorasick = field(default_factory=lambda: AhoCorasick([]))

    @classmethod
    def of(cls, words: Sequence[str]) -> "WordList":
        anywhere = [word for word in words if is_ideographic(word)]
        whole = [word for word in words if not is_ideographic(word)]
        return cls(digest_words(words), whole, anywhere, AhoCorasick(whole), AhoCorasick(anywhere))

    def find(self, text: str) -> list[str]:
        """The listed words in the text, as listed, sorted, once each."""
        if not self.whole and not self.anywhere:
            return []
        normal = normalise(text)
        found = {
            self.whole[index]
            for index, start, end in self._whole.find_matches_as_indexes(normal, overlapping=True)
            if _stands_alone(normal, start, end)
        }
        found |= {self.anywhere[index] for index, _, _ in self._anywhere.find_matches_as_indexes(tighten(normal), overlapping=True)}
        return sorted(found)


def _stands_alone(text: str, start: int, end: int) -> bool:
    before, after = text[start - 1 : start], text[end : end + 1]
    return not _joins(before) and not _joins(after)


def _joins(neighbour: str) -> bool:
    """Whether a neighbouring character makes the match a part of a longer word. A Chinese neighbour does not: "加qq群"."""
    return neighbour.isalnum() and not is_ideographic(neighbour)


def digest_body(text: str, reply_to: str | None) -> str:
    """What must be equal for a repeated key to be the same command."""
    return hashlib.blake2b(f"{reply_to or ''}\n{text}".encode(), digest_size=8).hexdigest()


# --- standing ------------------------------------------------------------------------------------------------------------------------


def roles_in(roles: Iterable[str], room_id: str) -> set[str]:
    """`{"host@42", "supervisor"}` in room 42 is host and supervisor; in another room supervisor alone."""
    held: set[str] = set()
    for role in roles:
        name, _, scope = role.partition("@")
        if scope in {"", "*", room_id}:
            held.add(name)
    return held


def shown_role(roles: Iterable[str], room_id: str) -> str:
    """The role beside a line; empty for viewers."""
    held = roles_in(roles, room_id)
    return next((role for role in ROLES_SHOWN if role in held), "")


def standing(roles: Iterable[str], room_id: str) -> int:
    return max((STANDING.get(role, 0) for role in roles_in(roles, room_id)), default=0)


def may_sanction(actor: int, subject: int) -> bool:
    """Nobody sanctions somebody of equal or higher standing; viewers, who have none, may be sanctioned by whoever has the right."""
    return subject == 0 or actor > subject


# --- figures of the pulse --------------------------------------------------------------------------------------------------------------


def said_last_second(now_ms: int, *, second: int, count: int, before: int) -> int:
    """Messages of the last full second, from a counter that is only touched when somebody speaks."""
    match now_ms // 1000 - second:
        case 0:
            return before
        case 1:
            return count
        case _:
            return 0


def deleted_among(events: Iterable[bytes]) -> set[str]:
    """The lines that these events of a chat channel take back."""
    decoded = [decode_event(event) for event in events if _DELETION in event]
    return {event.message for event in decoded if isinstance(event, ChatDeleted)}
