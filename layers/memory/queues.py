"""The unread messages of channels within a process: bounded queues whose messages expire, and may be delayed."""

from __future__ import annotations

import asyncio
import heapq
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

from asgibus.layers.contract import Message, Statistics
from asgibus.layers.errors import ChannelFull


class Queued(NamedTuple):
    """A message in a queue."""

    since: float
    """Since when it can be received."""
    message: Message
    attempt: int = 1


class _Waiter:
    """A reader that waits, in its own event loop."""

    __slots__ = ("future", "loop", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()

    def wake(self) -> bool:
        """Wake the reader, from any thread. Return False if its event loop was closed: wake another reader then."""
        try:
            if threading.get_ident() == self.thread:
                self._wake()
            else:
                self.loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            return False
        return True

    async def wait(self, seconds: float | None) -> None:
        """Wait until `wake`, or for at most that many seconds."""
        timer = None if seconds is None else self.loop.call_later(seconds, self._wake)
        try:
            await self.future
        finally:
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


COUNTED_SECONDS = 86400.0  # how long the statistics of an unused channel are kept
COUNTED_LOCAL_SECONDS = 60.0  # those of a process-local one: an app may make thousands in that time


class _Queue:
    """One channel.

    Attributes:
        ready: Messages that can be received, oldest first.
        delayed: A heap of delayed messages by the time at which they are due.
        waiting: Readers that wait.
        sent, full: How many messages were sent, and how many refused.
        counted: When one of these was counted last.
    """

    __slots__ = ("counted", "delayed", "full", "ready", "sent", "waiting")

    def __init__(self) -> None:
        self.counted = 0.0
        self.ready: deque[Queued] = deque()
        self.delayed: list[tuple[float, int, Queued]] = []
        self.waiting: deque[_Waiter] = deque()
        self.sent = 0
        self.full = 0

    def __len__(self) -> int:
        return len(self.ready) + len(self.delayed)

    def expire(self, oldest: float) -> None:
        """Drop messages that could be received at that time or before."""
        while self.ready and self.ready[0].since <= oldest:
            self.ready.popleft()
        while self.delayed and self.delayed[0][0] <= oldest:
            heapq.heappop(self.delayed)

    def pop(self, now: float) -> Queued | None:
        """Remove the oldest message that can be received, and return it."""
        due = bool(self.delayed) and self.delayed[0][0] <= now
        if due and not (self.ready and self.ready[0].since <= self.delayed[0][0]):
            return heapq.heappop(self.delayed)[2]
        return self.ready.popleft() if self.ready else None

    def since(self) -> float | None:
        """Return since when the oldest message can be received, or None if there is no message."""
        times = [self.ready[0].since] if self.ready else []
        times += [self.delayed[0][0]] if self.delayed else []
        return min(times, default=None)

    def wake_one(self) -> None:
        while self.waiting and not self.waiting.popleft().wake():
            pass


class Queues:
    """The unread messages of all channels. It may be used from any event loop, and from several at once."""

    def __init__(
        self,
        expiry: float,
        capacity_of: Callable[[str], int],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make queues without messages.

        Args:
            expiry: Seconds after which an unread message is dropped.
            capacity_of: Returns how many unread messages a channel holds.
            clock: Returns the time in seconds.
        """
        self._expiry = expiry
        self._capacity_of = capacity_of
        self._clock = clock
        self._lock = threading.Lock()
        self._queues: dict[str, _Queue] = {}
        self._order = count()  # of messages that are due at the same time
        self._sweep_at = clock() + expiry

    def __len__(self) -> int:
        """Return how many channels are known."""
        return len(self._queues)

    def put(self, channel: str, message: Message, *, delay: float = 0.0, attempt: int = 1) -> None:
        """Add a message that can be received after `delay` seconds.

        A message with an `attempt` above 1 was taken before. It is always accepted, and not counted again.

        Raises:
            ChannelFull: The channel holds as many unread messages as its capacity allows.
        """
        now = self._clock()
        with self._lock:
            if now >= self._sweep_at:
                self._sweep_at = now + self._expiry
                self._sweep(now)
            queue = self._queue(channel)
            queue.expire(now - self._expiry)
            if attempt == 1:
                queue.counted = now
                capacity = self._capacity_of(channel)
                if len(queue) >= capacity:
                    queue.full += 1
                    raise ChannelFull(channel, capacity)
                queue.sent += 1
            queued = Queued(now + delay, message, attempt)
            if delay > 0:
                heapq.heappush(queue.delayed, (queued.since, next(self._order), queued))
            else:
                queue.ready.append(queued)
            queue.wake_one()

    async def get(self, channel: str) -> Message:
        """Wait for the oldest message and take it. A cancelled call takes nothing."""
        while True:
            if taken := await self.take(channel, 1):
                return taken[0].message

    async def take(self, channel: str, limit: int) -> list[Queued]:
        """Wait for messages and take up to `limit`, oldest first. A cancelled call takes nothing."""
        while True:
            with self._lock:
                now = self._clock()
                queue = self._queue(channel)
                queue.expire(now - self._expiry)
                taken: list[Queued] = []
                while len(taken) < limit and (queued := queue.pop(now)) is not None:
                    taken.append(queued)
                if taken:
                    if queue.waiting and len(queue):
                        queue.wake_one()
                    self._tidy(channel, queue, now)
                    return taken
                waiter = _Waiter()
                queue.waiting.append(waiter)
                due = queue.delayed[0][0] - now if queue.delayed else None
            try:
                await waiter.wait(due)
            except asyncio.CancelledError:
                with self._lock:
                    if waiter in queue.waiting:
                        queue.waiting.remove(waiter)
                    elif len(queue):
                        queue.wake_one()  # it was woken for a message that another reader has to take now
                    self._tidy(channel, queue, self._clock())
                raise
            with self._lock:
                if waiter in queue.waiting:  # a delayed message is due
                    queue.waiting.remove(waiter)

    def clear(self) -> None:
        """Drop every message, and reset the statistics."""
        with self._lock:
            for channel, queue in list(self._queues.items()):
                queue.ready.clear()
                queue.delayed.clear()
                queue.sent = queue.full = 0
                self._tidy(channel, queue, self._clock())

    def statistics(self, channel: str | None = None) -> Statistics:
        """Return the statistics of one channel, or of all ordinary channels together."""
        now = self._clock()
        with self._lock:
            self._sweep(now)
            if channel is None:
                queues = [queue for name, queue in self._queues.items() if "!" not in name]
            else:
                queues = [queue] if (queue := self._queues.get(channel)) is not None else []
            times = [since for queue in queues if (since := queue.since()) is not None]
            return Statistics(
                messages_count=sum(queue.sent for queue in queues),
                messages_pending=sum(map(len, queues)),
                messages_max_age=max(0.0, now - min(times, default=now)),
                channel_full_count=sum(queue.full for queue in queues),
            )

    def _queue(self, channel: str) -> _Queue:
        queue = self._queues.get(channel)
        if queue is None:
            queue = self._queues[channel] = _Queue()
        return queue

    def _sweep(self, now: float) -> None:
        for channel, queue in list(self._queues.items()):
            queue.expire(now - self._expiry)
            self._tidy(channel, queue, now)

    def _tidy(self, channel: str, queue: _Queue, now: float) -> None:
        """Forget an empty channel once its statistics need not be kept any more."""
        if queue.ready or queue.delayed or queue.waiting:
            return
        seconds = COUNTED_LOCAL_SECONDS if "!" in channel else COUNTED_SECONDS
        counted = queue.sent + queue.full > 0 and queue.counted > now - seconds
        if not counted and self._queues.get(channel) is queue:
            del self._queues[channel]
