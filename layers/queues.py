"""The unread messages of channels within a process: bounded, expiring, first in first out.

It may be used from any event loop of the process, from several at once too.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable

from asgibus.layers.contract import Message
from asgibus.layers.errors import ChannelFull

Waiter = tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]


class _Queue:
    """One channel: its messages, each with the time at which it expires, and who waits for them."""

    __slots__ = ("messages", "waiting")

    def __init__(self) -> None:
        self.messages: deque[tuple[float, Message]] = deque()
        self.waiting: deque[Waiter] = deque()

    def expire(self, now: float) -> None:
        while self.messages and self.messages[0][0] <= now:
            self.messages.popleft()

    def wake_one(self) -> None:
        while self.waiting:
            loop, future = self.waiting.popleft()
            try:
                loop.call_soon_threadsafe(_wake, future)
            except RuntimeError:
                continue  # that loop was closed while it waited: the message is for the next one
            return


class Queues:
    """Messages by channel, `capacity` for each, dropped `expiry` seconds after they came. `clock` gives seconds."""

    def __init__(self, *, expiry: float, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._expiry = expiry
        self._capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()
        self._queues: dict[str, _Queue] = {}
        self._sweep_at = clock() + expiry

    def __len__(self) -> int:
        """How many channels have unread messages or readers."""
        return len(self._queues)

    def put(self, channel: str, message: Message) -> None:
        """Add a message. Raises ChannelFull."""
        now = self._clock()
        with self._lock:
            if now >= self._sweep_at:
                self._sweep(now)
            queue = self._queues.get(channel)
            if queue is None:
                queue = self._queues[channel] = _Queue()
            queue.expire(now)
            if len(queue.messages) >= self._capacity:
                raise ChannelFull(channel, self._capacity)
            queue.messages.append((now + self._expiry, message))
            queue.wake_one()

    async def get(self, channel: str) -> Message:
        """Wait for the oldest message and take it. A cancelled call takes nothing."""
        loop = asyncio.get_running_loop()
        while True:
            with self._lock:
                queue = self._queues.get(channel)
                if queue is None:
                    queue = self._queues[channel] = _Queue()
                queue.expire(self._clock())
                if queue.messages:
                    _, message = queue.messages.popleft()
                    if queue.messages:
                        queue.wake_one()
                    self._tidy(channel, queue)
                    return message
                waiter: Waiter = (loop, loop.create_future())
                queue.waiting.append(waiter)
            try:
                await waiter[1]
            except asyncio.CancelledError:
                with self._lock:
                    if waiter in queue.waiting:
                        queue.waiting.remove(waiter)
                    elif queue.messages:
                        queue.wake_one()  # we were woken for a message that we no longer take
                    self._tidy(channel, queue)
                raise

    def clear(self) -> None:
        """Drop every message."""
        with self._lock:
            for channel, queue in list(self._queues.items()):
                queue.messages.clear()
                self._tidy(channel, queue)

    def _sweep(self, now: float) -> None:
        """Forget what expired in channels that nobody reads: once per `expiry`, so that it costs next to nothing."""
        self._sweep_at = now + self._expiry
        for channel, queue in list(self._queues.items()):
            queue.expire(now)
            self._tidy(channel, queue)

    def _tidy(self, channel: str, queue: _Queue) -> None:
        if not queue.messages and not queue.waiting and self._queues.get(channel) is queue:
            del self._queues[channel]


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
