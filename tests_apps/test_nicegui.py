"""NiceGUI in a browser: its pages live in the process, so there is one worker."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, Page, expect
from serving import Site


@pytest.fixture(scope="module")
def site(serve: Callable[..., Site]) -> Site:
    return serve("nicegui_app:app", workers=1)


def test_a_button(site: Site, page: Page) -> None:
    page.goto(site.url)
    for number in range(1, 6):
        page.get_by_role("button", name="Count").click()
        expect(page.get_by_text(str(number), exact=True)).to_be_visible()


def test_a_message_reaches_another_browser(site: Site, browser: Browser, page: Page) -> None:
    page.goto(site.url)
    other = browser.new_page()
    other.goto(site.url)
    other.get_by_label("Message").fill("grüß dich")
    other.get_by_role("button", name="Say").click()
    for each in (page, other):
        expect(each.get_by_text("grüß dich")).to_be_visible()
    other.close()


def test_an_upload(site: Site, page: Page) -> None:
    page.goto(site.url)
    content = b"x" * 3_000_000
    page.locator("input[type=file]").set_input_files([{"name": "a.bin", "mimeType": "text/plain", "buffer": content}])
    expect(page.get_by_text("got a.bin")).to_be_visible()
