"""What a viewer does: come in, talk, buy, win. In a real browser, against the whole product."""

import re
from typing import Any

import httpx2
import pytest
import redis
from playwright.sync_api import Page, expect

from app.storage.embedded import Valkey
from tests.browser.conftest import DESKTOP, OpenPage, assert_fits, wait_joined
from tests.support.waiting import wait_until_sync

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

Place = dict[str, Any]


def offer_id(place: Place, name: str) -> str:
    return next(offer["id"] for offer in place["offers"] if offer["name"] == name)


def pin(rest: httpx2.Client, place: Place, name: str) -> str:
    offer = offer_id(place, name)
    assert rest.put(f"/rooms/{place['room']}/pin", json={"offer": offer}).status_code == 200
    return offer


def test_a_guest_comes_in_talks_buys_and_sees_that_it_is_paid(open_page: OpenPage, place: Place, rest: httpx2.Client) -> None:
    other = open_page(f"/r/{place['room']}", viewer="lin")
    wait_joined(other)
    page = open_page("/")
    page.get_by_role("link", name=re.compile("Watch and join|Tea hills live")).first.click()
    page.get_by_label("Your name").fill("Mei")
    page.get_by_role("button", name="Enter the room").click()
    wait_joined(page)
    assert_fits(page)

    other.get_by_label("Your message").fill("Is it this year's tea?")
    other.get_by_role("button", name="Send").click()
    line = page.get_by_role("listitem").filter(has_text="Is it this year's tea?")
    expect(line).to_have_count(1)
    expect(line).to_contain_text("Lin")

    pin(rest, place, "Longjing tea")
    pinned = page.locator("#pinned")
    expect(pinned).to_contain_text("Longjing tea")
    expect(pinned).to_contain_text("¥168.00")
    pinned.get_by_role("button").click()
    page.get_by_role("button", name="One more").click()
    expect(page.locator("dialog .sum .price")).to_have_text("¥336.00")
    page.get_by_role("button", name="Hold it for me").click()
    page.get_by_label("Recipient").fill("Wang Mei")
    expect(pinned).to_contain_text("48 of 50 left")
    page.get_by_role("button", name="Place the order").click()
    page.get_by_role("button", name="Pay ¥336.00").click()
    expect(page.get_by_role("heading", name="Paid – thank you!")).to_be_visible()
    expect(page.locator("#assertive")).to_have_text("Paid – thank you!")
    page.get_by_role("button", name="Back to the show").click()

    page.get_by_role("button", name="My orders").click()
    order = page.locator("article.order")
    expect(order).to_have_count(1)
    expect(order).to_contain_text("Longjing tea × 2")
    expect(order).to_have_attribute("data-state", "paid")
    row = rest.get(f"/orders/{order.get_attribute('data-order')}").json()
    assert (row["state"], row["quantity"], row["amount_minor"], row["address"]["name"]) == ("paid", 2, 33600, "Wang Mei")


