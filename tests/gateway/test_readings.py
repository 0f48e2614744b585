"""Readings (publications without an offset) reach the subscribers of their own channel and nobody else.

Regression: the room's window kept one reading whatever its channel, so the team's figures went to every viewer in place of the pulse.
"""

from types import SimpleNamespace
from typing import Any

from app.core.caller import Caller
from app.gateway.room import Member, Room
from app.gateway.window import ABSENT, Entry, Window
from app.protocol.channels import Kind
from app.storage.streams import Delivered

PULSE = Entry(Delivered("room:r", 0, "e", b'{"type":"room.pulse"}'))
FIGURES = Entry(Delivered("staff:r", 0, "e", b'{"type":"figures.updated"}'))


class JsonLike:
    name = "json"
    is_text = True

    def publication(self, channel: str, offset: int, data: bytes) -> bytes:
        return channel.encode() + data

    def join(self, frames: list[bytes]) -> bytes:
        return b"\n".join(frames)


class Line:
    codec = JsonLike()
    caller = Caller(id="ann", name="Ann", kind="viewer")

    @staticmethod
    def pack(payload: bytes, is_text: bool) -> bytes:
        return payload

    def __init__(self) -> None:
        self.transport = self
        self.write_packed = SimpleNamespace()


def member(**channels: int) -> Member:
    line: Any = Line()
    person = Member(line, Room("r", lambda _: _))  # type: ignore[arg-type,return-value] - nothing is spawned
    for name, after in channels.items():
        setattr(person, name, after)
    return person


def window() -> Window:
    made = Window()
    made.add(Kind.ROOM, PULSE)
    made.add(Kind.STAFF, FIGURES)
    return made


def test_figures_are_for_the_team_and_the_pulse_for_the_room() -> None:
    made = window()
    assert made.parcel(member(room=0), is_slow=False).packed == b'room:r{"type":"room.pulse"}'
    assert made.parcel(member(staff=0), is_slow=False).packed == b'staff:r{"type":"figures.updated"}'
    assert made.parcel(member(room=0, staff=0), is_slow=False).pulse == 2
    assert made.parcel(member(chat=0), is_slow=False).packed == b""


def test_a_slow_member_goes_without_readings_and_they_are_counted() -> None:
    made = window()
    assert made.parcel(member(room=0, staff=0), is_slow=True).packed == b""
    assert [made.shed_by(person) for person in (member(room=0), member(room=0, staff=0), member(chat=ABSENT))] == [(0, 1), (0, 2), (0, 0)]


def test_a_window_with_figures_alone_is_not_empty() -> None:
    made = Window()
    assert made.is_empty
    made.add(Kind.STAFF, FIGURES)
    assert not made.is_empty
