"""The documents in a real browser: no sideways scrolling on a phone, everything within reach of the keyboard, links that lead somewhere."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import DESKTOP, PHONE, OpenPage, assert_fits
from tests.browser.test_access import NAMELESS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

PAGES = ("/docs", "/docs/realtime", "/docs/connect", "/docs/reference")
# Links within the page whose target is not there.
DANGLING = """() => [...document.querySelectorAll('a[href^="#"]')].map((link) => link.getAttribute('href'))
  .filter((href) => href.length < 2 || !document.getElementById(decodeURIComponent(href.slice(1))))"""


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_documents_fit_and_their_links_hold(open_page: OpenPage, size: dict[str, int]) -> None:
    for path in PAGES:
        page = open_page(path, size=size)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
        assert_fits(page)
        assert page.evaluate(NAMELESS) == []
        assert page.evaluate(DANGLING) == []
        expect(page.locator("header [aria-current=page]")).to_have_count(1)


def test_a_request_is_found_and_opened_with_the_keyboard_alone(open_page: OpenPage) -> None:
    page = open_page("/docs/realtime")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    page.locator("a[href='#inventory']").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")  # what was jumped to is where the next Tab goes on
    reserve = page.locator("[id='inventory.reserve']")
    expect(reserve.locator("> summary")).to_be_focused()
    page.keyboard.press("Enter")
    expect(reserve.get_by_text('"quantity": 1').first).to_be_visible()
    expect(reserve.get_by_text("not enough left")).to_be_visible()
