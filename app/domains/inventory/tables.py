"""What SQL keeps of holds: not the holds, which are the engine's, but enough to know who must be told when the engine loses them."""

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
