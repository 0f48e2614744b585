"""Hot records are answered from only in the life of the engine in which they were compared with SQL (life.lua).

Until then a room is closed: for its sales, its draws and its envelopes alike. The worker's renewal opens it (inventory/renewal.py).
"""

from pathlib import Path

from app.core.errors import AppError
from app.protocol.codes import SERVICE_UNAVAILABLE

LIFE = Path(__file__).parent / "life.lua"


def room_key(room_id: str) -> str:
    """The hash with the `life` in which the room is open."""
    return f"{{{room_id}}}:sessions"


def being_renewed() -> AppError:
    """For whatever waits for an answer that will be true; what is new is refused as `frozen`."""
    return AppError(SERVICE_UNAVAILABLE, "the engine of sales has restarted: try again with the same key in a moment", retry_after_ms=1000)
