"""RPC methods and REST routes of inventory."""

from app.core.registry import Domain

DOMAIN = Domain(name="inventory")
