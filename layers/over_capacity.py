"""Count and log the messages that full channels miss."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter

logger = logging.getLogger("asgibus.layers")

SUMMARY_SECONDS = 10.0  # from one line to the next, however many messages find full channels


class OverCapacity:
    """Counts every message that a full channel misses, and logs the first at once and then a summary now and then.

    It may be used from any thread.
    """

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._lock = threading.Lock()
        self._quiet_until = 0.0
        self._sends = 0  # since the last line
        self._messages = 0

    def missed(self, where: str, full: int, members: int) -> None:
        """Note that a message was for several channels, of which some are full. Call it in an event loop.

        Args:
            where: What the channels belong to: a group or a mailbox.
            full: How many channels were full.
            members: For how many channels the message was.
        """
        with self._lock:
            self._counts["channel full"] += full
            now = time.monotonic()
            if now < self._quiet_until:
                self._sends += 1
                self._messages += full
                return
            self._summarise()
            self._quiet_until = now + SUMMARY_SECONDS
        # Text and level are those of channels_redis, which people search for.
        logger.info("%d of %d channels over capacity in %s", full, members, where)
        asyncio.get_running_loop().call_later(SUMMARY_SECONDS, self._end)

    def _end(self) -> None:
        """Log what was missed since the last line, and schedule the next summary."""
        with self._lock:
            now = time.monotonic()
            if now + 0.1 < self._quiet_until:
                return  # another event loop has scheduled a later summary
            if not self._summarise():
                return
            self._quiet_until = now + SUMMARY_SECONDS
        asyncio.get_running_loop().call_later(SUMMARY_SECONDS, self._end)

    def _summarise(self) -> bool:
        """Log what was missed since the last line. Return whether anything was."""
        sends, messages = self._sends, self._messages
        self._sends = self._messages = 0
        if sends:
            logger.info("%d further messages found channels over capacity, which missed %d messages", sends, messages)
        return bool(sends)
