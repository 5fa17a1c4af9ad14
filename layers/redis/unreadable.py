"""Judge whether a process can read what it claims, and how long it claims nothing when it cannot.

Entries that a process cannot read (sealed with a key that it has not, or of another version) are given back for other
processes. A process that claimed on would take them again and again, sooner than those that are busy. So it pauses,
unless it has read others meanwhile: then it is whoever offers them that is wrong.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("asgibus.layers")

FIRST_PAUSE = 1.0  # seconds; doubled each time nothing could be read
LONGEST_PAUSE = 30.0  # seconds; also how late it is noticed that entries can be read again
MOST_IN_A_ROW = 3  # batches without anything readable that prove nothing, once this process has read something
MOST_RELEASES = 20  # of one entry: then nobody can read it, and it is dropped


class Unreadable:
    """Counts batches in which nothing could be read.

    `why` says why the process claims nothing, or nearly nothing; None while it can read.
    """

    def __init__(self) -> None:
        self.why: str | None = None
        self._row = 0
        self._has_read = False

    def read(self) -> None:
        """Something of a batch could be read."""
        self._row = 0
        self._has_read = True
        if self.why is not None:
            self.why = None
            logger.warning("what is claimed can be read again")

    def refused(self, place: str, why: str) -> float:
        """Return the seconds for which nothing is to be claimed, now that nothing of a batch could be read.

        Args:
            place: The channel that the batch came from, for people to read.
            why: Why its last entry cannot be read, and what to do.
        """
        self._row += 1
        allowed = MOST_IN_A_ROW if self._has_read else 1
        if self._row < allowed:
            return 0.0
        if self.why is None:
            logger.error(
                "%s: what this process claims cannot be read by it: %s. It is given back for others, and this process "
                "claims next to nothing until it can read again",
                place,
                why,
            )
        self.why = f"what is offered on {place} cannot be read here: {why}"
        return float(min(FIRST_PAUSE * 2.0 ** (self._row - allowed), LONGEST_PAUSE))
