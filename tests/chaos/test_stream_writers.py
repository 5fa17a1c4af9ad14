"""A writer of a stream is killed, or Redis loses its data, while other processes read."""

import asyncio
import sys
import time
from collections.abc import Callable

import pytest
import redis

from asgibus.layers import open_layer
from chaos.scale import NOTICED, ROUNDS, by_form
from chaos.stream_peer import JOB
from support.deadline import in_time, wait_until
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
            assert reader.wait() == 0
            assert "wrong" not in reader.log()
        # The readers that follow got all that had been stored.
        assert len({reader.log().count("got") for reader in readers}) == 1


def test_the_next_delivery_writes_the_stream_of_a_killed_job(
    processes: Processes, start_worker: Callable[..., Process], redis_url: str
) -> None:
    workers = [start_worker("chaos.stream_peer:app", "--layer", redis_url, "--channel", "jobs") for _ in range(2)]
    readers = [start(processes, "read", redis_url, "answer") for _ in range(READERS)]
    asyncio.run(send_job(redis_url, "answer"))
    for reader in readers:
        reader.wait_for(f"got {SOME}\n")
    (victim,) = (worker for worker in workers if "writes" in worker.log())
    killed = time.monotonic()
    victim.kill()
    for reader in readers:
        begun = float(reader.wait_for(r"reset (\d+\.\d+) was begun anew")[1])
        in_time(begun - killed, NOTICED + 1)
        reader.wait_for(f"ended {JOB}\n")
        assert reader.wait() == 0
        assert "wrong" not in reader.log()


async def send_job(url: str, stream: str) -> None:
    layer = open_layer(url)
    await layer.send("jobs", {"type": "write", "stream": stream})
    await layer.close()


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
        state = "asgibus:stream-state:{asgibus:stream:answer}"
        wait_until(lambda: admin.exists(state))  # readers may have got all of these entries before the last flush
        assert admin.hset(state, "cancelled", "1") == 0
    for reader in readers:
        reader.wait_for(r"ended \d+")
        assert reader.wait() == 0
        assert "wrong" not in reader.log()
    assert writer.wait() == 0
