"""The memory layer: the contract within one process. It is the embedded default, and the model of the Redis layer.

Every method may be called from any event loop of the process, and from several at once. One lock guards the shared
state; it is never held across an await.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import Any

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.codec import pack_message, unpack_message
from asgibus.layers.contract import Announced, Bus, Delivery, Draft, Frame, Handler, Message, Statistics
from asgibus.layers.errors import ChannelFull, ForeignChannel
from asgibus.layers.frames import DEAD, GROUP_MESSAGE, MESSAGE
from asgibus.layers.memory.assignments import Assignments
from asgibus.layers.memory.presence import MemoryPresence, PresenceTable
from asgibus.layers.memory.queues import Queues
from asgibus.layers.memory.streams import MemoryStreams
from asgibus.layers.names import (
    claimant_channel,
    new_mailbox,
    require_any_group,
    require_channel,
    require_group,
    split_local,
)
from asgibus.layers.offers import AffinityKey, Claim, Offer
from asgibus.layers.over_capacity import OverCapacity
from asgibus.layers.presence import PresentCount, PresentPage
from asgibus.layers.settings import (
    CAPACITY,
    EXPIRY_SECONDS,
    GROUP_EXPIRY_SECONDS,
    LayerSettings,
    LimitsByPattern,
    Pattern,
    StreamLimits,
    require_delay,
)
from asgibus.layers.streams import Stream
from asgibus.layers.streams.messages import StreamMessages
from asgibus.layers.streams.past import send_to_group

logger = logging.getLogger("asgibus.layers")


class InMemoryChannelLayer(ChannelLayer):
    """A channel layer within one process, for development, tests and the embedded mode."""

    extensions = (*ChannelLayer.extensions, "streams", "presence")

    def __init__(
        self,
        *,
        expiry: float = EXPIRY_SECONDS,
        group_expiry: float = GROUP_EXPIRY_SECONDS,
        capacity: int = CAPACITY,
        channel_capacity: Mapping[Pattern, int] | None = None,
        stream_limits: LimitsByPattern | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a layer whose messages are in this object.

        Args:
            expiry: Seconds after which an unread message is dropped; 60 by default.
            group_expiry: Seconds after which a channel leaves a group, unless it was added again; a day by default.
            capacity: How many unread messages a channel holds; 100 by default.
            channel_capacity: Other capacities, by glob or compiled pattern of the channel's name. The first match
                counts.
            stream_limits: Other limits of streams, by glob or compiled pattern of the stream's name: StreamLimits, or a
                dict of `entries`, `bytes` and `kept`. The first match counts.
            clock: Returns the time in seconds; tests may replace it.

        Raises:
            ValueError: An option is not valid.
        """
        self.settings = LayerSettings.of(
            expiry=expiry,
            group_expiry=group_expiry,
            capacity=capacity,
            channel_capacity=channel_capacity,
            stream_limits=stream_limits,
        )
        self.counts = Counter()
        self._over_capacity = OverCapacity(self.counts)
        self._clock = clock
        self._queues = Queues(self.settings.expiry, self.settings.capacity_of, clock=clock)
        self._process = new_mailbox("")  # follows the prefix in every process-local name made here
        self._locals = 0
        self._lock = threading.Lock()
        self.handed_over = 0
        """The number of times that frames in a mailbox were handed to its handler."""
        self._groups: dict[str, dict[str, float]] = {}
        self._sweep_at = clock() + self.settings.group_expiry
        self._buses: dict[str, MemoryBus] = {}
        self._shared: dict[str, OrderedDict[Offer, float]] = defaultdict(OrderedDict)  # with their times
        self._offered: Counter[str] = Counter()
        self._claimed = 0
        self._orphans: list[Claim] = []  # claims of closed buses, until another bus claims from their channels
        self._assignments = Assignments(clock)
        messages = StreamMessages(self, self._follow, self._unfollow)
        self._streams = MemoryStreams(messages, clock, self.counts)
        self.presence = PresenceTable()
        """The users of all buses."""

    @property
    def client_prefix(self) -> str:
        """The part of the names of this object's channels between their prefix and the `!`."""
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

    async def group_send(
        self,
        group: str,
        message: Message,
        *,
        keep: int | None = None,
        id: str | None = None,  # noqa: A002
        placeholder: str | None = None,
    ) -> bool:
        return await send_to_group(self, self._streams, group, message, keep, id, placeholder)

    async def send_to_group(self, group: str, message: Message) -> None:
        """Send a message to every member of a group, of an app or of the layer itself."""
        self.deliver_to_group(group, message)
        await asyncio.sleep(0)  # as in `send`

    def deliver_to_group(self, group: str, message: Message) -> None:
        """Deliver a message to every member of a group. May be called from any thread."""
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
            self._over_capacity.missed(f"group {group}", missed, len(targets))

    def presence_of(self, name: str) -> MemoryPresence:
        """Return the users of one server, or of whatever else has that name."""
        return MemoryPresence(self.presence, name, self.deliver_to_group)

    async def _present(self, group: str, cursor: str | None) -> PresentPage:
        return self.presence.page(group, cursor)

    async def _present_count(self, group: str) -> PresentCount:
        return self.presence.count(group)

    def gauges(self) -> dict[str, int]:
        return self._streams.messages.gauges()

    def any_stream(self, name: str, limits: StreamLimits | None = None) -> Stream:
        limits = self.settings.limits_of(name) if limits is None else limits
        return Stream(self._streams, name, limits, self.settings.wait)

    async def channel_statistics(self, channel: str) -> Statistics:
        local = split_local(require_channel(channel, whole=True))
        if local is not None and not local[0].endswith(self._process):
            raise ForeignChannel(channel)
        return self._queues.statistics(channel)

    async def global_statistics(self) -> Statistics:
        return self._queues.statistics()

    async def flush(self) -> None:
        self._queues.clear()
        with self._lock:
            self._groups.clear()
        self._streams.clear()

    async def close(self) -> None:
        """Do nothing: the store is this object."""

    def bus(self, role: str, handler: Handler) -> AbstractAsyncContextManager[Bus]:
        return self.place(MemoryBus(self, new_mailbox(role), handler, asyncio.get_running_loop()))

    @asynccontextmanager
    async def place(self, bus: MemoryBus) -> AsyncIterator[Bus]:
        """Let a bus take part while the context lasts."""
        with self._lock:
            self._buses[bus.mailbox] = bus
        try:
            yield bus
        finally:
            self.remove(bus)

    def remove(self, bus: MemoryBus) -> None:
        """Remove a bus, as its end does: nothing reaches it any more, and the others learn that it is dead."""
        with self._lock:
            if self._buses.pop(bus.mailbox, None) is None:
                return
            groups = [group for group, members in self._groups.items() if bus.mailbox in members]
        for group in groups:
            self._leave(group, bus.mailbox)
        for group, event in self.presence.remove(bus.mailbox):
            self.deliver_to_group(group, event)
        self._announce_death(bus.mailbox, bus)

    async def declare_dead(self, mailbox: str) -> None:
        bus = self._buses.get(mailbox)
        self._announce_death(mailbox, bus, declared=True)
        if bus is not None:
            bus._soon(bus._handler.interrupted)  # like any living process that the others take for dead

    def _announce_death(self, mailbox: str, bus: MemoryBus | None, *, declared: bool = False) -> None:
        """Tell all other buses, after what the dead one posted, and reassign its claims."""
        with self._lock:
            others = [other for other in self._buses.values() if other.mailbox != mailbox]
            self._assignments.leave(mailbox)
            if bus is not None:
                self._orphans += [claim for claim in bus._claims.values() if claim.channel != bus._own]
                bus._claims.clear()
        if bus is not None:
            bus.give_back_all()
        for other in others:
            other.deliver("", (DEAD, mailbox, declared))
        self._reassign_orphans()

    def _reassign_orphans(self) -> None:
        """Give each claim of a closed bus to another bus that claims from its channel, if there is one."""
        with self._lock:
            orphans, self._orphans = self._orphans, []
            for claim in orphans:
                others = (bus for bus in self._buses.values() if claim.channel in bus._channels and not bus._stopped)
                other = next(others, None)
                if other is None:
                    self._orphans.append(claim)
                else:
                    self.counts["orphan"] += 1
                    other._claims[claim.id] = claim
                    other._soon(partial(other._handler.orphaned, claim))

    def _deliver(self, channel: str, message: Message, delay: float) -> None:
        local = split_local(channel)
        bus = self._buses.get(local[0]) if local else None
        if local and bus is not None:
            bus.deliver("", (MESSAGE, local[1], message), delay)
        elif local and not local[0].endswith(self._process):
            logger.info("a message to %s was dropped: its process is gone", channel)
        else:
            self._queues.put(channel, message, delay=delay)

    def follow(self, group: str, channel: str) -> None:
        """Add a channel to a group of the layer itself."""
        self._join(group, channel, self._clock() + self.group_expiry)

    def unfollow(self, group: str, channel: str) -> None:
        """Remove a channel from a group of the layer itself."""
        self._leave(group, channel)

    async def _follow(self, group: str, channel: str) -> None:
        self.follow(group, channel)

    async def _unfollow(self, group: str, channel: str) -> None:
        self.unfollow(group, channel)

    def _join(self, group: str, member: str, until: float) -> None:
        now = self._clock()
        with self._lock:
            if now >= self._sweep_at:  # groups that nobody sends to have to be cleared, too
                self._sweep_at = now + self.group_expiry
                for each in list(self._groups):
                    self._end_memberships(each)
            self._groups.setdefault(group, {})[member] = until

    def _end_memberships(self, group: str) -> None:
        """Remove members whose membership has ended, and the group if it has no others."""
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


