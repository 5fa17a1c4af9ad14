"""The stores of a layer: one Redis, or several that share its channels, mailboxes and groups among them, by name.

Which of them has a name is decided by rendezvous hashing: every process comes to the same result without asking, and a
store that is added or taken away moves only what it gets or had. What belongs together (a channel and all that is kept
beside it, a mailbox and its lease) lies on one. The bus of the servers is at `home`.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.names import channels_mailbox, new_mailbox, new_process
from asgibus.layers.redis.codec import Entries
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.store import Attachment
from asgibus.layers.settings import LayerSettings

HOME = "home"  # the name whose store is the home of the bus
RETRY_SECONDS = 0.25  # between two tries to connect
NAMES = 4096  # whose places are remembered: to look one up costs a microsecond for each store


class Shard:
    """One of the stores, with what each event loop has there."""

    def __init__(
        self, address: Address, prefix: str, entries: Entries, settings: LayerSettings, counts: Counter[str]
    ) -> None:
        self.address = address
        self._hash_key = blake2b(address.identity.encode(), digest_size=32).digest()
        self.keys = Keys(prefix + f"{{{address.tag}}}" if address.tag else prefix)
        self._entries = entries
        self._settings = settings
        self._counts = counts
        self.shards: Shards
        self._lock = threading.Lock()
        self._attachments: dict[asyncio.AbstractEventLoop, Attachment] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._reached = False

    async def attachment(self, until: float | None = None) -> Attachment:
        """Return what the running event loop has there, connected at the first call.

        Args:
            until: How long to try to connect, by the event loop's clock, where this layer has been connected before:
                then its address is right, and the store is away. Else, and without it, one try is made.

        Raises:
            LayerUnavailable: The store cannot be reached.
        """
        running = asyncio.get_running_loop()
        attachment = self._attachments.get(running)
        if attachment is None:
            with self._lock:
                for loop in [loop for loop in self._attachments if loop.is_closed()]:
                    del self._attachments[loop]  # it ended without `close`: its tasks and sockets ended with it
                epochs = (each.epoch for each in self._attachments.values())
                epoch = max(epochs, key=lambda each: each.used, default=None)
                attachment = self._attachments[running] = Attachment(
                    self.address, self.keys, self._entries, self._settings, self._counts, epoch, self
                )
        while True:
            try:
                await attachment.open()
            except LayerUnavailable:
                late = until is None or running.time() + RETRY_SECONDS > until
                if late or not self._reached or self._attachments.get(running) is not attachment:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._reached = True
                return attachment

    def weight(self, name: bytes) -> bytes:
        """Of all stores, the one with the highest has that name."""
        return blake2b(name, key=self._hash_key, digest_size=8).digest()

    def serves(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether that loop has something there."""
        return loop in self._attachments

    async def close(self) -> None:
        """End what the running event loop has there; when this is cancelled, it goes on by itself."""
        with self._lock:
            attachment = self._attachments.pop(asyncio.get_running_loop(), None)
        if attachment is not None:
            closing = asyncio.create_task(attachment.close(), name="asgibus close")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            await asyncio.shield(closing)


class Shards(Sequence[Shard]):
    """All stores of a layer."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = list(shards)
        for shard in self._shards:
            shard.shards = self
        self.of = self._of if len(self._shards) > 1 else self._only
        """The store that has a channel, a mailbox or a group, by its name."""
        self._find = lru_cache(NAMES)(self._rendezvous)

    def __len__(self) -> int:
        return len(self._shards)

    def __iter__(self) -> Iterator[Shard]:
        return iter(self._shards)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # as a list does
        return self._shards[index]

    @property
    def home(self) -> Shard:
        """The store with the leases, the mailboxes and the shared channels of the servers."""
        return self.of(HOME)

    async def anywhere(self) -> Attachment:
        """What the running event loop has at a store that can be reached, whichever. Raises LayerUnavailable."""
        shards = random.sample(self._shards, len(self._shards))
        for shard in shards[:-1]:
            try:
                attachment = await shard.attachment()
            except LayerUnavailable:
                continue
            if attachment.outage.available:
                return attachment
        return await shards[-1].attachment()

    def new_mailbox(self, role: str, shard: Shard) -> str:
        """Return a mailbox name that no other process has, and that belongs to this store."""
        while self.of(mailbox := new_mailbox(role)) is not shard:
            pass
        return mailbox

    def new_process(self, shard: Shard) -> str:
        """Return an id for a process that makes channels, whose mailbox belongs to this store."""
        while self.of(channels_mailbox(process := new_process())) is not shard:
            pass
        return process

    async def close(self) -> None:
        """End what the running event loop has at all of them."""
        for shard in self._shards:
            await shard.close()

    def _only(self, name: str) -> Shard:
        return self._shards[0]

    def _of(self, name: str) -> Shard:
        return self._find(name)

    def _rendezvous(self, name: str) -> Shard:
        encoded = name.encode()
        return max(self._shards, key=lambda shard: shard.weight(encoded))
