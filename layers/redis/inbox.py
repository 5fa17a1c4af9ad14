"""The mailbox behind the process-local channels that `new_channel` makes: the handler that keeps what arrives.

It is read in one event loop; `receive` may be called in any. Senders count in Redis how many unread messages each
channel has, so that none is over its capacity; here is said what was read, or has expired: not each time, but before
anyone is refused for it (see `Asking`). What arrived is dropped when it has expired by Redis's clock, also when nobody
reads. What went through a channel is known until nobody has used it for a minute or two.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from asgibus.layers.codec import unpack_message
from asgibus.layers.contract import Frame, Handler, Message
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.frames import DEAD
from asgibus.layers.redis.asking import Standing
from asgibus.layers.settings import LayerSettings

logger = logging.getLogger("asgibus.layers")

_Arrived = tuple[float, bytes]  # when it expires, in seconds by Redis's clock, and the message, packed

TELL_AT = 16  # received messages of a channel before that is said; or a quarter of the least capacity, if it is less
TELL_SECONDS = 0.05  # until it is said at the latest, unless somebody asks
FORGET_SECONDS = 60.0  # between two looks at which channels are used no more: an app may make thousands in that time
COUNT_SECONDS = 0.25  # behind an entry that cannot be read, so that those which come together go together
SWEEP_SECONDS = 0.01  # behind the expiry of a message, so that those of the same moment go together
ABANDONED_SECONDS = 600.0  # without a reader: an app that has lost interest in a channel does not say so


class Store(Protocol):
    """What an inbox needs of its place on the bus."""

    mailbox: str

    def time(self) -> float:
        """Return now, in seconds by Redis's clock, or a little ahead of it. Called from any thread."""

    def abandoned(self, parts: Collection[str]) -> None:
        """Forget the memberships of these channels: nobody reads them any more."""

    def received(self, parts: Mapping[str, int]) -> None:
        """So many messages of each of these channels are not unread any more."""

    def counted(self, parts: Mapping[str, int]) -> None:
        """So many messages of each of these channels are unread, of no other one any, and of none more."""


class _Reader:
    """A reader that waits for a message of a channel, in some event loop; `arrived` gets the message."""

    __slots__ = ("arrived", "channel", "done", "loop")

    def __init__(self, channel: _Channel) -> None:
        self.channel = channel
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.arrived: _Arrived | None = None


class _Channel:
    """What has arrived for a channel, each with the time at which it expires, and who waits for it.

    `arrived`: how many messages that were, of which some have gone. `used`, `received`: since it was last looked at.
    `read`: when somebody received from it, as far as that was looked at. `member`: a group may have it.
    """

    __slots__ = ("arrived", "member", "messages", "part", "read", "received", "used", "waiting")

    def __init__(self, part: str) -> None:
        self.part = part
        self.messages: deque[_Arrived] = deque()
        self.waiting: deque[_Reader] = deque()
        self.arrived = 0
        self.used = self.received = True
        self.member = False
        self.read = 0.0


