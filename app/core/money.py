"""Money is an integer of minor units (fen, cent) beside an ISO 4217 code. Never a float."""

# Exponents that differ from 2; the codes that Jishi's users meet.
_EXPONENTS = {"JPY": 0, "KRW": 0, "VND": 0, "KWD": 3, "BHD": 3}

AMOUNT_MINOR_MAX = 10**12  # ten billion yuan: above it, it is a mistake; keeps sums exact in Lua's doubles (2**53)


def exponent_of(currency: str) -> int:
    """Digits after the point."""
    return _EXPONENTS.get(currency, 2)


def major_text(amount_minor: int, currency: str) -> str:
    """`major_text(1990, "CNY")` is `"19.90"`."""
    exponent = exponent_of(currency)
    sign = "-" if amount_minor < 0 else ""
    whole, rest = divmod(abs(amount_minor), 10**exponent)
    return f"{sign}{whole}" + (f".{rest:0{exponent}d}" if exponent else "")


def format_minor(amount_minor: int, currency: str) -> str:
    """`format_minor(1990, "CNY")` is `"CNY 19.90"`, for logs and command lines; clients format for their locale."""
    return f"{currency} {major_text(amount_minor, currency)}"
