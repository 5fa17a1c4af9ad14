"""Tests of Django alone: the ORM, the admin site and its login, and CSRF."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from frameworks.matrix import Site
from support.websocket import ws

pytestmark = pytest.mark.needs("django")


def token(page: str) -> str:
    match = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
    assert match is not None
    return match[1]


@pytest.fixture
def admin(site: Site) -> Iterator[httpx.Client]:
    """Provide a browser, logged in through the form."""
    options: dict[str, Any] = {"trust_env": False, "follow_redirects": True, "timeout": 20}
    with httpx.Client(base_url=f"{site.server.url}/admin/", **options) as browser:
        page = browser.get("")
        assert page.url.path == "/admin/login/"
        fields = {"username": "admin", "password": "secret", "next": "/admin/"}
        assert browser.post("login/", data=fields).status_code == 403  # without its token
        wrong = browser.post("login/", data=fields | {"password": "wrong", "csrfmiddlewaretoken": token(page.text)})
        assert "Please enter the correct username and password" in wrong.text
        page = browser.post("login/", data=fields | {"csrfmiddlewaretoken": token(wrong.text)})
        assert page.url.path == "/admin/"
        assert "Site administration" in page.text
        yield browser


def test_the_admin(site: Site, admin: httpx.Client) -> None:
    room = f"admin-{site.setup}"
    page = admin.get("django_project/line/add/")
    fields = {"room": room, "text": "größer", "csrfmiddlewaretoken": token(page.text)}
    page = admin.post("django_project/line/add/", data=fields)
    assert page.url.path == "/admin/django_project/line/"
    assert "was added successfully" in page.text
    (style,) = re.findall(r'href="(/static/admin/css/base\.css)"', page.text)
    assert "--primary" in admin.get(f"{site.server.url}{style}").text
    assert site.client.get(f"/lines/{room}").json() == ["größer"]
    page = admin.post("logout/", data={"csrfmiddlewaretoken": token(page.text)})
    assert "Logged out" in page.text
    assert admin.get("").url.path == "/admin/login/"


def test_the_orm(site: Site) -> None:
    room = f"orm-{site.setup}"
    assert site.client.post(f"/lines/{room}", data={"text": "one"}).json() == ["one"]
    assert site.client.post(f"/lines/{room}", data={"text": "two"}).json() == ["one", "two"]


def test_a_post_without_a_token_is_rejected(site: Site) -> None:
    rejected = site.client.post("/protected", data={})
    assert rejected.status_code == 403
    assert "CSRF verification failed" in rejected.text


def test_websockets_are_rejected(site: Site) -> None:
    with pytest.raises(InvalidStatus) as rejected, ws(site.server, "/"):
        pass
    assert rejected.value.response.status_code == 500  # the view raises
