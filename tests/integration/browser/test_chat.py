"""The chat example in a real browser: two people, each at another interface server, with two workers on one Redis."""

import json
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from support.processes import Process, Processes

ROOT = Path(__file__).resolve().parents[3]
SCREENSHOTS = ROOT / "screenshots"
APP = ("examples.chat.app:app", "--app-dir", ROOT)
DESKTOP = {"viewport": {"width": 1180, "height": 760}, "device_scale_factor": 2}
LEAVE_SOON = ("--presence-grace", 0.5)
PHONE = {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}

pytestmark = pytest.mark.browser


@dataclass
class Person:
    """A user of the chat with a browser window."""

    page: Page
    name: str
    room: str

    def join(self, url: str) -> Self:
        """Open the start page, join the room, and wait until the server has accepted."""
        self.page.goto(f"{url}/")
        self.enter(self.name, self.room)
        self.expect_state("Connected")
        return self

    def enter(self, name: str, room: str) -> None:
        door = self.page.locator("#door")
        door.get_by_label("Your name").fill(name)
        door.get_by_label("Room").fill(room)
        door.get_by_role("button", name="Join the room").click()

    def open_room(self, room: str) -> None:
        self.page.get_by_label("Room to open").fill(room)
        self.page.keyboard.press("Enter")

    def send(self, text: str) -> None:
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.keyboard.press("Enter")

    def send_quickly(self, count: int) -> None:
        """Send "<name> 1" to "<name> <count>" through the form, without waiting for any of them to arrive."""
        self.page.evaluate(
            """([name, count]) => {
                for (let number = 1; number <= count; number++) {
                    document.querySelector("#say textarea").value = `${name} ${number}`;
                    document.querySelector("#say").requestSubmit();
                }
            }""",
            [self.name, count],
        )

    def send_raw(self, message: str) -> None:
        """Send a message over the page's own socket that the page itself would never send."""
        self.page.evaluate("message => socket.send(message)", message)

    @property
    def messages(self) -> Locator:
        """Return the messages, own and others', that the server has sent."""
        return self.page.locator("#log .msg[data-offset] p")

    @property
    def own_messages(self) -> Locator:
        return self.page.locator("#log .msg.mine[data-offset] p")

    def worker(self) -> int:
        """Return the process that runs the app for this page."""
        return int(self.page.locator("#worker").inner_text().rpartition(":")[2])

    def expect_state(self, state: str) -> None:
        expect(self.page.locator("#state")).to_have_text(state)

    def expect_users(self, *names: str) -> None:
        """Expect this list of users: oneself first, then the others by name."""
        expect(self.page.locator("#people bdi")).to_have_text(list(names))

    def expect_note(self, text: str) -> None:
        expect(self.page.locator(".note", has_text=text)).not_to_have_count(0)

    def expect_no_gap(self) -> None:
        expect(self.page.locator(".note.gap")).to_have_count(0)

    def screenshot(self, name: str) -> None:
        self.page.screenshot(path=SCREENSHOTS / f"chat-{name}.png", animations="disabled")


@pytest.fixture(scope="module")
def shared_interfaces(shared_redis_url: str, shared_processes: Processes) -> list[Process]:
    """Provide two interface servers on one Redis, with two workers behind them, for tests that stop none of them.

    Users of the second one leave soon after the end of their connections.
    """
    for _ in range(2):
        shared_processes.start_worker(*APP, "--layer", shared_redis_url)
    return [shared_processes.start_interface("--layer", shared_redis_url, *options) for options in ((), LEAVE_SOON)]


@pytest.fixture
def bus(shared_redis_url: str, tmp_path: Path) -> tuple[str, ...]:
    """Return the options of servers that belong to this test alone."""
    return "--layer", shared_redis_url, "--prefix", tmp_path.name


@pytest.fixture
def workers(bus: tuple[str, ...], start_worker: Callable[..., Process]) -> list[Process]:
    return [start_worker(*APP, *bus) for _ in range(2)]


