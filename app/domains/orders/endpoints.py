"""RPC methods and REST routes of orders."""

from app.core.registry import Domain

DOMAIN = Domain(name="orders")
