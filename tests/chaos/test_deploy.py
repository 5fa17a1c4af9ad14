"""Workers are replaced one after another by SIGTERM, under load."""

import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest

from chaos.crowd import Crowd, echo_and_room
from chaos.flooding_app import COUNT
from chaos.notes import Notes
from chaos.scale import LONG, RATE, ROUNDS, SOCKETS
from support.deadline import in_time
from support.processes import Process
from support.websocket import ws

Start = Callable[..., Process]
Figures = Callable[[object], None]
RESTART = 1012


def deploy(workers: list[Process], start: Start) -> list[float]:
    """Stop each worker in turn and start a successor. Return the seconds that each needed to end."""
    seconds = []
    for index, old in enumerate(workers):
        begun = time.monotonic()
        old.terminate()
        workers[index] = start("--resume")
        assert old.wait(60) == 0
        seconds.append(time.monotonic() - begun)
    return seconds


def test_a_deploy_with_resume_closes_no_socket(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    workers = [start_chaos_worker("--resume") for _ in range(2)]
    interface = start_chaos_interface()
    seconds = []
    with echo_and_room(interface) as crowds:
        for _ in range(ROUNDS):
            seconds += deploy(workers, start_chaos_worker)
            for crowd in crowds:
                crowd.wait_each_answered()
        for crowd in crowds:
            report = crowd.finish()
            figures(f"{crowd.label}: {report}")
            report.assert_whole()
        figures(f"workers ended within {max(seconds):.2f} s of SIGTERM")
        for crowd in crowds:
            for member, known in zip(crowd.members, crowd.probe(), strict=True):
                assert known["name"] == member.name
                assert known["attempt"] >= 2
                assert known["resumed"]
                assert known["pid"] in {worker.pid for worker in workers}
                assert known["state"] == {"last": member.sent - 1, "cleaned": known["attempt"] - 1}
    assert not notes.all("disorder")
    assert not notes.all("send failed")
    disconnects = {(note["name"], note["attempt"]): note for note in notes.all("disconnected", code=RESTART)}
    cleaned = {(note["name"], note["attempt"]) for note in notes.all("cleaned")}
    assert disconnects.keys() <= cleaned
    runs = Counter(note["attempt"] > 1 for note in notes.all("connected"))
    assert runs[False] == SOCKETS
    assert runs[True] == len(disconnects) >= SOCKETS * ROUNDS
    for run in notes.all("connected"):
        assert run["resumed"] == (run["attempt"] > 1)
        if run["resumed"]:
            before = disconnects[run["name"], run["attempt"] - 1]
            assert run["state"] == {"last": before["last"], "cleaned": run["attempt"] - 1}
            assert run["at"] >= before["at"], "two runs at once"


@pytest.mark.parametrize("handover", ["silent", "suspend"])
def test_a_silent_deploy_is_no_disconnect(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures, handover: str
) -> None:
    def start(*options: str) -> Process:
        return start_chaos_worker(*options, "--handover", handover)

    workers = [start("--resume") for _ in range(2)]
    interface = start_chaos_interface()
    with echo_and_room(interface) as crowds:
        for _ in range(ROUNDS):
            deploy(workers, start)
            for crowd in crowds:
                crowd.wait_each_answered()
        for crowd in crowds:
            report = crowd.finish()
            figures(f"{crowd.label}: {report}")
            report.assert_whole()
            for member, known in zip(crowd.members, crowd.probe(), strict=True):
                assert known["attempt"] >= 2
                assert known["state"] == {"last": member.sent - 1}
        for what in ("disconnected", "disorder", "send failed"):
            assert not notes.all(what), what


def test_a_rolling_restart_moves_each_socket_once(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    """A hand-over of an old worker goes to a new one: another old one would hand the socket over again."""
    workers = start_chaos_worker("--processes", 4, "--resume")
    interface = start_chaos_interface()
    workers.wait_for("supervisor ready")
    with Crowd(interface, "/echo", sockets=SOCKETS, rate=RATE) as crowd:
        crowd.begin()
        crowd.wait_each_answered()
        workers.send_signal(signal.SIGHUP)
        workers.wait_for("all processes are replaced", timeout=60)
        crowd.wait_each_answered()
        report = crowd.finish()
        shares = Counter(known["pid"] for known in crowd.probe())
    moves = sum(note["attempt"] > 1 for note in notes.all("connected"))
    figures(f"{moves / SOCKETS:.3f} moves for each socket, now {sorted(shares.values())} a worker; {report}")
    report.assert_whole()
    assert SOCKETS <= moves <= 1.05 * SOCKETS


def test_a_deploy_without_resume_spreads_the_closes(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    sockets, period = (2000, 5.0) if LONG else (200, 1.0)
    worker = start_chaos_worker("--drain-period", period)
    interface = start_chaos_interface()
    with Crowd(interface, "/echo", sockets=sockets, rate=RATE) as crowd:
        crowd.begin()
        crowd.wait_answered(RATE)
        begun = time.monotonic()
        worker.terminate()
        assert worker.wait(30) == 0
        report = crowd.finish()
        figures(report)
        assert report.closes == {RESTART: sockets}
        assert report.disordered == report.doubled == 0
        assert 0.5 * period < report.spread < 1.5 * period
        tenths = Counter(int((member.closed_at - begun) / (period / 10)) for member in crowd.closed())
        figures(f"at most {max(tenths.values())} of {sockets} were closed in one tenth of {period} s")
        assert max(tenths.values()) < 0.3 * sockets, tenths
    assert len(notes.all("disconnected", code=RESTART)) == len(notes.all("cleaned")) == sockets


def test_a_worker_with_few_sockets_drains_quickly(start_chaos_interface: Start, start_chaos_worker: Start) -> None:
    worker = start_chaos_worker("--drain-period", 30)
    interface = start_chaos_interface()
    with Crowd(interface, "/echo", sockets=10, rate=100) as crowd:
        begun = time.monotonic()
        worker.terminate()
        assert worker.wait() == 0
        in_time(time.monotonic() - begun, 3)
        assert crowd.finish().closes == {RESTART: 10}


def test_a_slow_client_gets_each_message_once_at_a_deploy(
    start_worker: Start, start_chaos_interface: Start, redis_url: str
) -> None:
    """A `send` that waits for the client when the worker stops has sent its message: the next run sends later ones."""
    first = start_worker("chaos.flooding_app:app", "--layer", redis_url, "--resume")
    interface = start_chaos_interface()
    with ws(interface, "/", max_queue=1) as socket:
        received = [int(socket.recv(30))]
        start_worker("chaos.flooding_app:app", "--layer", redis_url, "--resume")
        first.terminate()
        assert first.wait() == 0
        while len(received) < COUNT:
            received.append(int(socket.recv(30)))
    assert received == list(range(COUNT))
