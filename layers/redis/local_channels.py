"""The process-local channels of a layer: what `new_channel` makes, and the groups that those channels are in.

A process has one mailbox for all of them, whatever their prefixes and the event loops in which they were made. It is
read in the layer's own loop. So a name may be made in one loop and received from in another, as synchronous code does
that calls each by `async_to_sync`, and a further prefix costs nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import weakref
from functools import partial
from itertools import count

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.names import channels_mailbox, require_channel
from asgibus.layers.redis.bus import RedisBus
from asgibus.layers.redis.inbox import Inbox
from asgibus.layers.redis.own_loop import OwnLoop
from asgibus.layers.redis.store import Attachment, Shard, Shards


class LocalChannels:
    """The process-local channels of one layer object. All methods may be called in several event loops at once."""

    def __init__(self, shards: Shards, own_loop: OwnLoop) -> None:
        self._shards = shards
        self._own_loop = own_loop
        self._lock = threading.Lock()
        self._process = ""
        self._mailbox = ""
        self._numbers = count(1)
        self._inbox: Inbox | None = None
        self._bus: RedisBus | None = None
        self._attachment: Attachment | None = None  # of the bus
        self._loop: weakref.ref[asyncio.AbstractEventLoop] | None = None  # that has used them last
        _all.add(self)

    @property
    def process(self) -> str:
        """The id of this process, which stands before the `!` in the names of its channels; a fork has another one."""
        with self._lock:
            if not self._process:
                self._name(random.choice(self._shards))
            return self._process

    @property
    def inbox(self) -> Inbox | None:
        """Where their messages arrive, for the running event loop; None if that has to be opened."""
        inbox = self._inbox
        if inbox is None or inbox.closed:
            return None
        loop = asyncio.get_running_loop()
        if self._loop is None or self._loop() is not loop:
            self._loop = weakref.ref(loop)
            self._own_loop.hold()
        return inbox

    def has(self, mailbox: str) -> bool:
        """Return whether this is the mailbox of these channels."""
        return mailbox == self._mailbox

    async def open(self) -> Inbox:
        """Make the mailbox, unless it is there. Raises LayerUnavailable."""
        await self._own_loop.run(self._open)
        inbox = self.inbox
        if inbox is None:
            raise LayerUnavailable("the layer was closed")
        return inbox

    async def new(self, prefix: str) -> str:
        """Return a name that nobody else has. Raises TypeError for a bad prefix, LayerUnavailable."""
        require_channel(prefix)
        if self.inbox is None:
            await self.open()
        return require_channel(f"{prefix}.{self._process}!{next(self._numbers)}")

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel to a group, and again if the store loses that. Raises LayerUnavailable."""

        async def add() -> None:
            await (await self._open()).add_channel(group, channel)

        await self._own_loop.run(add)

    async def group_discard(self, group: str, channel: str) -> None:
        """Take a channel out of a group. Raises LayerUnavailable."""

        async def discard() -> None:
            await (await self._open()).discard_channel(group, channel)

        await self._own_loop.run(discard)

    async def clear(self) -> None:
        """Drop every message of the channels, and their memberships here, but not those in the store."""

        async def clear() -> None:
            bus = await self._open()
            if self._inbox is not None:
                self._inbox.clear()
            bus.clear()

        if self.inbox is not None:
            await self._own_loop.run(clear)

    async def _open(self) -> RedisBus:
        if not self._process:
            shard = await self._shards.any_available()
            with self._lock:
                if not self._process:
                    self._name(shard)
        attachment = await self._shards.of(self._mailbox).attachment()
        if self._attachment is not attachment:
            await attachment.once("channels", partial(self._open_bus, attachment))
        if self._bus is None or attachment.closed:
            raise LayerUnavailable("the layer was closed")
        return self._bus

    async def _open_bus(self, attachment: Attachment) -> None:
        inbox = Inbox()
        bus = RedisBus(attachment, self._shards, self._mailbox, inbox)
        inbox.on_bus(bus, attachment.settings)

        async def close() -> None:
            inbox.close()
            await bus.close()

        try:
            await bus.open()
        except BaseException:
            await close()
            raise
        attachment.on_close = close
        self._attachment, self._bus, self._inbox = attachment, bus, inbox

    def _name(self, shard: Shard) -> None:
        self._process = self._shards.new_process(shard)
        self._mailbox = channels_mailbox(self._process)

    def forget(self) -> None:
        """Be another process: a fork of the one that has those channels."""
        self._lock = threading.Lock()
        self._process = self._mailbox = ""
        self._inbox = self._bus = self._attachment = self._loop = None


_all: weakref.WeakSet[LocalChannels] = weakref.WeakSet()


def _forget() -> None:
    for channels in list(_all):
        channels.forget()


os.register_at_fork(after_in_child=_forget)
