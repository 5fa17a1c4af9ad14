"""The site of the documentation in a real browser, light and dark."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.browser

WINDOWS = {"desktop, light": ("light", 1280), "phone, dark": ("dark", 390)}
"""Color schemes and widths in pixels, by their name."""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def build(folder: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Provide the address of the site, which one of the test processes builds for all."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "site"
    with (shared / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            build(shared / "unfinished")
            (shared / "unfinished").rename(folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    scheme, width = WINDOWS[request.param]
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("page", WINDOWS, indirect=True)
def test_the_first_page_shows_the_picture_of_its_color_scheme(site: str, page: Page) -> None:
    page.goto(f"{site}/")
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    expect(page.locator(f"img[src*='never-drop{'-dark' if dark else ''}.png']")).to_be_visible()
    expect(page.locator("article img:visible")).to_have_count(1)


@pytest.mark.parametrize(
    ("path", "page"),
    [
        *((path, window) for path in ("", "architecture") for window in WINDOWS),  # pages with pictures
        *((path, "phone, dark") for path in ("groups", "deployment/nginx", "reference/asgibus")),
        *(
            pytest.param(path, "desktop, light", marks=pytest.mark.long)
            for path in ("groups", "deployment/nginx", "reference/asgibus")
        ),
    ],
    indirect=["page"],
)
def test_a_page_is_accessible_and_fits_its_window(site: str, page: Page, path: str) -> None:
    page.goto(f"{site}/{path}/")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than its window"
    code = "nodes => nodes.filter(node => node.scrollWidth > node.clientWidth + 1).map(node => node.textContent)"
    assert page.locator("article pre > code").evaluate_all(code) == []
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
