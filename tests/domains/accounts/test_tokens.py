"""Tokens of the shared secret are read by code of ours; PyJWT says whether it reads them right."""

import base64
import contextlib
import json
from typing import Any

import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.domains.accounts.tokens import _read_shared

SECRET = b"a secret of thirty-two bytes, or more"
HEADER = {"alg": "HS256", "typ": "JWT"}
CLAIMS = {"sub": "ann", "exp": 1_999_999_999, "info": {"name": "安"}, "roles": ["host@r1"]}


def segment(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(header: object, claims: object, *, secret: bytes = SECRET) -> str:
    """A good signature over whatever it is."""
    text = f"{segment(header)}.{segment(claims)}"
    return f"{text}.{segment(jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(text.encode(), secret))}"


def library(token: str) -> dict[str, Any] | None:
    options: Any = dict.fromkeys(("verify_exp", "verify_nbf", "verify_iat", "verify_jti", "verify_aud", "verify_sub", "verify_iss"), False)
    with contextlib.suppress(jwt.InvalidTokenError, ValueError):
        return jwt.decode(token, SECRET, algorithms=["HS256"], options=options)
    return None


def ours(token: str) -> dict[str, Any] | None:
    with contextlib.suppress(jwt.InvalidTokenError, ValueError):
        return _read_shared(token, SECRET)
    return None


def test_a_token_of_the_library_is_read_as_the_library_reads_it() -> None:
    token = jwt.encode(CLAIMS, SECRET, algorithm="HS256")
    assert ours(token) == library(token) == CLAIMS


@pytest.mark.parametrize(
    "token",
    [
        signed(HEADER, CLAIMS, secret=b"another secret of thirty-two bytes"),
        signed({"alg": "none"}, CLAIMS),
        f"{segment({'alg': 'none'})}.{segment(CLAIMS)}.",
        signed({"alg": "HS512"}, CLAIMS),
        signed({"alg": "RS256"}, CLAIMS),
        signed({"alg": ["HS256"]}, CLAIMS),
        signed({}, CLAIMS),
        signed([], CLAIMS),
        signed(HEADER | {"crit": ["exp"]}, CLAIMS),
        signed(HEADER | {"b64": False, "crit": ["b64"]}, CLAIMS),
        signed(HEADER, [CLAIMS]),
        signed(HEADER, b"{"),
        signed(HEADER, b"\xff"),
        signed(HEADER, b"[" * 5000),
        signed(HEADER, CLAIMS) + "=",
        signed(HEADER, CLAIMS) + ".",
        "." + signed(HEADER, CLAIMS),
        signed(HEADER, CLAIMS).rpartition(".")[0] + ".",
        signed(HEADER, CLAIMS).rpartition(".")[0],
        "",
        "..",
        "安.安.安",
        "\ud800.\ud800.\ud800",
    ],
)
def test_what_is_no_token_of_ours(token: str) -> None:
    assert ours(token) is None
    assert ours(signed(HEADER, CLAIMS)) == CLAIMS


@given(
    st.integers(min_value=0, max_value=2),
    st.integers(min_value=0),
    st.sampled_from(["drop", "double", "flip", "dot", "plus", "slash", "space", "newline", "pad"]),
)
@example(2, 0, "flip")
def test_a_bent_token_is_never_taken_for_what_the_library_would_not(part: int, at: int, how: str) -> None:
    parts = signed(HEADER, CLAIMS).split(".")
    text = parts[part]
    at %= len(text)
    flipped = "B" if text[at] == "A" else "A"
    middle = {
        "drop": "",
        "double": text[at] * 2,
        "flip": flipped,
        "dot": ".",
        "plus": "+",
        "slash": "/",
        "space": " ",
        "newline": "\n",
        "pad": "=",
    }
    parts[part] = text[:at] + middle[how] + text[at + 1 :]
    token = ".".join(parts)
    claims = ours(token)
    assert claims is None or claims == library(token)


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text())))
def test_any_claims_are_read_as_the_library_reads_them(claims: dict[str, Any]) -> None:
    token = signed(HEADER, claims)
    assert ours(token) in (library(token), None) if _has_surrogates(claims) else ours(token) == library(token)


def _has_surrogates(claims: dict[str, Any]) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in json.dumps(claims, ensure_ascii=False))
