"""What SQL keeps of holds: not the holds, which are the engine's, but enough to know who must be told when the engine loses them, and who
stood in which line.
"""

from datetime import datetime

from sqlalchemy import BigInteger, Identity, Index, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from app.storage.sql import Table


class HoldNote(Table):
    """All that one batch of intake said of holds: one row a batch, since a flash sale places tens of thousands a second.

    Worth nothing once the last of its deadlines is past.
    """

    __tablename__ = "hold_notes"
    __table_args__ = (Index(None, "room_id", "until"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    room_id: Mapped[str]
    placed: Mapped[bytes] = mapped_column(LargeBinary)  # JSON: the holds as the outbox tells them
    ended: Mapped[bytes] = mapped_column(LargeBinary)  # JSON: ids of holds that ended or became orders
    until: Mapped[datetime]


class WaitNote(Table):
    """A place in a line, from the moment that intake hears of it until it hears of its end."""

    __tablename__ = "wait_notes"
    __table_args__ = (Index(None, "room_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)  # of the hold that it becomes
    room_id: Mapped[str]
    offer_id: Mapped[str]
    viewer_id: Mapped[str]
    quantity: Mapped[int]
    turn: Mapped[int]
    since_ms: Mapped[int]  # by the engine's clock, since 1970
    ttl_ms: Mapped[int]  # of the hold