@pytest.fixture
def interfaces(bus: tuple[str, ...], workers: list[Process], start_interface: Callable[..., Process]) -> list[Process]:
    """Provide two interface servers with two workers behind them, which the test may stop."""
    return [start_interface(*bus, *LEAVE_SOON) for _ in range(2)]


@pytest.fixture
def room() -> str:
    """Return the name of a room for this test alone."""
    return f"room-{secrets.token_hex(4)}"


@pytest.fixture
def person(browser: Browser, room: str) -> Iterator[Callable[..., Person]]:
    """Open a window for a user: `person(name, **window)`. A script error in any of them fails the test."""
    contexts, errors = [], []

    def open_window(name: str, **window: Any) -> Person:
        context = browser.new_context(**(DESKTOP | window))
        contexts.append(context)
        page = context.new_page()
        # Playwright sets an attribute on a handler, which a method of a list does not have.
        page.on("pageerror", lambda error: errors.append(error))  # noqa: PLW0108
        return Person(page, name, room)

    yield open_window
    for context in contexts:
        context.close()
    assert not errors


def test_two_users_exchange_messages(shared_interfaces: list[Process], person: Callable[..., Person]) -> None:
    ada = person("Ada Lovelace", color_scheme="light").join(shared_interfaces[0].url)
    ada.expect_users("Ada Lovelace")
    grace = person("Grace Hopper", color_scheme="dark", **PHONE).join(shared_interfaces[1].url)
    for one in (ada, grace):
        one.expect_users(one.name, ({"Ada Lovelace", "Grace Hopper"} - {one.name}).pop())
    ada.expect_note("Grace Hopper joined")

    texts: list[str] = []
    for sender, text in (
        (ada, "Good morning! Is anybody on this line?"),
        (grace, "Loud and clear, from another interface server."),
        (grace, "Different process, different port, same room."),
        (ada, "<b>And no markup gets through</b> & no harm done."),
        (ada, "Two lines\nin one message."),
        (grace, "Good."),
    ):
        sender.send(text)
        texts.append(text)
        for one in (ada, grace):
            expect(one.messages).to_have_text(texts, use_inner_text=True)
    expect(ada.own_messages).to_have_count(3)
    expect(grace.own_messages).to_have_count(3)
    first, second = ada.own_messages.first.bounding_box(), ada.messages.nth(1).bounding_box()
    assert first is not None
    assert second is not None
    assert first["x"] + first["width"] > second["x"] + second["width"], "own messages are on the right"
    ada.screenshot("desktop-light")
    grace.screenshot("phone-dark")

    grace.page.close()
    ada.expect_users("Ada Lovelace")
    ada.expect_note("Grace Hopper left")
    ada.expect_no_gap()


def test_many_quick_messages_arrive_in_order(shared_interfaces: list[Process], person: Callable[..., Person]) -> None:
    people = [
        person(name).join(interface.url) for name, interface in zip(("Ada", "Grace"), shared_interfaces, strict=True)
    ]
    people[0].expect_users("Ada", "Grace")
    people[1].expect_users("Grace", "Ada")

    for one in people:
        one.send_quickly(50)

    for one in people:
        expect(one.messages).to_have_count(100)
        texts = one.messages.all_inner_texts()
        for sender in people:
            assert [text for text in texts if text.startswith(sender.name)] == [
                f"{sender.name} {number}" for number in range(1, 51)
            ]
        expect(one.own_messages).to_have_count(50)
        expect(one.page.locator("#pending .msg")).to_have_count(0)
        one.expect_no_gap()


