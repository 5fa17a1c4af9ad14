"""Expiry of leases: a killed process is declared dead in time; pauses, clock steps and outages end no other lease."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from chaos.notes import Notes
from chaos.scale import GRACE, LEASE, NOTICED, PAUSE, by_form
from support import clocks
from support.clocks import WallClock
from support.deadline import in_time, wait_until
from support.load import RATE, Load
from support.processes import Processes
from support.redis import RedisServer

pytestmark = pytest.mark.usefixtures("short_leases")

StartRedis = Callable[..., RedisServer]
Figures = Callable[[object], None]

HOUR = 3600.0
STEADY = by_form(1.2, 8.0)
"""Seconds that a clock stands where it was set: several beats."""
OUTAGE = by_form(LEASE + 1, 4 * LEASE)


@pytest.fixture
def server(start_redis: StartRedis) -> RedisServer:
    return start_redis()


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    if clocks.library() is None:
        pytest.skip("libfaketime is not installed")
    return WallClock(tmp_path / "clock")


def live_mailboxes(url: str) -> set[str]:
    """Return the mailboxes whose leases run."""
    with redis.Redis.from_url(url, protocol=2, socket_timeout=30) as client:
        seconds, microseconds = client.time()
        now = seconds * 1000 + microseconds // 1000
        names = [name.decode() for name in client.zrange("asgibus:processes", now, "+inf", byscore=True)]
    return {name for name in names if name.endswith("!")}


@pytest.mark.long  # see test_worker_killed
def test_connections_of_a_killed_worker_are_taken_over(
    server: RedisServer, processes: Processes, notes: Notes, figures: Figures
) -> None:
    with Load(processes, notes, server.url) as load:
        leases_before = len(live_mailboxes(server.url))
        victim = load.workers[0]
        held = [member for crowd in (load.echo, load.room) for member in crowd.of_pid(victim.pid)]
        killed = time.monotonic()
        victim.kill()
        for crowd in (load.echo, load.room):
            crowd.wait_each_answered(NOTICED + 2)
        times = [takeover.at - killed for crowd in (load.echo, load.room) for takeover in crowd.takeovers(killed)]
        leases = len(live_mailboxes(server.url))
        load.wait_recovered(killed)
        outcome = load.finish()
    figures(f"{len(held)} sockets, taken over {min(times):.2f} to {max(times):.2f} s after the kill; {outcome}")
    assert held
    assert len(times) == len(held)
    in_time(max(times), NOTICED)
    outcome.echo.assert_whole()
    assert not outcome.room.closes
    assert not outcome.disconnects
    assert not outcome.doubled_runs
    assert not outcome.posts["503"]  # connections that the killed worker had claimed are offered again
    assert leases == leases_before - 1


@pytest.mark.long  # see test_interface_killed
def test_apps_get_the_disconnects_of_a_killed_interface(
    server: RedisServer, processes: Processes, notes: Notes, figures: Figures
) -> None:
    with Load(processes, notes, server.url) as load:
        leases_before = len(live_mailboxes(server.url))
        victim = load.interfaces[0]
        lost = [member for crowd in (load.echo, load.room) for member in crowd.members[0::2]]
        others = [member for crowd in (load.echo, load.room) for member in crowd.members[1::2]]
        killed = time.monotonic()
        victim.kill()
        events = notes.wait("disconnected", len(lost), NOTICED + 3, code=1006)
        times = [each["at"] - killed for each in events]
        load.echo.wait_each_answered()
        load.room.wait_each_answered()
        assert len(live_mailboxes(server.url)) == leases_before - 1
    figures(f"{len(lost)} sockets, disconnects noted {min(times):.2f} to {max(times):.2f} s after the kill")
    in_time(max(times), NOTICED)
    assert {each["name"] for each in events} == {member.name for member in lost}
    assert all(member.closed is None or member.leaving for member in others)


@pytest.mark.long  # see test_paused, under less load
@pytest.mark.parametrize("kind", ["worker", "interface"])
def test_a_paused_process_is_declared_dead_and_returns(
    kind: str, server: RedisServer, processes: Processes, notes: Notes, figures: Figures
) -> None:
    with Load(processes, notes, server.url) as load:
        victim = (load.workers if kind == "worker" else load.interfaces)[0]
        untouched = [
            member
            for crowd in (load.echo, load.room)
            for index, member in enumerate(crowd.members)
            if (member.pid != victim.pid if kind == "worker" else index % 2)
        ]
        paused = time.monotonic()
        victim.pause()
        wait_until(lambda: time.monotonic() > paused + PAUSE, PAUSE + 1)
        seen_dead = len(load.echo.takeovers(paused)) if kind == "worker" else len(notes.all("disconnected", code=1006))
        moved = [member for member in untouched if member.takeovers]
        victim.resume()
        load.wait_recovered(time.monotonic())
        outcome = load.finish()
        moved += [member for member in untouched if member.takeovers]
        served = {(answer["name"], answer["attempt"]) for crowd in (load.echo, load.room) for answer in crowd.probe()}
    figures(f"{seen_dead} sockets were known to be lost during the pause; {outcome}")
    assert seen_dead
    assert not moved
    assert len(served) == len(load.echo.members) + len(load.room.members)
    outcome.echo.assert_whole()
    assert not outcome.room.closes
    assert not outcome.late
    assert not outcome.doubled_runs


def test_clock_steps_of_a_host_end_no_lease(
    clock: WallClock, server: RedisServer, processes: Processes, notes: Notes, figures: Figures
) -> None:
    with Load(processes, notes, server.url, env=clock.env) as load:
        for step in (HOUR, -HOUR):
            clock.step(step)
            load.echo.wait_answered(int(STEADY * RATE))
        load.wait_recovered(time.monotonic())
        outcome = load.finish()
    figures(outcome)
    outcome.assert_whole()
    assert not outcome.lost


def step_redis(url: str, seconds: float) -> None:
    """Make all leases look as if Redis's clock had been set: there is no way to give it one of its own."""
    with redis.Redis.from_url(url, protocol=2, socket_timeout=30) as client:
        client.eval(
            "for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do "
            "redis.call('ZINCRBY', KEYS[1], -ARGV[1], member) end",
            1,
            "asgibus:processes",
            str(int(seconds * 1000)),
        )


