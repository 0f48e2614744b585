"""RPC methods and REST routes of wallet."""

from app.core.registry import Domain

DOMAIN = Domain(name="wallet")
