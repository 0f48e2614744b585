"""RPC methods and REST routes of integrations."""

from app.core.registry import Domain

DOMAIN = Domain(name="integrations")
