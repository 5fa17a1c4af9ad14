"""Tell the followers of a stream what was stored."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final

from asgibus.layers.codec import unpack_items
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.streams.messages import StreamMessages
from asgibus.layers.streams.page import Broadcast, StreamState
from asgibus.layers.streams.store import Batch

logger = logging.getLogger("asgibus.layers")

MOST_BYTES: Final = 128 * 1024  # of batches that followers were not told of: they read pages instead
RETRY_SECONDS = 0.5  # until a broadcast is repeated for which the store was away


class Broadcaster:
    """Send batches to the followers in order, while further ones are stored.

    Args:
        messages: Tells the followers.
        name: The stream.
        epoch: Its epoch.
        last: The number of the newest entry.
        left: Seconds after which followers look if they hear nothing; None for as usual.
    """

    def __init__(self, messages: StreamMessages, name: str, epoch: int, last: int, left: float | None) -> None:
        self._messages = messages
        self._name = name
        self._epoch = epoch
        self._last = last
        self._left = left
        self._batches: deque[Batch] = deque()
        self._size = 0
        self._due = asyncio.Event()

    def add(self, batch: Batch) -> None:
        """Send a batch that is stored. If too much waits, followers learn of a gap instead, and read pages."""
        self._last = batch.last
        self._batches.append(batch)
        self._size += len(batch.packed)
        if self._size > MOST_BYTES:
            self._batches.clear()
            self._size = 0
        self._due.set()

    def hint(self) -> None:
        """Send the number of the newest entry, so that followers notice what they have missed."""
        self._due.set()

    async def run(self) -> None:
        """Send what is added until the task is cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                await self.send()
            except LayerUnavailable as error:
                logger.debug("stream %r: its followers were not told: %s; trying again", self._name, error)
                await asyncio.sleep(RETRY_SECONDS)
                self._due.set()

    async def send(self, state: StreamState = StreamState.OPEN, error: str = "", *, left: float | None = None) -> None:
        """Send what waits, and a state. Raises LayerUnavailable: then it waits still."""
        batches = list(self._batches)
        first, last = (batches[0].first, batches[-1].last) if batches else (self._last + 1, self._last)
        items = [item for batch in batches for item in unpack_items(batch.packed)]
        if state is StreamState.OPEN and left is None:
            left = self._left
        await self._messages.tell(Broadcast(self._name, self._epoch, first, items, state, error, left))
        while self._batches and self._batches[0].last <= last:
            self._size -= len(self._batches.popleft().packed)
