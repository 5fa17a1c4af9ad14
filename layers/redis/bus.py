"""A process's place on the bus in Redis: its mailbox, its lease, its groups, its offers and its claims."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from asgibus.layers.contract import Bus, Claim, Delivery, Frame, Handler, Offer, Statistics
from asgibus.layers.names import require_channel, require_group
from asgibus.layers.redis import scripts
from asgibus.layers.redis.claims import Claimant
from asgibus.layers.redis.deliveries import Deliveries
from asgibus.layers.redis.kept import Taken
from asgibus.layers.redis.mailbox import MailboxReader
from asgibus.layers.redis.memberships import Memberships
from asgibus.layers.redis.offers import Offers
from asgibus.layers.redis.presence import Presence
from asgibus.layers.redis.writer import CALL_SECONDS
from asgibus.layers.settings import require_delay

if TYPE_CHECKING:
    from asgibus.layers.redis.attachment import Attachment

STATISTICS_SECONDS = 1.0  # for what somebody looks at; who looks waits, and there is nothing to be repaired


class RedisBus(Bus):
    """See `Bus`. `open` before use, `close` at the end."""

    def __init__(self, attachment: Attachment, mailbox: str, handler: Handler, *, bounded: bool = False) -> None:
        """`bounded`: the channels of the mailbox have a capacity, and the handler says what has been received."""
        self.mailbox = mailbox
        self.sent = 0.0
        """When the frames that the handler is given were written, in seconds by Redis's clock."""
        self._loop = asyncio.get_running_loop()
        self._handler = handler
        self._keys = keys = attachment.keys
        entries = attachment.entries
        self._outage = outage = attachment.outage
        self._writer = writer = attachment.writer
        settings = attachment.settings
        self._taken = Taken()
        self._later: dict[asyncio.TimerHandle, Sequence[Frame]] = {}
        self._claimant = Claimant(attachment.address, keys, entries, mailbox, outage, writer)
        self._deliveries = Deliveries(
            writer, attachment.receiver, keys, entries, mailbox, outage.counts, settings.expiry
        )
        self._memberships = Memberships(writer, keys, mailbox, round(settings.group_expiry))
        self._reader = MailboxReader(
            attachment.address, keys.mailbox(mailbox), entries, f"{mailbox}mailbox", outage, self._batch
        )
        self._offers = Offers(
            writer, keys, entries, mailbox, outage, handler, now=lambda: self._presence.now, missed=self._missed
        )
        self._presence = Presence(
            mailbox,
            keys,
            entries,
            outage,
            writer,
            self._reader,
            self._memberships,
            self._claimant,
            self._deliveries,
            self._offers,
            attachment.epoch,
            attachment.deaths,
            handler,
            bounded=bounded,
        )

    @property
    def available(self) -> bool:
        return self._outage.available

    async def open(self) -> None:
        """Make the mailbox, take the lease, and begin to read. Raises LayerUnavailable."""
        await self._presence.open(_soon())
        await self._reader.open()
        self._presence.start()

    async def close(self) -> None:
        """Leave nothing behind: no mailbox, no lease, no membership, no claim that nobody deals with."""
        await self._presence.close()
        await self._reader.close()
        for timer in self._later:
            timer.cancel()
        self._offers.close()
        await self._writer.drain()
        await self._claimant.close()
        await self._deliveries.close()
        self._memberships.close()
        self._presence.leave()
        await self._writer.drain()

    def _batch(self, sender: str, frames: Sequence[Frame], sent: float, full: bytes) -> None:
        delay = 0.0
        if sender:
            self._presence.heard(sender)
        else:
            frames, delay = self._taken.once(frames, full)
            frames = self._offers.told(self._presence.told(frames))
        if delay:
            self._delay(frames, sent + delay)
        elif frames:
            self.sent = sent
            self._handler.batch(sender, frames)

    def _delay(self, frames: Sequence[Frame], due: float) -> None:
        """Hand messages on when they are due; the mailbox has been read, so they are kept here until then."""

        def hand_on() -> None:
            del self._later[timer]
            self.sent = due
            self._handler.batch("", frames)

        timer = self._loop.call_later(due - self.time(), hand_on)
        self._later[timer] = frames

    def clear(self) -> None:
        """Drop the messages that are not due yet."""
        later, self._later = self._later, {}
        for timer in later:
            timer.cancel()
        if later:
            self.received([local for frames in later.values() for _, local, _ in frames])

    def time(self) -> float:
        """Now, in seconds by Redis's clock, or a little ahead of it."""
        return self._presence.time()

    def received(self, parts: Sequence[str]) -> None:
        """A message of each of these process-local channels is not unread any more."""
        self._writer.write(("EVAL", scripts.RECEIVED, 1, self._keys.unread(self.mailbox), *parts), _ignore)

    def post(self, mailbox: str, frame: Frame, size: int = 0) -> None:
        self._writer.post(self, mailbox, frame, size)

    def _missed(self) -> None:
        """The own mailbox is not there."""
        self._presence.missed(self.mailbox)

    def undelivered(self, mailbox: str) -> None:
        """The writer says so: find out why, and pass it on to the handler."""
        self._presence.missed(mailbox)
        self._handler.undelivered(mailbox)

    async def posted(self) -> None:
        await self._writer.posted(_soon())

    def offer(self, channel: str, entry: Any, *, once: bool = False) -> Offer:
        return self._offers.offer(channel, entry, once)

    def withdraw(self, offer: Offer) -> bool:
        return self._offers.withdraw(offer)

    def offer_again(self, offer: Offer) -> None:
        self._offers.offer_again(offer)

    async def shared_statistics(self, channel: str) -> Statistics:
        until = self._loop.time() + STATISTICS_SECONDS
        key = self._keys.shared(channel)
        offered, pending, age = await self._writer.call("EVAL", scripts.SHARED_STATISTICS, 1, key, until=until)
        return Statistics(
            messages_count=offered, messages_pending=pending, messages_max_age=age / 1000, channel_full_count=0
        )

    async def claim(self, channels: Sequence[str], limit: int) -> list[Claim]:
        return await self._claimant.claim(channels, limit)

    def stop_claiming(self) -> None:
        self._claimant.stop()
        self._deliveries.stop()

    def done(self, claim: Claim) -> None:
        self._claimant.done(claim)

    async def take(self, channel: str, limit: int, *, once: bool = False) -> list[Delivery]:
        return await self._deliveries.take(require_channel(channel), limit, once=once)

    def acknowledge(self, delivery: Delivery) -> None:
        self._deliveries.acknowledge(delivery)

    def give_back(self, delivery: Delivery, *, delay: float = 0.0) -> None:
        self._deliveries.give_back(delivery, require_delay(delay))

    async def join_group(self, group: str) -> None:
        await self._memberships.join(require_group(group), _soon())

    async def leave_group(self, group: str) -> None:
        await self._memberships.leave(require_group(group), _soon())

    async def drain(self) -> None:
        await self._writer.drain()


def _ignore(reply: Any) -> None:
    """A store that has lost what was counted there has lost the messages, too."""


def _soon() -> float:
    """When a call gives up, by the event loop's clock."""
    return asyncio.get_running_loop().time() + CALL_SECONDS
