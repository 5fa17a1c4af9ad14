"""Rejected connections: each is counted, and logged at a limited rate."""

from __future__ import annotations

import logging
from collections import Counter
from time import monotonic

logger = logging.getLogger("asgibus.interface")

TOO_MANY = "too many connections"
LOG_SECONDS = 10.0  # between two log lines of one kind: a client that connects often must not fill the log


class Rejections:
    """Counts rejected connections by kind, in `counts`, and logs each kind at most every ten seconds."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._logged: dict[str, tuple[float, int]] = {}  # when a kind was logged last, and its count then

    def count(self, kind: str, reason: str) -> None:
        """Count a rejected connection.

        Args:
            kind: The kind, as the metrics name it.
            reason: A clause for the log.
        """
        self._counts[kind] += 1
        now = monotonic()
        at, before = self._logged.get(kind, (-LOG_SECONDS, 0))
        if now - at >= LOG_SECONDS:
            count = self._counts[kind]
            self._logged[kind] = (now, count)
            logger.warning("%d connections were rejected: %s", count - before, reason)
