"""The process-local channels of a layer: what `new_channel` makes, and the groups that those channels are in.

A process has one mailbox for all of them, whatever their prefixes and the event loops in which they were made. It is
read in the layer's own loop. So a name may be made in one loop and received from in another, as synchronous code does
that calls each by `async_to_sync`, and a further prefix costs nothing.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, TypeVar

from asgibus.layers.contract import Message
from asgibus.layers.names import channels_mailbox, require_channel
from asgibus.layers.redis.bus import RedisBus
from asgibus.layers.redis.inbox import Inbox
from asgibus.layers.redis.own_loop import OwnLoop
from asgibus.layers.redis.shards import Shards

T = TypeVar("T")


class LocalChannels:
    """Those of one layer object. All methods may be called in any event loop of the process, and in several at once."""

    def __init__(self, shards: Shards, own_loop: OwnLoop) -> None:
        self._shards = shards
        self._own_loop = own_loop
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._process = ""
        self._numbers = count(1)
        self._inbox: Inbox | None = None

    @property
    def process(self) -> str:
        """The id of this process, which stands before the `!` in the names of its channels; a fork has another one."""
        with self._lock:
            if not self._named():
                self._process = self._shards.new_process(random.choice(self._shards))
            return self._process

    def has(self, mailbox: str) -> bool:
        """Return whether this is the mailbox of these channels."""
        return self._named() and mailbox == channels_mailbox(self._process)

    async def new(self, prefix: str) -> str:
        """Return a name that nobody else has. Raises TypeError for a bad prefix, LayerUnavailable."""
        require_channel(prefix)
        if not self.is_open:
            await self._run(self._open)
        self._own_loop.hold()
        return require_channel(f"{prefix}.{self._process}!{next(self._numbers)}")

    async def receive(self, part: str) -> Message:
        """Wait for the next message of a channel, named by its local part. Raises LayerUnavailable."""
        if not self.is_open:
            await self._run(self._open)
        assert self._inbox is not None
        self._own_loop.hold()
        return await self._inbox.receive(part)

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel to a group, and again if the store loses that. Raises LayerUnavailable."""
        await self._run(lambda: self._with_bus(lambda bus: bus.add_channel(group, channel)))

    async def group_discard(self, group: str, channel: str) -> None:
        """Take a channel out of a group. Raises LayerUnavailable."""
        await self._run(lambda: self._with_bus(lambda bus: bus.discard_channel(group, channel)))

    async def clear(self) -> None:
        """Drop every message of the channels, and their memberships here, but not those in the store."""
        if self.is_open:
            await self._run(self._clear)

    def _named(self) -> bool:
        """Return whether this process has its id. Forget that of the process from which it was forked."""
        if self._pid != (pid := os.getpid()):
            self._pid = pid
            self._process = ""
            self._inbox = None
        return bool(self._process)

    @property
    def is_open(self) -> bool:
        """Whether the mailbox is there."""
        return self._named() and self._inbox is not None and not self._inbox.closed

    async def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await self._own_loop.run(work)

    async def _open(self) -> RedisBus:
        if not self._named():
            shard = (await self._shards.anywhere()).shard
            with self._lock:
                if not self._process:
                    self._process = self._shards.new_process(shard)
        mailbox = channels_mailbox(self._process)
        bus, self._inbox = await (await self._shards.of(mailbox).attachment()).channels(mailbox)
        return bus

    async def _with_bus(self, work: Callable[[RedisBus], Coroutine[Any, Any, None]]) -> None:
        await work(await self._open())

    async def _clear(self) -> None:
        (await self._shards.of(channels_mailbox(self._process)).attachment()).clear()