def test_rooms_are_separate(shared_interfaces: list[Process], person: Callable[..., Person]) -> None:
    ada = person("Ada").join(shared_interfaces[0].url)
    grace = person("Grace").join(shared_interfaces[1].url)
    ada.expect_users("Ada", "Grace")

    grace.open_room("engine-room")
    expect(grace.page).to_have_url(f"{shared_interfaces[1].url}/room/engine-room")
    grace.expect_state("Connected")
    grace.expect_users("Grace")
    ada.expect_users("Ada")
    ada.expect_note("Grace left")

    ada.send("Only for the lobby")
    grace.send("Only for the engine room")
    expect(ada.messages).to_have_text(["Only for the lobby"])
    expect(grace.messages).to_have_text(["Only for the engine room"])

    grace.page.go_back()
    grace.expect_state("Connected")
    grace.expect_users("Grace", "Ada")
    expect(grace.messages).to_have_text(["Only for the lobby"])
    ada.send("Welcome back")
    expect(grace.messages).to_have_text(["Only for the lobby", "Welcome back"])

    # A reload stays in the room, under the same name.
    grace.page.reload()
    grace.expect_users("Grace", "Ada")
    ada.expect_users("Ada", "Grace")

    # Before the room there was the front door.
    grace.page.go_back()
    expect(grace.page.get_by_role("button", name="Join the room")).to_be_visible()
    ada.expect_users("Ada")


def test_a_reload_keeps_the_messages_and_sends_no_notes(
    shared_interfaces: list[Process], person: Callable[..., Person]
) -> None:
    ada = person("Ada").join(shared_interfaces[1].url)
    grace = person("Grace").join(shared_interfaces[0].url)
    linus = person("Linus").join(shared_interfaces[0].url)
    ada.expect_users("Ada", "Grace", "Linus")
    grace.send("Before")
    ada.send("Also before")
    texts = ["Before", "Also before"]
    expect(grace.messages).to_have_text(texts)

    grace.page.reload()
    grace.expect_users("Grace", "Ada", "Linus")
    grace.send("After")
    for one in (grace, ada):
        expect(one.messages).to_have_text([*texts, "After"])
    expect(grace.own_messages).to_have_text(["Before", "After"])

    # Another window under the same name is no other person, and neither is its end.
    other = Person(grace.page.context.new_page(), "Grace", grace.room).join(shared_interfaces[1].url)
    other.expect_users("Grace", "Ada", "Linus")
    expect(other.messages).to_have_text([*texts, "After"])
    other.page.close()

    linus.page.close()  # later than the reload, so a note about the reload would have arrived
    ada.expect_note("Linus left")
    expect(ada.page.locator(".note", has_text="Grace")).to_have_text(["Grace joined"])
    ada.expect_users("Ada", "Grace")


def test_who_comes_later_gets_what_was_said(shared_interfaces: list[Process], person: Callable[..., Person]) -> None:
    ada = person("Ada").join(shared_interfaces[0].url)
    ada.send("Nobody is here yet")
    expect(ada.messages).to_have_text(["Nobody is here yet"])
    grace = person("Grace").join(shared_interfaces[1].url)
    expect(grace.messages).to_have_text(["Nobody is here yet"])
    expect(grace.own_messages).to_have_count(0)
    grace.expect_no_gap()

    ada.send_quickly(210)  # 200 are kept
    expect(grace.messages).to_have_count(211)
    linus = person("Linus").join(shared_interfaces[1].url)
    expect(linus.messages).to_have_count(200)
    expect(linus.messages.last).to_have_text("Ada 210")
    expect(linus.page.locator(".note.gap")).to_have_text("Earlier messages are not kept any more.")


def test_others_see_who_is_typing(shared_interfaces: list[Process], person: Callable[..., Person]) -> None:
    ada = person("Ada")
    ada.page.clock.install()
    ada.join(shared_interfaces[0].url)
    grace = person("Grace").join(shared_interfaces[1].url)
    ada.expect_users("Ada", "Grace")
    grace.page.get_by_label("Message", exact=True).fill("Let me th")
    expect(ada.page.locator("#typing")).to_have_text("Grace is typing …")
    ada.screenshot("typing")
    expect(grace.page.locator("#typing")).to_be_empty()
    grace.send("Let me think")
    expect(ada.messages).to_have_text(["Let me think"])
    expect(ada.page.locator("#typing")).to_be_empty()
    grace.page.get_by_label("Message", exact=True).fill("Well")
    expect(ada.page.locator("#typing")).to_have_text("Grace is typing …")
    ada.page.clock.fast_forward(5000)  # without another letter
    expect(ada.page.locator("#typing")).to_be_empty()


