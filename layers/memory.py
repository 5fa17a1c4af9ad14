"""The memory layer: the contract within one process. The embedded default, and the model for the Redis layer.

Every method may be called from any event loop of the process, from several at once too; one lock guards what they
share and is never held across an await.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from asgibus.layers.codec import pack_message, unpack_message
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
from asgibus.layers.queues import Queues

logger = logging.getLogger("asgibus.layers")

EPOCH = "memory"  # this store lives and dies with its process, so it has one life


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
        self._queues = Queues(expiry=expiry, capacity=capacity, clock=clock)
        self._process = new_mailbox("")  # behind the prefix of every process-local name made here
        self._locals = 0
        self._lock = threading.Lock()
        self._groups: dict[str, dict[str, float]] = {}
        self._buses: dict[str, MemoryBus] = {}
        self._shared: dict[str, OrderedDict[Offer, Any]] = defaultdict(OrderedDict)

    async def send(self, channel: str, message: Message) -> None:
        require_channel(channel, whole=True)
        self._deliver(channel, unpack_message(pack_message(message)))
        await asyncio.sleep(0)  # a sender in a loop must not keep its readers from running

    async def receive(self, channel: str) -> Message:
        local = split_local(require_channel(channel, whole=True))
        if local is not None and not local[0].endswith(self._process):
            raise TypeError(f"{channel!r} was made by another layer object; only that one can receive from it")
        return await self._queues.get(channel)

    async def new_channel(self, prefix: str = "specific") -> str:
        with self._lock:
            self._locals += 1
            number = self._locals
        return require_channel(f"{require_channel(prefix)}{self._process}{number}")

    async def group_add(self, group: str, channel: str) -> None:
        self._join(require_group(group), require_channel(channel), self._clock() + self.group_expiry)

    async def group_discard(self, group: str, channel: str) -> None:
        self._leave(require_group(group), require_channel(channel))

    async def group_send(self, group: str, message: Message) -> None:
        require_group(group)
        packed = pack_message(message)
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
                bus.deliver("", (GROUP_MESSAGE, group, unpack_message(packed)))
                continue
            try:
                self._deliver(member, unpack_message(packed))
            except ChannelFull:
                missed += 1
        if missed:
            logger.warning("group %r: %d of %d members were full and missed a message", group, missed, len(targets))
        await asyncio.sleep(0)  # likewise

    async def flush(self) -> None:
        self._queues.clear()
        with self._lock:
            self._groups.clear()

    async def close(self) -> None:
        """Nothing to close: the store is this object."""

    @asynccontextmanager
    async def bus(self, role: str, handler: Handler) -> AsyncIterator[Bus]:
        bus = MemoryBus(self, new_mailbox(role), handler, asyncio.get_running_loop())
        with self._lock:
            self._buses[bus.mailbox] = bus
        try:
            yield bus
        finally:
            with self._lock:
                del self._buses[bus.mailbox]
                groups = [group for group, members in self._groups.items() if bus.mailbox in members]
            for group in groups:
                self._leave(group, bus.mailbox)

    def _deliver(self, channel: str, message: Message) -> None:
        local = split_local(channel)
        bus = self._buses.get(local[0]) if local else None
        if local and bus is not None:
            bus.deliver("", (MESSAGE, local[1], message))
        elif local and not local[0].endswith(self._process):
            logger.info("a message to %s was dropped: its process is gone", channel)
        else:
            self._queues.put(channel, message)

    def _join(self, group: str, member: str, until: float) -> None:
        with self._lock:
            self._groups.setdefault(group, {})[member] = until

    def _leave(self, group: str, member: str) -> None:
        with self._lock:
            members = self._groups.get(group, {})
            members.pop(member, None)
            if not members:
                self._groups.pop(group, None)


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
            self._soon(self._hand_over)

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
        with self._layer._lock:
            self._layer._shared[channel][offer] = entry
            waiting = [bus for bus in self._layer._buses.values() if bus._claiming is not None]
        for bus in waiting:
            if bus._loop is self._loop:
                bus._wake_claim()
            else:
                bus._soon(bus._wake_claim)
        return offer

    def withdraw(self, offer: Offer) -> None:
        offer.withdrawn = True
        with self._layer._lock:
            self._layer._shared[offer.channel].pop(offer, None)

    async def claim(self, channels: Sequence[str], limit: int) -> list[Claim]:
        while True:
            claims: list[Claim] = []
            with self._layer._lock:
                if not self._stopped:
                    for channel in channels:
                        shared = self._layer._shared[channel]
                        while shared and len(claims) < limit:
                            claims.append(Claim(channel, b"", shared.popitem(last=False)[1]))
                if claims or self._stopped:
                    return claims
                self._claiming = claiming = self._loop.create_future()
            try:
                await claiming
            finally:
                self._claiming = None

    def stop_claiming(self) -> None:
        self._stopped = True
        self._wake_claim()

    def _wake_claim(self) -> None:
        if self._claiming is not None and not self._claiming.done():
            self._claiming.set_result(None)

    def done(self, claim: Claim) -> None:
        """Nothing to do: a claim here lives exactly as long as its claimant."""

    async def join_group(self, group: str) -> None:
        self._layer._join(require_group(group), self.mailbox, math.inf)

    async def leave_group(self, group: str) -> None:
        self._layer._leave(require_group(group), self.mailbox)

    async def drain(self) -> None:
        """Nothing to wait for: what was posted is already with its reader."""

    def _soon(self, callback: Callable[[], None]) -> None:
        """Call from this bus's event loop, whichever is running here."""
        if self._loop is _running_loop():
            self._loop.call_soon(callback)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
