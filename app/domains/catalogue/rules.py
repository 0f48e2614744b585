"""What may stand on a shelf, at which price, and how an offer's state may change. Pure.

Money is in minor units. A limit that is None does not bind.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from typing import TypedDict

from app.core.money import AMOUNT_MINOR_MAX

STOCK_MAX = 10_000_000  # units of one offer: above it, it is a mistake
LIMIT_UNITS_MAX = 999  # what one `inventory.reserve` may ask for
KEYWORD_CHARS_MAX = 20
PRICE_STEPS_MAX = 20  # of one offer, those to come
OFFERS_PER_SESSION_MAX = 200  # a snapshot carries all of them to every viewer
CURRENCIES = frozenset({"CNY", "USD", "EUR", "GBP", "HKD", "JPY", "KRW", "SGD", "MYR", "THB", "VND", "KWD", "BHD"})


class OfferState(StrEnum):
    LISTED = "listed"  # on the shelf, for sale within its window
    PAUSED = "paused"  # on the shelf, not for sale for now
    WITHDRAWN = "withdrawn"  # taken off for good; orders that exist stand


class ReturnPolicy(StrEnum):
    NO_REASON_7_DAYS = "no_reason_7_days"
    FRESH_NO_RETURN = "fresh_no_return"  # fresh produce is exempt from no-reason returns; the buyer confirms it at purchase


class SellingPolicy(StrEnum):
    """When stock is taken for a viewer. Set when the offer is listed, for good: holds that run were promised something."""

    HOLD = "hold"  # at once, until a deadline
    WAITLIST = "waitlist"  # as `hold`, and what comes back goes to who waits in line
    FIRST_PAID = "first_paid"  # when the payment is in; whoever pays after the last unit gets the money back


class PriceStep(TypedDict):
    """From this moment of the engine's clock on, this price. Kept in the offer until it was taken."""

    at_ms: int
    price_minor: int


class PriceDecision(StrEnum):
    CHANGE = "change"
    SAME = "same"
    INVALID = "invalid"
    OVER_LIMIT = "over_limit"


_NEXT_STATES: dict[OfferState, frozenset[OfferState]] = {
    OfferState.LISTED: frozenset({OfferState.PAUSED, OfferState.WITHDRAWN}),
    OfferState.PAUSED: frozenset({OfferState.LISTED, OfferState.WITHDRAWN}),
    OfferState.WITHDRAWN: frozenset(),
}


def decide_price_change(
    new_minor: int, *, price_minor: int, price_min_minor: int | None, price_max_minor: int | None, limits_bind: bool
) -> PriceDecision:
    """Checked in this order: is it a price at all, is it a change, is it delegated. `limits_bind` is False for an operator."""
    if not 0 <= new_minor <= AMOUNT_MINOR_MAX:
        return PriceDecision.INVALID
    if new_minor == price_minor:
        return PriceDecision.SAME
    if limits_bind and not _within(new_minor, price_min_minor, price_max_minor):
        return PriceDecision.OVER_LIMIT
    return PriceDecision.CHANGE


