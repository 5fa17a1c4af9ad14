"""The memory layer: the contract within one process. The embedded default, and the model for the Redis layer.

Every method may be called from any event loop of the process, from several at once too; one lock guards the store and
is never held across an await.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from asgibus.layers.codec import copy
from asgibus.layers.contract import (
    GROUP_MESSAGE,
    MESSAGE,
    Bus,
    ChannelLayer,
    Claim,
    Frame,
    Handler,
    Message,
    Offer,
)
from asgibus.layers.errors import ChannelFull
from asgibus.layers.names import new_mailbox, require_channel, require_group, split_local

logger = logging.getLogger("asgibus.layers")

EPOCH = "memory"  # this store lives and dies with its process, so it has one life


class _Channel:
    """The unread messages of one channel, each with the time at which it expires, and who waits for them."""

    __slots__ = ("messages", "waiting")

    def __init__(self) -> None:
        self.messages: deque[tuple[float, Message]] = deque()
        self.waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()

    def expire(self, now: float) -> None:
        while self.messages and self.messages[0][0] <= now:
            self.messages.popleft()

    def wake_one(self) -> None:
        while self.waiting:
            loop, future = self.waiting.popleft()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_wake, future)
                return


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class InMemoryChannelLayer(ChannelLayer):
    """A channel layer within one process. `clock` gives seconds and may be replaced in tests."""

    def __init__(
        self,
        *,
        expiry: int = 60,
        group_expiry: int = 86400,
        capacity: int = 100,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.expiry = expiry
        self.group_expiry = group_expiry
        self.capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()
        self._channels: dict[str, _Channel] = {}
        self._groups: dict[str, dict[str, float]] = {}
        self._buses: dict[str, MemoryBus] = {}
        self._shared: dict[str, deque[tuple[Offer, Any]]] = defaultdict(deque)
        self._mailbox = new_mailbox("specific")
        self._locals = 0

    async def send(self, channel: str, message: Message) -> None:
        self._deliver(require_channel(channel), _copied(message))

    async def receive(self, channel: str) -> Message:
        require_channel(channel, receive=True)
        loop = asyncio.get_running_loop()
        while True:
            with self._lock:
                queue = self._channels.setdefault(channel, _Channel())
                queue.expire(self._clock())
                if queue.messages:
                    _, message = queue.messages.popleft()
                    if queue.messages:
                        queue.wake_one()
                    self._tidy(channel, queue)
                    return message
                future: asyncio.Future[None] = loop.create_future()
                waiter = (loop, future)
                queue.waiting.append(waiter)
            try:
                await future
            except asyncio.CancelledError:
                with self._lock:
                    if waiter in queue.waiting:
                        queue.waiting.remove(waiter)
                    elif queue.messages:
                        queue.wake_one()  # we were woken for a message that we no longer take
                    self._tidy(channel, queue)
                raise

    async def new_channel(self, prefix: str = "specific") -> str:
        with self._lock:
            self._locals += 1
            number = self._locals
        mailbox = self._mailbox.partition(".")[2]
        return require_channel(f"{require_channel(prefix)}.{mailbox}{number}")

    async def group_add(self, group: str, channel: str) -> None:
        require_group(group)
        require_channel(channel)
        with self._lock:
            self._groups.setdefault(group, {})[channel] = self._clock() + self.group_expiry

    async def group_discard(self, group: str, channel: str) -> None:
        require_group(group)
        require_channel(channel)
        with self._lock:
            members = self._groups.get(group, {})
            members.pop(channel, None)
            if not members:
                self._groups.pop(group, None)

    async def group_send(self, group: str, message: Message) -> None:
        require_group(group)
        message = _copied(message)
        now = self._clock()
        with self._lock:
            members = self._groups.get(group, {})
            for member in [name for name, end in members.items() if end <= now]:
                del members[member]
            targets = list(members)
        missed = 0
        for member in targets:
            bus = self._buses.get(member)
            if bus is not None:
                bus.deliver("", (GROUP_MESSAGE, group, message))
                continue
            try:
                self._deliver(member, copy(message))
            except ChannelFull:
                missed += 1
        if missed:
            logger.warning("group %r: %d of %d members were full and missed a message", group, missed, len(targets))

    async def flush(self) -> None:
        with self._lock:
            for queue in self._channels.values():
                queue.messages.clear()
            self._groups.clear()
            self._shared.clear()

    async def close(self) -> None:
        """Nothing to close: the store is this object."""

    @asynccontextmanager
    async def bus(self, role: str, handler: Handler) -> AsyncIterator[Bus]:
        bus = MemoryBus(self, new_mailbox(role), handler, asyncio.get_running_loop())
        self._buses[bus.mailbox] = bus
        try:
            yield bus
        finally:
            del self._buses[bus.mailbox]
            with self._lock:
                for members in self._groups.values():
                    members.pop(bus.mailbox, None)

    def _deliver(self, channel: str, message: Message) -> None:
        local = split_local(channel)
        bus = self._buses.get(local[0]) if local else None
        if local and bus is not None:
            bus.deliver("", (MESSAGE, local[1], message))
            return
        with self._lock:
            queue = self._channels.setdefault(channel, _Channel())
            now = self._clock()
            queue.expire(now)
            if len(queue.messages) >= self.capacity:
                raise ChannelFull(channel, self.capacity)
            queue.messages.append((now + self.expiry, message))
            queue.wake_one()

    def _tidy(self, channel: str, queue: _Channel) -> None:
        if not queue.messages and not queue.waiting and self._channels.get(channel) is queue:
            del self._channels[channel]


def _copied(message: Message) -> Message:
    if not isinstance(message, dict):
        raise TypeError(f"a message is a dict, not {type(message).__name__}")
    return copy(message)


class MemoryBus(Bus):
    """A place on the bus within the process: frames go to the other mailbox's handler at the loop's next turn."""

    def __init__(
        self, layer: InMemoryChannelLayer, mailbox: str, handler: Handler, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.mailbox = mailbox
        self.epoch = EPOCH
        self._layer = layer
        self._handler = handler
        self._loop = loop
        self._inbox: list[tuple[str, Frame]] = []
        self._claiming: asyncio.Future[None] | None = None
        self._stopped = False

    def deliver(self, sender: str, frame: Frame) -> None:
        """Put a frame into this mailbox; from any thread."""
        with self._layer._lock:
            self._inbox.append((sender, frame))
            first = len(self._inbox) == 1
        if first:
            if self._loop is _running_loop():
                self._loop.call_soon(self._hand_over)
            elif not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        with self._layer._lock:
            inbox, self._inbox = self._inbox, []
        start = 0
        for end in range(1, len(inbox) + 1):
            if end == len(inbox) or inbox[end][0] != inbox[start][0]:
                self._handler.batch(inbox[start][0], EPOCH, [frame for _, frame in inbox[start:end]])
                start = end

    def post(self, mailbox: str, frame: Frame, size: int = 0) -> None:
        bus = self._layer._buses.get(mailbox)
        if bus is None:
            self._loop.call_soon(self._handler.unreachable, mailbox)
        else:
            bus.deliver(self.mailbox, frame)

    def offer(self, channel: str, entry: Any) -> Offer:
        offer = Offer(channel)
        self._layer._shared[channel].append((offer, entry))
        for bus in self._layer._buses.values():
            bus._wake_claim()
        return offer

    def withdraw(self, offer: Offer) -> None:
        offer.withdrawn = True
        shared = self._layer._shared[offer.channel]
        self._layer._shared[offer.channel] = deque(item for item in shared if item[0] is not offer)

    async def claim(self, channels: Sequence[str], limit: int) -> list[Claim]:
        while True:
            claims: list[Claim] = []
            for channel in channels:
                shared = self._layer._shared[channel]
                while shared and len(claims) < limit:
                    claims.append(Claim(channel, b"", shared.popleft()[1]))
            if claims or self._stopped:
                return claims
            self._claiming = self._loop.create_future()
            await self._claiming

    def stop_claiming(self) -> None:
        self._stopped = True
        self._wake_claim()

    def _wake_claim(self) -> None:
        if self._claiming is not None and not self._claiming.done():
            self._claiming.set_result(None)

    def done(self, claim: Claim) -> None:
        """Nothing to do: a claim here lives exactly as long as its claimant."""

    async def join_group(self, group: str) -> None:
        await self._layer.group_add(group, self.mailbox)

    async def leave_group(self, group: str) -> None:
        await self._layer.group_discard(group, self.mailbox)

    async def drain(self) -> None:
        """Nothing to wait for: what was posted is already with its reader."""


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
