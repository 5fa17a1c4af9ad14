"""Redis is killed, emptied or paused while clients send messages."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from chaos.notes import Notes
from chaos.scale import LEASE, by_form
from support.admin import counts
from support.deadline import HANG, in_time, wait_until
from support.load import WAIT, Load
from support.processes import Process, Processes
from support.raw import RawClient
from support.redis import RedisServer
from support.websocket import ws

Start = Callable[..., Process]
StartRedis = Callable[..., RedisServer]
Figures = Callable[[object], None]

DOWN = by_form(WAIT + 1.0, 15.0)  # longer than a call of the program waits
PAUSE = by_form(LEASE + 1.0, 20.0)
RECOVERED = 5.0
"""Seconds after Redis is back."""


def test_redis_restarts_without_data(
    start_redis: StartRedis, processes: Processes, notes: Notes, figures: Figures
) -> None:
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
    assert outcome.failed == [], "broadcasts of apps wait for Redis"
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
        for _ in range(by_form(1, 10)):
            admin.flushall()
            recoveries.append(load.wait_recovered(time.monotonic()))
        outcome = load.finish()
    figures(f"recovered after {[round(each, 2) for each in recoveries]} s; {outcome}")
    outcome.assert_whole()
    in_time(max(recoveries), RECOVERED)


@pytest.mark.usefixtures("short_leases")
def test_a_pause_longer_than_a_lease(
    start_redis: StartRedis, processes: Processes, notes: Notes, figures: Figures
) -> None:
    """No process is declared dead when Redis pauses for longer than a lease."""
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
    assert outcome.failed == [], "broadcasts of apps wait for Redis"


@pytest.mark.parametrize("resume", [["--resume"], []], ids=["resume", "no resume"])
def test_connections_end_if_redis_stays_away(
    resume: list[str],
    start_redis: StartRedis,
    start_interface: Start,
    start_worker: Start,
    notes: Notes,
    tmp_path: Path,
) -> None:
    server = start_redis()
    start_worker("support.outage_app:app", "--layer", server.url, *resume, env=notes.env)
    start_worker("cli.simple_app:app", "--layer", server.url, "--pool", "slow", "--graceful-timeout", 0.5)
    interface = start_interface(
        *("--layer", server.url, "--resume-timeout", 1, "--connect-timeout", 1.5, "--route", "/hold=slow")
    )
    with ws(interface, "/room", query={"name": "a", "room": "a"}) as socket, RawClient(interface) as client:
        socket.send("?")
        socket.recv(HANG)
        client.send(b"GET /hold HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_until((tmp_path / "held-").exists)
        server.kill()
        assert client.read_response().status == 503
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(HANG)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == CloseCode.TRY_AGAIN_LATER
    with RawClient(interface) as client:
        client.send(b"GET /hold HTTP/1.1\r\nHost: test\r\n\r\n")
        assert client.read_response().status == 503, "a new request waits no longer than --connect-timeout"
    server.start()  # otherwise the servers wait for Redis when they stop


def test_a_broadcast_waits_for_redis_until_the_resume_timeout(
    start_redis: StartRedis, start_interface: Start, start_worker: Start, notes: Notes
) -> None:
    server = start_redis()
    worker = start_worker(
        *("support.outage_app:app", "--layer", server.url, "--resume-timeout", 1, "--admin-port", 0), env=notes.env
    )
    interface = start_interface("--layer", server.url)
    with ws(interface, "/ticker", query={"name": "a", "room": "a", "interval": 0.05}):
        notes.wait("ticking")
        server.kill()
        (failed, *_) = notes.wait("broadcast failed")
        in_time(failed["seconds"], 2)
        assert failed["seconds"] > 0.9
        assert counts(worker)["send failed"] >= 1
        worker.wait_for("a message of the app was not sent")
        server.start()  # otherwise the servers wait for Redis when they stop
