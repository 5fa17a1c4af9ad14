"""Share connections that last between workers, by the numbers of sessions in a pool."""

import pytest

from asgibus.protocol.shares import FEW, UNLIMITED, Other, Shares

OLD = -1000.0
"""Seconds by which a worker is younger that started long before."""


def others(*sessions: int | None, younger_by: float = 0.1) -> list[Other]:
    return [Other(each, younger_by) for each in sessions]


@pytest.mark.parametrize(
    ("own", "numbers", "room"),
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
def test_a_worker_with_more_sessions_has_less_room(own: int, numbers: list[int], room: int) -> None:
    shares = Shares()
    shares.note(own, others(*numbers))
    assert shares.room(own) == room


def test_a_worker_that_is_ahead_claims_again_when_others_have_caught_up() -> None:
    shares = Shares()
    shares.note(30, others(0, 0))
    assert shares.room(30) == 0
    shares.note(30, others(10, 12))
    assert shares.room(30) == 0
    shares.note(30, others(28, 31))
    assert shares.room(30) >= FEW


def test_a_worker_that_is_ahead_waits_once_for_one_that_hangs() -> None:
    shares = Shares()
    shares.note(30, others(0))
    assert shares.room(30) == 0
    shares.wait()
    shares.note(30, others(1))
    shares.end_wait()
    assert shares.room(30) == 0, "the other one is slow"
    shares.wait()
    shares.note(30, others(1))
    shares.end_wait()
    assert shares.room(30) == UNLIMITED
    shares.note(90, others(1))
    assert shares.room(90) == UNLIMITED, "until the other one has moved"
    shares.note(100, others(2))
    assert shares.room(100) == 0


def test_the_only_worker_takes_everything_again_when_the_others_are_gone() -> None:
    shares = Shares()
    shares.note(100, others(0))
    assert shares.room(100) == 0
    shares.note(100, [])
    assert shares.room(100) == UNLIMITED


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_sockets_that_come_at_once_are_spread_evenly(workers: int) -> None:
    """Workers that claim at paces between 1 and 8, and hear of each other once in a round, get nearly as many."""
    shares, counts, waiting = [Shares() for _ in range(workers)], [0] * workers, 400
    for _ in range(2000):
        for worker, each in enumerate(shares):
            each.note(counts[worker], others(*(count for other, count in enumerate(counts) if other != worker)))
        for worker, each in enumerate(shares):
            for _ in range(1 + worker % 8):
                taken = min(waiting, each.room(counts[worker]), 32)
                counts[worker] += taken
                waiting -= taken
    assert waiting == 0
    assert max(counts) <= 1.15 * 400 / workers, counts


def test_while_a_worker_drains_old_workers_leave_everything_to_a_new_one() -> None:
    old, new = Shares(), Shares()
    for taken in range(100):
        old.note(100, [Other(None, -0.2), Other(100, -0.1), Other(taken, 8.0)])
        assert old.leaves_to_new(100)
        assert old.room(100) == 0
        new.note(taken, [Other(None, -8.2), Other(100, -8.1), Other(100, -8.0)])
        assert not new.leaves_to_new(taken)
        assert new.room(taken) == UNLIMITED
    old.note(100, [Other(100, -0.1), Other(100, 8.0)])
    assert not old.leaves_to_new(100), "nobody drains any more"
    assert old.room(100) > 0


def test_new_workers_share_what_old_ones_hand_over() -> None:
    new = Shares()
    new.note(100, [Other(None, OLD), Other(100, OLD), Other(0, 8.0)])
    assert not new.leaves_to_new(100), "the worker that was started last is not of another generation"
    assert new.room(100) == 0, "it has fewer sessions"
    new.note(40, [Other(None, OLD), Other(100, OLD), Other(44, 8.0)])
    assert new.room(40) > 0


def test_a_new_worker_that_is_full_or_claims_nothing_is_not_preferred() -> None:
    old = Shares()
    old.note(100, [Other(None, -0.1), Other(0, 8.0)])
    assert old.leaves_to_new(100)
    old.wait()
    old.end_wait()
    assert old.room(100) == UNLIMITED, "it does not claim"
    old.note(50, [Other(None, -0.1), Other(50, -0.1), Other(300, 8.0)])
    assert not old.leaves_to_new(50), "it has twice its share"


def test_workers_of_about_the_same_age_and_share_are_not_preferred() -> None:
    """Workers are started one after another, and the first one is stopped soon."""
    second = Shares()
    second.note(30, [Other(None, -0.7), Other(31, 0.9)])
    assert not second.leaves_to_new(30)
    assert second.room(30) > 0


def test_workers_of_the_last_release_are_older() -> None:
    new = Shares()
    new.note(0, [Other(None, float("-inf")), Other(100, float("-inf"))])
    assert not new.leaves_to_new(0)
    assert new.room(0) == UNLIMITED


def test_a_worker_with_many_more_sessions_has_an_excess() -> None:
    shares = Shares()
    shares.note(133, others(133, 134, 0))
    assert shares.excess(133) == 33
    shares.note(105, others(98, 99, 98))
    assert shares.excess(105) == 0
    shares.note(8, others(0))
    assert shares.excess(8) == 0, "a few sessions are not worth it"
    shares.note(200, others(0, None))
    assert shares.excess(200) == 0, "while others drain"
