"""A writer of a stream is killed, or Redis loses its data, while other processes read."""

import sys
import time

import pytest
import redis

from chaos.scale import NOTICED, ROUNDS, by_form
from support.deadline import in_time
from support.processes import Process, Processes

pytestmark = pytest.mark.usefixtures("short_leases")

READERS = by_form(3, 20)
SOME = 50
"""Entries between two faults."""


def start(processes: Processes, role: str, url: str, name: str) -> Process:
    command = [sys.executable, "-P", "-m", "chaos.stream_peer", role, url, name]
    return processes.start(f"stream-{role}", command, ready=None)


def test_a_killed_writer_ends_its_stream(processes: Processes, redis_url: str) -> None:
    for number in range(ROUNDS):
        name = f"answer.{number}"
        writer = start(processes, "write", redis_url, name)
        readers = [start(processes, "read", redis_url, name) for _ in range(READERS)]
        for reader in readers:
            reader.wait_for(f"got {SOME}\n")
        killed = time.monotonic()
        writer.kill()
        for reader in readers:
            failed = float(reader.wait_for(r"failed (\d+\.\d+) StreamError\('answer\.\d+', 'the writer is gone'\)")[1])
            in_time(failed - killed, NOTICED)
            assert "wrong" not in reader.log()
        # The readers that follow got all that had been stored.
        assert len({reader.log().count("got") for reader in readers}) == 1


def test_readers_notice_nothing_of_an_empty_redis(processes: Processes, redis_url: str) -> None:
    writer = start(processes, "write", redis_url, "answer")
    readers = [start(processes, "read", redis_url, "answer") for _ in range(READERS)]
    with redis.Redis.from_url(redis_url) as admin:
        for number in range(ROUNDS):
            for reader in readers:
                reader.wait_for(f"got {(2 * number + 1) * SOME}\n")
            admin.flushall()
        for reader in readers:
            reader.wait_for(f"got {2 * ROUNDS * SOME}\n")
        assert admin.hset("asgibus:stream-state:{asgibus:stream:answer}", "cancelled", "1") == 0
    for reader in readers:
        reader.wait_for(r"ended \d+")
        assert reader.wait() == 0
        assert "wrong" not in reader.log()
    assert writer.wait() == 0
