"""RPC methods and REST routes of lottery."""

from app.core.registry import Domain

DOMAIN = Domain(name="lottery")
