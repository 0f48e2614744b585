"""The pages in a real Chromium, against a whole product in processes of its own.

Every page that a test opens is watched: an error in its console (a script that failed, a text that is missing, a violation of the content
security policy) fails the test, whatever else it looked at.
"""

import shutil
from collections.abc import Callable, Generator
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, expect, sync_playwright

from app.core.settings import Settings
from app.demo.__main__ import Signer
from loadtests.product import Product, running_product

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"]
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 800}
OFFERS = ["Longjing tea:16800:50:3", "Navel oranges:4990:40", "Linden honey:5900:1", "Free-range eggs:3900:30"]

OpenPage = Callable[..., Page]

expect.set_options(timeout=15_000)


@pytest.fixture(scope="session")
def product() -> Generator[Product]:
    with running_product(web=1, environment={"JISHI_SANDBOX_PAYMENT_DELAY_MS": "100", "JISHI_DRAIN_S": "1"}) as product:
        yield product


@pytest.fixture(scope="session")
def signer(product: Product) -> Signer:
    return Signer(Settings(token_secret=product.secret))  # type: ignore[arg-type]  # pydantic wraps it


# For the package and no longer: Playwright's synchronous face keeps an event loop running in this thread, in which no other test could
# run one of its own.
@pytest.fixture(scope="package")
def playwright() -> Generator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="package")
def browser(playwright: Playwright) -> Generator[Browser]:
    path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if path is None:
        pytest.fail("browser tests need Chromium: `apt-get install chromium` (or put one of " + ", ".join(CHROMIUM) + " on the PATH)")
    browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def place(product: Product) -> dict[str, Any]:
    """A live room with OFFERS, as `jishi room open` prints it, shared by the tests that leave it live."""
    return product.open_room("Tea hills live", OFFERS)


@pytest.fixture
def rest(product: Product, signer: Signer) -> Generator[httpx2.Client]:
    """The REST control panel, as an operator."""
    headers = {"Authorization": f"Bearer {signer.token('operator', 'Operator', roles=('operator',))}"}
    with httpx2.Client(base_url=f"{product.url}/api/v1", headers=headers, timeout=15) as client:
        yield client


@pytest.fixture
def open_page(browser: Browser, product: Product, signer: Signer) -> Generator[OpenPage]:
    """`open_page("/r/x", viewer="mei")` opens a page in a browser context of its own; `viewer` or `staff` (a token) come in signed in."""
    complaints: list[str] = []
    contexts = []

    def open_page(
        path: str, *, viewer: str = "", staff: str = "", size: dict[str, int] = PHONE, locale: str = "en-GB", scheme: str = "light"
    ) -> Page:
        context = browser.new_context(
            base_url=product.url,
            viewport=size,
            locale=locale,
            color_scheme=scheme,
            reduced_motion="reduce",  # type: ignore[arg-type]
        )
        contexts.append(context)
        tokens = {"jishi.viewer_token": viewer and signer.token(viewer, viewer.title()), "jishi.staff_token": staff}
        for name, token in tokens.items():
            if token:
                context.add_init_script(f"sessionStorage.setItem({name!r}, {token!r})")
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if is_complaint(message) else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def is_complaint(message: ConsoleMessage) -> bool:
    """A refusal by REST is logged by the browser too; the page explains it, and a test looks at that."""
    refused = message.text.startswith("Failed to load resource") and "/api/v1/" in message.location["url"]
    return message.type == "error" and not refused


def wait_joined(page: Page) -> None:
    """Until the page has its connection."""
    expect(page.locator("body")).to_have_attribute("data-connection", "connected")


def assert_fits(page: Page) -> None:
    """No page scrolls sideways."""
    wide, room = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= room, f"{page.url} is {wide} px wide in a window of {room}"
