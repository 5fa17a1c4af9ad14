"""The memory layer: the contract within one process. The embedded default, and the model for the Redis layer.

Every method may be called from any event loop of the process, from several at once too; one lock guards what they
share and is never held across an await.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from asgibus.layers.codec import pack_message, unpack_message
from asgibus.layers.contract import (
    DEAD,
    GROUP_MESSAGE,
    MESSAGE,
    Bus,
    ChannelLayer,
    Claim,
    Handler,
    Message,
    Offer,
    Statistics,
)
from asgibus.layers.errors import ChannelFull, ForeignChannel
from asgibus.layers.memory_bus import MemoryBus
from asgibus.layers.names import new_mailbox, require_channel, require_group, split_local
from asgibus.layers.over_capacity import OverCapacity
from asgibus.layers.queues import Queues
from asgibus.layers.settings import (
    CAPACITY,
    EXPIRY_SECONDS,
    GROUP_EXPIRY_SECONDS,
    LayerSettings,
    Pattern,
    require_delay,
)

logger = logging.getLogger("asgibus.layers")


class InMemoryChannelLayer(ChannelLayer):
    """A channel layer within one process. `clock` gives seconds and may be replaced in tests."""

    def __init__(
        self,
        *,
        expiry: float = EXPIRY_SECONDS,
        group_expiry: float = GROUP_EXPIRY_SECONDS,
        capacity: int = CAPACITY,
        channel_capacity: Mapping[Pattern, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The options have the names and the meaning that Channels gives them. Raises ValueError for a bad one."""
        self.settings = LayerSettings.of(
            expiry=expiry, group_expiry=group_expiry, capacity=capacity, channel_capacity=channel_capacity
        )
        self.counts = Counter()
        self._over_capacity = OverCapacity(self.counts)
        self._clock = clock
        self._queues = Queues(self.settings.expiry, self.settings.capacity_of, clock=clock)
        self._process = new_mailbox("")  # behind the prefix of every process-local name made here
        self._locals = 0
        self._lock = threading.Lock()
        self.handed_over = 0
        """How often frames in a mailbox were handed to its handler."""
        self._groups: dict[str, dict[str, float]] = {}
        self._sweep_at = clock() + self.settings.group_expiry
        self._buses: dict[str, MemoryBus] = {}
        self._shared: dict[str, OrderedDict[Offer, float]] = defaultdict(OrderedDict)  # and since when they are there
        self._offered: Counter[str] = Counter()
        self._claimed = 0
        self._orphans: list[Claim] = []  # of buses that are closed, until somebody claims from their channels

    @property
    def client_prefix(self) -> str:
        """The part before the `!` in the names of this object's channels, behind their own prefix."""
        return self._process.strip(".!")

    async def send(self, channel: str, message: Message, *, delay: float = 0.0) -> None:
        require_channel(channel, whole=True)
        try:
            self._deliver(channel, unpack_message(pack_message(message)), require_delay(delay))
        except ChannelFull:
            self.counts["channel full"] += 1
            raise
        await asyncio.sleep(0)  # a sender in a loop must not keep its readers from running

    async def receive(self, channel: str) -> Message:
        local = split_local(require_channel(channel, whole=True))
        if local is not None and not local[0].endswith(self._process):
            raise ForeignChannel(channel)
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
        with self._lock:
            self._end_memberships(group)
            targets = list(self._groups.get(group, ()))
        missed = 0
        for member in targets:
            bus = self._buses.get(member)
            if bus is not None:
                bus.deliver("", (GROUP_MESSAGE, group, unpack_message(packed)))
                continue
            try:
                self._deliver(member, unpack_message(packed), 0.0)
            except ChannelFull:
                missed += 1
        if missed:
            self._over_capacity.missed(group, missed, len(targets))
        await asyncio.sleep(0)  # likewise

    async def channel_statistics(self, channel: str) -> Statistics:
        return self._queues.statistics(require_channel(channel, whole=True))

    async def global_statistics(self) -> Statistics:
        return self._queues.statistics()

    async def flush(self) -> None:
        self._queues.clear()
        with self._lock:
            self._groups.clear()

    async def close(self) -> None:
        """Nothing to close: the store is this object."""

    def bus(self, role: str, handler: Handler) -> AbstractAsyncContextManager[Bus]:
        return self.place(MemoryBus(self, new_mailbox(role), handler, asyncio.get_running_loop()))

    @asynccontextmanager
    async def place(self, bus: MemoryBus) -> AsyncIterator[Bus]:
        """Have `bus` here while the context lasts."""
        with self._lock:
            self._buses[bus.mailbox] = bus
        try:
            yield bus
        finally:
            self.remove(bus)

    def remove(self, bus: MemoryBus) -> None:
        """Take a bus away, as its end does: nothing reaches it any more, and the others learn that it is dead."""
        with self._lock:
            if self._buses.pop(bus.mailbox, None) is None:
                return
            groups = [group for group, members in self._groups.items() if bus.mailbox in members]
        for group in groups:
            self._leave(group, bus.mailbox)
        self._bury(bus.mailbox, bus)

    async def declare_dead(self, mailbox: str) -> None:
        bus = self._buses.get(mailbox)
        self._bury(mailbox, bus, declared=True)
        if bus is not None:
            bus._soon(bus._handler.interrupted)  # as anyone who lives and was given up by the others

    def _bury(self, mailbox: str, bus: MemoryBus | None, *, declared: bool = False) -> None:
        """Tell all others, behind what it posted, and hand on what it had claimed."""
        with self._lock:
            others = [other for other in self._buses.values() if other.mailbox != mailbox]
            if bus is not None:
                self._orphans += bus._claims.values()
                bus._claims.clear()
        if bus is not None:
            bus.give_all_back()
        for other in others:
            other.deliver("", (DEAD, mailbox, declared))
        self._hand_on()

    def _hand_on(self) -> None:
        """Give each claim of a bus that is closed to one that claims from its channel, if there is one."""
        with self._lock:
            orphans, self._orphans = self._orphans, []
            for claim in orphans:
                heirs = (bus for bus in self._buses.values() if claim.channel in bus._channels and not bus._stopped)
                heir = next(heirs, None)
                if heir is None:
                    self._orphans.append(claim)
                else:
                    self.counts["orphan"] += 1
                    heir._claims[claim.id] = claim
                    heir._soon(partial(heir._handler.orphaned, claim))

    def _deliver(self, channel: str, message: Message, delay: float) -> None:
        local = split_local(channel)
        bus = self._buses.get(local[0]) if local else None
        if local and bus is not None:
            bus.deliver("", (MESSAGE, local[1], message), delay)
        elif local and not local[0].endswith(self._process):
            logger.info("a message to %s was dropped: its process is gone", channel)
        else:
            self._queues.put(channel, message, delay=delay)

    def _join(self, group: str, member: str, until: float) -> None:
        now = self._clock()
        with self._lock:
            if now >= self._sweep_at:  # of groups that nobody sends to nothing else would be forgotten
                self._sweep_at = now + self.group_expiry
                for each in list(self._groups):
                    self._end_memberships(each)
            self._groups.setdefault(group, {})[member] = until

    def _end_memberships(self, group: str) -> None:
        """Forget those that nobody has renewed, and a group without any."""
        now = self._clock()
        members = self._groups.get(group, {})
        for member in [name for name, end in members.items() if end <= now]:
            del members[member]
        if not members:
            self._groups.pop(group, None)

    def _leave(self, group: str, member: str) -> None:
        with self._lock:
            members = self._groups.get(group, {})
            members.pop(member, None)
            if not members:
                self._groups.pop(group, None)
