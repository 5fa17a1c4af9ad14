"""Quart's WebSockets, with a plain client and with a browser."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page
from serving import Site
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from support.deadline import wait_until

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
    return serve("quart_app:app", workers=1)  # the chat is within the process


@contextmanager
def ws(site: Site, path: str) -> Iterator[ClientConnection]:
    with connect(f"{site.ws_url}{path}", proxy=None) as socket:
        yield socket


def test_text_and_bytes(site: Site) -> None:
    with ws(site, "/echo") as socket:
        for data in ("größer", b"\x00\xff" * 100_000, ""):
            socket.send(data)
            assert socket.recv(15) == data


def test_json(site: Site) -> None:
    with ws(site, "/json") as socket:
        socket.send(json.dumps({"a": 1}))
        assert json.loads(socket.recv(15)) == {"got": {"a": 1}}


def test_two_tasks_on_one_socket(site: Site) -> None:
    with ws(site, "/chat/ann") as ann:
        assert ann.recv(15) == "hello ann"
        with ws(site, "/chat/ben") as ben:
            assert ben.recv(15) == "hello ben"
            for number in range(10):
                ann.send(str(number))
            for socket in (ann, ben):
                assert [socket.recv(15) for _ in range(10)] == [f"ann: {number}" for number in range(10)]
        wait_until(lambda: "ben left" in site.notes)
    wait_until(lambda: "ann left" in site.notes)


def test_a_refusal_and_a_close(site: Site) -> None:
    with pytest.raises(InvalidStatus) as refused, ws(site, "/private"):
        pass
    assert refused.value.response.status_code == 401
    with ws(site, "/private?token=secret") as socket:
        assert socket.recv(15) == "welcome"
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(15)
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "that is all")


def test_a_client_loses_its_connection(site: Site) -> None:
    with ws(site, "/chat/breaks") as socket:
        assert socket.recv(15) == "hello breaks"
        socket.socket.shutdown(2)
    wait_until(lambda: "breaks left" in site.notes)


@pytest.mark.parametrize("code", [None, 1000, 4001])
def test_a_browser_closes_a_websocket(site: Site, page: Page, code: int | None) -> None:
    page.goto(site.url)
    page.evaluate(OPEN, f"/chat/browser{code}")
    page.wait_for_function("received.length")
    assert page.evaluate(CLOSE, code) == (code or 1005)
    wait_until(lambda: f"browser{code} left" in site.notes)


def test_a_browser_leaves_the_page(site: Site, page: Page) -> None:
    page.goto(site.url)
    page.evaluate(OPEN, "/chat/silent")
    page.wait_for_function("received.length")
    page.goto("about:blank")
    wait_until(lambda: "silent left" in site.notes)
