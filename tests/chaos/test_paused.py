"""A process is paused for longer than its lease: no connection is served twice, and none stays without a run."""

import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from chaos.crowd import Crowd, echo_and_room
from chaos.notes import Notes
from chaos.scale import BEAT, LEASE, PAUSE, RATE, SOCKETS
from support.deadline import wait_until
from support.processes import Process
from support.raw import RawClient

pytestmark = pytest.mark.usefixtures("short_leases")

Start = Callable[..., Process]
Figures = Callable[[object], None]

AWAKE = 8.0
"""Seconds after the pause in which all must be well again."""


def test_connections_of_a_paused_worker_move(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    paused, other = start_chaos_worker("--resume"), start_chaos_worker("--resume")
    interface = start_chaos_interface()
    with echo_and_room(interface) as (echo, room):
        runs = notes.all("connected", pid=paused.pid)
        assert runs
        paused.pause()
        time.sleep(PAUSE)
        for crowd in (echo, room):
            crowd.wait_each_answered(AWAKE)  # by the other one
        paused.resume()
        for crowd in (echo, room):
            crowd.wait_each_answered(AWAKE)
        # The earlier runs of the paused worker have ended; all later notes are of other connections.
        wait_until(
            lambda: (
                {note["name"] for note in notes.all(pid=paused.pid) if note["what"] in {"cleaned", "send failed"}}
                >= {run["name"] for run in runs}
            ),
            AWAKE,
            "the end of the old runs",
        )
        disconnected = notes.all("disconnected", pid=paused.pid)
        assert {note["code"] for note in disconnected} <= {1012}, "their clients are there, and another run serves them"
        for crowd in (echo, room):
            report = crowd.finish()
            figures(f"{len(runs)} sockets on the paused worker, {crowd.label}: {report}")
            report.assert_whole(doubles=True)
            crowd.probe()
            crowd.begin()
        other.terminate()
        assert other.wait(20) == 0
        for crowd in (echo, room):
            crowd.wait_each_answered(AWAKE)
            report = crowd.finish()
            report.assert_whole(doubles=True)
            assert {known["pid"] for known in crowd.probe()} == {paused.pid}


def test_a_worker_paused_before_a_takeover_is_replaced(
    start_chaos_interface: Start, start_chaos_worker: Start, figures: Figures
) -> None:
    """A worker that is paused before a takeover claims connections unseen; another worker takes them over."""
    first, second = (start_chaos_worker("--resume") for _ in range(2))
    interface = start_chaos_interface()
    with echo_and_room(interface) as (echo, room):
        first.kill()
        time.sleep(LEASE - 1.5 * BEAT)
        second.pause()
        third = start_chaos_worker("--resume")
        for crowd in (echo, room):
            crowd.wait_each_answered(2 * LEASE + AWAKE)
            report = crowd.finish()
            figures(f"{crowd.label}: {report}")
            report.assert_whole(doubles=True)
        second.resume()
        for crowd in (echo, room):
            assert {known["pid"] for known in crowd.probe()} == {third.pid}


def test_a_short_pause_moves_no_connection(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    workers = [start_chaos_worker("--resume") for _ in range(2)]
    interface = start_chaos_interface()
    with echo_and_room(interface) as (echo, room):
        for process in (workers[0], interface):
            process.pause()
            time.sleep(LEASE - 2 * BEAT)
            process.resume()
            for crowd in (echo, room):
                crowd.wait_each_answered()
        for crowd in (echo, room):
            report = crowd.finish()
            figures(f"{crowd.label}: {report}")
            report.assert_whole()
            assert report.takeovers == 0
    assert not notes.all("connected", attempt=2)


def test_requests_at_a_paused_interface_end_or_run_again(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    start_chaos_worker()
    interface = start_chaos_interface()
    with ExitStack() as clients:

        def begin(method: str, path: str) -> RawClient:
            client = clients.enter_context(RawClient(interface, timeout=AWAKE))
            client.send(f"{method} {path}?gate=open&name={path[1:]} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            return client

        get, post, stream = begin("GET", "/slow"), begin("POST", "/slow"), begin("GET", "/stream")
        notes.wait("request", 3)
        stream.read_until(b"begun\n")
        interface.pause()
        time.sleep(PAUSE)
        events = notes.wait("left", 3)
        assert {note["event"] for note in events} == {"http.disconnect"}
        interface.resume()
        awake = time.monotonic()
        assert post.read_response().status == 502
        assert stream.read_until_close() in {b"", b"\r\n"}, "it ends without its end"
        notes.wait("request", 2, timeout=AWAKE, path="/slow", method="GET")
        notes.open_gate("open")
        assert get.read_response().status == 200
        figures(f"a POST refused, a response cut off and a GET run again within {time.monotonic() - awake:.2f} s")
    assert len(notes.all("request", method="POST")) == 1


@pytest.mark.parametrize("resume", [True, False])
def test_connections_of_a_paused_interface(
    resume: bool, start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    for _ in range(2):
        start_chaos_worker(*(["--resume"] if resume else []))
    paused, other = start_chaos_interface(), start_chaos_interface()
    with (
        Crowd(paused, "/echo", sockets=SOCKETS // 2, rate=RATE / 3, label="hit") as hit,
        Crowd(other, "/echo", sockets=SOCKETS // 2, rate=RATE / 3, label="spared") as spared,
        Crowd([paused, other], "/room", sockets=20, rate=RATE / 3) as room,
    ):
        crowds = (hit, spared, room)
        for crowd in crowds:
            crowd.begin()
            crowd.wait_each_answered()
        runs = notes.all("connected")
        paused.pause()
        time.sleep(PAUSE)
        disconnected = len(notes.all("disconnected", code=1006))
        assert disconnected == len(hit.members) + 10, "the apps got the disconnects of its clients"
        spared.wait_each_answered(2)
        paused.resume()
        for crowd in crowds:
            crowd.wait_each_answered(AWAKE)
        for crowd in (hit, spared):
            report = crowd.finish()
            figures(f"{crowd.label}: {report}")
            assert report.lost == report.disordered == report.backward == 0
            crowd.probe(2)
        report = room.finish()
        figures(f"room, with what was sent during the pause: {report}")
        room.probe(2)
        if resume:
            report.assert_whole()
            assert not any(crowd.closed() for crowd in crowds)
            assert len(notes.all("connected", resumed=True)) >= disconnected
        else:
            assert set(hit.report().closes) <= {1012}
            assert not spared.closed()
        # Groups work again.
        room.forget()
        room.begin()
        room.wait_each_answered()
        report = room.finish()
        figures(f"room afterwards: {report}")
        assert report.lost == report.doubled == report.disordered == 0
    names = {run["name"] for run in notes.all("connected")}
    assert names == {run["name"] for run in runs}
    wait_until(
        lambda: len(notes.all("cleaned")) + len(notes.all("send failed")) == len(notes.all("connected")),
        AWAKE,
        "the end of every run",
    )
