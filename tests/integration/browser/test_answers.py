"""The answers example in a real browser: an answer is whole or says why not, whatever is reloaded or killed."""

import os
import re
import runpy
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from support.deadline import wait_until
from support.processes import Process, Processes

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "answers"
SCREENSHOTS = ROOT / "screenshots"
DESKTOP = {"viewport": {"width": 1100, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 780}, "is_mobile": True, "has_touch": True}
QUESTION = "How do you get to me?"
MODEL = """
import asyncio
from pathlib import Path

from text import TOKEN, answer_to

ALLOWED = Path(__file__).with_name("allowed")


async def tokens(question):
    for number, token in enumerate(TOKEN.findall(answer_to(question))):
        await asyncio.sleep(0.001)
        while number >= int(ALLOWED.read_text() or 0):
            await asyncio.sleep(0.01)
        yield token
"""
"""The model of the example, which goes on only as far as the test allows."""

pytestmark = [pytest.mark.browser, pytest.mark.redis]


class Site:
    """The example, in a folder of its own."""

    def __init__(self, processes: Processes, folder: Path, *bus: str) -> None:
        self._processes = processes
        self._folder = folder
        self._bus = ("--app-dir", str(folder), *bus)
        shutil.copytree(EXAMPLE, folder)
        (folder / "model.py").rename(folder / "text.py")
        (folder / "model.py").write_text(MODEL)
        text = runpy.run_path(str(folder / "text.py"))
        self._tokens: list[str] = text["TOKEN"].findall(text["answer_to"](QUESTION))
        self.url = ""
        self.allow(0)

    def allow(self, tokens: int | None = None) -> None:
        """Have the writers go on until they have written so many tokens of an answer, or all."""
        (self._folder / "allowed").write_text(str(len(self._tokens) if tokens is None else tokens))

    def text(self, tokens: int | None = None) -> str:
        """Return the first tokens of the answer, or all."""
        return "".join(self._tokens[:tokens])

    def start_interface(self, port: int = 0) -> Process:
        interface = self._processes.start_interface("--host", "127.0.0.1", "--port", port, *self._bus)
        self.url = interface.url
        return interface

    def start_worker(self) -> Process:
        return self._processes.start_worker("app:app", *self._bus, "--resume")

    def start_writer(self, *options: object) -> Process:
        return self._processes.start_worker("writer:app", "--channel", "answers", *self._bus, *options)


@dataclass
class Reader:
    """A browser window that shows an answer."""

    page: Page
    site: Site

    def ask(self) -> str:
        """Ask the question on the start page, and return the address of its answer."""
        self.page.goto(self.site.url)
        self.page.get_by_label("Question").fill(QUESTION)
        self.page.keyboard.press("Enter")
        expect(self.page.locator("#question")).to_have_text(QUESTION)
        return self.page.url

    def ask_again(self) -> None:
        self.page.get_by_role("button", name="Ask again").click()

    def open(self, address: str) -> None:
        self.page.goto(address)

    def stop(self) -> None:
        with self.page.expect_response("**/stop"):
            self.page.get_by_role("button", name="Stop").click()

    def writer(self) -> int:
        """Return the process that writes the answer."""
        return int(self.page.locator("#status", has_text="by process").inner_text().rpartition(" ")[2])

    def text(self) -> str:
        return self.page.locator("#text").text_content() or ""

    def expect_tokens(self, tokens: int) -> None:
        """Expect the first tokens of the answer, and no others."""
        expected = self.site.text(tokens)
        wait_until(lambda: self.text() == expected, what=f"the first {tokens} tokens of the answer")

    def expect_whole(self) -> None:
        self.expect_status("Complete")
        assert self.text() == self.site.text()

    def expect_status(self, text: str | re.Pattern[str]) -> None:
        expect(self.page.locator("#status")).to_contain_text(text)

    def expect_note(self, text: str) -> None:
        expect(self.page.locator("#note:visible")).to_contain_text(text)

    def expect_no_note(self) -> None:
        expect(self.page.locator("#note")).to_be_hidden()

    def screenshot(self, name: str) -> None:
        """Take a screenshot, and expect that everybody can use the page."""
        found = Axe().run(self.page)
        assert found.violations_count == 0, found.generate_report()
        self.page.screenshot(path=SCREENSHOTS / f"answers-{name}.png", animations="disabled")


