"""Who gets as far as the upgrade."""

import random

import pytest

from app.core.settings import Settings
from app.gateway.admission import Admission, Refusal, is_allowed_origin


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "expected"),
    [
        ("", "shop.example", "", True),
        ("https://shop.example", "shop.example", "", True),
        ("https://shop.example", "SHOP.example", "", True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", "", True),
        ("http://127.0.0.1:9000", "127.0.0.1:8000", "", False),
        ("https://evil.example", "shop.example", "", False),
        ("null", "shop.example", "", False),
        ("https://evil.example", "shop.example", "*", True),
        ("https://a.example", "shop.example", "https://a.example, https://b.example/", True),
        ("https://b.example", "shop.example", "https://a.example, https://b.example/", True),
        ("https://shop.example", "shop.example", "https://a.example", False),
        ("https://a.example.evil.example", "shop.example", "https://a.example", False),
    ],
)
def test_origin(origin: str, host: str, allowed: str, expected: bool) -> None:
    assert is_allowed_origin(origin, host, allowed) is expected


def admission(**settings: int) -> Admission:
    return Admission(Settings(**settings), now_ms=0, rng=random.Random(1))  # type: ignore[arg-type]


def ask(admission: Admission, **changed: object) -> Refusal | None:
    asked: dict[str, object] = {"origin": "", "host": "h", "connections": 0, "is_draining": False, "now_ms": 0}
    return admission.refusal(**(asked | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "status", "reason"),
    [
        ({"origin": "https://evil.example", "is_draining": True}, 403, "origin"),
        ({"is_draining": True}, 503, "draining"),
        ({"connections": 5}, 503, "connections"),
    ],
)
def test_refusals(changed: dict[str, object], status: int, reason: str) -> None:
    refusal = ask(admission(connections_max=5), **changed)
    assert refusal is not None
    assert (refusal.status, refusal.reason) == (status, reason)


def test_joins_above_the_rate_are_told_to_return_at_different_times() -> None:
    door = admission(joins_per_s=10)
    answers = [ask(door) for _ in range(60)]
    assert answers[:10] == [None] * 10
    refusals = [answer for answer in answers[10:] if answer is not None]
    assert {refusal.reason for refusal in refusals} == {"joins"}
    assert len(refusals) == 50
    assert {refusal.retry_after_s for refusal in refusals} == set(range(1, 11))
    assert ask(door, now_ms=100) is None