class MemoryBus(Bus):
    """A bus within the process: frames reach the handler of the other mailbox at the next turn of its event loop."""

    def __init__(
        self, layer: InMemoryChannelLayer, mailbox: str, handler: Handler, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.mailbox = mailbox
        self._layer = layer
        self._handler = handler
        self._loop = loop
        # Handlers run in the context of their own server, not in that of the app that posted a frame.
        self._context = copy_context()
        self._inbox: list[tuple[str, Frame | Draft]] = []
        self._claiming: asyncio.Future[None] | None = None
        self._channels: frozenset[str] = frozenset()  # that it claims from
        self._own = claimant_channel(mailbox)  # what is offered to it alone
        self._claims: dict[bytes, Claim] = {}  # not done yet
        self._taken: dict[str, Delivery] = {}
        self._number = 0
        self._stopped = False
        self._stopping = asyncio.Event()
        self._presence = layer.presence_of(mailbox)

    @property
    def presence(self) -> MemoryPresence:
        return self._presence

    @property
    def available(self) -> bool:
        return True

    @property
    def packed(self) -> int:
        return self._layer.handed_over

    def deliver(self, sender: str, frame: Frame | Draft, delay: float = 0.0) -> None:
        """Add a frame to this mailbox. May be called from any thread."""
        if delay:
            self._soon(lambda: self._later(delay, sender, frame))
            return
        with self._layer._lock:
            self._inbox.append((sender, frame))
            first = len(self._inbox) == 1
        if first:
            self._soon(self._hand_over)

    def _later(self, delay: float, sender: str, frame: Frame | Draft) -> None:
        self._loop.call_later(delay, self.deliver, sender, frame)

    def _hand_over(self) -> None:
        with self._layer._lock:
            inbox, self._inbox = self._inbox, []
            self._layer.handed_over += 1
        start = 0
        for end in range(1, len(inbox) + 1):
            if end == len(inbox) or inbox[end][0] != inbox[start][0]:
                self._handler.batch(inbox[start][0], [tuple(frame) for _, frame in inbox[start:end]])
                start = end

    def post(self, mailbox: str, frame: Frame | Draft, size: int = 0) -> None:
        bus = self._layer._buses.get(mailbox)
        if bus is None:
            self._loop.call_soon(self._handler.undelivered, mailbox)
            self.deliver("", (DEAD, mailbox, False))
        else:
            bus.deliver(self.mailbox, frame)

    def write_soon(self) -> None:
        """Do nothing, like `posted`."""

    async def posted(self) -> None:
        """Do nothing: posted frames are in the mailbox already."""

    def offer(self, channel: str, entry: Any, *, once: bool = False) -> Offer:
        offer = Offer(channel, once, state=entry)
        self._put(offer)
        return offer

    def _put(self, offer: Offer) -> None:
        with self._layer._lock:
            self._layer._shared[offer.channel][offer] = self._layer._clock()
            self._layer._offered[offer.channel] += 1
        self._wake_claims()

    def _wake_claims(self) -> None:
        with self._layer._lock:
            waiting = [bus for bus in self._layer._buses.values() if bus._claiming is not None]
        for bus in waiting:
            if bus._loop is self._loop:
                bus._wake_claim()
            else:
                bus._soon(bus._wake_claim)

    def withdraw(self, offer: Offer) -> bool:
        offer.withdrawn = True
        with self._layer._lock:
            self._layer._shared[offer.channel].pop(offer, None)
        return True

    def offer_by_key(
        self,
        key: AffinityKey,
        lifetime: float,
        entry: Any,
        on_assigned: Callable[[Offer], None],
        *,
        once: bool = False,
        known: bool = False,
    ) -> Offer:
        with self._layer._lock:
            claimant = self._layer._assignments.use(key, lifetime, known=known)
            offer = Offer(claimant_channel(claimant), once, state=entry)
            offer.claimant = claimant
            if claimant:
                self._layer._shared[offer.channel][offer] = self._layer._clock()
        if claimant:
            self._wake_claims()
        self._loop.call_soon(on_assigned, offer)
        return offer

    def take_back(self, offer: Offer, on_result: Callable[[bool], None]) -> None:
        offer.withdrawn = True
        with self._layer._lock:
            removed = self._layer._shared[offer.channel].pop(offer, None)
        self._loop.call_soon(on_result, removed is not None)

    def assign(self, key: AffinityKey, lifetime: float, mailbox: str) -> None:
        with self._layer._lock:
            self._layer._assignments.use(key, lifetime, prefer=mailbox)

    def renew_keys(self, keys: Sequence[AffinityKey], lifetime: float) -> None:
        with self._layer._lock:
            self._layer._assignments.renew(keys, lifetime)

    async def announce(self, pool: str, app: str, sessions: int | None) -> list[Announced]:
        with self._layer._lock:
            if not self._stopped:
                self._layer._assignments.join(pool, self.mailbox)
        return []

    def announce_keys(self, pools: Sequence[str]) -> None:
        """Do nothing: every worker claims by key here."""

    def offer_again(self, offer: Offer, on_lost: Callable[[], None]) -> None:
        """Do nothing: no offer is lost here, so one that is missing was claimed."""

    async def shared_statistics(self, channel: str) -> Statistics:
        with self._layer._lock:
            since = self._layer._shared[channel].values()
            oldest = next(iter(since), None)
            return Statistics(
                messages_count=self._layer._offered[channel],
                messages_pending=len(since),
                messages_max_age=0.0 if oldest is None else self._layer._clock() - oldest,
                channel_full_count=0,
            )

    async def claim(self, channels: Sequence[str], limit: int, *, wait: float | None = None) -> list[Claim]:
        if not self._channels.issuperset(channels):
            self._channels = self._channels.union(channels)
            self._layer._reassign_orphans()
        until = math.inf if wait is None else self._loop.time() + wait
        while True:
            claims: list[Claim] = []
            with self._layer._lock:
                if not self._stopped:
                    for channel in (*channels, self._own):
                        shared = self._layer._shared[channel]
                        while shared and len(claims) < limit:
                            offer, _ = shared.popitem(last=False)
                            self._layer._claimed += 1
                            claim = Claim(channel, b"%d" % self._layer._claimed, offer.state)
                            offer.state = None
                            self._claims[claim.id] = claim
                            claims.append(claim)
                if claims or self._stopped or self._loop.time() >= until:
                    return claims
                self._claiming = claiming = self._loop.create_future()
            try:
                async with asyncio.timeout_at(None if wait is None else until):
                    await claiming
            except TimeoutError:
                continue
            finally:
                self._claiming = None

    async def take(self, channel: str, limit: int, *, once: bool = False) -> list[Delivery]:
        require_channel(channel)
        if self._stopped:
            return []
        taking = self._loop.create_task(self._layer._queues.take(channel, limit))
        stopping = self._loop.create_task(self._stopping.wait())
        await asyncio.wait([taking, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in (taking, stopping):
            task.cancel()
        await asyncio.wait([taking, stopping])
        deliveries = []
        for queued in () if taking.cancelled() else taking.result():
            self._number += 1
            delivery = Delivery(channel, str(self._number), queued.message, queued.attempt)
            deliveries.append(delivery)
            if not once:
                self._taken[delivery.id] = delivery
        return deliveries

    def acknowledge(self, delivery: Delivery) -> None:
        self._taken.pop(delivery.id, None)

    def give_back(self, delivery: Delivery, *, delay: float = 0.0) -> None:
        if self._taken.pop(delivery.id, None) is not None:
            self._layer._queues.put(delivery.channel, delivery.message, delay=delay, attempt=delivery.attempt + 1)

    def give_back_all(self) -> None:
        """Give back all messages that were taken, because the process has ended or was declared dead."""
        for delivery in list(self._taken.values()):
            self.give_back(delivery)

    def stop_claiming(self) -> None:
        with self._layer._lock:
            self._stopped = True
            self._layer._assignments.leave(self.mailbox)
            declined = [*self._layer._shared.pop(self._own, ())]
        self._stopping.set()
        self._wake_claim()
        for offer in declined:
            self._soon(partial(self._handler.declined, offer.state))

    def _wake_claim(self) -> None:
        if self._claiming is not None and not self._claiming.done():
            self._claiming.set_result(None)

    def done(self, claim: Claim) -> None:
        self._claims.pop(claim.id, None)

    def requeue(self, claim: Claim) -> None:
        if self._claims.pop(claim.id, None) is not None:
            self._put(Offer(claim.channel, state=claim.entry))

    def release(self, claim: Claim, why: str) -> None:
        """Drop the entry: within one process, no other claimant could read it either."""
        if self._claims.pop(claim.id, None) is not None:
            self._layer.counts["unreadable entry"] += 1
            logger.error("an entry of %s was dropped: %s", claim.channel, why)

    @property
    def unreadable(self) -> str | None:
        return None

    async def join_group(self, group: str) -> None:
        self._layer._join(require_any_group(group), self.mailbox, math.inf)

    async def leave_group(self, group: str) -> None:
        self._layer._leave(require_any_group(group), self.mailbox)

    async def drain(self) -> None:
        """Do nothing, like `posted`."""

    def _soon(self, callback: Callable[[], None]) -> None:
        """Call a function in the event loop of this bus, from any thread."""
        if self._loop is _running_loop():
            self._loop.call_soon(callback, context=self._context)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, context=self._context)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
