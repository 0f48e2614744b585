"""RPC methods and REST routes of accounts."""

from app.core.registry import Domain

DOMAIN = Domain(name="accounts")
