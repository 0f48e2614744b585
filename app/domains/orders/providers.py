"""What Jishi needs of a payment provider: the Protocol, and what goes in and out of it.

A provider is asked by calls that stand in `provider_calls` (payments.py makes them): never inside a SQL transaction, and again until it has
answered, with the same key. What becomes of money it says by webhook, late, twice, out of order or never.

Two implementations: sandbox.py, which pretends, and Stripe. payments.py knows which there are and chooses.
"""

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from app.core.settings import Settings
from app.domains.orders.rules import PaymentNotice
from app.domains.orders.tables import Payment, ProviderCall
from app.storage.work import Engines


class ProviderAway(Exception):
    """No answer, or one that says to come again. The call is repeated."""


class ProviderRefused(Exception):
    """A final no. The text is its reason, for the viewer or the team."""


class Taken(Struct, frozen=True, kw_only=True):
    """A provider's answer to a call."""

    reference: str  # its own id of the payment or refund
    client_secret: str = ""  # with which the viewer's app goes on; empty: there is nothing for the app to do
    state: str = "pending"  # of a refund; succeeded and failed are final


class PaymentProvider(Protocol):
    """Its methods raise ProviderAway or ProviderRefused; anything else is a bug."""

    name: str
    publishable_key: str  # for the viewer's app; empty: it needs none

    def method_of(self, asked: str) -> str:
        """The method that this asks for; empty is the provider's own choice. Raises AppError `bad_request` for one it does not know."""
        ...

    async def create(self, engines: Engines, call: ProviderCall) -> Taken:
        """Begins a payment. Again with the same call: the same payment."""
        ...

    async def refund(self, engines: Engines, call: ProviderCall, payment: Payment) -> Taken:
        """Sends a part of a payment back. Again with the same call: the same refund."""
        ...

    async def cancel(self, engines: Engines, call: ProviderCall, payment: Payment) -> Taken:
        """Ends a payment of an order that came to nothing. Again: no more happens. ProviderRefused: the money is on its way."""
        ...

    def read_notice(self, settings: Settings, headers: Mapping[str, str], body: bytes, *, now_ms: int) -> PaymentNotice:
        """What a webhook says. Raises AppError `unauthorized` unless its signature and time are right."""
        ...
