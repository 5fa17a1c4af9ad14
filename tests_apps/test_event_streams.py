"""Event streams of other packages, unmodified, with the EventSource of a browser, while their workers are replaced."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page
from serving import Site

HERE = Path(__file__).parent
SOURCE = """() => {
    window.opened = 0, window.failed = 0, window.numbers = [];
    const source = new EventSource("/numbers");
    source.onopen = () => opened++;
    source.onerror = () => failed++;
    source.onmessage = (event) => numbers.push(Number(event.data));
}"""
EXPECTED = re.compile(
    r"is dead: |was declared dead|killed by SIGKILL"
)  # lines of a log about a worker that the test kills


@pytest.fixture
def resuming(serve: Callable[..., Site]) -> Iterator[Callable[..., Site]]:
    """Serve an app that resumes, with a supervisor of two workers. Their log may tell of a death."""
    sites = []

    def start(app: str) -> Site:
        sites.append(serve(app, "--resume", "--processes", 2, "--drain-period", 0.2, workers=1))
        return sites[-1]

    yield start
    for site in sites:
        for process in (site.server, *site.workers):
            complaints = re.findall(r"^.*\b(?:WARNING|ERROR|CRITICAL)\b.*|^Traceback.*", process.log(), re.MULTILINE)
            assert [line for line in complaints if not EXPECTED.search(line)] == []
            process.mark()  # the fixture `processes` looks at what follows


def replace_workers(site: Site, page: Page) -> list[int]:
    """Restart the workers one by one, then kill one after the other, and return the numbers that have arrived."""
    supervisor = site.workers[0]

    def more_numbers() -> None:
        page.wait_for_function("count => numbers.length >= count + 10", arg=page.evaluate("numbers.length"))

    page.goto(site.url)
    page.evaluate(SOURCE)
    page.wait_for_function("numbers.length >= 10")
    supervisor.send_signal(signal.SIGHUP)
    supervisor.wait_for("all processes are replaced")
    more_numbers()
    for pid in supervisor.children():
        os.kill(pid, signal.SIGKILL)
        more_numbers()
    assert "is dead: of its 1 connections here, 1 were offered to other workers" in site.server.log()
    assert page.evaluate("[opened, failed]") == [1, 0], "one connection"
    numbers: list[int] = page.evaluate("numbers")
    return numbers


@pytest.mark.parametrize("app", ["starlette_app", "fastapi_app", "litestar_app"])
def test_an_event_source_notices_nothing(resuming: Callable[..., Site], page: Page, app: str) -> None:
    numbers = replace_workers(resuming(f"numbers_apps:{app}"), page)
    assert numbers == list(range(1, len(numbers) + 1)), "every event once, in order"


def test_django_eventstream(resuming: Callable[..., Site], redis_url: str, page: Page) -> None:
    """Continue from the table of django-eventstream. It reads events twice that come meanwhile, on every server."""
    site = resuming("numbers_django_app:app")
    environment = {**os.environ, "PYTHONPATH": str(HERE), "REDIS_URL": redis_url}
    command = [sys.executable, "-P", "-m", "numbers_django_app"]
    publisher = subprocess.Popen(command, cwd=site.server.log_path.parent, env=environment, stdout=subprocess.PIPE)
    try:
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == b"publishing\n"
        numbers = [*dict.fromkeys(replace_workers(site, page))]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "every event, in order"
    finally:
        publisher.kill()
        publisher.communicate()
