"""The EventSource of a real browser follows a stream while processes are killed, and stops at the end."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, expect

from support.deadline import wait_until
from support.processes import Process
from support.viewers import Writing

pytestmark = [pytest.mark.browser, pytest.mark.timeout(60)]


def test_an_event_source_gets_every_entry_and_stops(
    start_interface: Callable[..., Process], start_worker: Callable[..., Process], redis_url: str, browser: Browser
) -> None:
    bus = ("--layer", redis_url)
    app = "end_to_end.streams_app:app"
    worker, interface = start_worker(app, *bus), start_interface(*bus)
    requests: list[str] = []
    page = browser.new_page()
    page.on("request", lambda request: requests.append(request.url))

    def numbers() -> list[int]:
        return [int(number) for number in page.locator("#numbers").inner_text().split()]

    with Writing(redis_url, "numbers") as writing:
        page.goto(f"{interface.url}/page/numbers")
        wait_until(lambda: len(numbers()) > 5, None, "entries")
        worker.kill()
        seen = len(numbers())
        wait_until(lambda: len(numbers()) > seen + 5, None, "entries without a worker")
        start_worker(app, *bus)
        interface.terminate()
        assert interface.wait() == 0
        interface = start_interface(*bus, "--port", interface.port)
        expect(page.locator("#log")).to_have_text("reconnects ")
        seen = len(numbers())
        wait_until(lambda: len(numbers()) > seen + 5, None, "entries from the next interface server")
    expect(page.locator("#log")).to_have_text("reconnects end reconnects closed ")
    assert numbers() == list(range(1, len(writing.offsets) + 1))
    assert len([url for url in requests if url == f"{interface.url}/numbers"]) == 3
    page.close()