def test_clock_steps_of_redis_end_no_lease(
    server: RedisServer, processes: Processes, notes: Notes, figures: Figures
) -> None:
    """Steps of the clock of Redis end no lease, and a worker that is killed afterwards is noticed in time."""
    with Load(processes, notes, server.url) as load:
        for step in (HOUR, -HOUR):  # after the first step all heartbeats seem an hour old
            step_redis(server.url, step)
            load.echo.wait_answered(int(STEADY * RATE))
        load.echo.wait_each_answered()
        assert not load.echo.takeovers()
        assert not notes.all("disconnected")
        victim = load.workers[0]
        killed = time.monotonic()
        victim.kill()
        load.echo.wait_each_answered(NOTICED + 3)
        noticed = max(takeover.at - killed for takeover in load.echo.takeovers(killed))
        load.wait_recovered(killed)
        outcome = load.finish()
    figures(f"a worker killed afterwards was noticed after {noticed:.2f} s; {outcome}")
    in_time(noticed, NOTICED)
    outcome.echo.assert_whole()
    assert not outcome.disconnects


def test_an_outage_ends_only_the_lease_of_the_killed_worker(
    start_redis: StartRedis, processes: Processes, notes: Notes, figures: Figures
) -> None:
    """Only the killed worker is declared dead when Redis returns with expired leases."""
    server = start_redis("--appendonly", "yes", "--appendfsync", "always")
    with Load(processes, notes, server.url) as load:
        victim = load.workers[0]
        held = load.echo.of_pid(victim.pid)
        server.terminate()
        stopped = time.monotonic()
        wait_until(lambda: time.monotonic() > stopped + OUTAGE / 2, OUTAGE)
        victim.kill()
        wait_until(lambda: time.monotonic() > stopped + OUTAGE, OUTAGE)
        server.start()
        back = time.monotonic()
        load.echo.wait_each_answered(GRACE + NOTICED + 2)
        seconds = load.wait_recovered(back, 30)
        moved = {takeover.pid for crowd in (load.echo, load.room) for takeover in crowd.takeovers()}
        before = {takeover.before for crowd in (load.echo, load.room) for takeover in crowd.takeovers()}
        takeovers = load.echo.takeovers(back)
        outcome = load.finish()
    first, last = takeovers[0].at - back, takeovers[-1].at - back
    figures(
        f"{len(takeovers)} of {len(held)} sockets taken over {first:.2f} to {last:.2f} s "
        f"after Redis was back, recovered after {seconds:.2f} s; {outcome}"
    )
    assert held
    assert before == {victim.pid}
    assert moved == {load.workers[1].pid}
    outcome.echo.assert_whole()
    assert not outcome.room.closes
    assert not outcome.disconnects
