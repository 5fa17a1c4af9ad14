"""Share connections that last between workers, by the numbers of sessions in a pool."""

import pytest

from asgibus.protocol.shares import FEW, PATIENCE_SECONDS, UNLIMITED, Shares


@pytest.mark.parametrize(
    ("own", "others", "room"),
    [
        (0, [], UNLIMITED),
        (500, [], UNLIMITED),
        (0, [0], FEW),
        (FEW, [0], FEW // 2),
        (2 * FEW, [0], 0),
        (0, [60, 60], 40 + 2 + FEW),
        (50, [50] * 7, FEW + 3),
        (57, [49] * 7, 0),
        (1000, [0], 0),
        (0, [1000], 500 + 31 + FEW),
        (1000, [1000, 1000], FEW + 62),
    ],
)
def test_a_worker_with_more_sessions_has_less_room(own: int, others: list[int], room: int) -> None:
    shares = Shares()
    shares.note(others)
    assert shares.room(own, 0.0) == room


def test_a_worker_that_is_ahead_claims_again_when_others_have_caught_up() -> None:
    shares = Shares()
    shares.note([0, 0])
    assert shares.room(30, 0.0) == 0
    shares.note([10, 12])
    assert shares.room(30, 0.001) == 0
    shares.note([28, 31])
    assert shares.room(30, 0.002) >= FEW


def test_a_worker_that_is_ahead_does_not_wait_for_one_that_hangs() -> None:
    shares = Shares()
    shares.note([0])
    assert shares.room(30, 1.0) == 0
    shares.note([0])
    assert shares.room(30, 1.0 + PATIENCE_SECONDS / 2) == 0
    assert shares.room(30, 1.0 + PATIENCE_SECONDS) == UNLIMITED
    shares.note([0])
    assert shares.room(100, 9.0) == UNLIMITED, "until the other one has moved"
    shares.note([1])
    assert shares.room(100, 9.0) == 0


def test_a_worker_that_is_ahead_takes_a_few_while_others_claim() -> None:
    shares = Shares()
    taken, now = 0, 0.0
    for number in range(1000):
        shares.note([number // 10])
        now += PATIENCE_SECONDS / 10
        if room := shares.room(2000 + taken, now):
            assert room == FEW
            taken += room
    assert 0 < taken <= FEW * 100


def test_the_only_worker_takes_everything_again_when_the_others_are_gone() -> None:
    shares = Shares()
    shares.note([0])
    assert shares.room(100, 0.0) == 0
    shares.note([])
    assert shares.room(100, 0.001) == UNLIMITED


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_sockets_that_come_at_once_are_spread_evenly(workers: int) -> None:
    """Workers that claim at paces between 1 and 8, and hear of each other once in a round, get nearly as many."""
    shares, counts, waiting = [Shares() for _ in range(workers)], [0] * workers, 400
    for now in range(2000):
        for worker, each in enumerate(shares):
            each.note([count for other, count in enumerate(counts) if other != worker])
        for worker, each in enumerate(shares):
            for _ in range(1 + worker % 8):
                taken = min(waiting, each.room(counts[worker], now / 1000), 32)
                counts[worker] += taken
                waiting -= taken
    assert waiting == 0
    assert max(counts) <= 1.15 * 400 / workers, counts
