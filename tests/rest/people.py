"""Callers for tests: a header for anybody, by role."""

from collections.abc import Sequence

from app.domains.accounts.service import make_token
from app.storage.work import Engines


def token_for(engines: Engines, subject: str, *roles: str, rooms: Sequence[str] | None = None) -> str:
    return make_token(
        engines.settings, subject=subject, name=subject.title(), roles=roles, rooms=rooms, ttl_s=3600, now_ms=engines.runtime.now_ms()
    )


def as_(engines: Engines, subject: str, *roles: str, rooms: Sequence[str] | None = None) -> dict[str, str]:
    """The header of a viewer, or with roles of a member of the team."""
    return {"Authorization": f"Bearer {token_for(engines, subject, *roles, rooms=rooms)}"}
