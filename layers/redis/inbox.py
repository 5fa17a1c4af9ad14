"""The mailbox behind the process-local channels that `new_channel` makes: the handler that keeps what arrives.

Senders count in Redis how many unread messages each channel has, so that none is over its capacity; here is said what
was read, or has expired. What arrived is dropped when it has expired by Redis's clock, also when nobody reads.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from asgibus.layers.codec import unpack_message
from asgibus.layers.contract import DEAD, Claim, Frame, Message, Offer

logger = logging.getLogger("asgibus.layers")

_Arrived = tuple[float, bytes]  # when it expires, in seconds by Redis's clock, and the message, packed

SWEEP_SECONDS = 0.01  # behind the expiry of a message, so that those of the same moment go together


class Store(Protocol):
    """What an inbox needs of its place on the bus."""

    mailbox: str

    def time(self) -> float:
        """Now, in seconds by Redis's clock, or a little ahead of it."""

    def received(self, parts: Mapping[str, int]) -> None:
        """So many messages of each of these channels are not unread any more."""


class _Channel:
    """What has arrived for a channel, each with the time at which it expires, and who waits for it."""

    __slots__ = ("messages", "waiting")

    def __init__(self) -> None:
        self.messages: deque[_Arrived] = deque()
        self.waiting: deque[asyncio.Future[_Arrived]] = deque()

    def add(self, arrived: _Arrived) -> None:
        """Hand it to whoever waits, or keep it."""
        while self.waiting:
            waiting = self.waiting.popleft()
            if not waiting.done():
                waiting.set_result(arrived)
                return
        self.messages.append(arrived)


class Inbox:
    """The messages of one mailbox's channels, until `receive` takes them. `on_bus` before use."""

    _store: Store

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._count = 0
        self._expiry = 0.0
        self._channels: dict[str, _Channel] = {}
        self._received: Counter[str] = Counter()
        self._sweeping: asyncio.TimerHandle | None = None

    def on_bus(self, store: Store, expiry: float) -> None:
        """It is the handler there."""
        self._store = store
        self._expiry = expiry

    @property
    def mailbox(self) -> str:
        """The mailbox of its channels."""
        return self._store.mailbox

    def new_channel(self) -> str:
        """A channel of this mailbox that nobody else has."""
        self._count += 1
        return f"{self.mailbox}{self._count}"

    async def receive(self, part: str) -> Message:
        """Wait for the next message of a channel, named by its local part. A cancelled call takes nothing."""
        channel = self._channels.get(part)
        if channel is None:
            channel = self._channels[part] = _Channel()
        while True:
            if channel.messages:
                arrived = channel.messages.popleft()
            else:
                arrived = await self._wait(part, channel)
            self._gone(part, 1)
            if arrived[0] > self._store.time():
                if not channel.messages and not channel.waiting:
                    self._channels.pop(part, None)
                return unpack_message(arrived[1])

    async def _wait(self, part: str, channel: _Channel) -> _Arrived:
        waiting: asyncio.Future[_Arrived] = self._loop.create_future()
        channel.waiting.append(waiting)
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():  # it was handed to us, and is for the next one
                channel.messages.appendleft(waiting.result())
                channel.add(channel.messages.popleft())
            elif waiting in channel.waiting:  # else it was passed over, as it was cancelled already
                channel.waiting.remove(waiting)
            if not channel.messages and not channel.waiting:
                self._channels.pop(part, None)
            raise

    def clear(self) -> None:
        """Drop every message."""
        for part, channel in list(self._channels.items()):
            self._drop(part, channel, len(channel.messages))

    def close(self) -> None:
        """Sweep no more."""
        if self._sweeping is not None:
            self._sweeping.cancel()

    def tell(self) -> None:
        """Say what is not unread any more; by itself in the next turn of the event loop."""
        received, self._received = self._received, Counter()
        if received:
            self._store.received(received)

    def _gone(self, part: str, number: int) -> None:
        """They are not unread any more; said once for all that happens in this turn of the event loop."""
        if not self._received:
            self._loop.call_soon(self.tell)
        self._received[part] += number

    def _drop(self, part: str, channel: _Channel, number: int) -> None:
        for _ in range(number):
            channel.messages.popleft()
        self._gone(part, number)
        if not channel.messages and not channel.waiting:
            self._channels.pop(part, None)

    def _sweep(self) -> None:
        """Drop what has expired, also where nobody reads, and come again when the next one will have."""
        now = self._store.time()
        next_end = math.inf
        for part, channel in list(self._channels.items()):
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
        """A message, packed, for these channels, written at that time by Redis's clock."""
        end = sent + self._expiry
        if end <= self._store.time():
            for part in parts:
                self._gone(part, 1)
            return
        arrived = (end, message)
        channels = self._channels
        kept = False
        for part in parts:
            channel = channels.get(part)
            if channel is None:
                channel = channels[part] = _Channel()
            channel.add(arrived)
            kept = kept or bool(channel.messages)
        if kept and self._sweeping is None:
            self._sweep()

    # Handler of the mailbox.

    def batch(self, sender: str, frames: Sequence[Frame]) -> None:
        for frame in frames:
            if frame[0] != DEAD:
                logger.error("mailbox %s: a frame of kind %r was dropped", self.mailbox, frame[0])

    def undelivered(self, mailbox: str) -> None:
        """Nothing is posted from here."""

    def interrupted(self) -> None:
        """What Redis lost is sent again by whoever sent it."""

    def offer_lost(self, offer: Offer) -> None:
        """Nothing is offered from here."""

    def orphaned(self, claim: Claim) -> None:
        """Nothing is claimed from here."""
