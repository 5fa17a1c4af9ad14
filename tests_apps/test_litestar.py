"""Litestar's kinds of WebSocket handlers, with a plain client and with a browser."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from playwright.sync_api import Page
from serving import Site
from websockets.sync.client import ClientConnection, connect

from support.deadline import wait_until

PATHS = ["/listener", "/shouting", "/stream/leaver", "/handler", "/rooms/leavers"]
OPEN = """(path) => new Promise((resolve) => {
    window.socket = new WebSocket(path);
    window.received = [];
    socket.onmessage = (event) => received.push(event.data);
    socket.onopen = () => resolve();
})"""
CLOSE = """(code) => new Promise((resolve) => {
    socket.onclose = (event) => resolve(event.code);
    code ? socket.close(code) : socket.close();
})"""


@pytest.fixture(scope="module")
def site(serve: Callable[..., Site]) -> Site:
    return serve("litestar_app:app")


@contextmanager
def ws(site: Site, path: str) -> Iterator[ClientConnection]:
    with connect(f"{site.ws_url}{path}", proxy=None) as socket:
        yield socket


def test_a_listener(site: Site) -> None:
    with ws(site, "/listener") as socket:
        for number in range(10):
            socket.send(json.dumps({"number": number}))
            assert json.loads(socket.recv(15)) == {"got": {"number": number}}


def test_a_listener_as_a_class(site: Site) -> None:
    before = site.notes.count("shouting: left")
    with ws(site, "/shouting") as socket:
        socket.send("größer")
        assert socket.recv(15) == "GRÖSSER"
    wait_until(lambda: site.notes.count("shouting: left") == before + 1)


def test_a_stream(site: Site) -> None:
    with ws(site, "/stream/one") as socket:
        assert [json.loads(socket.recv(15)) for _ in range(5)] == [0, 1, 2, 3, 4]
    wait_until(lambda: "stream one ended" in site.notes)


def test_a_handler(site: Site) -> None:
    with ws(site, "/handler") as socket:
        socket.send(json.dumps({"a": 1}))
        assert json.loads(socket.recv(15)) == [{"a": 1}, {"a": 1}]


def test_channels_span_the_workers(site: Site, client: httpx.Client) -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(ws(site, "/rooms/lobby")) for _ in range(6)]
        wait_until(lambda: _all_receive(client, sockets))


def _all_receive(client: httpx.Client, sockets: list[ClientConnection]) -> bool:
    """Publish, and return whether all receive. Messages before a subscription are lost."""
    client.post("/publish/lobby", json={"text": "hello"}).raise_for_status()
    received = []
    for socket in sockets:
        try:
            received.append(json.loads(socket.recv(1)) == {"text": "hello"})
        except TimeoutError:
            received.append(False)
    return all(received)


@pytest.mark.parametrize("path", PATHS)
def test_a_client_loses_its_connection(site: Site, path: str) -> None:
    with ws(site, path) as socket:
        socket.ping().wait(15)
        socket.socket.shutdown(2)
    test_a_handler(site)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("code", [None, 1000, 4001])
def test_a_browser_closes_a_websocket(site: Site, page: Page, path: str, code: int | None) -> None:
    page.goto(site.url)
    page.evaluate(OPEN, path)
    if path not in {"/stream/leaver", "/rooms/leavers"}:  # these only send
        page.evaluate("socket.send(JSON.stringify({number: 1}))")
        page.wait_for_function("received.length")
    assert page.evaluate(CLOSE, code) == (code or 1005)


def test_a_browser_leaves_the_page(site: Site, page: Page) -> None:
    page.goto(site.url)
    page.evaluate(OPEN, "/stream/browser")
    page.wait_for_function("received.length > 5")
    page.goto("about:blank")
    wait_until(lambda: "stream browser ended" in site.notes)
