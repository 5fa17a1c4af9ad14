"""Workers stop while clients are connected: the apps end in time, and their log stays clean."""

import json
from collections.abc import Callable
from contextlib import ExitStack

import httpx
import pytest
from httpx_sse import connect_sse
from playwright.sync_api import Page, expect
from serving import Site
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

OPTIONS = ("--drain-period", "0.5")


def stop(site: Site) -> None:
    for worker in site.workers:
        worker.terminate()
    for worker in site.workers:
        assert worker.wait() == 0  # a request that was cut would be a warning in the log


def test_gradio(serve: Callable[..., Site], page: Page) -> None:
    site = serve("gradio_app:app", *OPTIONS, workers=1, env={"GRADIO_ANALYTICS_ENABLED": "False"})
    page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(site.url) else route.abort())
    page.goto(site.url)
    page.get_by_label("Name").fill("Ben")
    page.get_by_role("button", name="Greet").click()
    expect(page.get_by_label("Greeting")).to_have_value("Hello Ben!")
    stop(site)


def test_nicegui(serve: Callable[..., Site], page: Page) -> None:
    site = serve("nicegui_app:app", *OPTIONS, workers=1)
    page.goto(site.url)
    page.get_by_role("button", name="Count").click()
    expect(page.get_by_text("1", exact=True)).to_be_visible()
    stop(site)


@pytest.mark.parametrize("protocol", ["graphql-transport-ws", "graphql-ws"])
def test_strawberry(serve: Callable[..., Site], protocol: str) -> None:
    site = serve("strawberry_app:app", *OPTIONS)
    begin = {"graphql-transport-ws": "subscribe", "graphql-ws": "start"}[protocol]
    with connect(site.ws_url, subprotocols=[protocol], proxy=None) as socket:
        socket.send(json.dumps({"type": "connection_init"}))
        query = 'subscription { clock(name: "stopped") }'
        socket.send(json.dumps({"type": begin, "id": "1", "payload": {"query": query}}))
        while json.loads(socket.recv(15)).get("payload", {}) != {"data": {"clock": 5}}:
            pass
        stop(site)
        with pytest.raises(ConnectionClosed) as closed:
            while socket.recv(15):
                pass
        assert closed.value.rcvd.code == 1012
    assert "stopped ended" in site.notes


def test_mcp(serve: Callable[..., Site]) -> None:
    site = serve("mcp_app:app", *OPTIONS, workers=1, env={"MCP_MODE": "events"})
    with httpx.Client(base_url=site.url, trust_env=False) as client, connect_sse(client, "GET", "/sse") as source:
        events = source.iter_sse()
        assert next(events).event == "endpoint"
        stop(site)


def test_eventstream(serve: Callable[..., Site]) -> None:
    site = serve("eventstream_app:app", *OPTIONS)
    with httpx.Client(base_url=site.url, trust_env=False) as client, connect_sse(client, "GET", "/events/a/") as source:
        events = source.iter_sse()
        assert next(events).event == "stream-open"
        stop(site)


def test_litestar(serve: Callable[..., Site]) -> None:
    site = serve("litestar_app:app", *OPTIONS)
    with ExitStack() as stack:
        for path in ("/listener", "/shouting", "/stream/stopped", "/handler", "/rooms/lobby"):
            stack.enter_context(connect(f"{site.ws_url}{path}", proxy=None))
        stop(site)


def test_quart(serve: Callable[..., Site]) -> None:
    site = serve("quart_app:app", *OPTIONS, workers=1)
    with ExitStack() as stack:
        for path in ("/echo", "/json", "/chat/stopped"):
            stack.enter_context(connect(f"{site.ws_url}{path}", proxy=None))
        stop(site)


def test_socketio(serve: Callable[..., Site]) -> None:
    site = serve("socketio_app:app", *OPTIONS)
    with connect(f"{site.ws_url}/socket.io/?EIO=4&transport=websocket", proxy=None) as socket:
        assert socket.recv(15).startswith("0")
        socket.send("40")
        assert socket.recv(15).startswith("40")
        stop(site)
