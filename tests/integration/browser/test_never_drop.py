"""The demo in a real browser: all processes are killed or replaced, and the page loses nothing."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

from support.deadline import wait_until
from support.processes import Process, Processes

ROOT = Path(__file__).resolve().parents[3]
SCREENSHOTS = ROOT / "screenshots"
OPEN = re.compile(r"Open (http://\S+)")
WINDOW = {"viewport": {"width": 1180, "height": 900}, "device_scale_factor": 2}
FAULTS = ("lost", "disorder", "drops")
FASTAPI_FAULTS = ("left", "lost", "cuts", "unheard", "drops", "doubled")

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]


@pytest.fixture
def start_demo(redis_url: str, processes: Processes) -> Callable[..., Process]:
    """Start the demo: `start_demo("--fastapi")`."""

    def start(*options: str) -> Process:
        command = [sys.executable, "-m", "examples.never_drop.demo"]
        options = ("--port", "0", "--redis", redis_url, "--every", "0.5", *options)
        demo = processes.start("demo", [*command, *options], ready=OPEN, env={"PYTHONPATH": ROOT})
        demo.url = demo.wait_for(OPEN)[1]
        return demo

    return start


@pytest.fixture
def demo(start_demo: Callable[..., Process]) -> Process:
    return start_demo()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(**WINDOW)
    errors: list[object] = []
    page = context.new_page()
    # Playwright sets an attribute on a handler, which a method of a list does not have.
    page.on("pageerror", lambda error: errors.append(error))  # noqa: PLW0108
    yield page
    context.close()
    assert not errors


def count(page: Page, name: str) -> int:
    return int(page.locator(f"#{name}").inner_text().replace(",", ""))


def test_a_page_loses_no_message_while_workers_are_killed_and_redeployed(demo: Process, page: Page) -> None:
    page.goto(demo.url)
    expect(page.locator("#state")).to_have_text("Connected")
    other = page.context.new_page()
    other.goto(demo.url)
    expect(other.locator("#state")).to_have_text("Connected")

    # Two rounds of kill, kill, deploy, and the interface server is replaced in between.
    demo.wait_for(r"SIGTERM to version 2", timeout=40)
    page.get_by_label("Message").fill("Still here")
    page.get_by_role("button", name="Send").click()
    expect(other.locator("#said li")).to_contain_text("Still here")
    expect(page.locator("#here")).to_have_text("2 here, 0 left")
    page.screenshot(path=SCREENSHOTS / "never-drop.png")

    assert demo.log().count("SIGKILL") >= 4
    assert "SIGUSR2" in demo.log()
    assert "ERROR" not in demo.log(), "deaths that were planned are no errors"
    for one in (page, other):
        sent = count(one, "sent")
        wait_until(lambda one=one, sent=sent: count(one, "answered") >= sent, what="the answer to the last message")
        assert {fault: count(one, fault) for fault in FAULTS} == dict.fromkeys(FAULTS, 0)
        assert count(one, "takeovers") >= 2
        assert sent >= 10  # five a second, for the four seconds or so that two rounds take after the page is open
        expect(one.locator("#state")).to_have_text("Connected")

    other.reload()  # is no leave, and the chat has its messages again
    expect(other.locator("#said li")).to_have_text([re.compile("Still here")])
    other.close()
    expect(page.locator("#here")).to_have_text("1 here, 1 left")


def test_a_fastapi_app_loses_nothing_while_its_processes_are_killed_and_replaced(
    start_demo: Callable[..., Process], page: Page
) -> None:
    demo = start_demo("--fastapi")
    page.goto(demo.url)
    expect(page.locator("#state")).to_have_text("Connected")
    demo.wait_for(r"SIGTERM to version 2", timeout=40)
    page.screenshot(path=SCREENSHOTS / "never-drop-fastapi.png")
    sent, words = count(page, "sent"), count(page, "words")
    wait_until(lambda: count(page, "words") > words, what="the next word")
    wait_until(lambda: page.evaluate("highest") >= sent, what="the last message of the chat")

    assert {fault: count(page, fault) for fault in FASTAPI_FAULTS} == dict.fromkeys(FASTAPI_FAULTS, 0)
    workers = page.evaluate("new Set([...document.querySelectorAll('#answer span')].map((word) => word.title)).size")
    assert workers >= 3, "the answer is of several workers"
    assert "SIGUSR2" in demo.log()
    assert "ERROR" not in demo.log()


def test_ctrl_c_leaves_no_process(demo: Process, page: Page) -> None:
    page.goto(demo.url)
    expect(page.locator("#state")).to_have_text("Connected")
    ours = psutil.Process(demo.pid)
    wait_until(lambda: len(ours.children(recursive=True)) >= 4, what="an interface server, a supervisor, two workers")
    started = ours.children(recursive=True)
    demo.interrupt()
    assert demo.wait() == 0
    wait_until(lambda: not any(process.is_running() for process in started), what="the end of all processes")


def test_the_page_counts_faults(start_interface: Callable[..., Process], page: Page) -> None:
    """The page counts lost, disordered and repeated messages, and dropped sockets."""
    interface = start_interface("--app-dir", ROOT / "examples" / "never_drop", app="app:app")
    page.goto(interface.url)
    expect(page.locator("#state")).to_have_text("Connected")
    page.evaluate(
        """() => {
            window.pass = socket.onmessage;
            socket.onmessage = (message) => {
                if (!window.held && JSON.parse(message.data).type === "answer") window.held = message;
                else pass(message);
            };
        }"""
    )
    expect(page.locator("#lost")).to_have_text("1")
    page.evaluate("pass(held)")
    expect(page.locator("#disorder")).to_have_text("1")
    expect(page.locator("#lost")).to_have_text("0")
    page.evaluate("pass(held)")
    expect(page.locator("#twice")).to_have_text("1")

    # Messages under way when the socket closes are lost.
    page.evaluate("socket.onmessage = () => {}")
    under_way = count(page, "sent") + 2
    wait_until(lambda: count(page, "sent") >= under_way, what="two more messages")
    page.evaluate("socket.close()")
    expect(page.locator("#drops")).to_have_text("1")
    expect(page.locator("#state")).to_have_text("Connected")
    assert count(page, "lost") >= 2
