"""Level the sessions of a pool, slowly."""

import pytest

from asgibus.protocol.levelling import STEADY_SECONDS, VAIN_SECONDS, Levelling
from asgibus.protocol.shares import Other, Shares


def test_nothing_moves_without_an_excess_or_at_once() -> None:
    levelling = Levelling(50)
    assert levelling.step(100, 0, 1.0) == 0
    assert levelling.step(133, 33, 2.0) == 0
    assert levelling.step(133, 0, 2.0 + STEADY_SECONDS) == 0
    assert levelling.step(133, 33, 3.0 + STEADY_SECONDS) == 0, "it is a new excess"
    assert levelling.step(133, 33, 3.0 + 2 * STEADY_SECONDS) > 0


def test_a_step_is_bounded_by_the_rate() -> None:
    levelling = Levelling(50)
    levelling.step(10_000, 5_000, 0.0)
    assert levelling.step(10_000, 5_000, STEADY_SECONDS) == 50
    levelling.moved(10_000, 50)
    assert levelling.step(9_950, 4_950, STEADY_SECONDS + 0.5) == 0
    assert levelling.step(9_950, 4_950, STEADY_SECONDS + 1) == 50


def test_it_pauses_if_nobody_claims_what_is_handed_over() -> None:
    levelling, now = Levelling(50), STEADY_SECONDS
    levelling.step(200, 100, 0.0)
    levelling.moved(200, levelling.step(200, 100, now))
    assert levelling.step(200, 100, now + 1) == 0
    assert levelling.step(200, 100, now + VAIN_SECONDS) == 0
    assert levelling.step(200, 100, now + 1 + VAIN_SECONDS) > 0


@pytest.mark.parametrize("counts", [[133, 133, 134, 0], [1000, 0], [3333, 3333, 3334, 0], [60, 20, 20]])
def test_a_pool_is_even_within_a_minute(counts: list[int]) -> None:
    levellings, shares = [Levelling(50) for _ in counts], [Shares() for _ in counts]
    mean = sum(counts) / len(counts)
    for now in range(60):
        for worker, each in enumerate(levellings):
            others = [Other(count, 0.0) for other, count in enumerate(counts) if other != worker]
            shares[worker].note(counts[worker], others)
            count = each.step(counts[worker], shares[worker].excess(counts[worker]), float(now))
            if count:
                each.moved(counts[worker], count)
                counts[worker] -= count
                counts[counts.index(min(counts))] += count
    assert max(counts) <= 1.3 * mean, counts