@pytest.fixture(scope="module")
def shared_site(shared_redis_url: str, shared_processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Provide the example running, for tests that stop none of its processes."""
    site = Site(shared_processes, tmp_path_factory.mktemp("answers") / "app", "--layer", shared_redis_url)
    site.start_worker()
    site.start_writer()
    site.start_interface()
    return site


@pytest.fixture
def site(shared_redis_url: str, processes: Processes, tmp_path: Path) -> Site:
    """Provide the example; the test starts its processes, and may kill them."""
    return Site(processes, tmp_path / "app", "--layer", shared_redis_url, "--prefix", tmp_path.name)


@pytest.fixture
def reader(browser: Browser) -> Iterator[Callable[..., Reader]]:
    """Open a window of its own: `reader(site, **window)`. A script error in any of them fails the test."""
    contexts, errors = [], []

    def open_window(site: Site, **window: Any) -> Reader:
        context = browser.new_context(**(DESKTOP | window))
        contexts.append(context)
        page = context.new_page()
        # Playwright sets an attribute on a handler, which a method of a list does not have.
        page.on("pageerror", lambda error: errors.append(error))  # noqa: PLW0108
        return Reader(page, site)

    yield open_window
    for context in contexts:
        context.close()
    assert not errors


def test_a_reload_a_second_tab_and_another_device_show_the_same(
    shared_site: Site, reader: Callable[..., Reader]
) -> None:
    shared_site.allow(100)
    ada = reader(shared_site, color_scheme="light")
    ada.page.goto(shared_site.url)
    ada.screenshot("start")
    address = ada.ask()
    ada.expect_tokens(100)
    ada.screenshot("desktop-light")

    ada.page.reload()
    tab = Reader(ada.page.context.new_page(), shared_site)
    device = reader(shared_site, color_scheme="dark", **PHONE)
    for one in (tab, device):
        one.open(address)
    readers = (ada, tab, device)
    for one in readers:
        one.expect_tokens(100)
    device.screenshot("phone-dark")
    shared_site.allow()
    for one in readers:
        one.expect_whole()
        one.expect_no_note()
        expect(one.page.locator("#question")).to_have_text(QUESTION)
        expect(one.page.get_by_role("button", name="Stop")).to_be_hidden()
    device.page.reload()
    device.expect_whole()


def test_an_answer_that_has_ended_is_not_asked_for_again(shared_site: Site, reader: Callable[..., Reader]) -> None:
    shared_site.allow()
    ada = reader(shared_site)
    answer = ada.ask().rpartition("/")[2]
    ada.expect_whole()
    statuses: list[int] = []
    ada.page.on("response", lambda response: statuses.append(response.status))
    # Not the page, which closes its EventSource at the end, but one that would go on for ever.
    states = ada.page.evaluate(
        """async (answer) => {
            const source = new EventSource(`answers/${answer}`), states = [];
            return new Promise((resolve) => {
                source.onerror = () => {
                    states.push(source.readyState);
                    if (source.readyState === EventSource.CLOSED) resolve(states);
                };
            });
        }""",
        answer,
    )
    assert states == [0, 2], "it connects again once, and then stops"
    assert statuses == [200, 204]


def test_the_stop_button_stops_the_answer_for_everybody(shared_site: Site, reader: Callable[..., Reader]) -> None:
    shared_site.allow(100)
    ada, device = reader(shared_site), reader(shared_site, **PHONE)
    address = ada.ask()
    device.open(address)
    device.expect_tokens(100)
    device.stop()
    shared_site.allow()
    for one in (ada, device):
        one.expect_status(re.compile(r"^Stopped after \d+ words: somebody pressed Stop"))
    assert ada.text() == device.text()
    assert shared_site.text().startswith(ada.text())
    assert len(ada.text()) < len(shared_site.text())
    device.screenshot("stopped")

    ada.ask_again()
    ada.expect_whole()
    assert ada.page.url != address
    device.page.reload()
    device.expect_status("Stopped after")


@pytest.mark.parametrize("answer", [f"1000000000-{'a' * 16}", "of-another-app", "a%20b"])
def test_an_answer_that_is_not_there_says_so(answer: str, shared_site: Site, reader: Callable[..., Reader]) -> None:
    ada = reader(shared_site)
    ada.open(f"{shared_site.url}/{answer}")
    ada.expect_status("not kept any more, or there never was one")
    ada.screenshot("gone")
    ada.page.get_by_role("link", name="asgibus answers").click()
    expect(ada.page.get_by_role("heading", name="Ask something.")).to_be_visible()


def test_a_question_that_is_too_long_gets_an_error(shared_site: Site, reader: Callable[..., Reader]) -> None:
    ada = reader(shared_site)
    ada.page.goto(shared_site.url)
    ada.page.evaluate("ask('x'.repeat(501))")
    expect(ada.page.get_by_role("alert")).to_have_text("The question was not taken.")


@pytest.mark.usefixtures("short_leases")
def test_an_answer_is_whole_while_all_processes_are_killed(site: Site, reader: Callable[..., Reader]) -> None:
    interface, worker = site.start_interface(), site.start_worker()
    writers = {writer.pid: writer for writer in (site.start_writer(), site.start_writer())}
    site.allow(100)
    ada, other = reader(site), reader(site, color_scheme="dark")
    readers = (ada, other)
    other.open(ada.ask())
    for one in readers:
        one.expect_tokens(100)

    worker.kill()  # nothing needs it any more
    site.allow(150)
    for one in readers:
        one.expect_tokens(150)
        one.expect_no_note()

    first = ada.writer()
    writers[first].kill()
    for one in readers:
        one.expect_note("Another one has begun the answer anew")
        one.expect_tokens(150)
    assert ada.writer() != first
    ada.screenshot("begun-anew")

    interface.kill()
    interface.wait()
    expect(ada.page.locator("#state")).to_have_text("Reconnecting …")
    site.start_worker()
    site.start_interface(port=interface.port)
    site.allow()
    for one in readers:
        one.expect_whole()


@pytest.mark.usefixtures("short_leases")
def test_an_answer_whose_writer_is_gone_says_so(site: Site, reader: Callable[..., Reader]) -> None:
    site.start_interface()
    site.start_worker()
    writer = site.start_writer("--at-most-once")
    site.allow(100)
    ada = reader(site)
    ada.ask()
    ada.expect_tokens(100)
    writer.kill()
    ada.expect_status(re.compile(r"^Broken off after \d+ words: the writer is gone\. No more will come\.$"))
    ada.screenshot("broken-off")
    ada.page.reload()
    ada.expect_status("Broken off after")
    ada.expect_tokens(100)

    site.start_writer()
    site.allow()
    ada.ask_again()
    ada.expect_whole()


def test_an_answer_whose_beginning_is_not_kept_says_so(site: Site, reader: Callable[..., Reader]) -> None:
    site.start_interface()
    site.start_worker()
    site.start_writer("--stream-entries", 100)
    site.allow(300)
    ada, late = reader(site), reader(site, color_scheme="dark")
    address = ada.ask()
    ada.expect_tokens(300)
    late.open(address)
    late.expect_note("Earlier parts of this answer are not kept any more.")
    site.allow()
    ada.expect_whole()
    late.expect_status("The end of an answer. Its beginning is not kept any more.")
    late.screenshot("beginning-gone")
    assert 0 < len(late.text()) < len(site.text())
    assert site.text().endswith(late.text())


def test_the_script_replaces_what_is_killed_and_leaves_nothing(shared_redis_url: str, processes: Processes) -> None:
    command = [sys.executable, "-m", "examples.answers.run", "--port", "0", "--redis", shared_redis_url]
    demo = processes.start("answers", command, ready=r"Kill any of them", env={"PYTHONPATH": ROOT})
    url = demo.wait_for(r"Open (http://\S+)")[1]
    pid = int(demo.wait_for(r"kill -9 (\d+)")[1])
    started = psutil.Process(demo.pid).children(recursive=True)
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        answer = client.post("/ask", json={"question": QUESTION}).json()["answer"]
        with client.stream("GET", f"/answers/{answer}") as response:
            assert any(QUESTION in line for line in response.iter_lines())
    os.kill(pid, signal.SIGKILL)
    demo.wait_for(f"writer {pid} was killed")
    demo.wait_for(r"writer \d+ has taken its place")
    demo.interrupt()
    assert demo.wait() == 0
    wait_until(lambda: not any(process.is_running() for process in started), what="the end of all processes")
