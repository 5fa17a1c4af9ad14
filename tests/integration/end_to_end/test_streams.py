"""Streams that are followed, while workers and interface servers are killed and replaced, and Redis loses its data."""

import re
from collections.abc import Callable

import pytest
import redis

from support.admin import counts
from support.in_place import InPlace
from support.processes import Process
from support.viewers import Viewers, Writing

APP = "end_to_end.streams_app:app"

Start = Callable[..., Process]

pytestmark = pytest.mark.usefixtures("short_leases")


def test_viewers_notice_neither_workers_nor_lost_data(
    start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    bus = ("--layer", redis_url)
    workers = [start_worker(APP, *bus, "--resume") for _ in range(2)]
    interface = start_interface(*bus, "--admin-port", 0)
    with Writing(redis_url, "numbers") as writing:
        begin, later = writing.offsets[0], "0"
        with Viewers([interface], "numbers", websockets=["0", begin], event_streams=["0", begin, later]) as viewers:
            viewers.wait_each_got(5)
            for worker in workers:
                worker.kill()
            viewers.wait_each_got(5)  # there is no worker
            first, second = (start_worker(APP, *bus, "--resume") for _ in range(2))
            viewers.wait_each_got(5)
            first.terminate()
            assert first.wait() == 0
            viewers.wait_each_got(5)
            with redis.Redis.from_url(redis_url) as admin:
                admin.flushall()
            viewers.wait_each_got(5)
            assert second.running
            writing.end()
            viewers.wait_ended()
            report = viewers.report()
    report.assert_whole()
    assert report.connections == 2 + 2 * 3, "none was closed; an EventSource comes back once, and is told to stop"
    assert "fault" not in counts(interface)


def test_a_viewer_goes_on_at_another_interface_server(
    start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    bus = ("--layer", redis_url)
    start_worker(APP, *bus)
    killed, stopped, last = (start_interface(*bus) for _ in range(3))
    with (
        Writing(redis_url, "numbers") as writing,
        Viewers([killed, stopped, last], "numbers", websockets=["0"], event_streams=["0", "0"]) as viewers,
    ):
        viewers.wait_each_got(5)
        killed.kill()
        viewers.wait_each_got(5)
        stopped.terminate()
        assert stopped.wait() == 0
        viewers.wait_each_got(5)
        writing.end()
        viewers.wait_ended()
        report = viewers.report()
    report.assert_whole()


def test_viewers_stay_with_an_interface_server_that_is_replaced_in_place(
    start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    bus = ("--layer", redis_url)
    worker = start_worker(APP, *bus)
    interface = start_interface(*bus)
    with (
        InPlace(interface) as in_place,
        Writing(redis_url, "numbers") as writing,
        Viewers([interface], "numbers", websockets=["0", "0"], event_streams=["0", "0"]) as viewers,
    ):
        viewers.wait_each_got(5)
        _, what = in_place.move()
        assert re.search("2 websocket, 2 http sockets moved", what)
        viewers.wait_each_got(5)
        worker.kill()
        viewers.wait_each_got(5)
        start_worker(APP, *bus)
        writing.end()
        viewers.wait_ended()
        report = viewers.report()
    report.assert_whole()
