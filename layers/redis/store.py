"""The layer in one event loop: the writer, the receiver, and in one of the loops the process-local channels."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from asgibus.layers.contract import Frame, Handler, Statistics
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis import scripts
from asgibus.layers.redis.asking import Asking
from asgibus.layers.redis.backlog import Backlog
from asgibus.layers.redis.bus import RedisBus
from asgibus.layers.redis.channels import ChannelReader
from asgibus.layers.redis.client import MasterWatch, Outage
from asgibus.layers.redis.codec import Entries
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.epoch import Epoch, epoch_range, find_epoch
from asgibus.layers.redis.inbox import Inbox
from asgibus.layers.redis.kept import Sent
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.pipeline import CALL_SECONDS, Refused, Writer
from asgibus.layers.redis.regroup import Regroup
from asgibus.layers.settings import LayerSettings

if TYPE_CHECKING:
    from asgibus.layers.redis.shards import Shard

logger = logging.getLogger("asgibus.layers")

KEEPS_ALL = "noeviction"  # the policy of a Redis that refuses writes when it is full
COUNTED_MS = 86_400_000  # how long it is known what went through a channel that nobody uses


class Attachment:
    """The connections and tasks of a layer for one store, in the event loop in which this is made."""

    def __init__(
        self,
        address: Address,
        keys: Keys,
        entries: Entries,
        settings: LayerSettings,
        counts: Counter[str],
        epoch: Epoch | None,
        shard: Shard,
    ) -> None:
        """`epoch`: that of another event loop, if the layer was used in one."""
        self.shard = shard
        self.shards = shard.shards
        self.address = address
        self.keys = keys
        self.entries = entries
        self.settings = settings
        self.outage = Outage(address, counts)
        self.deaths: dict[str, int] = {}
        """Of the buses here: which deaths were counted, and when there was last news of them."""
        self.writer = Writer(address, keys, entries, "asgibus-writer", self.outage)
        self.writer.on_up.add(self._up)
        self._run_id = ""
        self._expiry = round(settings.expiry * 1000)
        self.backlog = Backlog(settings.backlog)
        self.sent = Sent(self.writer, keys, entries, counts, settings.expiry)
        self.epoch = Epoch(self.sent.lost, epoch)
        self.regroup = Regroup(self.writer, keys, self.epoch)
        self.reader = ChannelReader(
            address, keys, entries, self.writer, expiry=settings.expiry, group_expiry=settings.group_expiry
        )
        self._watch = MasterWatch(address, self.outage.moved) if address.sentinels else None
        self._asking = Asking(keys, entries, self.sent, self.reader)
        self._open = False
        self._closed = False
        self._opening: dict[str, asyncio.Task[None]] = {}  # what is being opened; "" is the writer
        self._channels: tuple[RedisBus, Inbox] | None = None  # the mailbox of the process-local channels, if it is here

    async def open(self) -> None:
        """Connect at the first call. Raises LayerUnavailable."""
        if not self._open:
            await self._once("", self._connect)

    async def _once(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Await this, or the try that is under way: who comes meanwhile does not wait for one try after another.

        It goes on when a caller is cancelled. Raises what it raises, or LayerUnavailable.
        """
        if self._closed:
            raise LayerUnavailable("the layer was closed")
        opening = self._opening.get(name)
        if opening is None:
            opening = self._opening[name] = asyncio.create_task(work(), name=f"asgibus open {name}")
            opening.add_done_callback(partial(self._opened, name))
        await asyncio.shield(opening)

    def _opened(self, name: str, opening: asyncio.Task[None]) -> None:
        del self._opening[name]
        if not opening.cancelled():
            opening.exception()  # looked at, so that nothing is logged if its callers were cancelled

    async def _connect(self) -> None:
        await self.writer.open()
        await self._look_at_memory()
        if self._watch is not None:
            self._watch.start()
        # Who sends later, for the first time, to what the store has lost meanwhile is to know that there was something.
        self.writer.write(("ZRANGE", *epoch_range(self.keys)), self._first_epoch)
        self._open = True

    def _first_epoch(self, reply: object) -> None:
        if isinstance(reply, list):
            self.epoch.seen(find_epoch(reply))

    async def _look_at_memory(self) -> None:
        """Warn once of a Redis that evicts keys when it is full. Raises LayerUnavailable."""
        try:
            reply = await self.writer.call("INFO", "memory", until=asyncio.get_running_loop().time() + CALL_SECONDS)
        except Refused:  # to a user who may not ask
            return
        said = dict(line.split(":", 1) for line in reply.decode(errors="replace").split() if ":" in line)
        policy = said.get("maxmemory_policy", KEEPS_ALL)
        evicts = policy != KEEPS_ALL and said.get("maxmemory", "0") != "0"
        if evicts and self.entries.is_first(f"evicts {self.address}"):
            logger.warning(
                "Redis at %s has the maxmemory-policy %s: when it is full, it drops messages, groups and connections "
                "that wait, without a word. Set maxmemory-policy %s",
                self.address,
                policy,
                KEEPS_ALL,
            )

    def _up(self) -> None:
        """The connection is there, or there again."""
        last, self._run_id = self._run_id, self.writer.run_id
        if last and last != self._run_id:
            self.sent.lost()

    async def close(self) -> None:
        """End everything, behind what was written before, and what is being opened."""
        self._closed = True
        if connecting := self._opening.get(""):
            connecting.cancel()  # to a store that does not answer it may take seconds, and nothing was written yet
        if self._opening:
            await asyncio.wait(self._opening.values())
        await self.sent.close()
        if self._channels is not None:
            bus, inbox = self._channels
            inbox.close()
            await bus.close()
        await self.reader.close()
        if self._open:
            await self.writer.drain()
            await self.writer.close()

    @asynccontextmanager
    async def bus(self, role: str, handler: Handler) -> AsyncIterator[RedisBus]:
        """A mailbox of that role, read while the context lasts. Entering raises LayerUnavailable."""
        bus = RedisBus(self, self.shards.new_mailbox(role, self.shards.home), handler)
        try:
            await bus.open()
            yield bus
        finally:
            await bus.close()

    async def send(self, channel: str, entry: bytes, capacity: int, delay: float, until: float) -> bool:
        """Add a message to an ordinary channel; False if that is full. Raises LayerUnavailable."""
        keys, call = self.keys, self.writer.call
        names = keys.messages(channel), keys.delayed(channel), keys.counts(channel)
        limits = self._expiry, COUNTED_MS, capacity
        later = (round(delay * 1000), secrets.token_hex(8)) if delay else ()
        if not delay and await call(
            "EVAL", scripts.CHANNEL_SEND, 3, *names, entry, *limits, until=until, repeatable=False
        ):
            return True
        slowly = scripts.CHANNEL_SEND_CHECKED
        return bool(await call("EVAL", slowly, 3, *names, entry, *limits, *later, until=until, repeatable=False))

    async def channels(self, mailbox: str) -> tuple[RedisBus, Inbox]:
        """Return the mailbox of the process-local channels, which is made at the first call. Raises LayerUnavailable.

        Their memberships are kept by the bus.
        """
        if self._channels is None:
            await self._once("channels", partial(self._open_channels, mailbox))
        if self._channels is None or self._closed:
            raise LayerUnavailable("the layer was closed")
        return self._channels

    async def _open_channels(self, mailbox: str) -> None:
        inbox = Inbox()
        bus = RedisBus(self, mailbox, inbox)
        inbox.on_bus(bus, self.settings)
        try:
            await bus.open()
        except BaseException:
            inbox.close()
            await bus.close()
            raise
        self._channels = bus, inbox

    async def local_statistics(self, mailbox: str, local: str, until: float) -> Statistics:
        """Those of a process-local channel. Raises LayerUnavailable, at the time `until` at the latest."""
        full = await self.writer.call("HGET", self.keys.counts(mailbox + local), "full", until=until)
        sent, unread, age = await self._asking.ask(mailbox, local, until)
        return Statistics(
            messages_count=sent, messages_pending=unread, messages_max_age=age, channel_full_count=int(full or 0)
        )

    async def send_local(
        self, mailbox: str, message: bytes, parts: Sequence[str], capacity: int, until: float, delay: float = 0.0
    ) -> Sequence[str] | None:
        """Send as `Sent.send_local`; ask the process of a full channel what was received there before believing it.

        None if the process of the mailbox is gone; raises LayerUnavailable if it lives, and its mailbox is not there.
        """

        async def send() -> Sequence[str] | None:
            return await self.sent.send_local(mailbox, message, parts, capacity, until, delay)

        full = await self.regroup.insist(mailbox, send, until)
        if full and await self._asking.told(mailbox, full[0], until):
            full = await self.sent.send_local(mailbox, message, full, capacity, until, delay)
        for part in full or ():
            key = self.keys.counts(mailbox + part)
            self.writer.write(("HINCRBY", key, "full", 1), _ignore, repeatable=False)
            self.writer.write(("PEXPIRE", key, COUNTED_MS), _ignore)
        return full

    async def post(self, mailbox: str, frame: Frame, until: float) -> bool:
        """Send as `Sent.send`; return False if the process of the mailbox is gone.

        Raises LayerUnavailable if it lives, and its mailbox is not there.
        """

        async def send() -> bool | None:
            return await self.sent.send(mailbox, frame, until) or None

        return bool(await self.regroup.insist(mailbox, send, until))

    def clear(self) -> None:
        """Drop what has arrived for channels and was not received."""
        if self._channels is not None:
            bus, inbox = self._channels
            inbox.clear()
            bus.clear()


def _ignore(reply: object) -> None:
    """A count that could not be written is missing; the call has said that the channel is full."""
