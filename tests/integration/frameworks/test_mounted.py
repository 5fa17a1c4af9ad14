"""The apps below a root path that a proxy has removed, in the debug mode of their framework."""

import json

import httpx
import pytest

from frameworks.matrix import MOUNT, Site, Sites
from support.websocket import ws


def test_the_app_gets_the_root_path(mounted: Site, sites: Sites) -> None:
    ours, theirs = (
        httpx.get(f"{site.server.url}/", headers={"host": "test"}, trust_env=False).json()
        for site in (mounted, sites.get("uvicorn", mounted=True))
    )
    assert ours["root_path"] == MOUNT
    assert ours == theirs


@pytest.mark.needs("static")
def test_static_files_below_the_root_path(mounted: Site) -> None:
    status = 404 if mounted.has("project") else 200  # Django's handler compares the path with the mount and all
    assert mounted.client.get("/static/hello.txt").status_code == status


def test_links_include_the_root_path(mounted: Site) -> None:
    location = mounted.client.get("/old").headers["location"].removeprefix(mounted.server.url)
    assert location == f"{MOUNT}/%C3%A4pfel/gr%C3%BCn?q=%C3%BC"
    assert mounted.client.get(location.removeprefix(MOUNT)).json() == {"name": "grün", "q": "ü"}


@pytest.mark.needs("websocket")
def test_a_websocket_below_the_root_path(mounted: Site) -> None:
    with ws(mounted.server, "/talk/x") as socket:
        assert json.loads(socket.recv(5))["name"] == "x"
        socket.send("abc")
        assert socket.recv(5) == "cba"


@pytest.mark.needs("debug")
def test_debug_error_pages(mounted: Site) -> None:
    for accept in ("text/html", "*/*"):
        failed = httpx.get(f"{mounted.server.url}/error", headers={"accept": accept}, trust_env=False)
        assert failed.status_code == 500
        assert "ArithmeticError" in failed.text
        assert "as asked" in failed.text
