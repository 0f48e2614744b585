"""Hot records are answered from only in the life of the engine in which they were compared with SQL (life.lua).

Until then a room is closed: for its sales, its draws and its envelopes alike. The worker's renewal opens it (inventory/renewal.py).
"""

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Select

from app.core.errors import AppError
from app.protocol.codes import SERVICE_UNAVAILABLE
from app.storage.work import Engines, is_away

LIFE = Path(__file__).parent / "life.lua"


def room_key(room_id: str) -> str:
    """The hash with the `life` in which the room is open."""
    return f"{{{room_id}}}:sessions"


def being_renewed() -> AppError:
    """For whatever waits for an answer that will be true; what is new is refused as `frozen`."""
    return AppError(SERVICE_UNAVAILABLE, "the engine of sales has restarted: try again with the same key in a moment", retry_after_ms=1000)


async def list_open_of(engines: Engines, asked: Sequence[str], query: Select[str]) -> Sequence[str]:
    """Those of a closed room's things that SQL has as open: only these will be there again when it is renewed. All, if SQL is away too."""
    try:
        async with engines.sql.read() as session:
            return (await session.scalars(query)).all()
    except Exception as failure:  # whatever else it is, must be heard of
        if is_away(failure):
            return asked
        raise
