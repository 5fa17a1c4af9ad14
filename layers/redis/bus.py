"""A process's place on the bus in Redis: its mailbox, kept alive, its offers and its claims."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from asgibus.layers.codec import pack
from asgibus.layers.contract import Bus, Claim, Frame, Handler, Offer
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.names import require_group
from asgibus.layers.redis import scripts
from asgibus.layers.redis.address import Address
from asgibus.layers.redis.claims import Claimant
from asgibus.layers.redis.connection import RedisError
from asgibus.layers.redis.link import Outage
from asgibus.layers.redis.mailbox import MailboxReader
from asgibus.layers.redis.writer import PAYLOAD_VERSION, Command, Writer

logger = logging.getLogger("asgibus.layers")

MAILBOX_SECONDS = 60  # how long the mailbox of a process that is gone stays; nobody writes to it afterwards
BEAT_SECONDS = 15.0  # how often a living process renews its mailbox
RENEWALS = 4  # how often in its lifetime a membership is renewed


class RedisBus(Bus):
    """See `Bus`. `open` before use, `close` at the end."""

    def __init__(
        self,
        address: Address,
        prefix: str,
        mailbox: str,
        outage: Outage,
        writer: Writer,
        handler: Handler,
        *,
        group_expiry: int,
    ) -> None:
        self.mailbox = mailbox
        self.epoch = writer.epoch
        self._prefix = prefix
        self._writer = writer
        self._handler = handler
        self._key = writer.mailbox_key(mailbox)
        self._claimant = Claimant(address, prefix, mailbox, outage, writer)
        self._due = asyncio.Event()
        self._reader = MailboxReader(address, self._key, f"{mailbox}mailbox", outage, handler.batch, self._due.set)
        self._beating: asyncio.Task[None] | None = None
        self._group_expiry = group_expiry
        self._groups: dict[str, float] = {}  # when each membership is to be renewed, by the event loop's clock

    async def open(self) -> None:
        """Make the mailbox and begin to read it. Raises LayerUnavailable."""
        await self._make_mailbox()
        await self._reader.open()
        self._beating = asyncio.create_task(self._beat(), name=f"{self.mailbox} beat")

    async def close(self) -> None:
        """Leave nothing behind: no mailbox, no membership, no claim that nobody deals with."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])
        await self._reader.close()
        await self._writer.drain()
        await self._claimant.close()
        for group in self._groups:
            self._writer.write(("ZREM", self._group_key(group), self.mailbox), _ignore)
        self._writer.write(("DEL", self._key), _ignore)
        await self._writer.drain()

    def post(self, mailbox: str, frame: Frame, size: int = 0) -> None:
        self._writer.post(self, mailbox, frame, size)

    def unreachable(self, mailbox: str) -> None:
        """The writer says so: pass it on to the handler."""
        self._handler.unreachable(mailbox)

    def offer(self, channel: str, entry: Any) -> Offer:
        offer = Offer(channel)
        key = self._claimant.key(channel)

        def written(reply: Any) -> None:
            if isinstance(reply, bytes):
                offer.id = reply
                offer.unwritten = None
                if offer.withdrawn:
                    self._delete(key, reply)
            elif not isinstance(reply, LayerUnavailable):
                logger.error("an offer on %s was not written: %s", channel, reply)

        offer.unwritten = self._writer.write(("XADD", key, "*", "b", pack(entry)), written)
        return offer

    def withdraw(self, offer: Offer) -> None:
        offer.withdrawn = True
        if isinstance(offer.unwritten, Command) and self._writer.cancel(offer.unwritten):
            return  # so that what is offered while Redis is away does not pile up here
        if offer.id is not None:
            self._delete(self._claimant.key(offer.channel), offer.id)

    def _delete(self, key: str, entry_id: bytes) -> None:
        """Delete an entry unless somebody has claimed it: its claimant still has to acknowledge it."""
        self._writer.write(("EVAL", scripts.WITHDRAW, 1, key, entry_id), _log_error)

    async def claim(self, channels: Sequence[str], limit: int) -> list[Claim]:
        return await self._claimant.claim(channels, limit)

    def stop_claiming(self) -> None:
        self._claimant.stop()

    def done(self, claim: Claim) -> None:
        self._claimant.done(claim)

    async def join_group(self, group: str) -> None:
        key = self._group_key(group)
        self._groups[group] = asyncio.get_running_loop().time() + self._group_expiry / RENEWALS
        try:
            await self._writer.call("EVAL", scripts.GROUP_ADD, 1, key, self.mailbox, self._group_expiry)
        except LayerUnavailable:
            self._groups.pop(group, None)
            raise

    async def leave_group(self, group: str) -> None:
        key = self._group_key(group)
        self._groups.pop(group, None)
        await self._writer.call("ZREM", key, self.mailbox)

    def _group_key(self, group: str) -> str:
        return f"{self._prefix}:group:{require_group(group)}"

    async def drain(self) -> None:
        await self._writer.drain()

    async def _make_mailbox(self) -> None:
        """Make the stream, so that others may write to it; an entry without frames is the shortest way."""
        empty = pack((PAYLOAD_VERSION, self.mailbox, self.epoch, ()))
        await self._writer.call("XADD", self._key, "*", "b", empty)
        await self._writer.call("EXPIRE", self._key, MAILBOX_SECONDS)

    async def _beat(self) -> None:
        """Keep the mailbox and the memberships alive: now and then, and at once when Redis has come back."""
        while True:
            self._due.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._due.wait()
            try:
                await self._renew()
            except LayerUnavailable as error:
                logger.warning("the mailbox %s could not be renewed: %s", self.mailbox, error)

    async def _renew(self) -> None:
        vanished = not await self._writer.call("EXPIRE", self._key, MAILBOX_SECONDS)
        if vanished:
            logger.warning("the mailbox %s had vanished from Redis and was made anew", self.mailbox)
            await self._make_mailbox()
        now = asyncio.get_running_loop().time()
        for group in [group for group, due in self._groups.items() if vanished or due <= now]:
            if group in self._groups:  # it may have been left while the one before was renewed
                await self.join_group(group)


def _ignore(reply: Any) -> None:
    """Leaving: a store that is gone expires the key by itself."""


def _log_error(reply: Any) -> None:
    if isinstance(reply, RedisError):
        logger.error("Redis refused a command: %s", reply)
