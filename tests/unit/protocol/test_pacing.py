"""Times of things that are spread."""

import pytest

from asgibus.protocol.pacing import LONGEST_PAUSE, Pace, staggered


def test_clients_are_spread_over_the_time() -> None:
    offsets = [offset for offset, _ in staggered(range(1000), 5.0)]
    assert offsets == pytest.approx([index * 0.005 for index in range(1000)])
    assert [offset for offset, _ in staggered("ab", 5.0)] == [0.0, LONGEST_PAUSE]
    assert sorted(client for _, client in staggered("abc", 0.0)) == ["a", "b", "c"]
    assert list(staggered("", 5.0)) == []


def test_a_pace_spreads_what_comes_at_once() -> None:
    pace = Pace(50)
    assert [pace.delay(7.0) for _ in range(4)] == pytest.approx([0.0, 0.02, 0.04, 0.06])
    assert pace.delay(7.05) == pytest.approx(0.03)
    assert pace.delay(9.0) == 0.0, "what is spread anyway does not wait"


def test_a_pace_without_a_rate_has_no_limit() -> None:
    pace = Pace(0)
    assert [pace.delay(7.0) for _ in range(4)] == [0.0] * 4
