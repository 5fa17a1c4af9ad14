"""The unread messages of channels within a process: bounded, expiring, delayed; otherwise first in, first out.

It may be used from any event loop of the process, from several at once too.
"""

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
    """A message, from when on it can be received, and for the how-many-eth time."""

    since: float
    message: Message
    attempt: int = 1


class _Waiter:
    """A reader that waits. `wake` may be called from any thread."""

    __slots__ = ("future", "loop", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()

    def wake(self) -> bool:
        """False if its loop was closed while it waited: somebody else has to be woken."""
        try:
            if threading.get_ident() == self.thread:
                self._wake()
            else:
                self.loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            return False
        return True

    async def wait(self, seconds: float | None) -> None:
        """Until it is woken, or for that long."""
        timer = None if seconds is None else self.loop.call_later(seconds, self._wake)
        try:
            await self.future
        finally:
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


COUNTED_SECONDS = 86400.0  # how long it is known what went through a channel that nobody uses
COUNTED_LOCAL_SECONDS = 60.0  # and through a process-local one: an app may make thousands in that time


class _Queue:
    """One channel: what can be received, what is delayed, who waits, and what has been counted until when."""

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

    def expire(self, oldest: float) -> int:
        """Drop what could be received since then or longer; how many that were."""
        dropped = 0
        while self.ready and self.ready[0].since <= oldest:
            self.ready.popleft()
            dropped += 1
        while self.delayed and self.delayed[0][0] <= oldest:
            heapq.heappop(self.delayed)
            dropped += 1
        return dropped

    def pop(self, now: float) -> Queued | None:
        """The oldest that can be received, taken out."""
        due = bool(self.delayed) and self.delayed[0][0] <= now
        if due and not (self.ready and self.ready[0].since <= self.delayed[0][0]):
            return heapq.heappop(self.delayed)[2]
        return self.ready.popleft() if self.ready else None

    def since(self) -> float | None:
        """From when on the oldest can be received."""
        times = [self.ready[0].since] if self.ready else []
        times += [self.delayed[0][0]] if self.delayed else []
        return min(times, default=None)

    def wake_one(self) -> None:
        while self.waiting and not self.waiting.popleft().wake():
            pass


class Queues:
    """Messages by channel. `clock` gives seconds.

    `capacity_of` says how many a channel holds; without it, all that is put there. `on_dropped` is told how many
    messages of a channel were dropped, because nobody read them in time or by `clear`; it must not call anything here.
    """

    def __init__(
        self,
        expiry: float,
        capacity_of: Callable[[str], int] | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_dropped: Callable[[str, int], None] | None = None,
    ) -> None:
        self._expiry = expiry
        self._capacity_of = capacity_of
        self._clock = clock
        self._on_dropped = on_dropped
        self._lock = threading.Lock()
        self._queues: dict[str, _Queue] = {}
        self._order = count()  # of what is due at the same time
        self._sweep_at = clock() + expiry

    def __len__(self) -> int:
        """How many channels are known."""
        return len(self._queues)

    def put(
        self, channel: str, message: Message, *, since: float | None = None, delay: float = 0.0, attempt: int = 1
    ) -> None:
        """Add a message that can be received `delay` seconds after `since`, which is now by default.

        Raises ChannelFull; what is put there again, as its `attempt` says, was there before and is always taken.
        """
        now = self._clock()
        with self._lock:
            if now >= self._sweep_at:
                self._sweep_at = now + self._expiry
                self._sweep(now)
            queue = self._queue(channel)
            self._expire(channel, queue, now)
            if self._capacity_of is not None and attempt == 1:
                queue.counted = now
                capacity = self._capacity_of(channel)
                if len(queue) >= capacity:
                    queue.full += 1
                    raise ChannelFull(channel, capacity)
                queue.sent += 1
            queued = Queued((now if since is None else since) + delay, message, attempt)
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
        """Wait for messages and take up to `limit`, oldest first; none after `wake`. A cancelled call takes nothing."""
        while True:
            with self._lock:
                now = self._clock()
                queue = self._queue(channel)
                self._expire(channel, queue, now)
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
                        queue.wake_one()  # we were woken for a message that we no longer take
                    self._tidy(channel, queue, self._clock())
                raise
            with self._lock:
                if waiter in queue.waiting:  # the time had come
                    queue.waiting.remove(waiter)

    def sweep(self) -> float | None:
        """Drop what has expired, also where nobody reads. Seconds until the next message will have; None if none."""
        with self._lock:
            now = self._clock()
            self._sweep(now)
            times = [since for queue in self._queues.values() if (since := queue.since()) is not None]
            return min(times) + self._expiry - now if times else None

    def clear(self) -> None:
        """Drop every message, and what was counted."""
        with self._lock:
            for channel, queue in list(self._queues.items()):
                if len(queue) and self._on_dropped is not None:
                    self._on_dropped(channel, len(queue))
                queue.ready.clear()
                queue.delayed.clear()
                queue.sent = queue.full = 0
                self._tidy(channel, queue, self._clock())

    def statistics(self, channel: str | None = None) -> Statistics:
        """Of one channel, or of all ordinary ones."""
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

    def _expire(self, channel: str, queue: _Queue, now: float) -> None:
        dropped = queue.expire(now - self._expiry)
        if dropped and self._on_dropped is not None:
            self._on_dropped(channel, dropped)

    def _sweep(self, now: float) -> None:
        for channel, queue in list(self._queues.items()):
            self._expire(channel, queue, now)
            self._tidy(channel, queue, now)

    def _tidy(self, channel: str, queue: _Queue, now: float) -> None:
        """Forget a channel that is empty, once it need not be known any more what went through it."""
        if queue.ready or queue.delayed or queue.waiting:
            return
        seconds = COUNTED_LOCAL_SECONDS if "!" in channel else COUNTED_SECONDS
        counted = queue.sent + queue.full > 0 and queue.counted > now - seconds
        if not counted and self._queues.get(channel) is queue:
            del self._queues[channel]
