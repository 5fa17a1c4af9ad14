"""The messages of a process's process-local channels, from the mailbox to their readers.

The process that reads a channel bounds it: it drops what comes when the channel is at its capacity, and counts that. It
also publishes which of its channels are full; senders read that from time to time, and refuse to send to a full channel
(`MailboxSender`). So a message costs one command, and a sender may learn a few messages late that a channel is full.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Protocol

from asgibus.layers.codec import unpack_message
from asgibus.layers.compiling import mypyc_attr
from asgibus.layers.contract import Frame, Handler, Message, Statistics
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.frames import DEAD
from asgibus.layers.over_capacity import OverCapacity

logger = logging.getLogger("asgibus.layers")

_Arrived = tuple[float, bytes]  # when it expires, in seconds by Redis's clock, and the packed message

FORGET_SECONDS = 60.0  # between two searches for unused channels: an app may make thousands in that time
SWEEP_SECONDS = 0.01  # after the expiry of a message, so that messages of one moment are dropped together
ABANDONED_SECONDS = 600.0  # without a reader: an app does not say that it has lost interest in a channel
FULL_CHANNELS = 1000  # full channels that are published: each sender reads them all
ROOM_SECONDS = 0.005  # until it is published that a channel has room again, with other channels
REPUBLISH_SECONDS = 1.0  # later than this, a message for a full channel shows that Redis may have lost the set


class InboxStore(Protocol):
    """The bus, as its inbox uses it. Methods are called in the event loop of the bus, `time` from any thread."""

    mailbox: str

    def time(self) -> float:
        """Return the time in seconds by Redis's clock, or a little ahead of it."""

    def abandoned(self, parts: Collection[str]) -> None:
        """Forget the memberships of these channels: nobody reads them any more."""

    def publish_full(self, full: Collection[str], others: Collection[str]) -> None:
        """Let senders know that these channels are full, and that the others have room again."""


class _Reader:
    """A reader that waits for a message of a channel, in its own event loop. `arrived` gets the message."""

    __slots__ = ("arrived", "channel", "done", "loop")

    def __init__(self, channel: _Channel) -> None:
        self.channel = channel
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.arrived: _Arrived | None = None


class _Channel:
    """The state of one channel.

    Attributes:
        part: Its local part.
        messages: The unread messages, each with the time at which it expires.
        delayed: How many messages are not due yet.
        waiting: The readers that wait.
        capacity: How many unread messages it holds, delayed ones included, by the settings of the last sender.
        arrived: How many messages have arrived and were not dropped.
        dropped: How many were dropped because the channel was full.
        used, received: Whether it was used, or received from, since the last call of `_forget`.
        read: When it was received from, by the monotonic clock, to the resolution of `_forget`.
        member: Whether it may be in a group.
    """

    __slots__ = (
        *("arrived", "capacity", "delayed", "dropped", "member", "messages", "part", "read", "received", "used"),
        "waiting",
    )

    def __init__(self, part: str) -> None:
        self.part = part
        self.messages: deque[_Arrived] = deque()
        self.delayed = 0
        self.waiting: deque[_Reader] = deque()
        self.capacity = 1
        self.arrived = self.dropped = 0
        self.used = self.received = True
        self.read = 0.0
        self.member = False

    @property
    def is_full(self) -> bool:
        return len(self.messages) + self.delayed >= self.capacity

    def expire(self, now: float) -> None:
        """Drop the messages that have expired."""
        while self.messages and self.messages[0][0] <= now:
            self.messages.popleft()


