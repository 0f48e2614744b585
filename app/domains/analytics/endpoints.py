"""REST routes of analytics."""

from app.core.registry import Domain
from app.domains.analytics import rules

assert rules

DOMAIN = Domain(name="analytics")
