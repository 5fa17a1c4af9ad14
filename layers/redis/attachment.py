"""What the layer has in one event loop: the writer, the receiver, and mailboxes for process-local channels."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asgibus.layers.contract import Handler, Message
from asgibus.layers.names import new_mailbox
from asgibus.layers.redis import scripts
from asgibus.layers.redis.address import Address
from asgibus.layers.redis.bus import RedisBus
from asgibus.layers.redis.epoch import Epoch
from asgibus.layers.redis.inbox import Inbox
from asgibus.layers.redis.kept import Sent
from asgibus.layers.redis.link import Outage
from asgibus.layers.redis.receiver import Receiver
from asgibus.layers.redis.writer import Writer

ANY_CAPACITY = 2**31  # for a message that had its place in the channel before


class Attachment:
    """The connections and tasks of a layer in the event loop in which this is made."""

    def __init__(
        self,
        address: Address,
        prefix: str,
        counts: Counter[str],
        *,
        expiry: int,
        group_expiry: int,
        capacity: int,
    ) -> None:
        self._address = address
        self._prefix = prefix
        self._expiry = expiry
        self._group_expiry = group_expiry
        self._capacity = capacity
        self.outage = Outage(address, counts)
        self._deaths: dict[str, int] = {}
        self.writer = Writer(address, prefix, "asgibus-writer", self.outage)
        self.writer.on_up.add(self._up)
        self._run_id = ""
        self.sent = Sent(self.writer, counts)
        self.epoch = Epoch(self.sent.lost)
        self.receiver = Receiver(address, expiry=expiry)
        self._lock = asyncio.Lock()
        self._open = False
        self._inboxes: dict[str, tuple[Inbox, RedisBus]] = {}

    async def open(self) -> None:
        """Connect at the first call. Raises LayerUnavailable."""
        if not self._open:
            async with self._lock:
                if not self._open:
                    await self.writer.open()
                    self._open = True

    def _up(self) -> None:
        """The connection is there, or there again."""
        last, self._run_id = self._run_id, self.writer.run_id
        if last and last != self._run_id:
            self.sent.lost()

    async def close(self) -> None:
        """End everything, behind what was written before."""
        await self.sent.close()
        for _, bus in self._inboxes.values():
            await bus.close()
        self._inboxes.clear()
        for key, payloads in self.receiver.close().items():
            for payload in payloads:
                self.writer.write(("EVAL", scripts.SEND, 1, key, payload, ANY_CAPACITY, self._expiry * 1000), _ignore)
        if self._open:
            await self.writer.drain()
            await self.writer.close()

    @asynccontextmanager
    async def bus(self, role: str, handler: Handler) -> AsyncIterator[RedisBus]:
        """A mailbox of that role, read while the context lasts. Entering raises LayerUnavailable."""
        bus = self._bus(role, handler)
        try:
            await bus.open()
            yield bus
        finally:
            await bus.close()

    def _bus(self, role: str, handler: Handler) -> RedisBus:
        return RedisBus(
            self._address,
            self._prefix,
            new_mailbox(role),
            self.outage,
            self.writer,
            self.epoch,
            self._deaths,
            handler,
            group_expiry=self._group_expiry,
        )

    async def new_channel(self, prefix: str) -> str:
        """A process-local channel; the mailbox for its prefix is made at the first call."""
        async with self._lock:
            if prefix not in self._inboxes:
                inbox = Inbox(expiry=self._expiry, capacity=self._capacity)
                bus = self._bus(prefix, inbox)
                inbox.mailbox = bus.mailbox
                await bus.open()
                self._inboxes[prefix] = inbox, bus
        return self._inboxes[prefix][0].new_channel()

    async def receive_local(self, mailbox: str, local: str) -> Message:
        """The next message of a process-local channel. Raises TypeError if it was not made here."""
        for inbox, _ in self._inboxes.values():
            if inbox.mailbox == mailbox:
                return await inbox.receive(local)
        raise TypeError(f"'{mailbox}{local}' was made by another process or event loop: only that can receive from it")

    def clear(self) -> None:
        """Drop what has arrived for process-local channels."""
        for inbox, _ in self._inboxes.values():
            inbox.clear()


def _ignore(reply: Any) -> None:
    """A message that was taken and cannot be given back is lost: at most once is what was promised."""