def test_buying_needs_no_mouse(open_page: OpenPage, place: Place, rest: httpx2.Client) -> None:
    page = open_page(f"/r/{place['room']}", viewer="keyboard")
    wait_joined(page)
    pin(rest, place, "Navel oranges")
    expect(page.locator("#pinned")).to_contain_text("Navel oranges")
    focus_by_tab(page, "#pinned button")
    for step in ("hold", "address", "pay"):
        page.keyboard.press("Enter")
        expect(page.locator(f".steps li:nth-child({('hold', 'address', 'pay').index(step) + 1})")).to_have_attribute("aria-current", "step")
        expect(page.locator("dialog button[type=submit]")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Paid – thank you!")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    expect(page.locator("#pinned button")).to_be_focused()  # back to where it began


def focus_by_tab(page: Page, selector: str) -> None:
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement?.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached by the Tab key")


def test_a_declined_payment_leaves_the_order_to_be_paid_in_another_way(open_page: OpenPage, place: Place) -> None:
    page = open_page(f"/r/{place['room']}", viewer="declined", size=DESKTOP)
    wait_joined(page)
    page.get_by_role("button", name="Buy: Free-range eggs").click()
    page.get_by_role("button", name="Hold it for me").click()
    page.get_by_role("button", name="Place the order").click()
    page.get_by_label(re.compile("Empty card")).check()
    page.get_by_role("button", name=re.compile("^Pay")).click()
    expect(page.get_by_text(re.compile("The payment provider said no"))).to_be_visible()
    page.get_by_role("button", name="Try again").click()
    page.get_by_label(re.compile("Village bank")).check()
    page.get_by_role("button", name=re.compile("^Pay")).click()
    expect(page.get_by_role("heading", name="Paid – thank you!")).to_be_visible()


def test_a_quick_hand_sees_the_orders_and_not_that_it_was_too_fast(open_page: OpenPage, place: Place) -> None:
    """More looks than a viewer may ask for in a second: the page waits, and asks again."""
    page = open_page(f"/r/{place['room']}", viewer="quick", size=DESKTOP)
    wait_joined(page)
    for _ in range(8):
        page.locator("#open-orders").click()
        page.keyboard.press("Escape")
    page.locator("#open-orders").click()
    expect(page.locator("dialog")).to_contain_text("No orders yet.")


def test_closing_the_sheet_gives_the_hold_back(open_page: OpenPage, place: Place) -> None:
    first = open_page(f"/r/{place['room']}", viewer="first", size=DESKTOP)
    second = open_page(f"/r/{place['room']}", viewer="second", size=DESKTOP)
    wait_joined(first)
    wait_joined(second)
    honey = second.locator(f"[data-buy='{offer_id(place, 'Linden honey')}']")
    first.get_by_role("button", name="Buy: Linden honey").click()
    first.get_by_role("button", name="Hold it for me").click()
    expect(honey).to_have_text("Sold out")
    expect(honey).to_have_attribute("aria-disabled", "true")
    first.keyboard.press("Escape")
    expect(honey).to_have_text("Buy")


def test_a_word_in_the_chat_buys_and_a_line_hands_on_what_comes_back(open_page: OpenPage, place: Place, rest: httpx2.Client) -> None:
    draft = {"name": "Rice wine", "price_minor": 8800, "total": 1, "limit_per_viewer": 1, "selling_policy": "waitlist", "keyword": "wine"}
    assert rest.post(f"/sessions/{place['session']}/offers", json=draft).status_code == 201
    first = open_page(f"/r/{place['room']}", viewer="quick", size=DESKTOP)
    second = open_page(f"/r/{place['room']}", viewer="patient", size=DESKTOP)
    wait_joined(first)
    wait_joined(second)
    expect(first.get_by_text("Write “wine” in the chat to buy it")).to_be_visible()
    first.get_by_label("Your message").fill("WINE")
    first.get_by_role("button", name="Send").click()
    expect(first.get_by_role("button", name="Place the order")).to_be_visible()
    second.get_by_role("button", name="Stand in line: Rice wine").click()
    second.get_by_role("button", name="Hold it for me").click()
    second.get_by_role("dialog").get_by_role("button", name="Stand in line").click()
    expect(second.get_by_role("heading", name="You stand in line")).to_be_visible()
    second.get_by_role("button", name="Back to the show, keep my place").click()
    first.keyboard.press("Escape")
    expect(second.locator("#assertive")).to_have_text("It is your turn: Rice wine")
    expect(second.get_by_role("button", name="Place the order")).to_be_visible()
    second.reload()  # what is held for the viewer is still there
    expect(second.locator("#assertive")).to_have_text("It is your turn: Rice wine")
    second.get_by_role("button", name="Place the order").click()
    expect(second.get_by_role("button", name=re.compile("^Pay"))).to_be_visible()
    second.reload()  # and is an order now
    wait_joined(second)
    second.get_by_role("button", name="My orders").click()
    expect(second.locator("article.order")).to_contain_text("Rice wine")
    expect(second.get_by_role("button", name="Place the order")).to_have_count(0)


def lose_the_keys_of_entries(product: Any, room: str, draw: str) -> None:
    """The engine has lost something: the page enters again by itself, with the key that it had, and all is as it was."""
    key, entrants = f"{{{room}}}:sessions", f"{{{room}}}:draw:{draw}:entrants"
    with redis.Redis.from_url(Valkey(product.data_dir).url) as engine:
        ((viewer, before),) = engine.hgetall(entrants).items()  # type: ignore[union-attr]  # redis-py's reply, or a promise of it
        engine.delete(entrants)
        engine.hset(key, mapping={"life": "another", "lost": "1"})
        wait_until_sync(lambda: engine.hget(entrants, viewer) == before, what="the page has entered again")


def test_a_draw_and_an_envelope_reach_the_viewers(open_page: OpenPage, product: Any, place: Place, rest: httpx2.Client) -> None:
    room, session = place["room"], place["session"]
    winner = open_page(f"/r/{room}", viewer="winner")
    guest = open_page(f"/r/{room}")
    guest.get_by_label("Your name").fill("Passer-by")
    guest.keyboard.press("Enter")
    wait_joined(winner)
    wait_joined(guest)
    assert rest.post(f"/rooms/{room}/wallet/deposits", json={"amount_minor": 5000, "reference": "test"}).status_code == 200
    prize = {"kind": "money", "name": "20 yuan", "count": 1, "amount_minor": 2000}
    draw = {"title": "Harvest draw", "condition": "keyword", "keyword": "Spring", "prizes": [prize], "duration_s": None}
    opened = rest.post(f"/sessions/{session}/draws", json=draw).json()
    winner.get_by_role("button", name=re.compile("Harvest draw")).click()
    winner.get_by_label("The word of this draw").fill("autumn")
    winner.get_by_role("button", name="Enter the draw").click()
    expect(winner.get_by_text("Not quite: check the word.").first).to_be_visible()
    winner.get_by_label("The word of this draw").fill("spring")
    winner.get_by_role("button", name="Enter the draw").click()
    expect(winner.get_by_text("You are in. Good luck!").first).to_be_visible()
    lose_the_keys_of_entries(product, room, opened["id"])
    assert rest.post(f"/draws/{opened['id']}/close").status_code == 200
    expect(winner.locator("dialog").get_by_text("You won: 20 yuan!")).to_be_visible()
    winner.get_by_role("button", name="Back to the show").click()
    guest.get_by_role("button", name=re.compile("Harvest draw")).click()
    expect(guest.locator(".winner")).to_contain_text("20 yuan")
    guest.keyboard.press("Escape")

    envelope = {"title": "The village treats you", "mode": "equal", "total_minor": 1000, "count": 2}
    assert rest.post(f"/sessions/{session}/envelopes", json=envelope).status_code == 201
    winner.get_by_role("button", name=re.compile("The village treats you")).click()
    winner.get_by_role("button", name="Open", exact=True).click()
    expect(winner.locator(".amount")).to_have_text("¥5.00")
    winner.keyboard.press("Escape")
    winner.get_by_role("button", name="My orders").click()
    expect(winner.locator(".wallet-line")).to_contain_text("¥25.00")
    guest.get_by_role("button", name=re.compile("The village treats you")).click()
    guest.get_by_role("button", name="Open", exact=True).click()
    expect(guest.locator("#assertive")).to_have_text(re.compile("Guests cannot take part"))


def test_what_the_show_is_doing_stands_on_the_stage(open_page: OpenPage, product: Any, rest: httpx2.Client) -> None:
    own = product.open_room("A short show", ["Rice:4990:10"])
    page = open_page(f"/r/{own['room']}", viewer="patient")
    wait_joined(page)
    assert rest.post(f"/sessions/{own['session']}/interrupt", json={"reason": "the village network is down"}).status_code == 200
    expect(page.locator("#curtain")).to_contain_text("the village network is down")
    assert rest.post(f"/sessions/{own['session']}/resume").status_code == 200
    expect(page.locator("#curtain")).to_be_hidden()
    assert rest.post(f"/sessions/{own['session']}/end").status_code == 200
    expect(page.locator("#curtain")).to_contain_text("Thank you for watching")
    page.get_by_label("Your message").fill("bye")
    page.keyboard.press("Enter")
    expect(page.locator("#chat-hint")).to_have_text("The chat is closed: the show is not live.")


def test_the_page_speaks_chinese(open_page: OpenPage, place: Place) -> None:
    page = open_page(f"/r/{place['room']}", viewer="xiaowang", locale="zh-CN")
    wait_joined(page)
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    expect(page.get_by_label("您的消息")).to_have_attribute("placeholder", "说点什么…")
    page.get_by_role("button", name=re.compile("English")).click()
    expect(page.get_by_label("Your message")).to_be_visible()
    page.get_by_role("button", name=re.compile("中文")).click()
    expect(page.get_by_label("您的消息")).to_be_visible()


def test_a_room_that_is_not_there_says_so(open_page: OpenPage, product: Any) -> None:
    assert httpx2.get(f"{product.url}/r/not%20a%20room").status_code == 404
    page = open_page("/r/nowhere00")
    expect(page.get_by_role("heading", level=1)).to_have_text("There is no such room")
