"""Workers under a supervisor, which announces a death at once."""

import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from asgibus.protocol.retry import CRASH_LIMIT
from chaos.crowd import Crowd, alive, echo_and_room
from chaos.notes import Notes
from chaos.scale import RATE, SOCKETS, by_form
from support.deadline import in_time, wait_until
from support.processes import Process
from support.websocket import ws

Start = Callable[..., Process]
Figures = Callable[[object], None]


def children(notes: Notes) -> list[int]:
    """Return the worker processes that are there."""
    return [note["pid"] for note in notes.all("lifespan.startup") if alive(note["pid"])]


def test_a_killed_child_is_replaced_at_once(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    start_chaos_worker("--processes", 2, "--resume")
    interface = start_chaos_interface()
    notes.wait("lifespan.startup", 2)
    with echo_and_room(interface) as (echo, room):
        victim = max(children(notes), key=lambda pid: len(echo.of_pid(pid)))
        hit = len(echo.of_pid(victim)) + len(room.of_pid(victim))
        assert hit > 0
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        for crowd in (echo, room):
            crowd.wait_each_answered()
        taken_over = [takeover.at - killed for crowd in (echo, room) for takeover in crowd.takeovers(killed)]
        figures(
            f"{hit} sockets on the killed child; first messages of {len(taken_over)} taken over "
            f"after {min(taken_over) * 1000:.0f} to {max(taken_over) * 1000:.0f} ms"
        )
        for crowd in (echo, room):
            report = crowd.finish()
            figures(f"{crowd.label}: {report}")
            report.assert_whole(doubles=True)
        assert len(taken_over) == hit
        assert min(taken_over) < 1
        in_time(by_form(max(taken_over), 0), 1)  # in the long form a socket speaks only every few seconds
    notes.wait("lifespan.startup", 3)
    wait_until(lambda: len(children(notes)) == 2)


def test_children_are_killed_repeatedly(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    start_chaos_worker("--processes", 3, "--resume")
    interface = start_chaos_interface()
    notes.wait("lifespan.startup", 3)
    choice = random.Random(3)
    kills = 0
    with echo_and_room(interface) as (echo, room):
        until = time.monotonic() + by_form(2.5, 60)
        while time.monotonic() < until:
            for crowd in (echo, room):
                crowd.wait_each_answered(20)
            os.kill(choice.choice(children(notes)), signal.SIGKILL)
            kills += 1
        for crowd in (echo, room):
            report = crowd.finish()
            figures(f"{kills} kills, {crowd.label}: {report}")
            report.assert_whole(doubles=True)
            crowd.probe()


def test_slow_handlers_lose_no_message_when_children_are_killed(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    """An event that a killed run has not done is delivered to the next run."""
    start_chaos_worker("--processes", 3, "--resume")
    interface = start_chaos_interface()
    notes.wait("lifespan.startup", 3)
    choice = random.Random(5)
    kills = 0
    with Crowd(interface, "/echo", sockets=SOCKETS, rate=SOCKETS, work=1.0) as crowd:
        crowd.begin()
        until = time.monotonic() + by_form(2.4, 120)
        while time.monotonic() < until:
            time.sleep(1.2)  # between two kills: longer than any handler takes
            if pids := children(notes):
                os.kill(choice.choice(pids), signal.SIGKILL)
                kills += 1
        report = crowd.finish()
        figures(f"{kills} kills, handlers of 0 to 1 s: {report}")
        report.assert_whole(doubles=True)
        crowd.probe()


def test_two_children_are_killed_at_once(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    start_chaos_worker("--processes", 3, "--resume")
    interface = start_chaos_interface()
    notes.wait("lifespan.startup", 3)
    with echo_and_room(interface) as (echo, room):
        first, second, _ = children(notes)
        os.kill(first, signal.SIGKILL)
        moved = len(notes.all("connected", attempt=1, pid=first))
        notes.wait("connected", moved, attempt=2)
        os.kill(second, signal.SIGKILL)
        for crowd in (echo, room):
            crowd.wait_each_answered()
            report = crowd.finish()
            figures(f"{crowd.label}: {report}")
            report.assert_whole(doubles=True)
            crowd.probe()


def test_children_are_recycled(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    start_chaos_worker("--processes", 2, "--resume", "--max-lifetime", by_form(1.5, 3))
    interface = start_chaos_interface()
    notes.wait("lifespan.startup", 2)
    with Crowd(interface, "/echo", sockets=SOCKETS, rate=RATE) as crowd:
        crowd.begin()
        notes.wait("lifespan.startup", by_form(4, 12), 60)
        crowd.wait_each_answered()
        report = crowd.finish()
        figures(f"{len(notes.all('lifespan.startup'))} runs of 2 workers: {report}")
        report.assert_whole()


@pytest.mark.usefixtures("short_leases")
@pytest.mark.parametrize(
    ("how", "busy"),
    [
        ("kill", True),
        pytest.param("crash", False, marks=pytest.mark.long),
        pytest.param("kill", False, marks=pytest.mark.long),
        pytest.param("crash", True, marks=pytest.mark.long),
    ],
)
def test_a_message_that_kills_its_worker(
    how: str,
    busy: bool,
    start_chaos_interface: Start,
    start_chaos_worker: Start,
    notes: Notes,
    figures: Figures,
) -> None:
    start_chaos_worker("--processes", 3, "--resume")
    interface = start_chaos_interface()
    notes.wait("lifespan.startup", 3)
    with Crowd(interface, "/echo", sockets=SOCKETS, rate=RATE) as crowd, ws(interface, "/echo?name=poison") as poison:
        crowd.begin()
        crowd.wait_each_answered()
        if not busy:
            crowd.finish()
        begun = time.monotonic()
        poison.send(how)
        poison.send("1")
        with pytest.raises(Exception, match="1011"):
            poison.recv(30)
        seconds = time.monotonic() - begun
        assert poison.close_code == 1011
        interface.wait_for("ERROR.*connection")
        if not busy:
            crowd.begin()
        crowd.wait_each_answered(20)
        report = crowd.finish()
        figures(f"closed with 1011 after {seconds:.2f} s; the others: {report}")
        report.assert_whole(doubles=True)
        crowd.probe()
    assert len(notes.all("kill", name="poison")) == CRASH_LIMIT
