"""Processes are killed and replaced, and Redis loses its data, while many clients follow a stream."""

from collections.abc import Callable

import pytest
import redis

from chaos.scale import DRAIN_PERIOD, ROUNDS, by_form
from support.in_place import InPlace
from support.processes import Process
from support.viewers import Viewers, Writing

pytestmark = pytest.mark.usefixtures("short_leases")

VIEWERS = by_form(50, 500)
"""Of each kind."""
SOME = by_form(3, 20)
"""Entries that each viewer has to get between two faults."""

Start = Callable[..., Process]
Figures = Callable[[object], None]


def test_viewers_lose_no_entry(
    start_worker: Start, start_chaos_interface: Start, redis_url: str, figures: Figures
) -> None:
    def start() -> Process:
        options = ("--layer", redis_url, "--resume", "--resume-rate", 0, "--drain-period", DRAIN_PERIOD)
        return start_worker("end_to_end.streams_app:app", *options)

    workers = [start(), start()]
    kept, killed = start_chaos_interface(), start_chaos_interface()
    with InPlace(kept) as in_place, Writing(redis_url, "numbers") as writing:
        offsets = ["0", writing.offsets[0]] * (VIEWERS // 2)
        with Viewers([kept, killed], "numbers", websockets=offsets, event_streams=offsets) as viewers:
            viewers.wait_each_got(SOME)
            for _ in range(ROUNDS):
                for worker in workers:
                    worker.kill()
                viewers.wait_each_got(SOME)
                workers = [start(), start()]
                workers.pop(0).terminate()
                viewers.wait_each_got(SOME)
                workers.append(start())
                in_place.move()
                viewers.wait_each_got(SOME)
                with redis.Redis.from_url(redis_url) as admin:
                    admin.flushall()
                viewers.wait_each_got(SOME)
            figures(viewers.report())
            killed.kill()
            viewers.wait_each_got(SOME)
            writing.end()
            viewers.wait_ended()
            report = viewers.report()
    figures(f"and with an interface server killed: {report}")
    report.assert_whole()
