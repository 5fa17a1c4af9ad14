"""A place on the bus of the memory layer: a mailbox, and what was claimed, within the process."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from asgibus.layers.contract import DEAD, Bus, Claim, Delivery, Draft, Frame, Handler, Offer, Statistics
from asgibus.layers.names import require_channel, require_group

if TYPE_CHECKING:
    from asgibus.layers.memory import InMemoryChannelLayer

logger = logging.getLogger("asgibus.layers")


class MemoryBus(Bus):
    """A place on the bus within the process: frames go to the other mailbox's handler at the loop's next turn."""

    def __init__(
        self, layer: InMemoryChannelLayer, mailbox: str, handler: Handler, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.mailbox = mailbox
        self._layer = layer
        self._handler = handler
        self._loop = loop
        # Handlers run in the context of their own server, not in that of the app which posted to it.
        self._context = copy_context()
        self._inbox: list[tuple[str, Frame | Draft]] = []
        self._claiming: asyncio.Future[None] | None = None
        self._channels: frozenset[str] = frozenset()  # from which it claims
        self._claims: dict[bytes, Claim] = {}  # what it has claimed and not dealt with
        self._taken: dict[str, Delivery] = {}
        self._number = 0
        self._stopped = False
        self._stopping = asyncio.Event()

    @property
    def available(self) -> bool:
        return True

    @property
    def packed(self) -> int:
        return self._layer.handed_over

    def deliver(self, sender: str, frame: Frame | Draft, delay: float = 0.0) -> None:
        """Put a frame into this mailbox; from any thread."""
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

    async def posted(self) -> None:
        """Nothing to wait for: what was posted is already with its reader."""

    def offer(self, channel: str, entry: Any, *, once: bool = False) -> Offer:
        offer = Offer(channel, once, state=entry)
        self._put(offer)
        return offer

    def _put(self, offer: Offer) -> None:
        with self._layer._lock:
            self._layer._shared[offer.channel][offer] = self._layer._clock()
            self._layer._offered[offer.channel] += 1
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

    def offer_again(self, offer: Offer) -> None:
        """Nothing to do: nothing gets lost here, so an offer that is not there is claimed."""

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

    async def claim(self, channels: Sequence[str], limit: int) -> list[Claim]:
        if not self._channels.issuperset(channels):
            self._channels = self._channels.union(channels)
            self._layer._hand_on()
        while True:
            claims: list[Claim] = []
            with self._layer._lock:
                if not self._stopped:
                    for channel in channels:
                        shared = self._layer._shared[channel]
                        while shared and len(claims) < limit:
                            offer, _ = shared.popitem(last=False)
                            self._layer._claimed += 1
                            claim = Claim(channel, b"%d" % self._layer._claimed, offer.state)
                            offer.state = None
                            self._claims[claim.id] = claim
                            claims.append(claim)
                if claims or self._stopped:
                    return claims
                self._claiming = claiming = self._loop.create_future()
            try:
                await claiming
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

    def give_all_back(self) -> None:
        """It has ended, or was declared dead: what it had taken is for others."""
        for delivery in list(self._taken.values()):
            self.give_back(delivery)

    def stop_claiming(self) -> None:
        self._stopped = True
        self._stopping.set()
        self._wake_claim()

    def _wake_claim(self) -> None:
        if self._claiming is not None and not self._claiming.done():
            self._claiming.set_result(None)

    def done(self, claim: Claim) -> None:
        self._claims.pop(claim.id, None)

    def release(self, claim: Claim, why: str) -> None:
        """Drop the entry: within one process, nobody else could read it either."""
        if self._claims.pop(claim.id, None) is not None:
            self._layer.counts["unreadable entry"] += 1
            logger.error("an entry of %s was dropped: %s", claim.channel, why)

    @property
    def unreadable(self) -> str | None:
        return None

    async def join_group(self, group: str) -> None:
        self._layer._join(require_group(group), self.mailbox, math.inf)

    async def leave_group(self, group: str) -> None:
        self._layer._leave(require_group(group), self.mailbox)

    async def drain(self) -> None:
        """As `posted`."""

    def _soon(self, callback: Callable[[], None]) -> None:
        """Call from this bus's event loop, whichever is running here."""
        if self._loop is _running_loop():
            self._loop.call_soon(callback, context=self._context)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, context=self._context)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
