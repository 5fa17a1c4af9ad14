"""A worker is killed under load; its death is known when its lease has ended."""

import time
from collections.abc import Callable

import pytest

from chaos.crowd import Crowd, echo_and_room
from chaos.notes import Notes
from chaos.scale import NOTICED
from support.deadline import in_time, wait_until
from support.processes import Process
from support.websocket import RawWebSocket

pytestmark = pytest.mark.usefixtures("short_leases")

Start = Callable[..., Process]
Figures = Callable[[object], None]


def test_connections_with_resume_move_to_another_worker(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    workers = [start_chaos_worker("--resume") for _ in range(2)]
    interface = start_chaos_interface()
    with echo_and_room(interface) as (echo, room):
        dead = workers[0]
        hit = len(echo.of_pid(dead.pid)) + len(room.of_pid(dead.pid))
        assert hit > 0
        killed = time.monotonic()
        dead.kill()
        for crowd in (echo, room):
            crowd.wait_each_answered(NOTICED + 4)
        taken_over = [takeover.at - killed for crowd in (echo, room) for takeover in crowd.takeovers(killed)]
        figures(
            f"{hit} sockets on the killed worker; first messages of {len(taken_over)} taken over "
            f"after {min(taken_over):.2f} to {max(taken_over):.2f} s"
        )
        for crowd in (echo, room):
            report = crowd.finish()
            figures(f"{crowd.label}: {report}")
            report.assert_whole(doubles=True)
            assert all(known["pid"] == workers[1].pid for known in crowd.probe())
        assert len(taken_over) == hit
        in_time(max(taken_over), NOTICED)
    runs = notes.all("connected", attempt=2)
    assert len(runs) == hit
    assert all(run["resumed"] and run["pid"] == workers[1].pid for run in runs)


def test_the_saved_state_is_restored(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    first = start_chaos_worker("--resume")
    interface = start_chaos_interface()
    with Crowd(interface, "/echo", sockets=20, rate=200, save=1) as crowd:
        crowd.begin()
        crowd.wait_each_answered()
        first.kill()
        start_chaos_worker("--resume")
        crowd.wait_each_answered(NOTICED + 4)
        report = crowd.finish()
        figures(report)
        report.assert_whole(doubles=True)
        for member, known in zip(crowd.members, crowd.probe(), strict=True):
            assert known["attempt"] == 2
            assert known["state"] == {"last": member.sent - 1}
    for run in notes.all("connected", attempt=2):
        assert run["state"]["last"] >= 0


def test_connections_without_resume_are_closed(
    start_chaos_interface: Start, start_chaos_worker: Start, figures: Figures
) -> None:
    workers = [start_chaos_worker() for _ in range(2)]
    interface = start_chaos_interface()
    with Crowd(interface, "/echo", sockets=50, rate=300) as crowd:
        crowd.begin()
        crowd.wait_each_answered()
        hit = crowd.of_pid(workers[0].pid)
        killed = time.monotonic()
        workers[0].kill()
        # Connections of the other worker are served all the time.
        deadline = killed + NOTICED
        while len(crowd.closed()) < len(hit) and time.monotonic() < deadline:
            crowd.wait_answered(10)
        report = crowd.finish()
        figures(report)
        assert report.closes == {1012: len(hit)}
        assert {member.name for member in crowd.closed()} == {member.name for member in hit}
        assert report.lost == report.doubled == report.disordered == 0
        assert all(known["pid"] == workers[1].pid for known in crowd.probe())


def test_unread_messages_are_delivered_to_the_next_run(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    deaf = start_chaos_worker("--resume")
    interface = start_chaos_interface()
    with Crowd(interface, "/echo", sockets=10, rate=1000, size=2000, deaf=1) as crowd:
        notes.wait("deaf", 10)
        crowd.begin()
        # About 100 messages for each, which is less than a window.
        wait_until(lambda: sum(member.sent for member in crowd.members) >= 900, what="900 messages")
        crowd.pause()
        deaf.kill()
        start_chaos_worker("--resume")
        report = crowd.finish(NOTICED + 5)
        figures(report)
        assert report.sent >= 900
        report.assert_whole()
        assert {known["attempt"] for known in crowd.probe()} == {2}
    assert not notes.all("disorder")


def test_a_pending_handshake_runs_again(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    """A WebSocket that was not accepted yet is run again without --resume, since its client has received nothing."""
    killed_worker = start_chaos_worker()
    interface = start_chaos_interface()
    with RawWebSocket(interface, "/echo?name=early&gate=open", answered=False, timeout=NOTICED + 5) as client:
        notes.wait("connected")
        killed = time.monotonic()
        killed_worker.kill()
        start_chaos_worker()
        (run,) = notes.wait("connected", timeout=NOTICED + 5, attempt=2)
        assert not run["resumed"]
        figures(f"run again after {run['at'] - killed:.2f} s")
        notes.open_gate("open")
        assert client.read_answer() == 101


def test_a_client_leaves_before_the_death_of_its_worker_is_known(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    """The app gets the disconnect of every client that left, if necessary in a further run."""
    killed_worker = start_chaos_worker("--resume")
    interface = start_chaos_interface()
    with Crowd(interface, "/echo", sockets=10, rate=100) as crowd:
        crowd.begin()
        crowd.wait_each_answered()
        crowd.finish()
        killed_worker.kill()
        start_chaos_worker("--resume")
        closed = time.monotonic()
    events = notes.wait("disconnected", 10, NOTICED + 3)
    figures(f"10 clients left; the app got the disconnects after {max(note['at'] for note in events) - closed:.2f} s")
    assert {(note["name"], note["code"]) for note in events} == {(member.name, 1000) for member in crowd.members}
