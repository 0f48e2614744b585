"""RPC methods and REST routes of chat."""

from app.core.registry import Domain
from app.domains.chat import store

assert store

DOMAIN = Domain(name="chat")