def test_users_have_distinct_colors(shared_interfaces: list[Process], person: Callable[..., Person]) -> None:
    names = ["Ada Lovelace", "Grace", "Linus", "Barbara", "Guido"]
    people = [person(name).join(shared_interfaces[0].url) for name in names]
    people[0].expect_users(names[0], *sorted(names[1:]))
    hues = (
        people[0]
        .page.locator("#people .face")
        .evaluate_all("faces => faces.map(face => Number(face.style.getPropertyValue('--who')))")
    )
    for index, one in enumerate(hues):
        for other in hues[index + 1 :]:
            assert min((one - other) % 360, (other - one) % 360) >= 45, hues


def test_urls_in_messages_are_links(shared_interfaces: list[Process], person: Callable[..., Person]) -> None:
    ada = person("Ada").join(shared_interfaces[0].url)
    ada.send(
        "See https://example.org/a?b=c#d, or (http://example.org/x). Not javascript:alert(1) or ftp://example.org."
    )
    links = ada.messages.locator("a")
    expect(links).to_have_text(["https://example.org/a?b=c#d", "http://example.org/x"])
    for link in links.all():
        assert link.get_attribute("href") == link.inner_text()
        assert "noopener" in str(link.get_attribute("rel"))


def test_the_menu_on_a_phone_has_labels(shared_interfaces: list[Process], person: Callable[..., Person]) -> None:
    ada = person("Ada", **PHONE).join(shared_interfaces[0].url)
    menu = ada.page.get_by_role("button", name="Rooms and people, here now: 1")
    menu.click()
    close = ada.page.get_by_role("button", name="Close rooms and people")
    expect(close).to_be_focused()
    expect(menu).to_have_attribute("aria-expanded", "true")
    ada.page.keyboard.press("Escape")
    expect(close).to_be_hidden()
    expect(menu).to_be_focused()


def test_invalid_input_gets_an_error(shared_interfaces: list[Process], person: Callable[..., Person]) -> None:
    ada = person("Ada").join(shared_interfaces[0].url)
    error = ada.page.locator("#error span")

    # Messages that the page itself rejects.
    ada.open_room("no spaces!")
    expect(ada.page.locator("#new-room")).to_contain_text("A room is 1 to 50 letters")
    ada.send("   ")
    expect(ada.page.get_by_role("button", name="Send", exact=True)).to_be_disabled()

    # Messages that the server rejects, each with one error; the connection stays open.
    for message, answer in (
        ("this is not JSON", "JSON object"),
        ("[" * 20_000, "JSON object"),
        ('"a string"', "A message is {"),
        ('{"type": "shout", "text": "hello"}', "A message is {"),
        ('{"type": "say", "text": 5}', "A message is {"),
        ('{"type": "say", "id": "no spaces", "text": "hello"}', "A message is {"),
        (json.dumps({"type": "say", "id": "1", "text": " "}), "1 to 2000 characters"),
        (json.dumps({"type": "say", "id": "2", "text": "x" * 2001}), "1 to 2000 characters"),
        ("x" * 100_000, "at most"),
    ):
        ada.page.locator("#error").evaluate("node => showError('')")
        ada.send_raw(message)
        expect(error).to_contain_text(answer)
    ada.page.evaluate("socket.send(new Uint8Array([1, 2, 3]))")
    expect(error).to_contain_text("text frame")
    ada.screenshot("error")
    ada.send("x" * 2000)
    expect(ada.messages).to_have_text(["x" * 2000])

    # A room or a name that only the server can refuse brings the visitor back to the door, with the reason.
    for name, room, reason in (
        ("n" * 33, ada.room, "A name has"),
        ("Ada\0", ada.room, "A name has"),
        ("Ada", "no spaces", "A room is"),
    ):
        ada.page.evaluate("([as, to]) => { name = as; enter(to, {push: false}); }", [name, room])
        expect(ada.page.locator("#door .bad")).to_contain_text(reason)
    ada.enter("Ada", ada.room)
    ada.expect_state("Connected")


