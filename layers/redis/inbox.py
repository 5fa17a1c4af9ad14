"""The mailbox behind the process-local channels that `new_channel` makes: the handler that keeps what arrives.

Senders count in Redis how many unread messages each channel has, so that none is over its capacity; here is said what
was read, or has expired. What arrived is dropped when it has expired by Redis's clock, also when nobody reads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from asgibus.layers.codec import listed
from asgibus.layers.contract import DEAD, MESSAGE, Claim, Frame, Message, Offer
from asgibus.layers.queues import Queues

logger = logging.getLogger("asgibus.layers")

SWEEP_SECONDS = 0.01  # behind the expiry of a message, so that those of the same moment go together


class Store(Protocol):
    """What an inbox needs of its place on the bus."""

    mailbox: str
    sent: float
    """When the frames that the handler is given were sent, in seconds by Redis's clock."""

    def time(self) -> float:
        """Now, in seconds by Redis's clock, or a little ahead of it."""

    def received(self, parts: Sequence[str]) -> None:
        """A message of each of these channels is not unread any more."""


class Inbox:
    """The messages of one mailbox's channels, until `receive` takes them. `on_bus` before use."""

    _store: Store
    _queues: Queues

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._count = 0
        self._received: list[str] = []
        self._sweeping: asyncio.TimerHandle | None = None

    def on_bus(self, store: Store, expiry: float) -> None:
        """It is the handler there."""
        self._store = store
        self._queues = Queues(expiry, None, clock=store.time, on_dropped=self._dropped)

    @property
    def mailbox(self) -> str:
        """The mailbox of its channels."""
        return self._store.mailbox

    def new_channel(self) -> str:
        """A channel of this mailbox that nobody else has."""
        self._count += 1
        return f"{self.mailbox}{self._count}"

    async def receive(self, local: str) -> Message:
        """Wait for the next message of a channel, named by its local part. A cancelled call takes nothing."""
        message = await self._queues.get(local)
        self._gone(local, 1)
        return message

    def clear(self) -> None:
        """Drop every message."""
        self._queues.clear()

    def close(self) -> None:
        """Sweep no more."""
        if self._sweeping is not None:
            self._sweeping.cancel()

    def _dropped(self, local: str, number: int) -> None:
        self._loop.call_soon(self._gone, local, number)

    def _gone(self, local: str, number: int) -> None:
        """They are not unread any more; said once for all that happens in this turn of the event loop."""
        if not self._received:
            self._loop.call_soon(self.tell)
        self._received += [local] * number

    def tell(self) -> None:
        """Say what is not unread any more; by itself in the next turn of the event loop."""
        received, self._received = self._received, []
        if received:
            self._store.received(received)

    def _sweep(self) -> None:
        seconds = self._queues.sweep()
        self._sweeping = None if seconds is None else self._loop.call_later(seconds + SWEEP_SECONDS, self._sweep)

    # Handler of the mailbox.

    def batch(self, sender: str, frames: Sequence[Frame]) -> None:
        for kind, *rest in frames:
            if kind == MESSAGE:
                local, message = rest
                self._queues.put(local, listed(message), since=self._store.sent)
            elif kind != DEAD:
                logger.error("mailbox %s: a frame of kind %r was dropped", self.mailbox, kind)
        if self._sweeping is None:
            self._sweep()

    def undelivered(self, mailbox: str) -> None:
        """Nothing is posted from here."""

    def interrupted(self) -> None:
        """What Redis lost is sent again by whoever sent it."""

    def offer_lost(self, offer: Offer) -> None:
        """Nothing is offered from here."""

    def orphaned(self, claim: Claim) -> None:
        """Nothing is claimed from here."""
