"""A log of what should not happen: counted in full, and logged at a limited rate."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

LOG_SECONDS = 10.0  # between two lines of one kind: no peer may fill the log


class CountedLog:
    """Counts faults of peers by kind, and logs each kind at most once in ten seconds.

    Args:
        counts: The counts by kind, which are exported as metrics.
        logger: The logger.
        clock: Returns the time in seconds.
    """

    def __init__(self, counts: Counter[str], logger: logging.Logger, clock: Callable[[], float]) -> None:
        self.counts = counts
        self.logger = logger
        self._clock = clock
        self._silent: dict[str, tuple[float, int]] = {}  # by kind: until when, and what was not logged meanwhile

    def count(
        self,
        kind: str,
        text: str,
        *args: object,
        level: int = logging.WARNING,
        error: BaseException | None = None,
    ) -> None:
        """Count a fault, and log it unless its kind was logged just now.

        Args:
            kind: The kind, as the metrics name it.
            text: The line of the log, with the placeholders of `logging`.
            args: The values of the placeholders.
            level: The level of the line.
            error: An exception whose traceback is logged.
        """
        self.counts[kind] += 1
        now = self._clock()
        until, silent = self._silent.get(kind, (now, 0))
        if now < until:
            self._silent[kind] = until, silent + 1
            return
        self._silent[kind] = now + LOG_SECONDS, 0
        if silent:
            text, args = f"{text} (and %d times since the last such line)", (*args, silent)
        self.logger.log(level, text, *args, exc_info=error)
