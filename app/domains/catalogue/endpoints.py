"""RPC methods and REST routes of catalogue."""

from app.core.registry import Domain

DOMAIN = Domain(name="catalogue")
