"""The mailbox behind the process-local channels that `new_channel` makes: the handler that keeps what arrives.

Senders count in Redis how many unread messages each channel has, so that none is over its capacity; here is said what
was read, or has expired: not each time, but before anyone is refused for it (see `Asking`). What arrived is dropped
when it has expired by Redis's clock, also when nobody reads. What went through a channel is known until nobody has
used it for a minute or two.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from asgibus.layers.codec import unpack_message
from asgibus.layers.contract import DEAD, Claim, Frame, Message, Offer
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis.asking import Standing
from asgibus.layers.settings import LayerSettings

logger = logging.getLogger("asgibus.layers")

_Arrived = tuple[float, bytes]  # when it expires, in seconds by Redis's clock, and the message, packed

TELL_AT = 16  # received messages of a channel before that is said; or a quarter of the least capacity, if it is less
TELL_SECONDS = 0.05  # until it is said at the latest, unless somebody asks
FORGET_SECONDS = 60.0  # between two looks at which channels are used no more: an app may make thousands in that time
COUNT_SECONDS = 0.25  # behind an entry that cannot be read, so that those which come together go together
SWEEP_SECONDS = 0.01  # behind the expiry of a message, so that those of the same moment go together


class Store(Protocol):
    """What an inbox needs of its place on the bus."""

    mailbox: str

    def time(self) -> float:
        """Now, in seconds by Redis's clock, or a little ahead of it."""

    def received(self, parts: Mapping[str, int]) -> None:
        """So many messages of each of these channels are not unread any more."""

    def counted(self, parts: Mapping[str, int]) -> None:
        """So many messages of each of these channels are unread, of no other one any, and of none more."""


class _Channel:
    """What has arrived for a channel, each with the time at which it expires, and who waits for it.

    `arrived`: how many messages that were, of which some have gone. `used`: since it was last looked at.
    """

    __slots__ = ("arrived", "messages", "used", "waiting")

    def __init__(self) -> None:
        self.messages: deque[_Arrived] = deque()
        self.waiting: deque[asyncio.Future[_Arrived]] = deque()
        self.arrived = 0
        self.used = True

    def add(self, arrived: _Arrived) -> None:
        """Hand it to whoever waits, or keep it."""
        while self.waiting:
            waiting = self.waiting.popleft()
            if not waiting.done():
                waiting.set_result(arrived)
                return
        self.messages.append(arrived)

    def give_up(self, waiting: asyncio.Future[_Arrived]) -> None:
        """Take out who waits no longer, or what it was handed already."""
        if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
            # It is for the next one, and older than all that is here.
            while self.waiting:
                if not (heir := self.waiting.popleft()).done():
                    heir.set_result(waiting.result())
                    return
            self.messages.appendleft(waiting.result())
        elif waiting in self.waiting:  # else it was passed over, as it was cancelled already
            self.waiting.remove(waiting)


class Inbox:
    """The messages of one mailbox's channels, until `receive` takes them. `on_bus` before use."""

    _store: Store

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._count = 0
        self._expiry = 0.0
        self._channels: dict[str, _Channel] = {}
        self._received: dict[str, int] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._forgetting: asyncio.TimerHandle | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._counting: asyncio.TimerHandle | None = None
        self._tells = False  # in the next turn of the event loop
        self._tell_at = 1

    def on_bus(self, store: Store, settings: LayerSettings) -> None:
        """It is the handler there."""
        self._store = store
        self._expiry = settings.expiry
        capacities = settings.capacity, *(capacity for _, capacity in settings.channel_capacity)
        self._tell_at = max(1, min(TELL_AT, *(capacity // 4 for capacity in capacities)))

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
        channel = self._channels.get(part) or self._new(part)
        while True:
            channel.used = True
            if channel.messages:
                arrived = channel.messages.popleft()
            else:
                waiting: asyncio.Future[_Arrived] = self._loop.create_future()
                channel.waiting.append(waiting)
                try:
                    arrived = await waiting
                except asyncio.CancelledError:
                    channel.give_up(waiting)
                    raise
            self._gone(part, 1)
            if arrived[0] > self._store.time():
                return unpack_message(arrived[1])

    def standing(self, part: str) -> Standing:
        """How a channel stands, as far as its messages have arrived."""
        channel = self._channels.get(part)
        if channel is None:
            return Standing()
        now = self._store.time()
        ends = [end for end, _ in channel.messages if end > now]
        return Standing(channel.arrived, len(ends), max(0.0, now - (ends[0] - self._expiry)) if ends else 0.0)

    def clear(self) -> None:
        """Drop every message, and what was counted."""
        for part, channel in self._channels.items():
            self._drop(part, channel, len(channel.messages))
            channel.arrived = 0

    def close(self) -> None:
        """Sweep no more; nothing comes any more for who waits."""
        for channel in self._channels.values():
            for waiting in channel.waiting:
                if not waiting.done():
                    waiting.set_exception(LayerUnavailable("the layer was closed"))
            channel.waiting.clear()
        for timer in (self._sweeping, self._forgetting, self._telling, self._counting):
            if timer is not None:
                timer.cancel()

    def _new(self, part: str) -> _Channel:
        channel = self._channels[part] = _Channel()
        if self._forgetting is None:
            self._forgetting = self._loop.call_later(FORGET_SECONDS, self._forget)
        return channel

    def _forget(self) -> None:
        """Forget the channels that nobody has used since this was done last."""
        for part, channel in list(self._channels.items()):
            if not (channel.used or channel.messages or channel.waiting):
                del self._channels[part]
            channel.used = False
        self._forgetting = self._loop.call_later(FORGET_SECONDS, self._forget) if self._channels else None

    def count_anew(self) -> None:
        """What was counted by its sender has come here as nothing that can be read, now or a moment ago."""
        if self._counting is None:
            self._counting = self._loop.call_later(COUNT_SECONDS, self._count_anew)

    def _count_anew(self) -> None:
        # What is on its way here just now is counted by nobody then: better that than a channel which stays full.
        self._counting = None
        self._received.clear()
        unread = {part: len(channel.messages) for part, channel in self._channels.items() if channel.messages}
        self._store.counted(unread)

    def tell(self) -> None:
        """Say what is not unread any more."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        received, self._received = self._received, {}
        self._tells = False
        if received:
            self._store.received(received)

    def _gone(self, part: str, number: int) -> None:
        """They are not unread any more; said soon, with what goes meanwhile."""
        if self._telling is None and not self._tells:
            self._telling = self._loop.call_later(TELL_SECONDS, self.tell)
        self._received[part] = received = self._received.get(part, 0) + number
        if received >= self._tell_at and not self._tells:
            self._tells = True
            self._loop.call_soon(self.tell)

    def _drop(self, part: str, channel: _Channel, number: int) -> None:
        for _ in range(number):
            channel.messages.popleft()
        self._gone(part, number)

    def _sweep(self) -> None:
        """Drop what has expired, also where nobody reads, and come again when the next one will have."""
        now = self._store.time()
        next_end = math.inf
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
        """A message, packed, for these channels, written at that time by Redis's clock."""
        end = sent + self._expiry
        expired = end <= self._store.time()
        arrived = (end, message)
        channels = self._channels
        kept = False
        for part in parts:
            channel = channels.get(part) or self._new(part)
            channel.arrived += 1
            channel.used = True
            if expired:
                self._gone(part, 1)
                continue
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
