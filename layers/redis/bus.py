"""A process's place on the bus in Redis: its mailbox, its lease, its groups, its offers and its claims."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from asgibus.layers.contract import Bus, Claim, Frame, Handler, Offer
from asgibus.layers.redis.address import Address
from asgibus.layers.redis.claims import Claimant
from asgibus.layers.redis.epoch import Epoch
from asgibus.layers.redis.kept import Taken
from asgibus.layers.redis.link import Outage
from asgibus.layers.redis.mailbox import MailboxReader
from asgibus.layers.redis.memberships import Memberships
from asgibus.layers.redis.offers import Offers
from asgibus.layers.redis.presence import Presence
from asgibus.layers.redis.writer import CALL_SECONDS, Writer


class RedisBus(Bus):
    """See `Bus`. `open` before use, `close` at the end."""

    def __init__(
        self,
        address: Address,
        prefix: str,
        mailbox: str,
        outage: Outage,
        writer: Writer,
        epoch: Epoch,
        deaths: dict[str, int],
        handler: Handler,
        *,
        group_expiry: int,
    ) -> None:
        self.mailbox = mailbox
        self._outage = outage
        self._writer = writer
        self._handler = handler
        self._taken = Taken()
        self._claimant = Claimant(address, prefix, mailbox, outage, writer)
        self._memberships = Memberships(writer, prefix, mailbox, group_expiry)
        self._reader = MailboxReader(address, writer.mailbox_key(mailbox), f"{mailbox}mailbox", outage, self._batch)
        self._offers = Offers(
            writer,
            prefix,
            mailbox,
            outage,
            handler,
            now=lambda: self._presence.now,
            missed=self._missed,
        )
        self._presence = Presence(
            mailbox,
            prefix,
            outage,
            writer,
            self._reader,
            self._memberships,
            self._claimant,
            self._offers,
            epoch,
            deaths,
            handler,
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
        self._offers.close()
        await self._writer.drain()
        await self._claimant.close()
        self._memberships.close()
        self._presence.leave()
        await self._writer.drain()

    def _batch(self, sender: str, frames: Sequence[Frame]) -> None:
        if sender:
            self._presence.heard(sender)
        else:
            frames = self._offers.told(self._presence.told(self._taken.once(frames)))
        if frames:
            self._handler.batch(sender, frames)

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

    async def claim(self, channels: Sequence[str], limit: int) -> list[Claim]:
        return await self._claimant.claim(channels, limit)

    def stop_claiming(self) -> None:
        self._claimant.stop()

    def done(self, claim: Claim) -> None:
        self._claimant.done(claim)

    async def join_group(self, group: str) -> None:
        await self._memberships.join(group, _soon())

    async def leave_group(self, group: str) -> None:
        await self._memberships.leave(group, _soon())

    async def drain(self) -> None:
        await self._writer.drain()


def _soon() -> float:
    """When a call gives up, by the event loop's clock."""
    return asyncio.get_running_loop().time() + CALL_SECONDS
