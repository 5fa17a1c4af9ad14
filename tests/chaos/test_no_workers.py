"""A bus without any worker, under load: the interface server holds a bounded backlog and loses nothing."""

import time
from collections.abc import Callable

import psutil
import redis

from chaos.crowd import Crowd
from chaos.notes import Notes
from chaos.scale import OUTAGE, by_form
from support.deadline import in_time, wait_until
from support.processes import Process
from support.raw import RawClient

Start = Callable[..., Process]
Figures = Callable[[object], None]

SOCKETS = by_form(20, 300)
SIZE = 4000
WINDOW = 256 * 1024
FIXED = 30 * 1024 * 1024
"""Bytes that an interface server may grow by whatever it does."""


def test_an_interface_without_workers_has_bounded_memory(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    workers = [start_chaos_worker("--resume") for _ in range(2)]
    interface = start_chaos_interface("--connect-timeout", OUTAGE + 30, "--resume-timeout", OUTAGE + 30)
    process = psutil.Process(interface.pid)
    # More than fills all windows and the kernel's buffers within the time.
    rate = SOCKETS * 4 * WINDOW / SIZE / OUTAGE
    with Crowd(interface, "/echo", sockets=SOCKETS, rate=rate, size=SIZE, send_buffer=16 * 1024) as crowd:
        crowd.begin()
        crowd.wait_each_answered()
        before = process.memory_info().rss
        for worker in workers:
            worker.terminate()
        for worker in workers:
            assert worker.wait(20) == 0
        stopped = time.monotonic()
        get = RawClient(interface, timeout=OUTAGE + 10)
        get.send(b"GET /fast HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_until(lambda: all(member.blocked for member in crowd.members), OUTAGE + 10, "backpressure")
        blocked = time.monotonic() - stopped
        time.sleep(max(0.0, OUTAGE - blocked))
        grown = process.memory_info().rss - before
        under_way = sum(member.sent - member.answered for member in crowd.members) * SIZE
        figures(
            f"all {SOCKETS} clients were blocked after {blocked:.1f} s, with {under_way / SOCKETS / 1024:.0f} KiB "
            f"each under way; the interface server grew by {grown / SOCKETS / 1024:.0f} KiB a socket; "
            f"{crowd.skipped} messages were not sent for it"
        )
        start_chaos_worker("--resume")
        crowd.pause()
        report = crowd.finish(30)
        figures(report)
        with get:
            assert get.read_response().status == 200
        report.assert_whole()
        crowd.probe()
    assert not notes.all("disorder")
    assert grown < SOCKETS * 2 * WINDOW + FIXED


def test_runs_for_clients_that_left_without_workers_end(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, redis_url: str
) -> None:
    worker = start_chaos_worker("--resume")
    interface = start_chaos_interface("--resume-timeout", 30)
    with Crowd(interface, "/echo", sockets=20, rate=200, label="stay") as staying:
        with Crowd(interface, "/echo", sockets=20, rate=200, label="leave") as leaving:
            for crowd in (staying, leaving):
                crowd.begin()
                crowd.wait_each_answered()
            worker.terminate()
            assert worker.wait() == 0
        start_chaos_worker("--resume")
        staying.wait_each_answered()
        staying.finish().assert_whole()
        staying.probe()
        # Runs for clients that had left have ended.
        wait_until(
            lambda: (
                sum(note["name"].startswith("leave") for note in notes.all("connected"))
                == sum(note["name"].startswith("leave") for note in notes.all("cleaned") + notes.all("send failed"))
            ),
            5,
            "the end of all runs of clients that left",
        )
        with redis.Redis.from_url(redis_url, protocol=2, decode_responses=True, socket_timeout=30) as admin:
            assert {key: admin.xlen(key) for key in admin.keys("*:shared:websocket*")} == dict.fromkeys(
                admin.keys("*:shared:websocket*"), 0
            )


def test_clients_that_wait_too_long_are_closed(
    start_chaos_interface: Start, start_chaos_worker: Start, figures: Figures
) -> None:
    worker = start_chaos_worker("--resume")
    interface = start_chaos_interface("--connect-timeout", 1, "--resume-timeout", 2)
    with Crowd(interface, "/echo", sockets=20, rate=100) as crowd:
        crowd.begin()
        crowd.wait_each_answered()
        worker.terminate()
        assert worker.wait() == 0
        begun = time.monotonic()
        with RawClient(interface) as client:
            assert client.request("GET", "/fast").status == 503
        wait_until(lambda: len(crowd.closed()) == 20, what="the closes")
        seconds = time.monotonic() - begun
        report = crowd.finish()
        figures(f"closed after {seconds:.2f} s: {report}")
        assert report.closes == {1013: 20}
        assert seconds > 1
        in_time(seconds, 3.5)
