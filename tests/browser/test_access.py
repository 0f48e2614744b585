"""The pages for everybody: names for every control, contrast, no sideways scrolling, in light and dark."""

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import DESKTOP, PHONE, OpenPage, assert_fits, wait_joined

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

# Controls that a screen reader could only call “button” or “edit”.
NAMELESS = """() => {
  const seen = (node) => node.getClientRects().length > 0;
  const named = (node) => node.getAttribute('aria-label')?.trim() || node.textContent.trim() || node.title;
  const labelled = (node) => node.labels?.length > 0 || node.getAttribute('aria-label');
  return [
    ...[...document.querySelectorAll('button, a[href], [role=tab]')].filter((node) => seen(node) && !named(node)),
    ...[...document.querySelectorAll('input, select, textarea')].filter((node) => seen(node) && !labelled(node)),
  ].map((node) => node.outerHTML.slice(0, 160));
}"""

# Text whose contrast is below WCAG AA. Where a picture or a gradient lies behind, there is no one colour to compare with: left out.
FAINT = """() => {
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = ([r, g, b, a], [x, y, z]) => [r * a + x * (1 - a), g * a + y * (1 - a), b * a + z * (1 - a)];
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (colour) => [0.2126, 0.7152, 0.0722].reduce((sum, share, at) => sum + share * linear(colour[at] / 255), 0);
  const ground = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      if (style.backgroundImage !== 'none' || at.matches('.phone, .welcome')) return null;
      const colour = parse(style.backgroundColor);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] === 1) break;
    }
    if (layers.length === 0) return null;
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const faint = [];
  for (const node of document.querySelectorAll('body *')) {
    const text = [...node.childNodes].filter((child) => child.nodeType === 3).map((child) => child.textContent.trim()).join(' ').trim();
    if (!text || node.getClientRects().length === 0 || node.closest('.unseen, svg, option, [aria-disabled=true]')) continue;
    const below = ground(node);
    if (!below) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(over(parse(style.color), below)), light(below)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < least) faint.push(`${contrast.toFixed(2)} ${style.color} on ${below.map(Math.round)}: ${text.slice(0, 40)}`);
  }
  return faint;
}"""


def assert_usable(page: Page) -> None:
    assert_fits(page)
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(FAINT) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_page_is_usable(open_page: OpenPage, place: dict[str, Any], size: dict[str, int], scheme: str) -> None:
    lobby = open_page("/", size=size, scheme=scheme)
    expect(lobby.get_by_role("link", name="Tea hills live").first).to_be_visible()
    assert_usable(lobby)

    viewer = open_page(f"/r/{place['room']}", viewer="reader", size=size, scheme=scheme)
    wait_joined(viewer)
    assert_usable(viewer)
    viewer.get_by_role("button", name="My orders").click()
    expect(viewer.get_by_text("No orders yet.")).to_be_visible()
    assert_usable(viewer)
    viewer.keyboard.press("Escape")
    expect(viewer.get_by_role("button", name="My orders")).to_be_focused()

    door = open_page("/host", size=size, scheme=scheme)
    expect(door.get_by_role("heading", name="Sign in")).to_be_visible()
    assert_usable(door)

    host = open_page("/host", staff=place["host_token"], size=size, scheme=scheme)
    expect(host.get_by_role("tab", name="Show")).to_be_visible()
    for name in ("Shelf", "Draws & envelopes", "Orders", "Figures", "Show"):
        host.get_by_role("tab", name=name).click()
        assert_usable(host)


def test_landmarks_and_one_heading(open_page: OpenPage, place: dict[str, Any]) -> None:
    viewer = open_page(f"/r/{place['room']}", viewer="reader")
    wait_joined(viewer)
    pages = (open_page("/"), viewer, open_page("/host", staff=place["host_token"]))
    for page in pages:
        expect(page.get_by_role("main")).to_have_count(1)
        expect(page.get_by_role("heading", level=1)).to_have_count(1)


def test_tabs_follow_the_arrow_keys(open_page: OpenPage, place: dict[str, Any]) -> None:
    host = open_page("/host", staff=place["host_token"], size=DESKTOP)
    host.get_by_role("tab", name="Show").focus()
    host.keyboard.press("ArrowRight")
    expect(host.get_by_role("tab", name="Shelf")).to_be_focused()
    expect(host.locator("#panel-shelf")).to_be_visible()
    host.keyboard.press("End")
    expect(host.get_by_role("tab", name="Figures")).to_have_attribute("aria-selected", "true")
    host.keyboard.press("ArrowRight")
    expect(host.get_by_role("tab", name="Show")).to_be_focused()
