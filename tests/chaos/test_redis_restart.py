"""Redis dies, is emptied or stands still, while clients talk all the time."""

import time
from collections.abc import Callable

import redis

from chaos.notes import Notes
from chaos.scale import by_form
from support.deadline import in_time, wait_until
from support.load import Load
from support.processes import Processes
from support.redis import RedisServer

StartRedis = Callable[..., RedisServer]
Figures = Callable[[object], None]

DOWN = by_form(6.0, 15.0)  # longer than a call waits
PAUSE = by_form(8.0, 20.0)  # longer than a lease lives
RECOVERED = 5.0
"""Seconds after Redis is back."""


def test_a_restart_without_data(start_redis: StartRedis, processes: Processes, notes: Notes, figures: Figures) -> None:
    server = start_redis()
    with Load(processes, notes, server.url) as load:
        load.wait_ready(200, 5)
        server.kill()
        killed = time.monotonic()
        unready = load.wait_ready(503, 5)
        wait_until(lambda: time.monotonic() > killed + DOWN, DOWN + 1)
        server.start()
        back = time.monotonic()
        load.wait_recovered(back)
        ready = load.wait_ready(200, 5)
        outcome = load.finish()
    figures(f"not ready {unready:.2f} s after the kill, ready {ready:.2f} s after the recovery; {outcome}")
    outcome.assert_whole()
    assert outcome.recovery is not None
    in_time(outcome.recovery, RECOVERED)
    in_time(unready, 1)
    in_time(ready, 1)
    assert outcome.failed == [], "what an app sends waits for Redis"
    assert len(outcome.program_failed) > 0
    counted = sum(counts.get("send failed", 0) for counts in outcome.counts.values())
    assert counted == len(outcome.failed)
    logs = [process.log() for process in load.servers]
    assert all("is gone" in log and "is back" in log for log in logs)
    assert sum(log.count("did not go out") for log in logs) == sum(
        "send failed" in each for each in outcome.counts.values()
    )


def test_all_data_is_deleted(start_redis: StartRedis, processes: Processes, notes: Notes, figures: Figures) -> None:
    server = start_redis()
    with Load(processes, notes, server.url) as load, redis.Redis.from_url(server.url, protocol=2) as admin:
        recoveries = []
        for _ in range(by_form(2, 10)):
            admin.flushall()
            recoveries.append(load.wait_recovered(time.monotonic()))
        outcome = load.finish()
    figures(f"recovered after {[round(each, 2) for each in recoveries]} s; {outcome}")
    outcome.assert_whole()
    in_time(max(recoveries), RECOVERED)


def test_a_pause_longer_than_a_lease(
    start_redis: StartRedis, processes: Processes, notes: Notes, figures: Figures
) -> None:
    """Nobody could renew, and nobody is taken for dead."""
    server = start_redis()
    with Load(processes, notes, server.url) as load:
        server.pause()
        paused = time.monotonic()
        try:
            wait_until(lambda: time.monotonic() > paused + PAUSE, PAUSE + 1)
        finally:
            server.resume()
        load.wait_recovered(time.monotonic())
        outcome = load.finish()
    figures(outcome)
    outcome.assert_whole()
    assert outcome.recovery is not None
    in_time(outcome.recovery, RECOVERED)
    assert outcome.failed == [], "what an app sends waits for Redis"
