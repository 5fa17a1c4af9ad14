"""The count and the log of members that miss a broadcast because they are full."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter

logger = logging.getLogger("asgibus.layers")

SUMMARY_SECONDS = 10.0  # from one line to the next, however many broadcasts meet full members


class OverCapacity:
    """Count every message that a full member misses; log the first at once, and then a summary from time to time.

    It may be used from any thread.
    """

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._lock = threading.Lock()
        self._quiet_until = 0.0
        self._sends = 0  # since the last line
        self._messages = 0

    def missed(self, where: str, full: int, members: int) -> None:
        """Note that so many of the members of a group were full. Called in an event loop, after a broadcast."""
        with self._lock:
            self._counts["channel full"] += full
            now = time.monotonic()
            if now < self._quiet_until:
                self._sends += 1
                self._messages += full
                return
            self._summarise()
            self._quiet_until = now + SUMMARY_SECONDS
        # The words and the level are those of channels_redis, which people look for.
        logger.info("%d of %d channels over capacity in %s", full, members, where)
        asyncio.get_running_loop().call_later(SUMMARY_SECONDS, self._end)

    def _end(self) -> None:
        """Say what was missed since the last line; the next summary comes as much later."""
        with self._lock:
            now = time.monotonic()
            if now + 0.1 < self._quiet_until:
                return  # another loop has begun a later one
            if not self._summarise():
                return
            self._quiet_until = now + SUMMARY_SECONDS
        asyncio.get_running_loop().call_later(SUMMARY_SECONDS, self._end)

    def _summarise(self) -> bool:
        """Log what was missed since the last line, if anything was."""
        sends, messages = self._sends, self._messages
        self._sends = self._messages = 0
        if sends:
            logger.info("%d further messages found channels over capacity, which missed %d messages", sends, messages)
        return bool(sends)
