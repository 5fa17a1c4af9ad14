"""Waits are bounded, and a missed promise raises another error than a wait without result."""

import pytest

from support import deadline
from support.deadline import TooLate, in_time, wait_until


def test_a_promised_time() -> None:
    in_time(0.9 * deadline.TOLERANCE, 1)
    with pytest.raises(TooLate, match=r"the answer took 2\.500 s, and 1 s are promised"):
        in_time(2.5, 1, "the answer")


def test_a_condition_stays_false(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TooLate, match=r"the answer did not come true within 0\.02 s"):
        wait_until(lambda: False, 0.01, "the answer")
    monkeypatch.setattr(deadline, "HANG", 0.02)
    with pytest.raises(AssertionError, match=r"the answer did not come true within 0\.02 s") as raised:
        wait_until(lambda: False, what="the answer")
    assert not isinstance(raised.value, TooLate)
