"""Packets to Redis are lost, or a replica becomes the master, while clients send messages."""

import time
from collections.abc import Callable

import pytest

from chaos.notes import Notes
from chaos.scale import LEASE, by_form
from support.deadline import in_time, wait_until
from support.load import Load
from support.namespaces import Namespace
from support.processes import Processes
from support.sentinel import SentinelSet

Figures = Callable[[object], None]

BLACKHOLE = by_form(LEASE + 2.0, 10.0)
RECOVERED = 8.0
"""Seconds after packets arrive again: a connection that waits in silence has to be given up first."""
FAILED_OVER = 10.0
"""Seconds after the master was killed, of which the sentinels need two or three."""
MASTER_PAUSE = 4.0


@pytest.mark.usefixtures("short_leases")
def test_packets_to_redis_are_lost_for_a_while(
    far: Namespace, far_url: str, processes: Processes, notes: Notes, figures: Figures
) -> None:
    with Load(processes, notes, far_url) as load:
        far.lose_packets()
        lost = time.monotonic()
        unready = load.wait_ready(503, BLACKHOLE)
        wait_until(lambda: time.monotonic() > lost + BLACKHOLE, BLACKHOLE + 1)
        far.heal()
        load.wait_recovered(time.monotonic(), 30)
        outcome = load.finish()
    figures(f"not ready after {unready:.2f} s; {outcome}")
    outcome.assert_whole()
    assert outcome.recovery is not None
    in_time(outcome.recovery, RECOVERED)
    assert outcome.failed == [], "broadcasts of apps wait for Redis"
    assert len(outcome.program_failed) > 0


@pytest.mark.parametrize("fault", by_form(["killed"], ["killed", "paused"]))
def test_a_replica_becomes_master(
    fault: str, sentinels: SentinelSet, processes: Processes, notes: Notes, figures: Figures
) -> None:
    """A paused master that returns stays master for some seconds, until the sentinels make it a replica."""
    with Load(processes, notes, sentinels.url) as load:
        began = time.monotonic()
        if fault == "killed":
            sentinels.master.kill()
        else:
            sentinels.master.pause()
        sentinels.wait_promoted()
        promoted = time.monotonic() - began
        if fault == "paused":
            wait_until(lambda: time.monotonic() > began + MASTER_PAUSE, MASTER_PAUSE + 1)
            sentinels.master.resume()
            sentinels.wait_demoted()
            began = time.monotonic()
        load.wait_recovered(began, 30)
        outcome = load.finish()
    figures(f"promoted after {promoted:.2f} s; {outcome}")
    outcome.assert_whole()
    assert outcome.recovery is not None
    in_time(outcome.recovery, FAILED_OVER)