def _within(value: int, low: int | None, high: int | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def lowest_price(list_price_minor: int, price_min_minor: int | None, discount_percent_max: int | None) -> int | None:
    """What is delegated: not below the lowest price, nor further below the list price than so many per cent (rounded up)."""
    if discount_percent_max is None:
        return price_min_minor
    return max(price_min_minor or 0, -(-list_price_minor * (100 - discount_percent_max) // 100))


def offer_may_become(state: str, new_state: str) -> bool:
    """Whether an offer may go from one state to another. Staying where it is counts as no step, and is refused."""
    return OfferState(new_state) in _NEXT_STATES[OfferState(state)]


def steps_after(steps: Sequence[PriceStep], now_ms: int) -> list[PriceStep]:
    return [step for step in steps if step["at_ms"] > now_ms]


def price_at(price_minor: int, steps: Sequence[PriceStep], now_ms: int) -> int:
    """The price that holds now: of the last step that is due."""
    due = [step["price_minor"] for step in steps if step["at_ms"] <= now_ms]
    return due[-1] if due else price_minor


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferTerms:
    """What an offer asks and promises."""

    name: str
    currency: str
    price_minor: int
    list_price_minor: int
    total: int
    limit_per_viewer: int
    limit_per_order: int
    price_min_minor: int | None
    price_max_minor: int | None
    total_max: int | None
    discount_percent_max: int | None
    price_steps: Sequence[PriceStep]
    opens_at: datetime | None
    closes_at: datetime | None
    return_policy: str
    selling_policy: str
    keyword: str


def problems_of_terms(terms: OfferTerms) -> list[str]:
    """What is wrong with an offer's terms, one sentence each; empty when they can stand on a shelf."""
    price, low, high = terms.price_minor, terms.price_min_minor, terms.price_max_minor
    least = lowest_price(terms.list_price_minor, None, terms.discount_percent_max)
    checks = (
        (bool(terms.name.strip()) and len(terms.name) <= 120, "name: give the offer a name of at most 120 characters"),
        (terms.currency in CURRENCIES, f"currency: {terms.currency!r} is not an ISO 4217 code that this product knows"),
        (0 <= price <= AMOUNT_MINOR_MAX, "price_minor: a price is between 0 and 10^12 minor units"),
        (price <= terms.list_price_minor <= AMOUNT_MINOR_MAX, "list_price_minor: the list price cannot be below the price"),
        (0 <= terms.total <= STOCK_MAX, f"total: stock is between 0 and {STOCK_MAX} units"),
        (0 <= terms.limit_per_viewer <= LIMIT_UNITS_MAX, f"limit_per_viewer: 0 (no limit) to {LIMIT_UNITS_MAX}"),
        (0 <= terms.limit_per_order <= LIMIT_UNITS_MAX, f"limit_per_order: 0 (no limit) to {LIMIT_UNITS_MAX}"),
        (_limits_in_order(low, high), "price_min_minor, price_max_minor: the lower limit is above the upper one"),
        (_within(price, low, high), "price_minor: outside the limits price_min_minor, price_max_minor"),
        (terms.total_max is None or terms.total <= terms.total_max, "total: above the limit total_max"),
        (0 <= (terms.discount_percent_max or 0) <= 100, "discount_percent_max: 0 to 100"),
        (least is None or price >= least, f"price_minor: more than {terms.discount_percent_max} % off the list price"),
        (not (problem := _problem_of_steps(terms)), f"price_steps: {problem}"),
        (not (problem := _problem_of_keyword(terms.keyword)), f"keyword: {problem}"),
        (window_is_valid(terms.opens_at, terms.closes_at), "closes_at: the window closes before it opens"),
        (terms.selling_policy in set(SellingPolicy), f"selling_policy: one of {', '.join(SellingPolicy)}"),
        (
            terms.selling_policy != SellingPolicy.WAITLIST or terms.limit_per_viewer > 0,
            "limit_per_viewer: an offer with a waiting line needs one, or one viewer could fill the line",
        ),
        (terms.return_policy in set(ReturnPolicy), f"return_policy: one of {', '.join(ReturnPolicy)}"),
    )
    return [text for ok, text in checks if not ok]


def _problem_of_steps(terms: OfferTerms) -> str:
    steps = terms.price_steps
    if len(steps) > PRICE_STEPS_MAX:
        return f"at most {PRICE_STEPS_MAX}"
    if any(first["at_ms"] >= second["at_ms"] for first, second in pairwise(steps)):
        return "put them in the order of their times, each later than the one before"
    prices = [step["price_minor"] for step in steps]
    if not all(0 <= price <= terms.list_price_minor for price in prices):
        return "each price is between 0 and the list price; raise the list price first"
    least = lowest_price(terms.list_price_minor, terms.price_min_minor, terms.discount_percent_max)
    if not all(_within(price, least, terms.price_max_minor) for price in prices):
        return "a price is outside the limits price_min_minor, price_max_minor, discount_percent_max"
    return ""


def _limits_in_order(low: int | None, high: int | None) -> bool:
    return low is None or high is None or 0 <= low <= high


def window_is_valid(opens_at: datetime | None, closes_at: datetime | None) -> bool:
    return opens_at is None or closes_at is None or opens_at < closes_at


def problem_of_top_up(add: int, total: int) -> str:
    """Why this many units cannot be added; empty when they can. Stock is only ever added: what is missing is written off elsewhere."""
    if add <= 0:
        return "add: give a number of units above 0; stock cannot be taken away here"
    if total + add > STOCK_MAX:
        return f"add: the total would be above {STOCK_MAX} units"
    return ""


# --- buying by a word in the chat ---------------------------------------------------------------------------------------------------

_UNITS = r"(?: ?\+ ?| )(?P<units>[0-9]{1,3})"
_PURCHASE = re.compile(rf"(?P<keyword>.+?)(?:{_UNITS})?")
_ENDS_IN_UNITS = re.compile(rf".*{_UNITS}")


def fold_keyword(text: str) -> str:
    """One form for all ways to write a keyword: full-width or not, in whatever case, with however many spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def find_purchase(line: str, keywords: Mapping[str, str]) -> tuple[str, int] | None:
    """Offer and quantity, if the whole line is a keyword (folded -> offer), alone or with a number: `honey`, `honey 2`, `honey+2`."""
    if not keywords or len(line) > KEYWORD_CHARS_MAX * 2:
        return None
    match = _PURCHASE.fullmatch(fold_keyword(line))
    offer_id = keywords.get(match["keyword"]) if match else None
    quantity = int(match["units"] or 1) if match else 0
    return (offer_id, quantity) if offer_id and quantity else None


def _problem_of_keyword(keyword: str) -> str:
    folded = fold_keyword(keyword)
    if keyword and (not folded or not keyword.isprintable() or len(folded) > KEYWORD_CHARS_MAX):
        return f"a word or a few that can be seen, at most {KEYWORD_CHARS_MAX} characters"
    if _ENDS_IN_UNITS.fullmatch(folded):
        return "it must not end like a quantity (`tea 2`, `tea+2`): that is what viewers add to it"
    return ""
