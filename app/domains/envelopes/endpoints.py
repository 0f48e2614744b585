"""RPC methods and REST routes of envelopes."""

from app.core.registry import Domain

DOMAIN = Domain(name="envelopes")
