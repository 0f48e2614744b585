"""Webhooks: which events there are, where they may be sent, how they are signed, when they are tried again. Pure.

Signatures follow Standard Webhooks: base64 of HMAC-SHA256 over `id.timestamp.body`, with the bytes behind `whsec_` as key.
"""

import base64
import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from app.protocol.events import (
    DisputeClosed,
    DisputeOpened,
    Event,
    OrderChanged,
    OrderPaid,
    RefundSettled,
    ReturnChanged,
    ReturnRequestedEvent,
    SessionEnded,
)

EVENT_TYPES: dict[str, str] = {
    "order.paid": "an order was paid",
    "order.shipped": "an order was handed to a carrier",
    "order.refunded": "money of an order went back; `refunded_minor` is the total so far",
    "refund.settled": "money that was sent back arrived, or could not: `state` is `succeeded` or `failed`",
    "order.delivered": "a shipped order arrived, or counts as arrived",
    "return.requested": "a viewer asks for the money of an order back",
    "return.changed": "a return request went on; `state` says where it stands",
    "dispute.opened": "a buyer asks the bank for the money back",
    "dispute.closed": "the bank has decided a dispute: `outcome` is `won` or `lost`",
    "session.ended": "a session ended; its report is ready",
}
TEST_EVENT = "webhook.test"

URL_CHARS_MAX = 500
SECRET_MARK = "whsec_"  # noqa: S105 - the public prefix of secrets, not one
SECRET_BYTES = 24
FIRST_DELAY_MS = 5_000
DELAY_MS_MAX = 3 * 3600 * 1000

_TUNNELS = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))


def webhook_event(event: Event) -> tuple[str, str] | None:
    """The webhook event that an event of the product amounts to, and the identity that makes a repeat of it harmless."""
    match event:
        case OrderPaid():
            return "order.paid", f"order.paid:{event.order}"
        case SessionEnded():
            return "session.ended", f"session.ended:{event.session}"
        case RefundSettled():
            return "refund.settled", f"refund.settled:{event.refund}"
        case ReturnRequestedEvent():
            return "return.requested", f"return.requested:{event.request}"
        case ReturnChanged():
            return "return.changed", f"return.changed:{event.request}:{event.state}"
        case OrderChanged(state="delivered") if event.refunded_minor == 0:
            return "order.delivered", f"order.delivered:{event.order}"
        case DisputeOpened():
            return "dispute.opened", f"dispute.opened:{event.dispute}"
        case DisputeClosed():
            return "dispute.closed", f"dispute.closed:{event.dispute}"
        case OrderChanged(state="shipped"):
            return "order.shipped", f"order.shipped:{event.order}:{event.carrier}:{event.tracking}"
        case OrderChanged() if event.refunded_minor > 0:
            return "order.refunded", f"order.refunded:{event.order}:{event.refunded_minor}"
        case _:
            return None


def url_fault(url: str, *, private_allowed: bool) -> str | None:
    """What is wrong with an endpoint's URL; None when it may be stored. The address behind it is checked at every delivery."""
    if len(url) > URL_CHARS_MAX or not url.isascii() or any(char.isspace() or not char.isprintable() for char in url):
        return f"at most {URL_CHARS_MAX} plain characters"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "not a URL"
    if parts.scheme != "https" and not (parts.scheme == "http" and private_allowed):
        return "must begin with https://"
    if not parts.hostname or port == 0:
        return "needs a host"
    if parts.username is not None or parts.password is not None or parts.fragment:
        return "must hold no user, password or fragment"
    if not private_allowed and _is_private_literal(parts.hostname):
        return "must not name a private or loopback address"
    return None


def _is_private_literal(host: str) -> bool:
    try:
        return not is_public_address(str(ipaddress.ip_address(host)))
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", ".local", ".internal"))


def is_public_address(text: str) -> bool:
    """Whether an address belongs to the open internet: not loopback, private, link-local, multicast, reserved, or a tunnel into such."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public_address(str(address.ipv4_mapped))
        if any(address in network for network in _TUNNELS):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def signature(secret: str, *, message_id: str, timestamp_s: int, body: bytes) -> str:
    """The value of the `webhook-signature` header."""
    key = base64.b64decode(secret.removeprefix(SECRET_MARK))
    digest = hmac.new(key, f"{message_id}.{timestamp_s}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def new_secret(random_bytes: bytes) -> str:
    return SECRET_MARK + base64.b64encode(random_bytes).decode()


def next_delay_ms(attempt: int, *, spread: float) -> int:
    """How long to wait after the `attempt`th failure (from 1). `spread` in [0, 1) parts the retries of what failed together by half."""
    delay = min(FIRST_DELAY_MS * 2 ** (attempt - 1), DELAY_MS_MAX)
    return int(delay * (0.75 + spread / 2))
