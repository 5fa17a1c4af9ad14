"""A process's place on the bus in Redis: its mailbox, kept alive, its offers and its claims."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from asgibus.layers.codec import pack
from asgibus.layers.contract import Bus, Claim, Frame, Handler, Offer
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis import scripts
from asgibus.layers.redis.address import Address
from asgibus.layers.redis.claims import Claimant
from asgibus.layers.redis.connection import RedisError
from asgibus.layers.redis.link import Outage
from asgibus.layers.redis.mailbox import MailboxReader
from asgibus.layers.redis.writer import PAYLOAD_VERSION, Writer

logger = logging.getLogger("asgibus.layers")

MAILBOX_SECONDS = 60  # how long the mailbox of a process that is gone stays; nobody writes to it afterwards
BEAT_SECONDS = 15.0  # how often a living process renews its mailbox


class RedisBus(Bus):
    """See `Bus`. Entered as a context manager through `opened`."""

    def __init__(
        self, address: Address, prefix: str, mailbox: str, outage: Outage, writer: Writer, handler: Handler
    ) -> None:
        self.mailbox = mailbox
        self.epoch = writer.epoch
        self._prefix = prefix
        self._writer = writer
        self._handler = handler
        self._key = writer.mailbox_key(mailbox)
        self._claimant = Claimant(address, prefix, mailbox, outage, writer)
        self._reader = MailboxReader(address, self._key, f"{mailbox}mailbox", outage, handler.batch)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[RedisBus]:
        """The mailbox exists and is read while the context lasts. Entering raises LayerUnavailable."""
        await self._make_mailbox()
        await self._reader.open()
        beat = asyncio.create_task(self._beat(), name=f"{self.mailbox} beat")
        try:
            yield self
        finally:
            beat.cancel()
            await asyncio.wait([beat])
            await self._reader.close()
            await self._claimant.close()
            self._writer.write(("DEL", self._key), _ignore)

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
                if offer.withdrawn:
                    self._delete(key, reply)
            elif not isinstance(reply, LayerUnavailable):
                logger.error("an offer on %s was not written: %s", channel, reply)

        self._writer.write(("XADD", key, "*", "b", pack(entry)), written)
        return offer

    def withdraw(self, offer: Offer) -> None:
        offer.withdrawn = True
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
        await self._group(("EVAL", scripts.GROUP_ADD, 1, f"{self._prefix}:group:{group}", self.mailbox, 86400))

    async def leave_group(self, group: str) -> None:
        await self._group(("ZREM", f"{self._prefix}:group:{group}", self.mailbox))

    async def _group(self, command: tuple[str | int, ...]) -> None:
        try:
            await self._writer.call(*command)
        except RedisError as error:
            raise LayerUnavailable(f"Redis refused to change a group: {error}") from error

    async def drain(self) -> None:
        await self._writer.drain()

    async def _make_mailbox(self) -> None:
        """Make the stream, so that others may write to it; an entry without frames is the shortest way."""
        empty = pack((PAYLOAD_VERSION, self.mailbox, self.epoch, ()))
        await self._writer.call("XADD", self._key, "*", "b", empty)
        await self._writer.call("EXPIRE", self._key, MAILBOX_SECONDS)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                if not await self._writer.call("EXPIRE", self._key, MAILBOX_SECONDS):
                    logger.warning("the mailbox %s had vanished from Redis and was made anew", self.mailbox)
                    await self._make_mailbox()
            except (RedisError, LayerUnavailable) as error:
                logger.warning("the mailbox %s could not be renewed: %s", self.mailbox, error)


def _ignore(reply: Any) -> None:
    """Leaving: a store that is gone expires the key by itself."""


def _log_error(reply: Any) -> None:
    if isinstance(reply, RedisError):
        logger.error("Redis refused a command: %s", reply)
