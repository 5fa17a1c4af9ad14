"""Django's admin in a browser, and its static files from WhiteNoise."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect
from serving import Site

from support.processes import Processes

APP = Path(__file__).with_name("admin_app.py")


@pytest.fixture(scope="module")
def site(serve: Callable[..., Site], processes: Processes) -> Site:
    assert processes.start("prepare", [sys.executable, str(APP)], ready=None).wait(60) == 0
    return serve("admin_app:app")


def test_static_files(client: httpx.Client) -> None:
    page = client.get("/admin/login/").text
    path = re.search(r'href="(/static/admin/css/base\.\w+\.css)"', page)[1]
    plain = client.get(path, headers={"accept-encoding": "identity"})
    assert plain.headers["content-type"] == 'text/css; charset="utf-8"'
    assert "immutable" in plain.headers["cache-control"]
    assert len(plain.content) == int(plain.headers["content-length"]) > 10_000
    packed = client.get(path, headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content
    assert client.head(path, headers={"accept-encoding": "identity"}).headers["content-length"] == str(
        len(plain.content)
    )
    unchanged = client.get(path, headers={"if-modified-since": plain.headers["last-modified"]})
    assert unchanged.status_code == 304
    part = client.get(path, headers={"accept-encoding": "identity", "range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, plain.content[10:20])


def test_log_in_and_change_a_user(site: Site, page: Page) -> None:
    failed: list[str] = []
    page.on("response", lambda response: failed.append(response.url) if response.status >= 400 else None)
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(f"{site.url}/admin/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill("secret")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("link", name="Users").click()
    page.get_by_role("link", name="ann").click()
    page.get_by_label("First name").fill("Änne")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("was changed successfully")).to_be_visible()
    expect(page.locator("td.field-first_name", has_text="Änne")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_text("Logged out")).to_be_visible()
    assert not failed
