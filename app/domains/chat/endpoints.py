"""RPC methods and REST routes of chat."""

from app.core.registry import Domain

DOMAIN = Domain(name="chat")
