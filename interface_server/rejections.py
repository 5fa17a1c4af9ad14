"""Connections that are refused: each is counted, and the log says so now and then."""

from __future__ import annotations

import logging
from collections import Counter
from time import monotonic

logger = logging.getLogger("asgibus.interface")

TOO_MANY = "too many connections"
TELL_SECONDS = 10.0  # between two log lines for the same reason: whoever connects often must not fill the log


class Refusals:
    """Counts refused connections by reason, in `counts`, and logs each reason at most every ten seconds."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._told: dict[str, tuple[float, int]] = {}  # when it was logged last, and the count then

    def count(self, kind: str, why: str) -> None:
        """Count a connection that is refused.

        Args:
            kind: The reason, as the metrics name it.
            why: A sentence for the log.
        """
        self._counts[kind] += 1
        now = monotonic()
        at, before = self._told.get(kind, (-TELL_SECONDS, 0))
        if now - at >= TELL_SECONDS:
            count = self._counts[kind]
            self._told[kind] = (now, count)
            logger.warning("%d connections were refused: %s", count - before, why)