class Inbox(Handler):
    """The messages of one mailbox's channels, until `receive` takes them. `on_bus` before use."""

    _store: Store

    def __init__(self) -> None:
        """Make it for the running event loop: all methods but `receive` and `join` are called there."""
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()  # never held across an await
        self._expiry = 0.0
        self._channels: dict[str, _Channel] = {}
        self._received: dict[str, int] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._forgetting: asyncio.TimerHandle | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._counting: asyncio.TimerHandle | None = None
        self._woken: list[_Reader] = []  # who was given something, and does not know yet
        self._tells = False  # soon
        self._tells_at_once = False
        self._tell_at = 1
        self.closed = False
        """Whether nothing comes any more."""

    def on_bus(self, store: Store, settings: LayerSettings) -> None:
        """Be the handler there."""
        self._store = store
        self._expiry = settings.expiry
        capacities = settings.capacity, *(capacity for _, capacity in settings.channel_capacity)
        self._tell_at = max(1, min(TELL_AT, *(capacity // 4 for capacity in capacities)))
        self._forgetting = self._loop.call_later(FORGET_SECONDS, self._forget)

    @property
    def mailbox(self) -> str:
        """The mailbox of its channels."""
        return self._store.mailbox

    async def receive(self, part: str) -> Message:
        """Wait for the next message of a channel, named by its local part. A cancelled call takes nothing.

        Raises LayerUnavailable when the layer is closed meanwhile.
        """
        while True:
            reader: _Reader | None = None
            with self._lock:
                if self.closed:
                    raise LayerUnavailable("the layer was closed")
                channel = self._channel(part)
                channel.used = channel.received = True
                if channel.messages:
                    arrived = channel.messages.popleft()
                    self._gone(part, 1)
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
        """Note that this channel may be in a group, and say when it is abandoned. Called from any thread."""
        with self._lock:
            channel = self._channel(part)
            channel.used = channel.received = channel.member = True

    def _give_up(self, reader: _Reader) -> None:
        """Take out a reader that waits no longer; what it was given already is for the next one."""
        channel = reader.channel
        with self._lock:
            if reader.arrived is None:
                if reader in channel.waiting:
                    channel.waiting.remove(reader)
                return
            arrived, reader.arrived = reader.arrived, None
            while channel.waiting:
                heir = channel.waiting.popleft()
                if not heir.loop.is_closed():
                    heir.arrived = arrived
                    break
            else:  # it is older than all that is here
                channel.messages.appendleft(arrived)
                self._gone(channel.part, -1)
                return
        for lost in _wake([heir]):
            self._give_up(lost)

    def _wake_all(self) -> None:
        """Tell the readers that they were given a message, once for each event loop."""
        woken, self._woken = self._woken, []
        for reader in _wake(woken):
            self._give_up(reader)

    def standing(self, part: str) -> Standing:
        """Return how a channel stands, as far as its messages have arrived."""
        with self._lock:
            channel = self._channels.get(part)
            if channel is None:
                return Standing()
            now = self._store.time()
            ends = [end for end, _ in channel.messages if end > now]
            return Standing(channel.arrived, len(ends), max(0.0, now - (ends[0] - self._expiry)) if ends else 0.0)

    def clear(self) -> None:
        """Drop every message, and what was counted."""
        with self._lock:
            for part, channel in self._channels.items():
                self._drop(part, channel, len(channel.messages))
                channel.arrived = 0

    def close(self) -> None:
        """Sweep no more; nothing comes any more for who waits."""
        with self._lock:
            self.closed = True
            waiting = [reader for channel in self._channels.values() for reader in channel.waiting]
            for channel in self._channels.values():
                channel.waiting.clear()
        self._wake_all()
        _wake(waiting)
        for timer in (self._sweeping, self._forgetting, self._telling, self._counting):
            if timer is not None:
                timer.cancel()

    def _channel(self, part: str) -> _Channel:
        """Return the channel with that local part, which is made if it is new. Called with the lock."""
        channel = self._channels.get(part)
        if channel is None:
            channel = self._channels[part] = _Channel(part)
        return channel

    def _forget(self) -> None:
        """Forget the channels that nobody has used since this was done last."""
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
                if not (channel.used or channel.member or channel.messages or channel.waiting):
                    del self._channels[part]
                channel.used = False
        if abandoned:
            self._store.abandoned(abandoned)
        self._forgetting = self._loop.call_later(FORGET_SECONDS, self._forget)

    def count_anew(self) -> None:
        """Count what is unread: an entry that its sender has counted was nothing that can be read."""
        if self._counting is None:
            self._counting = self._loop.call_later(COUNT_SECONDS, self._count_anew)

    def _count_anew(self) -> None:
        # What is on its way here just now is counted by nobody then: better that than a channel which stays full.
        self._counting = None
        with self._lock:
            self._received.clear()
            unread = {part: len(channel.messages) for part, channel in self._channels.items() if channel.messages}
        self._store.counted(unread)

    def tell(self) -> None:
        """Say what is not unread any more."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        with self._lock:
            received, self._received = self._received, {}
            self._tells = self._tells_at_once = False
        if received:
            self._store.received(received)

    def _gone(self, part: str, number: int) -> None:
        """Note that so many are not unread any more; said soon, with what goes meanwhile. Called with the lock."""
        self._received[part] = received = self._received.get(part, 0) + number
        if self.closed:
            return
        if received >= self._tell_at and not self._tells_at_once:
            self._tells = self._tells_at_once = True
            self._loop.call_soon_threadsafe(self.tell)
        elif not self._tells:
            self._tells = True
            self._loop.call_soon_threadsafe(self._tell_soon)

    def _tell_soon(self) -> None:
        if self._telling is None and not self.closed:
            self._telling = self._loop.call_later(TELL_SECONDS, self.tell)

    def _drop(self, part: str, channel: _Channel, number: int) -> None:
        for _ in range(number):
            channel.messages.popleft()
        self._gone(part, number)

    def _sweep(self) -> None:
        """Drop what has expired, also where nobody reads, and come again when the next one will have."""
        now = self._store.time()
        next_end = math.inf
        with self._lock:
            for part, channel in self._channels.items():
                expired = 0
                for end, _ in channel.messages:
                    if end > now:
                        next_end = min(next_end, end)
                        break
                    expired += 1
                if expired:
                    self._drop(part, channel, expired)
        delay = next_end - now + SWEEP_SECONDS
        self._sweeping = self._loop.call_later(delay, self._sweep) if next_end < math.inf else None

    def deliver(self, parts: Iterable[str], message: bytes, sent: float) -> None:
        """Keep a message, packed, for these channels, written at that time by Redis's clock."""
        end = sent + self._expiry
        now = self._store.time()
        expired = end <= now
        arrived = (end, message)
        kept = False
        scheduled = bool(self._woken)
        with self._lock:
            for part in parts:
                channel = self._channel(part)
                channel.arrived += 1
                channel.used = True
                if expired:
                    self._gone(part, 1)
                elif channel.waiting:
                    reader = channel.waiting.popleft()
                    reader.arrived = arrived
                    self._gone(part, 1)
                    self._woken.append(reader)
                else:
                    channel.messages.append(arrived)
                    kept = True
        if self._woken and not scheduled:  # behind the other entries of this read, and the next read
            self._loop.call_soon(self._wake_all)
        if kept and self._sweeping is None:
            self._sweeping = self._loop.call_later(end - now + SWEEP_SECONDS, self._sweep)

    # Handler of the mailbox.

    def batch(self, sender: str, frames: Sequence[Frame]) -> None:
        for frame in frames:
            if frame[0] != DEAD:
                logger.error("mailbox %s: a frame of kind %r was dropped", self.mailbox, frame[0])


def _wake(readers: Iterable[_Reader]) -> list[_Reader]:
    """End the waits of readers, each in its event loop. Return those whose loops were closed while they waited."""
    loops: dict[asyncio.AbstractEventLoop, list[_Reader]] = {}
    for reader in readers:
        loops.setdefault(reader.loop, []).append(reader)
    lost: list[_Reader] = []
    for loop, each in loops.items():
        try:
            loop.call_soon_threadsafe(_end_waits, each)
        except RuntimeError:
            lost += each
    return lost


def _end_waits(readers: Iterable[_Reader]) -> None:
    for reader in readers:
        if not reader.done.done():
            reader.done.set_result(None)
