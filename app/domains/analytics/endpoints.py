"""RPC methods and REST routes of analytics."""

from app.core.registry import Domain

DOMAIN = Domain(name="analytics")
