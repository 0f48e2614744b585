"""What a host's team does in the console, and that the viewers see it."""

import re
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import DESKTOP, OpenPage, assert_fits, wait_joined

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]


def test_a_host_signs_in_prices_pins_and_draws(open_page: OpenPage, product: Any, rest: httpx2.Client) -> None:
    place = product.open_room("Mei's tea", ["Longjing tea:16800:50", "Rice:4990:10"])
    room = place["room"]
    body = {"login": f"mei-{room}", "password": "tea-and-honey-2026", "name": "Mei", "roles": [f"host@{room}"]}
    assert rest.post("/staff", json=body).status_code == 201
    assert rest.post(f"/rooms/{room}/wallet/deposits", json={"amount_minor": 10_000, "reference": room}).status_code == 200
    viewer = open_page(f"/r/{room}", viewer="lin")
    wait_joined(viewer)

    host = open_page("/host", size=DESKTOP)
    host.get_by_label("Login").fill(body["login"])
    host.get_by_label("Password").fill("wrong")
    host.get_by_role("button", name="Sign in", exact=True).click()
    expect(host.get_by_text("Login or password is wrong.")).to_be_visible()
    host.get_by_label("Password").fill(body["password"])
    host.get_by_role("button", name="Sign in", exact=True).click()
    expect(host.get_by_role("heading", name="Mei's tea").first).to_be_visible()

    host.get_by_role("tab", name="Shelf").click()
    host.get_by_role("button", name="Pin: Longjing tea").click()
    expect(viewer.locator("#pinned")).to_contain_text("Longjing tea")
    expect(host.get_by_role("button", name="Unpin: Longjing tea")).to_be_visible()
    host.get_by_role("button", name="Price: Longjing tea").click()
    host.get_by_label("Price CNY").fill("one hundred")
    host.get_by_role("button", name="Save").click()
    expect(host.get_by_text("Write an amount such as 19.90.")).to_be_visible()
    host.get_by_label("Price CNY").fill("148.5")
    host.get_by_role("button", name="Save").click()
    expect(viewer.locator("#pinned .price")).to_have_text("¥148.50")
    host.get_by_role("button", name="Top up: Longjing tea").click()
    host.get_by_label("Units to add").fill("25")
    host.get_by_role("button", name="Add", exact=True).click()
    expect(viewer.locator("#pinned")).to_contain_text("75 of 75 left")
    host.get_by_role("button", name="Quick offer").click()
    host.get_by_label("Name").fill("Wild honey")
    host.locator("dialog").get_by_label("Price", exact=False).first.fill("59")
    host.get_by_role("button", name="Add", exact=True).click()
    expect(host.get_by_role("heading", name="Wild honey")).to_be_visible()

    host.get_by_role("tab", name="Draws & envelopes").click()
    host.get_by_role("button", name="Open a draw").click()
    host.get_by_label("Title").fill("Thank-you draw")
    host.get_by_label("Amount of each CNY").fill("10")
    host.get_by_role("button", name="Open a draw").last.click()
    viewer.get_by_role("button", name=re.compile("Thank-you draw")).click()
    viewer.get_by_role("button", name="Enter the draw").click()
    expect(viewer.get_by_text("You are in. Good luck!").first).to_be_visible()
    host.get_by_role("button", name="Close and draw").click()
    expect(viewer.locator("dialog").get_by_text("You won: ¥10.00!")).to_be_visible()
    expect(host.locator("[data-draw]")).to_contain_text("Winners: L")
    host.get_by_role("button", name="Send an envelope").click()
    host.get_by_role("button", name="Fund and open").click()
    expect(viewer.locator(".game.envelope")).to_contain_text("20 of 20 left")
    expect(host.locator("#panel-games .big")).to_have_text("¥70.00")


def test_a_moderator_reviews_mutes_slows_and_pins_a_notice(open_page: OpenPage, place: dict[str, Any], rest: httpx2.Client) -> None:
    room = place["room"]
    assert rest.put(f"/rooms/{room}/chat/words", json={"words": ["fake tea"]}).status_code == 200
    viewer = open_page(f"/r/{room}", viewer="rude")
    other = open_page(f"/r/{room}", viewer="calm")
    host = open_page("/host", staff=place["host_token"], size=DESKTOP)
    wait_joined(viewer)
    wait_joined(other)
    expect(host.locator("#panel-chat #speak")).to_be_visible()

    def say(text: str) -> None:
        viewer.get_by_label("Your message").fill(text)
        viewer.keyboard.press("Enter")

    say("this is fake tea")
    expect(viewer.locator("#chat-hint")).to_have_text(re.compile("A moderator will look"))
    host.get_by_role("button", name="Let it through").click()
    expect(other.locator("#lines")).to_contain_text("this is fake tea")
    say("an ugly word")
    line = host.locator(".line").filter(has_text="an ugly word")
    line.get_by_role("button", name="Delete: Rude").click()
    expect(other.locator("#lines")).not_to_contain_text("an ugly word")
    say("and another")
    host.locator(".line").filter(has_text="and another").get_by_role("button", name="Mute: Rude").click()
    host.get_by_label("Reason").fill("be kind")
    host.get_by_role("button", name="Mute", exact=True).click()
    expect(viewer.locator("#chat-hint")).to_have_text(re.compile("You have been muted. be kind"))
    say("still here")
    expect(viewer.locator("#chat-hint")).to_have_text("You are muted in this room for now.")

    host.get_by_role("button", name="Notice").click()
    host.get_by_label("Text of the notice").fill("Spoiled fruit is replaced.")
    host.get_by_role("button", name="Save").click()
    expect(other.locator("#notice")).to_have_text("Spoiled fruit is replaced.")
    host.get_by_label("Slow mode").select_option("5")
    expect(other.get_by_label("Your message")).to_have_attribute("placeholder", "Slow mode: one message every 5 s")
    host.get_by_label("Slow mode").select_option("0")
    expect(other.get_by_label("Your message")).to_have_attribute("placeholder", "Say something…")


