"""Workers are replaced, killed and paused, and Redis loses its data, while many event streams are read."""

from collections.abc import Callable

import pytest
import redis

from chaos.readers import Readers
from chaos.scale import DRAIN_PERIOD, ROUNDS, by_form
from support.processes import Process

pytestmark = pytest.mark.usefixtures("short_leases")

STREAMS = by_form(100, 1000)
PAUSE = by_form(0.1, 0.5)
"""Seconds between the two halves of each event."""

Start = Callable[..., Process]
Figures = Callable[[object], None]


@pytest.fixture
def start(start_worker: Start, redis_url: str) -> Start:
    """Start a worker of an app that numbers its events."""

    def start() -> Process:
        options = ("--layer", redis_url, "--resume", "--drain-period", DRAIN_PERIOD)
        return start_worker("end_to_end.events_app:app", *options, env={"PAUSE": PAUSE})

    return start


def test_event_streams_outlive_their_workers(start: Start, start_chaos_interface: Start, figures: Figures) -> None:
    workers = [start(), start()]
    with Readers(start_chaos_interface(), "/numbers", count=STREAMS) as readers:
        readers.wait_each_got(2)
        for _ in range(ROUNDS):
            for index, worker in enumerate(workers):
                worker.terminate()
                workers[index] = start()
                assert worker.wait() == 0
                readers.wait_each_got(2)
        figures(f"deploy: {readers.report()}")
        for _ in range(ROUNDS):
            workers.pop(0).kill()
            workers.append(start())
            readers.wait_each_got(2)
        report = readers.report()
        figures(f"deploy and crash: {report}")
        report.assert_whole()


def test_event_streams_of_a_paused_worker_move(
    start: Start, start_chaos_interface: Start, redis_url: str, figures: Figures
) -> None:
    """Frames of an earlier run, from the paused worker, reach no client. Then Redis loses its data."""
    paused, other = start(), start()
    with Readers(start_chaos_interface(), "/numbers", count=STREAMS) as readers:
        readers.wait_each_got(2)
        paused.pause()
        readers.wait_each_got(2)
        paused.resume()
        readers.wait_each_got(5)
        with redis.Redis.from_url(redis_url) as admin:
            admin.flushall()
        readers.wait_each_got(5)
        other.terminate()
        assert other.wait() == 0
        readers.wait_each_got(2)
        report = readers.report()
        figures(report)
        report.assert_whole()
