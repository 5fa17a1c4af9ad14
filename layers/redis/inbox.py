"""The mailbox behind the process-local channels that `new_channel` makes: the handler that keeps what arrives."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from asgibus.layers.codec import listed
from asgibus.layers.contract import DEAD, MESSAGE, Claim, Frame, Message, Offer
from asgibus.layers.errors import ChannelFull
from asgibus.layers.queues import Queues

logger = logging.getLogger("asgibus.layers")


class Inbox:
    """The messages of one mailbox's channels, until `receive` takes them. A full channel drops what comes."""

    def __init__(self, *, expiry: float, capacity: int) -> None:
        self.mailbox = ""
        self.dropped = 0
        self._queues = Queues(expiry=expiry, capacity=capacity)
        self._count = 0

    def new_channel(self) -> str:
        """A channel of this mailbox that nobody else has."""
        self._count += 1
        return f"{self.mailbox}{self._count}"

    async def receive(self, local: str) -> Message:
        """Wait for the next message of a channel, named by its local part. A cancelled call takes nothing."""
        return await self._queues.get(local)

    def clear(self) -> None:
        """Drop every message."""
        self._queues.clear()

    # Handler of the mailbox.

    def batch(self, sender: str, frames: Sequence[Frame]) -> None:
        for kind, *rest in frames:
            if kind != MESSAGE:
                if kind != DEAD:
                    logger.error("mailbox %s: a frame of kind %r was dropped", self.mailbox, kind)
                continue
            local, message = rest
            try:
                self._queues.put(local, listed(message))
            except ChannelFull:
                self.dropped += 1
                logger.warning("channel %s%s is full: a message was dropped", self.mailbox, local)

    def undelivered(self, mailbox: str) -> None:
        """Nothing is posted from here."""

    def interrupted(self) -> None:
        """Messages are delivered at most once: what was lost stays lost."""

    def offer_lost(self, offer: Offer) -> None:
        """Nothing is offered from here."""

    def orphaned(self, claim: Claim) -> None:
        """Nothing is claimed from here."""