def test_a_show_from_checklist_to_report_on_a_phone(open_page: OpenPage, product: Any, rest: httpx2.Client, signer: Any) -> None:
    made = rest.post("/rooms", json={"title": "Phone show", "host_name": "Mei"}).json()
    room = made["id"]
    token = signer.token("host-mei", "Mei", roles=(f"host@{room}",))
    host = open_page("/host", staff=token)
    host.get_by_role("button", name="New session").click()
    host.get_by_label("Title").fill("Spring, day 1")
    host.get_by_role("button", name="Add", exact=True).click()
    expect(host.get_by_text("Put an offer on the shelf.")).to_be_visible()
    host.get_by_role("tab", name="Shelf").click()
    host.get_by_role("button", name="Quick offer").click()
    host.get_by_label("Name").fill("Rice")
    host.locator("dialog").get_by_label("Price", exact=False).first.fill("49.90")
    host.get_by_role("button", name="Add", exact=True).click()
    expect(host.get_by_role("heading", name="Rice")).to_be_visible()
    host.get_by_role("tab", name="Show").click()
    host.get_by_role("button", name="Add a cue").click()
    host.get_by_label("Title").fill("Now the rice")
    host.get_by_label("Offer").select_option(label="Rice")
    host.get_by_role("button", name="Add", exact=True).click()
    host.get_by_role("button", name="Go live").click()
    expect(host.locator("#session-badge")).to_have_text("Live")
    viewer = open_page(f"/r/{room}", viewer="lin")
    wait_joined(viewer)
    host.get_by_role("button", name="Next: Now the rice").click()
    expect(viewer.locator("#pinned")).to_contain_text("Rice")
    for name in ("Shelf", "Draws & envelopes", "Orders", "Figures", "Chat", "Show"):
        host.get_by_role("tab", name=name).click()
        assert_fits(host)

    viewer.locator("#pinned button").click()
    viewer.get_by_role("button", name="Hold it for me").click()
    viewer.get_by_role("button", name="Place the order").click()
    viewer.get_by_role("button", name=re.compile("^Pay")).click()
    expect(viewer.get_by_role("heading", name="Paid – thank you!")).to_be_visible()
    expect(host.locator("[data-figure=gmv] b")).to_have_text("¥49.90")
    host.get_by_role("tab", name="Orders").click()
    host.get_by_role("button", name="Reload").click()
    host.get_by_role("button", name="Ship").click()
    host.get_by_label("Tracking number").fill("SF123")
    host.get_by_role("button", name="Ship").last.click()
    expect(host.locator("#panel-orders article")).to_have_attribute("data-state", "shipped")
    after_sale(host, viewer, room)
    host.get_by_role("tab", name="Show").click()
    host.get_by_role("button", name="End the show").click()
    host.get_by_role("button", name="End the show").last.click()
    expect(viewer.locator("#curtain")).to_contain_text("Thank you for watching")
    host.get_by_role("link", name="Report").first.click()
    expect(host.get_by_role("heading", name="Spring, day 1")).to_be_visible()
    expect(host.locator(".headline")).to_contain_text("¥49.90")
    assert_fits(host)


def after_sale(host: Page, viewer: Page, room: str) -> None:
    """The orders as a file; the parcel arrived, something is wrong with it, and the money goes back."""
    with host.expect_download() as download:
        host.get_by_role("button", name="CSV file").click()
    assert download.value.suggested_filename == f"orders-{room}.csv"
    assert "SF123" in download.value.path().read_text("utf-8-sig")
    viewer.get_by_role("button", name="Back to the show").click()
    viewer.locator("#open-orders").click()
    viewer.get_by_role("button", name="It has arrived").click()
    expect(viewer.locator("dialog article")).to_have_attribute("data-state", "delivered")
    viewer.get_by_role("button", name="Return or refund").click()
    viewer.get_by_label("Reason").select_option(label="Damaged")
    viewer.get_by_label("What you would like").select_option(label="Refund only")
    viewer.get_by_label("What happened").fill("The bag was torn")
    viewer.get_by_role("button", name="Send the request").click()
    expect(viewer.locator("dialog [data-request]")).to_have_attribute("data-state", "requested")
    assert_fits(viewer)
    request = host.locator("#panel-orders article[data-request]")
    expect(request).to_contain_text("The bag was torn")
    assert_fits(host)
    request.get_by_role("button", name="Approve").click()
    host.locator("dialog").get_by_role("button", name="Approve").click()
    expect(host.locator("#panel-orders article[data-order]")).to_have_attribute("data-state", "refunded")
    expect(viewer.locator("dialog article")).to_have_attribute("data-state", "refunded")
    viewer.keyboard.press("Escape")
