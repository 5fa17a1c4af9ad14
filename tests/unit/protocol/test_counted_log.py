"""Faults are counted in full, and logged at a limited rate."""

import logging
from collections import Counter

import pytest

from asgibus.protocol.counted_log import LOG_SECONDS, CountedLog


def test_each_kind_is_logged_once_in_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    counts: Counter[str] = Counter()
    log = CountedLog(counts, logging.getLogger("asgibus.test"), lambda: now)
    for number in range(3):
        log.count("bad frame", "a frame is bad: %d", number)
    log.count("other", "another fault")
    now = LOG_SECONDS
    log.count("bad frame", "a frame is bad: %d", 3)
    assert caplog.messages == [
        "a frame is bad: 0",
        "another fault",
        "a frame is bad: 3 (and 2 times since the last such line)",
    ]
    assert counts == {"bad frame": 4, "other": 1}
