"""Redis continues with older data, without later members of groups: these must not miss any message."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from chaos.crowd import Crowd
from chaos.notes import Notes
from chaos.scale import by_form
from support.clocks import stepping_server
from support.deadline import in_time, wait_until
from support.load import RATE, ROOM_RATE, ROOM_SIZE, Load
from support.processes import Processes
from support.redis import RedisServer
from support.sentinel import SentinelSet

Figures = Callable[[object], None]

LAG = by_form(1.5, 4.0)
"""Seconds that a replica is behind."""
HANG = by_form(5.5, 8.0)
"""Seconds that a master hangs: Sentinels promote another one within two or three."""
RECOVERED = 12.0
"""Seconds after Redis is back, or a replica is the master; in three of them processes join their groups again."""
STEADY = by_form(2.5, 8.0)
"""Seconds that a clock stands where it was set."""


@contextmanager
def late_room(load: Load) -> Iterator[Crowd]:
    """Provide a room that is joined now."""
    with Crowd(load.interfaces, "/room", sockets=ROOM_SIZE, rate=ROOM_RATE, room_size=ROOM_SIZE, label="late") as late:
        yield late


def silently_lost(late: Crowd, load: Load) -> list[tuple[str, str, int]]:
    """Return (member, sender, number) for broadcasts that members missed although the call did not fail."""
    failed = load.failed()
    lost = []
    for member in late.members:
        for sender in late.members:
            seen = member.seen[sender.name]
            missing = [*seen.missing, *range(seen.expected, sender.sent)]
            lost += [(member.name, sender.name, each) for each in missing if (sender.name, each) not in failed]
    return lost


def test_redis_starts_from_an_older_snapshot(
    start_redis: Callable[..., RedisServer], processes: Processes, notes: Notes, figures: Figures
) -> None:
    server = start_redis()
    with Load(processes, notes, server.url) as load:
        with redis.Redis.from_url(server.url, protocol=2) as admin:
            admin.save()
        with late_room(load) as late:
            late.begin()
            late.wait_each_answered()
            server.kill()
            server.start()
            back = time.monotonic()
            load.wait_recovered(back, 30)
            late.wait_each_answered(RECOVERED)
            report = late.finish(by_form(2.0, 5.0))
            lost = silently_lost(late, load)
            outcome = load.finish()
    figures(f"late room: {report}; {outcome}")
    outcome.assert_whole()
    assert not report.closes
    assert not lost
    assert outcome.recovery is not None
    in_time(outcome.recovery, RECOVERED)


def test_a_lagging_replica_becomes_master(
    sentinels: SentinelSet, processes: Processes, notes: Notes, figures: Figures
) -> None:
    with Load(processes, notes, sentinels.url) as load:
        with redis.Redis(port=sentinels.master.port, protocol=2) as admin:
            admin.config_set("repl-backlog-size", 16384)  # too small to go on from
            admin.config_set("repl-diskless-sync-delay", 3600)  # so that the replica gets no further data
            admin.client_kill_filter(_type="replica")
        cut = time.monotonic()
        with late_room(load) as late:
            late.begin()
            wait_until(lambda: time.monotonic() > cut + LAG, LAG + 10)
            late.wait_each_answered()
            sentinels.master.kill()
            sentinels.wait_promoted()
            promoted = time.monotonic()
            load.wait_recovered(promoted, 30)
            late.wait_each_answered(RECOVERED)
            report = late.finish(by_form(2.0, 5.0))
            lost = silently_lost(late, load)
            outcome = load.finish()
    figures(f"late room: {report}; {outcome}")
    outcome.assert_whole()
    assert not report.closes
    assert not lost
    assert outcome.recovery is not None
    in_time(outcome.recovery, RECOVERED)


@pytest.mark.long  # see test_redis_broadcasts.py, with two processes
def test_servers_recover_from_clock_steps_of_redis(
    tmp_path: Path, processes: Processes, notes: Notes, figures: Figures
) -> None:
    """All servers recover when a clock step expires every key and every lease in Redis."""
    with stepping_server(tmp_path) as (server, clock), Load(processes, notes, server.url) as load:
        for step in (90.0, 3600.0, -3600.0):
            clock.step(step)
            load.echo.wait_answered(int(STEADY * RATE))
        load.wait_recovered(time.monotonic())
        outcome = load.finish()
    figures(outcome)
    outcome.assert_whole()


@pytest.mark.long  # see test_redis_outages.py, with two processes
def test_a_hung_master_returns(sentinels: SentinelSet, processes: Processes, notes: Notes, figures: Figures) -> None:
    """No broadcast, request or run goes to a paused master that returns and is not yet demoted."""
    with Load(processes, notes, sentinels.url) as load:
        sentinels.master.pause()
        paused = time.monotonic()
        sentinels.wait_promoted()
        wait_until(lambda: time.monotonic() > paused + HANG, HANG + 1)
        sentinels.master.resume()
        resumed = time.monotonic()
        load.wait_recovered(resumed, 30)
        load.echo.wait_answered(int(STEADY * RATE))
        outcome = load.finish()
    figures(outcome)
    outcome.assert_whole()
    assert outcome.posts.keys() <= {"200", "502"}  # a request that may have been run is not run again
    assert outcome.recovery is not None
    in_time(outcome.recovery, RECOVERED)
