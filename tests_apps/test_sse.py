"""sse-starlette, with httpx-sse and with the EventSource of a browser."""

from collections.abc import Callable
from contextlib import suppress

import httpx
import pytest
from httpx_sse import connect_sse
from playwright.sync_api import Page
from serving import Site

from support.deadline import wait_until

LINES = "and a second line"


@pytest.fixture(scope="module")
def site(serve: Callable[..., Site]) -> Site:
    return serve("sse_app:app")


def test_events(client: httpx.Client) -> None:
    with connect_sse(client, "GET", "/count") as source:
        events = [(event.id, event.event, event.data, event.retry) for event in source.iter_sse()]
    assert events == [(str(number), "number", f"number {number}\n{LINES}", 100) for number in range(1, 6)]


def test_a_client_that_disconnects_ends_the_stream(site: Site, client: httpx.Client) -> None:
    with connect_sse(client, "GET", "/clock/leaver") as source:
        events = source.iter_sse()
        assert [next(events).data for _ in range(3)] == ["0", "1", "2"]
    wait_until(lambda: "leaver cleaned up" in site.notes)
    assert "leaver: http.disconnect" in site.notes


def test_a_deploy_ends_the_streams(serve: Callable[..., Site]) -> None:
    site = serve("sse_app:app", "--drain-period", "0.5", workers=1)
    with (
        httpx.Client(base_url=site.url, trust_env=False) as client,
        connect_sse(client, "GET", "/clock/deploy") as source,
        suppress(httpx.RemoteProtocolError),
    ):
        for event in source.iter_sse():
            if event.data == "0":
                site.workers[0].terminate()
    assert site.workers[0].wait() == 0  # a stream that was cut would be a warning in the log
    assert "deploy cleaned up" in site.notes


def test_an_event_source_in_a_browser_continues_after_its_last_event(site: Site, page: Page) -> None:
    page.goto(site.url)
    events = page.evaluate(
        """() => new Promise((resolve) => {
            const events = [];
            const source = new EventSource("/count");
            source.addEventListener("number", (event) => {
                events.push([event.lastEventId, event.data]);
                if (event.lastEventId === "10") { source.close(); resolve(events); }
            });
        })"""
    )
    assert events == [[str(number), f"number {number}\n{LINES}"] for number in range(1, 11)]


def test_a_browser_that_leaves_ends_the_stream(site: Site, page: Page) -> None:
    page.goto(site.url)
    page.evaluate(
        """() => new Promise((resolve) => {
            new EventSource("/clock/browser").onmessage = (event) => event.data === "3" && resolve();
        })"""
    )
    page.goto("about:blank")
    wait_until(lambda: "browser cleaned up" in site.notes)
