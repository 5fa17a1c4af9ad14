"""NiceGUI in browsers: a page lives in the process that has made it, to which a cookie leads."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, Page, expect
from serving import Site


@pytest.fixture(scope="module")
def site(serve: Callable[..., Site]) -> Site:
    return serve("nicegui_app:app", affinity=("sticky:place",))


@pytest.fixture(scope="module")
def together(serve: Callable[..., Site]) -> Site:
    """Provide a site whose browsers all have one key, so that they share what is in the process."""
    return serve("nicegui_app:app", affinity=("header:Host",))


def test_a_button(site: Site, page: Page) -> None:
    page.goto(site.url)
    for number in range(1, 6):
        page.get_by_role("button", name="Count").click()
        expect(page.get_by_text(str(number), exact=True)).to_be_visible()


def test_many_browsers(site: Site, browser: Browser) -> None:
    pages = [browser.new_page() for _ in range(6)]  # each with cookies of its own
    for page in pages:
        page.goto(site.url)
    for page in pages:
        page.get_by_role("button", name="Count").click()
    for page in pages:
        expect(page.get_by_text("1", exact=True)).to_be_visible()
        page.context.close()


def test_a_message_reaches_all_browsers(together: Site, browser: Browser) -> None:
    """Messages are in a list of the process. The other worker stands by."""
    pages = [browser.new_page() for _ in range(5)]
    for page in pages:
        page.goto(together.url)
    pages[0].get_by_label("Message").fill("grüß dich")
    pages[0].get_by_role("button", name="Say").click()
    for page in pages:
        expect(page.get_by_text("grüß dich")).to_be_visible()
        page.context.close()


def test_an_upload(site: Site, page: Page) -> None:
    page.goto(site.url)
    content = b"x" * 3_000_000
    page.locator("input[type=file]").set_input_files([{"name": "a.bin", "mimeType": "text/plain", "buffer": content}])
    expect(page.get_by_text("got a.bin")).to_be_visible()
