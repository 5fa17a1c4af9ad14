"""How much may be under way to a store at once, so that an outage does not fill the memory."""

from __future__ import annotations

import asyncio
from collections import deque

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis.kept import KEPT_ENTRIES


class Backlog:
    """The messages that one event loop is sending to one store.

    Usually each is gone within a millisecond. While the store is away they wait, and beyond the bound the senders of
    further ones wait in their turn, with nothing written. There are also no more of them than a reader remembers, since
    all that was in flight when the connection broke is written again.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: in bytes. A single message may exceed it."""
        self._limit = limit
        self._least = -(-limit // KEPT_ENTRIES)
        self._size = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    async def enter(self, size: int, until: float) -> int:
        """Wait until there is room for a message, and take it.

        Args:
            size: Bytes of the message.
            until: When to give up, by the event loop's clock.

        Returns:
            What to `leave` when the message is sent, or given up.

        Raises:
            LayerUnavailable: There was no room in time.
        """
        size = max(size, self._least)
        if self._waiting or (self._size and self._size + size > self._limit):
            await self._wait(size, until)
        else:
            self._size += size
        return size

    def leave(self, size: int) -> None:
        """Give the room of a message back."""
        self._size -= size
        self._let_in()

    async def _wait(self, size: int, until: float) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append((future, size))
        timer = loop.call_at(until, _give_up, future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it was let in, and its caller cancelled, in the same moment
                self.leave(size)
            raise
        finally:
            timer.cancel()

    def _let_in(self) -> None:
        while self._waiting:
            future, size = self._waiting[0]
            if not future.done():
                if self._size and self._size + size > self._limit:
                    return
                self._size += size
                future.set_result(None)
            self._waiting.popleft()


def _give_up(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(LayerUnavailable("too much waits for Redis already: nothing was written"))
