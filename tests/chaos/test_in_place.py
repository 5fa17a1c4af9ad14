"""Interface servers are replaced in place, under load."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil

from chaos.crowd import Crowd
from chaos.listeners import Listeners
from chaos.notes import Notes
from chaos.scale import by_form
from support.deadline import in_time
from support.in_place import InPlace
from support.processes import Process
from support.raw import RawClient

Start = Callable[..., Process]
Figures = Callable[[object], None]

SOCKETS = by_form(60, 5000)
RATE = by_form(200, 500)
ANSWERS = by_form(50, RATE)
"""Of each crowd, between two moves."""
STREAMS = by_form(10, 100)
MOVES = by_form(2, 5)
SILENCE = 1.0
"""Seconds for which no client may wait."""


def memory(pid: int) -> float:
    """Return the resident memory of a process, in MB."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6


def wait_at_the_gate(interface: Process) -> int:
    """Return the status of a request that is answered once the gate is open."""
    with RawClient(interface) as client:
        return client.request("GET", "/slow?gate=open").status


def test_clients_do_not_notice_that_the_interface_server_is_another_one(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    for _ in range(2):
        start_chaos_worker("--resume")
    interface = start_chaos_interface("--keep-alive-timeout", 300)
    with (
        InPlace(interface) as in_place,
        Crowd(interface, "/echo", sockets=SOCKETS // 2, rate=RATE / 2) as echo,
        Crowd(interface, "/room", sockets=SOCKETS // 2, rate=RATE / 2) as room,
        Listeners(interface, STREAMS) as streams,
        RawClient(interface) as idle,
        ThreadPoolExecutor(1) as threads,
    ):
        for crowd in (echo, room):
            crowd.begin()
        assert idle.request("GET", "/fast").status == 200
        moves, memories = [], []
        for number in range(MOVES):
            if number == MOVES - 1:
                answer = threads.submit(wait_at_the_gate, interface)
                notes.wait("request", path="/slow")
            for crowd in (echo, room):
                crowd.wait_answered(ANSWERS)
            before = memory(in_place.pid)
            moves.append(in_place.move())
            for crowd in (echo, room):
                crowd.wait_answered(ANSWERS)
            memories.append((before, memory(in_place.pid)))
        for crowd in (echo, room):
            crowd.wait_answered(ANSWERS)
        assert idle.request("GET", "/fast").status == 200
        notes.open_gate("open")
        assert answer.result() == 200
        reports = [crowd.finish() for crowd in (echo, room)]
        for seconds, what in moves:
            figures(f"clients waited {seconds:.2f} s: {what}")
        for old, new in memories:
            figures(f"memory: {old:.0f} MB in the old process, {new:.0f} MB in the new one")
        for crowd, report in zip((echo, room), reports, strict=True):
            figures(f"{crowd.label}: {report}")
        figures(f"event streams: at most {streams.longest:.2f} s without an event")
        for report in reports:
            report.assert_whole()
            assert report.takeovers == 0, "the workers must not notice"
            in_time(report.slowest, SILENCE)
        for old, new in memories:
            assert new < 1.2 * old + 10
        streams.assert_whole()
        in_time(streams.longest, SILENCE)
    assert not notes.all("disorder")
    assert not notes.all("disconnected", code=1006)
