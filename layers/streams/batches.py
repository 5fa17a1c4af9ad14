"""The entries of a writer that are not stored yet, gathered in batches. Without IO and clock."""

from __future__ import annotations

import math
import struct
from collections import deque
from typing import Any, Final

from asgibus.layers.codec import pack_item
from asgibus.layers.errors import EntryTooLarge
from asgibus.layers.streams.store import Batch

ENTRY_BYTES: Final = 64 * 1024  # of one packed entry
BATCH_BYTES: Final = 4 * 1024  # after which a batch waits no longer
BATCH_SECONDS: Final = 0.02  # between two batches that are smaller, on average
EARLY_SECONDS: Final = 0.01  # by which a batch may be due before that, if the one before was late
MOST_BYTES: Final = 64 * 1024  # of one batch, when the store is slower than the writer


class Batcher:
    """Number entries, and gather them in batches.

    A batch is due `BATCH_SECONDS` after the last one was due, or when it has `BATCH_BYTES`. So a fast writer writes a
    batch every 20 ms, and one with up to 50 entries a second waits for nothing, even if its pace varies a little.

    Args:
        last: The number of the newest entry that is stored.
    """

    def __init__(self, last: int) -> None:
        self.last = last
        """The number of the newest entry."""
        self.size = 0
        """The bytes that wait."""
        self._waiting: deque[bytes] = deque()
        self._due_at = -math.inf

    def __len__(self) -> int:
        """Return how many entries wait."""
        return len(self._waiting)

    def add(self, item: Any) -> int:
        """Add an entry and return its number.

        Raises:
            TypeError: The item holds a type that msgpack does not know, or is nested over a thousand levels deep.
            EntryTooLarge: The packed item is larger than 64 KiB.
        """
        packed = pack_item(item)
        if len(packed) > ENTRY_BYTES:
            raise EntryTooLarge(len(packed), ENTRY_BYTES)
        self._waiting.append(packed)
        self.size += len(packed)
        self.last += 1
        return self.last

    def due_in(self, now: float) -> float | None:
        """Return in how many seconds a batch is due: 0 if it is due now, None if nothing waits."""
        if not self._waiting:
            return None
        return 0.0 if self.size >= BATCH_BYTES else max(0.0, self._due_at - now)

    def take(self, now: float) -> Batch:
        """Remove the next batch and return it. There must be an entry."""
        first = self.last - len(self._waiting) + 1
        items: list[bytes] = []
        size = 0
        while self._waiting and (not items or size + len(self._waiting[0]) <= MOST_BYTES):
            items.append(self._waiting.popleft())
            size += len(items[-1])
        self.size -= size
        latest = now + BATCH_SECONDS
        self._due_at = min(max(self._due_at + BATCH_SECONDS, latest - EARLY_SECONDS), latest)
        return Batch(first, _array(items), len(items))


def _array(items: list[bytes]) -> bytes:
    """Return a msgpack array of packed items."""
    count = len(items)
    head = bytes([0x90 | count]) if count < 16 else struct.pack(">BI", 0xDD, count)
    return head + b"".join(items)