@mypyc_attr(allow_interpreted_subclasses=True)
class Inbox(Handler):
    """The messages of one mailbox's channels, until `receive` takes them. Call `on_bus` before use.

    `receive`, `join`, `statistics` and `deliver` may be called in any event loop, the other methods in that of the bus.
    """

    _store: InboxStore

    def __init__(self, expiry: float, over_capacity: OverCapacity) -> None:
        """Make an inbox for the running event loop.

        Args:
            expiry: Seconds after which an unread message is dropped.
            over_capacity: Counts and logs the messages that full channels miss.
        """
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()  # never held across an await
        self._expiry = expiry
        self._over_capacity = over_capacity
        self._channels: dict[str, _Channel] = {}
        self._full: dict[str, None] = {}  # the full channels, those that became full first in front
        self._published: dict[str, None] = {}
        self._published_at = -math.inf
        self._publishes = False  # whether a publication is scheduled
        self._later: dict[asyncio.TimerHandle, list[_Channel]] = {}
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._woken: list[_Reader] = []  # readers that have a message of the bus and are not woken yet
        self._sweeps = False  # whether a sweep is scheduled
        self.closed = False
        """Whether the layer was closed."""
        self.on_interrupted: Callable[[], None] | None = None
        """Called when the store may have lost its data."""

    def on_bus(self, store: InboxStore) -> None:
        """Be the handler of that bus."""
        self._store = store
        self._call_later(FORGET_SECONDS, self._forget)

    @property
    def mailbox(self) -> str:
        """The mailbox of its channels."""
        return self._store.mailbox

    async def receive(self, part: str) -> Message:
        """Wait for the next message of a channel, named by its local part. A cancelled call takes nothing.

        Raises:
            LayerUnavailable: The layer is closed meanwhile.
        """
        while True:
            reader: _Reader | None = None
            with self._lock:
                if self.closed:
                    raise LayerUnavailable("the layer was closed")
                channel = self._channels.get(part) or self._channel(part)
                channel.used = channel.received = True
                if channel.messages:
                    arrived = channel.messages.popleft()
                    if part in self._full:
                        self._note_room(channel)
                else:
                    reader = _Reader(channel)
                    channel.waiting.append(reader)
            if reader is not None:
                try:
                    await reader.done
                except asyncio.CancelledError:
                    self._give_up(reader)
                    raise
                if reader.arrived is None:
                    continue  # the layer was closed
                arrived = reader.arrived
            if arrived[0] > self._store.time():
                return unpack_message(arrived[1])

    def join(self, part: str) -> None:
        """Note that a channel may be in a group, so that its memberships are forgotten when it is abandoned."""
        with self._lock:
            channel = self._channel(part)
            channel.used = channel.received = channel.member = True

    def statistics(self, part: str) -> Statistics:
        """Return the statistics of a channel, as far as its messages have arrived."""
        with self._lock:
            channel = self._channels.get(part)
            if channel is None:
                return Statistics(messages_count=0, messages_pending=0, messages_max_age=0.0, channel_full_count=0)
            now = self._store.time()
            channel.expire(now)
            age = max(0.0, now - (channel.messages[0][0] - self._expiry)) if channel.messages else 0.0
            return Statistics(
                messages_count=channel.arrived,
                messages_pending=len(channel.messages) + channel.delayed,
                messages_max_age=age,
                channel_full_count=channel.dropped,
            )

    def deliver(self, parts: Iterable[str], message: bytes, sent: float, delay: float, capacity: int) -> None:
        """Hand a message to readers of these channels, or keep it until they come. Full channels miss it.

        It may be called in any event loop if there is no delay.

        Args:
            parts: The local parts of the channels.
            message: The packed message.
            sent: When it was written, in seconds by Redis's clock.
            delay: Seconds after which it can be received.
            capacity: How many unread messages each of the channels holds.
        """
        now = self._store.time()
        sent = min(sent, now)  # the ids of a stream go on when Redis's clock is put back
        arrived = (sent + delay + self._expiry, message)
        if arrived[0] <= now:
            return
        later: list[_Channel] = []
        woken: list[_Reader] = []
        waits = delay > 0 and sent + delay > now
        count = full = 0
        publish = False
        with self._lock:
            for part in parts:
                count += 1
                channel = self._channels.get(part) or self._channel(part)
                channel.used = True
                if channel.waiting and not waits:
                    channel.arrived += 1
                    reader = channel.waiting.popleft()
                    reader.arrived = arrived
                    woken.append(reader)
                    continue
                channel.capacity = capacity
                if channel.is_full:
                    channel.expire(now)
                if channel.is_full:
                    channel.dropped += 1
                    full += 1
                else:
                    channel.arrived += 1
                    if waits:
                        channel.delayed += 1
                        later.append(channel)
                    else:
                        channel.messages.append(arrived)
                if channel.is_full and part not in self._full:
                    self._full[part] = None
                    publish = True
        if later:
            timer: asyncio.TimerHandle = self._loop.call_later(
                sent + delay - now, lambda: self._deliver_delayed(timer, arrived)
            )
            self._later[timer] = later
        self._after_adding(woken)
        if full:
            publish = publish or time.monotonic() - self._published_at > REPUBLISH_SECONDS
            self._over_capacity.missed(f"mailbox {self.mailbox}", full, count)
        if publish:
            self._call(self._publish)

    def _deliver_delayed(self, timer: asyncio.TimerHandle, arrived: _Arrived) -> None:
        woken: list[_Reader] = []
        with self._lock:
            for channel in self._later.pop(timer):
                channel.delayed -= 1
                if channel.waiting:
                    reader = channel.waiting.popleft()
                    reader.arrived = arrived
                    woken.append(reader)
                else:
                    channel.messages.append(arrived)
                if not channel.is_full and channel.part in self._full:
                    self._note_room(channel)
        self._after_adding(woken)

    def _after_adding(self, woken: list[_Reader]) -> None:
        """Wake these readers, which have a message, and have messages dropped when they have expired."""
        if woken:
            if asyncio.get_running_loop() is not self._loop:
                self._wake(woken)
            elif self._woken:
                self._woken += woken
            else:  # after the other entries of this read, and the next read: it wakes another thread
                self._woken = woken
                self._loop.call_soon(self._wake_all)
        if not self._sweeps:
            self._sweeps = True
            self._call(self._schedule_sweep)

    def _schedule_sweep(self) -> None:
        self._call_later(self._expiry + SWEEP_SECONDS, self._sweep)

    def _call(self, method: Callable[[], None]) -> None:
        """Call a method in the event loop of the bus."""
        if asyncio.get_running_loop() is self._loop:
            method()
        else:
            self._loop.call_soon_threadsafe(method)

    def _wake_all(self) -> None:
        woken, self._woken = self._woken, []
        self._wake(woken)

    def _wake(self, readers: Sequence[_Reader]) -> None:
        """End the waits of readers, with one call for each other event loop."""
        running = asyncio.get_running_loop()
        others: dict[asyncio.AbstractEventLoop, list[_Reader]] = {}
        for reader in readers:
            if reader.loop is not running:
                others.setdefault(reader.loop, []).append(reader)
            elif not reader.done.done():
                reader.done.set_result(None)
        for loop, each in others.items():
            try:
                loop.call_soon_threadsafe(_end_waits, each)
            except RuntimeError:  # the event loop was closed while they waited
                for reader in each:
                    self._give_up(reader)

    def _give_up(self, reader: _Reader) -> None:
        """Remove a reader that was cancelled; a message that it has already is for the next reader."""
        channel = reader.channel
        with self._lock:
            if reader.arrived is None:
                if reader in channel.waiting:
                    channel.waiting.remove(reader)
                return
            arrived, reader.arrived = reader.arrived, None
            while channel.waiting:
                other = channel.waiting.popleft()
                if not other.loop.is_closed():
                    other.arrived = arrived
                    break
            else:  # the message is older than all others here
                channel.messages.appendleft(arrived)
                return
        self._wake([other])

    # The set of full channels.

    def _note_room(self, channel: _Channel) -> None:
        """Publish soon that a channel is not full any more. Called with the lock, from any thread."""
        if channel.is_full:
            return
        del self._full[channel.part]
        if not self._publishes and not self.closed:
            self._publishes = True
            self._loop.call_soon_threadsafe(self._call_later, ROOM_SECONDS, self._publish)

    def _publish(self) -> None:
        """Publish which channels are full now."""
        again = time.monotonic() - self._published_at > REPUBLISH_SECONDS
        with self._lock:
            self._publishes = False
            full = dict.fromkeys(islice(self._full, FULL_CHANNELS))
        published, self._published = self._published, full
        self._published_at = time.monotonic()
        self._store.publish_full(full if again else full.keys() - published.keys(), published.keys() - full.keys())

    # Clearing up.

    def clear(self) -> None:
        """Drop every message, and reset the statistics."""
        later, self._later = self._later, {}
        for timer in later:
            timer.cancel()
        with self._lock:
            for channel in self._channels.values():
                channel.messages.clear()
                channel.arrived = channel.dropped = channel.delayed = 0
            self._full.clear()
        self._publish()

    def close(self) -> None:
        """Stop all timers. Readers that wait get LayerUnavailable."""
        with self._lock:
            self.closed = True
            waiting = [reader for channel in self._channels.values() for reader in channel.waiting]
            for channel in self._channels.values():
                channel.waiting.clear()
        self._wake_all()
        self._wake(waiting)
        for timer in (*self._later, *self._timers.values()):
            timer.cancel()

    def _channel(self, part: str) -> _Channel:
        """Return the channel with a local part, and make it if it is new. Called with the lock."""
        channel = self._channels.get(part)
        if channel is None:
            channel = self._channels[part] = _Channel(part)
        return channel

    def _forget(self) -> None:
        """Forget the channels that were not used since the last call."""
        abandoned = set()
        with self._lock:
            now = time.monotonic()
            for part, channel in list(self._channels.items()):
                if channel.received or channel.waiting:
                    channel.received = False
                    channel.read = now
                elif channel.member and channel.read < now - ABANDONED_SECONDS:
                    channel.member = False
                    abandoned.add(part)
                if not (channel.used or channel.member or channel.messages or channel.delayed or channel.waiting):
                    del self._channels[part]
                channel.used = False
        if abandoned:
            self._store.abandoned(abandoned)
        if self._full or self._published:
            self._publish()
        self._call_later(FORGET_SECONDS, self._forget)

    def _sweep(self) -> None:
        """Drop expired messages of all channels, and schedule the next call for when the next message expires."""
        now = self._store.time()
        next_end = math.inf
        with self._lock:
            for part, channel in self._channels.items():
                channel.expire(now)
                if channel.messages:
                    next_end = min(next_end, channel.messages[0][0])
                if part in self._full:
                    self._note_room(channel)
            self._sweeps = next_end < math.inf
        if next_end < math.inf:
            self._call_later(next_end - now + SWEEP_SECONDS, self._sweep)

    def _call_later(self, seconds: float, method: Callable[[], None]) -> None:
        def call() -> None:
            del self._timers[method]
            method()

        if method not in self._timers and not self.closed:
            self._timers[method] = self._loop.call_later(seconds, call)

    # Handler of the mailbox.

    def interrupted(self) -> None:
        if self.on_interrupted is not None:
            self.on_interrupted()

    def batch(self, sender: str, frames: Sequence[Frame]) -> None:
        for frame in frames:
            if frame[0] != DEAD:
                logger.error("mailbox %s: a frame of kind %r was dropped", self.mailbox, frame[0])


def _end_waits(readers: Iterable[_Reader]) -> None:
    for reader in readers:
        if not reader.done.done():
            reader.done.set_result(None)
