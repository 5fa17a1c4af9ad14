"""The number of connections that a worker claims at once, by the time that its app takes to begin."""

import time
from itertools import count

import pytest

from asgibus.worker import claim_limit
from asgibus.worker.claim_limit import BATCH_SECONDS, MOST, ClaimLimit


@pytest.mark.parametrize(
    ("each", "connections"),
    [
        (0.0, MOST),
        (0.000_05, 20),
        (0.000_2, 8),
        (0.001, 2),
        (0.002, 1),
        (1.0, 1),
    ],
)
def test_a_claim_has_as_many_connections_as_apps_begin_in_time(each: float, connections: int) -> None:
    limit = ClaimLimit()
    for _ in range(50):
        limit.note(size := limit.connections, each * size)
    assert abs(limit.connections - connections) <= 1


def test_an_app_that_blocks_is_noticed_at_its_first_request() -> None:
    limit = ClaimLimit()
    assert limit.connections > 1
    limit.note(1, 0.05)
    assert limit.connections == 1


def test_one_slow_request_is_forgotten() -> None:
    limit = ClaimLimit()
    limit.note(1, 1.0)
    batches = 0
    while limit.connections < 10:
        limit.note(size := limit.connections, size * BATCH_SECONDS / 40)
        batches += 1
    assert batches < 50


def test_an_app_that_computes_is_measured() -> None:
    limit = ClaimLimit()
    limit.on_begin()
    end = time.thread_time() + 5 * BATCH_SECONDS
    while time.thread_time() < end:
        pass
    limit.on_begun(1)
    assert limit.connections < 10


def test_an_app_that_blocks_is_measured() -> None:
    limit = ClaimLimit()
    limit.on_begin()
    time.sleep(20 * BATCH_SECONDS)
    limit.on_begun(1)
    assert limit.connections == 1


def test_the_time_of_other_processes_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = ClaimLimit()
    monkeypatch.setattr(claim_limit, "perf_counter", count().__next__)  # a second passes between two calls
    limit.on_begin()
    limit.on_begun(1)
    assert limit.connections > 10
