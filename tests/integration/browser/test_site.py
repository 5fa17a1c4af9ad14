"""The site of the documentation in a real browser, light and dark."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from playwright.sync_api import Browser, Page, expect

ROOT = Path(__file__).resolve().parents[3]
CONTRAST = """(selector) => {
    const light = ([r, g, b]) => {
        const linear = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    };
    const rgb = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const behind = (node) => {
        const colour = rgb(getComputedStyle(node).backgroundColor);
        return colour.length < 4 || colour[3] > 0 ? colour : behind(node.parentElement);
    };
    return [...document.querySelectorAll(selector)].map((node) => {
        const [one, other] = [light(rgb(getComputedStyle(node).color)), light(behind(node))];
        return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    });
}"""

pytestmark = pytest.mark.browser


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, timeout=60)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


@pytest.fixture(params=["light", "dark"])
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme=request.param)
    yield context.new_page()
    context.close()


def test_the_first_page_fits_its_window_and_its_colours(site: str, page: Page) -> None:
    page.goto(f"{site}/")
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert page.locator("pre > code").first.evaluate("code => code.scrollWidth <= code.clientWidth + 1")
    expect(page.locator(f"img[src*='never-drop{'-dark' if dark else ''}.png']")).to_be_visible()
    expect(page.locator("article img:visible")).to_have_count(1)
    expect(page.get_by_role("dialog", name="Search")).to_have_count(1)


@pytest.mark.parametrize("path", ["groups", "deployment/nginx", "options", "security"])
def test_everything_can_be_read(site: str, page: Page, path: str) -> None:
    """WCAG 2.1, 1.4.3: a contrast of 4.5."""
    page.goto(f"{site}/{path}/")
    for selector in (
        "article p, article li, article td, article th",
        "article a:not(.headerlink)",
        "pre span",
        "nav a",
    ):
        ratios = page.evaluate(CONTRAST, selector)
        assert min(ratios, default=9) >= 4.5, selector
