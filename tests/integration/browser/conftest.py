"""The browser of these tests."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from support import chromium

TIMEOUT = 15_000  # milliseconds in which a page has to show the expected content
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Provide a headless Chromium without background requests.

    Its scope is the module: as long as playwright's sync API is open, no async test can run in this thread.
    """
    path = chromium.find()
    if path is None:
        pytest.skip(f"no Chromium: install the package `chromium`, or set {chromium.PATH_VARIABLE}")
    expect.set_options(timeout=TIMEOUT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser
        browser.close()
