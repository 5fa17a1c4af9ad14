"""After a crash, the apps do not begin for all sockets at once; after a restart, no worker keeps most of them."""

import time
from collections.abc import Callable

import pytest

from chaos.crowd import Crowd
from chaos.notes import Notes
from chaos.scale import NOTICED, SOCKETS, by_form
from support.deadline import wait_until
from support.processes import Process
from support.websocket import ws

pytestmark = pytest.mark.usefixtures("short_leases")

Start = Callable[..., Process]
Figures = Callable[[object], None]

RATE = by_form(15, 50)


def test_take_overs_are_paced_and_first_connections_are_not(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    sockets = SOCKETS // 2
    dead = start_chaos_worker("--resume")
    interface = start_chaos_interface()
    with Crowd(interface, "/echo", sockets=sockets, rate=sockets) as crowd:
        crowd.begin()
        crowd.wait_each_answered()
        start_chaos_worker("--resume", "--resume-rate", RATE)
        dead.kill()
        notes.wait("connected", timeout=NOTICED, attempt=2)
        begun = time.monotonic()
        with ws(interface, "/echo?name=first") as socket:
            socket.send("0")
            assert socket.recv(timeout=10).startswith("0 1 ")
        first = time.monotonic() - begun
        runs = notes.wait("connected", sockets, sockets / RATE + NOTICED, attempt=2)
        crowd.wait_each_answered()
        report = crowd.finish()
    times = sorted(run["at"] for run in runs)
    within = max(sum(start <= at < start + 1 for at in times) for start in times)
    figures(
        f"{sockets} taken over in {times[-1] - times[0]:.1f} s, at most {within} within a second; "
        f"a first connection was answered after {first * 1000:.0f} ms; {report}"
    )
    report.assert_whole(doubles=True)
    assert within <= 1.3 * RATE, "a process that gets no processor for a moment catches up"
    assert times[-1] - begun > first, "they were still being taken over"


def test_a_worker_that_stops_passes_on_what_it_has_not_begun(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    dead = start_chaos_worker("--resume")
    interface = start_chaos_interface()
    with Crowd(interface, "/echo", sockets=30, rate=100) as crowd:
        crowd.begin()
        crowd.wait_each_answered()
        slow = start_chaos_worker("--resume", "--resume-rate", 1)
        dead.kill()
        notes.wait("connected", 2, attempt=2)
        start_chaos_worker("--resume")
        slow.terminate()
        assert slow.wait() == 0
        crowd.wait_each_answered(10)
        report = crowd.finish()
        figures(report)
        report.assert_whole(doubles=True)


def test_the_shares_are_even_again_after_a_crash_and_a_restart(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    workers = [start_chaos_worker("--resume") for _ in range(3)]
    interface = start_chaos_interface()
    with Crowd(interface, "/echo", sockets=SOCKETS, rate=SOCKETS) as crowd:
        crowd.begin()
        crowd.wait_each_answered()
        workers[0].kill()
        notes.wait("connected", len(crowd.of_pid(workers[0].pid)), NOTICED + 2, attempt=2)
        workers[0] = start_chaos_worker("--resume")
        restarted = time.monotonic()
        mean = SOCKETS / len(workers)
        wait_until(lambda: max(len(crowd.of_pid(each.pid)) for each in workers) <= 1.3 * mean, 60)
        seconds = time.monotonic() - restarted
        crowd.wait_each_answered()
        report = crowd.finish()
        shares = sorted(len(crowd.of_pid(each.pid)) for each in workers)
    figures(f"even after {seconds:.1f} s: {shares}; {report}")
    report.assert_whole(doubles=True)
