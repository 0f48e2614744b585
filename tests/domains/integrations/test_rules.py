"""Signing, addresses and back-off, as tables."""

import base64

import pytest

from app.domains.integrations import rules
from app.protocol.events import (
    DisputeClosed,
    DisputeOpened,
    Event,
    OfferPinned,
    OrderChanged,
    OrderPaid,
    RefundSettled,
    ReturnChanged,
    SessionEnded,
)

AT = "2026-05-01T12:00:00.000Z"


def test_the_signature_is_that_of_the_published_vector() -> None:
    """Standard Webhooks' own example, so that receivers can use its libraries."""
    signed = rules.signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp_s=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_carries_its_bytes() -> None:
    secret = rules.new_secret(b"x" * rules.SECRET_BYTES)
    assert secret.startswith("whsec_")
    assert base64.b64decode(secret[6:]) == b"x" * 24


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("127.9.9.9", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),  # noqa: S104 - an address to refuse, nothing binds to it
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("nonsense", False),
        ("", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert rules.is_public_address(address) is public


@pytest.mark.parametrize(
    ("url", "fine", "fine_when_private_is_allowed"),
    [
        ("https://shop.example/hook", True, True),
        ("https://shop.example:8443/hook?a=1", True, True),
        ("http://shop.example/hook", False, True),
        ("https://127.0.0.1/hook", False, True),
        ("https://[::1]/hook", False, True),
        ("https://localhost/hook", False, True),
        ("https://db.internal/hook", False, True),
        ("https://10.0.0.1/hook", False, True),
        ("ftp://shop.example/", False, False),
        ("file:///etc/passwd", False, False),
        ("https:///hook", False, False),
        ("https://user@shop.example/", False, False),
        ("https://user:pass@shop.example/", False, False),
        ("https://shop.example/#part", False, False),
        ("https://shop.example/a b", False, False),
        ("https://shop.example/\r\nHost: evil", False, False),
        ("https://shop.example:99999/", False, False),
        ("https://[::1/", False, False),
        ("https://店.example/", False, False),
        ("", False, False),
        ("https://shop.example/" + "x" * 500, False, False),
    ],
)
def test_which_urls_may_be_stored(url: str, fine: bool, fine_when_private_is_allowed: bool) -> None:
    assert (rules.url_fault(url, private_allowed=False) is None) is fine
    assert (rules.url_fault(url, private_allowed=True) is None) is fine_when_private_is_allowed


PAID = OrderPaid(at=AT, order="o", session="s", offer="f", viewer="v", quantity=1, amount_minor=5, currency="CNY")


@pytest.mark.parametrize(
    ("event", "named"),
    [
        (PAID, ("order.paid", "order.paid:o")),
        (SessionEnded(at=AT, room="r", session="s"), ("session.ended", "session.ended:s")),
        (
            OrderChanged(at=AT, order="o", session="s", offer="f", state="shipped", carrier="SF", tracking="1"),
            ("order.shipped", "order.shipped:o:SF:1"),
        ),
        (
            OrderChanged(at=AT, order="o", session="s", offer="f", state="paid", refunded_minor=3),
            ("order.refunded", "order.refunded:o:3"),
        ),
        (OrderChanged(at=AT, order="o", session="s", offer="f", state="delivered"), ("order.delivered", "order.delivered:o")),
        (OrderChanged(at=AT, order="o", session="s", offer="f", state="cancelled"), None),
        (
            RefundSettled(at=AT, refund="r", order="o", state="failed", amount_minor=5, currency="CNY"),
            ("refund.settled", "refund.settled:r"),
        ),
        (ReturnChanged(at=AT, request="q", order="o", state="approved"), ("return.changed", "return.changed:q:approved")),
        (
            DisputeOpened(at=AT, dispute="d", order="o", amount_minor=5, currency="CNY", reason=""),
            ("dispute.opened", "dispute.opened:d"),
        ),
        (DisputeClosed(at=AT, dispute="d", order="o", outcome="won", amount_minor=5), ("dispute.closed", "dispute.closed:d")),
        (OfferPinned(at=AT, offer=None), None),
    ],
)
def test_which_events_are_passed_on(event: Event, named: tuple[str, str] | None) -> None:
    assert rules.webhook_event(event) == named


def test_the_wait_doubles_up_to_its_limit() -> None:
    assert [rules.next_delay_ms(attempt, spread=0.5) for attempt in (1, 2, 3, 12, 50)] == [5000, 10_000, 20_000, 10_240_000, 10_800_000]
    assert rules.next_delay_ms(1, spread=0.0) == 3750
    assert rules.next_delay_ms(1, spread=0.999) == 6247