def test_a_page_moves_to_another_worker_at_a_stop(
    workers: list[Process], interfaces: list[Process], person: Callable[..., Person]
) -> None:
    ada = person("Ada").join(interfaces[0].url)
    grace = person("Grace").join(interfaces[1].url)
    first, second = workers
    if ada.worker() == second.pid:
        first, second = second, first
    assert ada.worker() == first.pid

    first.terminate()
    assert first.wait() == 0
    expect(ada.page.locator("#worker")).to_have_text(re.compile(rf":{second.pid}$"))
    ada.expect_state("Connected")
    for one, names in ((ada, ("Ada", "Grace")), (grace, ("Grace", "Ada"))):
        one.expect_users(*names)
        one.send(f"{one.name} is still here")
    for one in (ada, grace):
        expect(one.messages).to_have_count(2)


@pytest.mark.usefixtures("short_leases")
@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_a_page_keeps_its_socket_when_its_worker_ends(
    end: str,
    bus: tuple[str, ...],
    start_worker: Callable[..., Process],
    start_interface: Callable[..., Process],
    person: Callable[..., Person],
) -> None:
    workers = [start_worker(*APP, *bus, "--resume") for _ in range(2)]
    interface = start_interface(*bus, *LEAVE_SOON)
    ada = person("Ada").join(interface.url)
    grace = person("Grace").join(interface.url)
    ada.send("Before")
    expect(grace.messages).to_have_text(["Before"])
    (first,) = [worker for worker in workers if worker.pid == ada.worker()]
    (second,) = [worker for worker in workers if worker is not first]

    getattr(first, end)()
    first.wait()

    expect(ada.page.locator("#worker")).to_have_text(re.compile(rf":{second.pid}$"), timeout=10_000)
    ada.send("After")
    for one in (ada, grace):
        one.expect_state("Connected")
        expect(one.messages).to_have_text(["Before", "After"])
        one.expect_no_gap()
        expect(one.page.locator(".note", has_text="left")).to_have_count(0)
        expect(one.page.locator(".note", has_text="lost")).to_have_count(0)
    ada.page.close()
    grace.expect_note("Ada left")


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_a_page_reconnects_to_a_restarted_interface(
    end: str,
    bus: tuple[str, ...],
    interfaces: list[Process],
    start_interface: Callable[..., Process],
    person: Callable[..., Person],
) -> None:
    ada = person("Ada", color_scheme="dark").join(interfaces[0].url)
    grace = person("Grace").join(interfaces[1].url)
    ada.expect_users("Ada", "Grace")
    ada.send("Before")
    expect(grace.messages).to_have_text(["Before"])

    ada.send("On its way")
    getattr(interfaces[0], end)()
    interfaces[0].wait()
    ada.expect_state("Reconnecting…")
    grace.send("Said meanwhile")
    expect(ada.page.locator("#offline")).to_contain_text(re.compile(r"next try in \d+ s"))
    grace.expect_state("Connected")
    ada.page.get_by_label("Message", exact=True).fill("Written while away")
    expect(ada.page.get_by_role("button", name="Send", exact=True)).to_be_disabled()
    ada.screenshot("reconnecting")

    start_interface("--host", "127.0.0.1", "--port", interfaces[0].port, *bus, *LEAVE_SOON)
    ada.expect_state("Connected")
    expect(ada.page.locator("#offline")).to_be_hidden()
    ada.expect_users("Ada", "Grace")
    grace.expect_users("Grace", "Ada")
    ada.page.get_by_role("button", name="Send", exact=True).click()
    grace.send("You are back")
    for one in (ada, grace):
        expect(one.messages.filter(has_text="Written while away")).to_have_count(1)
        expect(one.messages.filter(has_text="You are back")).to_have_count(1)
        expect(one.messages).to_have_count(5)
        assert sorted(one.messages.all_inner_texts()[:3]) == ["Before", "On its way", "Said meanwhile"]
        one.expect_no_gap()
