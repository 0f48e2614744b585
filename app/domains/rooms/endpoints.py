"""RPC methods and REST routes of rooms."""

from app.core.registry import Domain

DOMAIN = Domain(name="rooms")
