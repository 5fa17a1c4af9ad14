"""Workers are replaced and killed while many event streams are read."""

from collections.abc import Callable

from chaos.readers import Readers
from chaos.scale import DRAIN_PERIOD, ROUNDS, by_form
from support.processes import Process

STREAMS = by_form(100, 1000)
PAUSE = by_form(0.1, 0.5)
"""Seconds between the two halves of each event."""


def test_event_streams_outlive_their_workers(
    start_worker: Callable[..., Process],
    start_chaos_interface: Callable[..., Process],
    redis_url: str,
    short_leases: None,
    figures: Callable[[object], None],
) -> None:
    def start() -> Process:
        options = ("--layer", redis_url, "--resume", "--drain-period", DRAIN_PERIOD)
        return start_worker("end_to_end.events_app:app", *options, env={"PAUSE": PAUSE})

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
