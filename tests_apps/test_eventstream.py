"""django-eventstream over two workers, with httpx-sse and with the EventSource of a browser."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest
from httpx_sse import ServerSentEvent, connect_sse
from playwright.sync_api import Page
from serving import Site


@pytest.fixture(scope="module")
def site(serve: Callable[..., Site]) -> Site:
    return serve("eventstream_app:app")


def texts(events: Iterator[ServerSentEvent]) -> Iterator[str]:
    return (json.loads(event.data)["text"] for event in events if event.event == "message")


def test_published_events_reach_listeners_of_all_workers(client: httpx.Client) -> None:
    with ExitStack() as stack:
        listeners = []
        for _ in range(6):
            events = stack.enter_context(connect_sse(client, "GET", "/events/room/")).iter_sse()
            assert next(events).event == "stream-open"
            listeners.append(texts(events))
        for text in ("first", "grüß Gott", "last"):
            client.get("/publish/room", params={"text": text})
        for listener in listeners:
            assert [next(listener) for _ in range(3)] == ["first", "grüß Gott", "last"]


def test_an_event_source_in_a_browser(site: Site, client: httpx.Client, page: Page) -> None:
    page.goto(site.url)
    page.evaluate(
        """() => new Promise((resolve) => {
            window.received = [];
            const source = new EventSource("/events/browser/");
            source.onmessage = (event) => received.push(JSON.parse(event.data).text);
            source.addEventListener("stream-open", resolve);
        })"""
    )
    for text in ("a", "b", "ü"):
        client.get("/publish/browser", params={"text": text})
    page.wait_for_function("received.length === 3")
    assert page.evaluate("received") == ["a", "b", "ü"]
