"""The stores of a layer, and what an event loop has at one of them: connections, and what goes through them.

A layer has one store or several, which share its channels, mailboxes and groups by name. Rendezvous hashing decides
which store has a name: every process comes to the same result without asking, and a store that is added or removed
moves only the names that it gets or had. Whatever belongs together (a channel and the keys beside it, a mailbox and its
lease) is on one store. The bus of the servers is at `home`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Any, TypeVar

from asgibus.layers.contract import Frame
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.names import channels_mailbox, new_mailbox, new_process
from asgibus.layers.redis import scripts
from asgibus.layers.redis.channels import ChannelReader
from asgibus.layers.redis.client import MasterWatch, Outage
from asgibus.layers.redis.codec import Entries
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.heartbeat import BEAT_SECONDS, SILENT_SECONDS
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.mailbox import MailboxSender
from asgibus.layers.redis.pipeline import CALL_SECONDS, Refused, Writer
from asgibus.layers.redis.redelivery import Backlog, Epoch, Sent, epoch_range, find_epoch
from asgibus.layers.settings import LayerSettings

logger = logging.getLogger("asgibus.layers")

KEEPS_ALL = "noeviction"  # the policy of a Redis that refuses writes when it is full
HOME = "home"  # the name whose store is the home of the bus
RETRY_SECONDS = 0.25  # between two attempts to connect
NAMES = 4096  # whose stores are remembered: to look one up costs a microsecond for each store
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
    ) -> None:
        """Take the epoch from another event loop, if the layer was used in one."""
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
        self.mailboxes = MailboxSender(self.writer, keys, self.post)
        self._open = False
        self.closed = False
        self._opening: dict[str, asyncio.Task[None]] = {}  # what is being opened; "" is the writer
        self.on_close: Callable[[], Awaitable[None]] | None = None
        """Awaited before the connections are closed: ends what uses them until then."""

    async def open(self) -> None:
        """Connect at the first call. Raises LayerUnavailable."""
        if not self._open:
            await self.once("", self._connect)

    async def once(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Await `work()`, or the earlier call for that name if it is still running.

        The work goes on when a caller is cancelled.

        Raises:
            LayerUnavailable: The layer was closed.
            Exception: Whatever `work` raises.
        """
        if self.closed:
            raise LayerUnavailable("the layer was closed")
        opening = self._opening.get(name)
        if opening is None:
            opening = self._opening[name] = asyncio.create_task(work(), name=f"asgibus open {name}")
            opening.add_done_callback(partial(self._opened, name))
        await asyncio.shield(opening)

    def _opened(self, name: str, opening: asyncio.Task[None]) -> None:
        del self._opening[name]
        if not opening.cancelled():
            opening.exception()  # retrieved, so that asyncio logs nothing if all callers were cancelled

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
        self.closed = True
        if connecting := self._opening.get(""):
            connecting.cancel()  # to a store that does not answer it may take seconds, and nothing was written yet
        if self._opening:
            await asyncio.wait(self._opening.values())
        await self.sent.close()
        if self.on_close is not None:
            await self.on_close()
        await self.reader.close()
        if self._open:
            await self.writer.drain()
            await self.writer.close()

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

    async def post(self, mailbox: str, frame: Frame, until: float) -> bool:
        """Write a frame to a mailbox. Return False if the process of the mailbox is gone.

        Raises:
            LayerUnavailable: Redis cannot be reached in time, or the process lives and its mailbox is missing.
        """

        async def send() -> bool | None:
            return await self.sent.send(mailbox, frame, until) or None

        return bool(await self.regroup.insist(mailbox, send, until))


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
                    self.address, self.keys, self._entries, self._settings, self._counts, epoch
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

    async def any_available(self) -> Shard:
        """Return a random store that the running event loop can reach. Raises LayerUnavailable if there is none."""
        shards = random.sample(self._shards, len(self._shards))
        for shard in shards[:-1]:
            with suppress(LayerUnavailable):
                if (await shard.attachment()).outage.available:
                    return shard
        await shards[-1].attachment()
        return shards[-1]

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


T = TypeVar("T")

CHECK_SECONDS = 0.5  # that a look at Redis may take behind a wait: without them it would end in its time limit
MISSING_SECONDS = BEAT_SECONDS + 0.5  # for a living process to make its mailbox anew: it notices at its next beat
MISSING_CHECK_SECONDS = 0.1  # until it is looked again whether a mailbox is back


class Regroup:
    """The waits of one event loop at one store."""

    def __init__(self, writer: Writer, keys: Keys, epoch: Epoch) -> None:
        self._loop = asyncio.get_running_loop()
        self._writer = writer
        self._keys = keys
        self._epoch = epoch

    async def waited(self, members: Sequence[bytes], now: int, until: float) -> bool:
        """Wait for those on the bus to be back in this epoch, or for some of that time.

        Args:
            members: Those of the set of processes among which the epoch is.
            now: The time by the clock of Redis, in ms.
            until: When the call gives up, by the event loop's clock.

        Returns:
            Whether it waited: then it is to be looked again.

        Raises:
            LayerUnavailable: They will not be back in time.
        """
        name, run_id = find_epoch(members), self._writer.run_id
        wait = self._epoch.use(name, run_id, now)
        if not wait:
            return False
        if self._loop.time() + wait + CHECK_SECONDS > until:
            if not self._epoch.is_gone(now):
                raise LayerUnavailable("Redis has lost its data, and its members are not back: nothing was sent")
            self._epoch.forget(name, run_id)  # nobody is on the bus any more, and so nobody misses anything
            return False
        await asyncio.sleep(wait)
        return True

    async def restore(self, key: str, until: float) -> None:
        """Have a group made anew by its members: its key holds something else. Raises LayerUnavailable.

        Without an epoch, the next beat begins one, and all processes on the bus join their groups again.
        """
        call = self._writer.call
        if await call("EVAL", scripts.DROP_OTHER_TYPE, 1, key, "zset", until=until):
            await call("ZREMRANGEBYSCORE", self._keys.processes, "+inf", "+inf", until=until)

    async def insist(self, mailbox: str, send: Callable[[], Awaitable[T | None]], until: float) -> T | None:
        """Send to a mailbox; when it is missing, wait for it as long as its process may make it anew.

        A mailbox vanishes before its process does when Redis loses data, when its clock jumps, or when it is evicted.

        Args:
            mailbox: Where `send` sends.
            send: Sends, and returns None if there is no such mailbox.
            until: When the call gives up, by the event loop's clock.

        Returns:
            What `send` returned; None if the process of the mailbox is gone.

        Raises:
            LayerUnavailable: The process lives, and its mailbox is not back in time.
        """
        try:
            answer = await send()
        except Refused as error:
            if not error.wrong_type:
                raise
            # Its process makes anew what is missing at its next beat; of what is of another type it may never hear.
            for key, kind in ((self._keys.mailbox(mailbox), "stream"), (self._keys.full(mailbox), "set")):
                await self._writer.call("EVAL", scripts.DROP_OTHER_TYPE, 1, key, kind, until=until)
            answer = None
        began = self._loop.time()
        while answer is None:
            run_id = self._writer.run_id
            arguments = self._keys.processes, mailbox, round(SILENT_SECONDS * 1000)
            now, runs, silent, members = await self._writer.call("EVAL", scripts.LEASE_RUNS, 1, *arguments, until=until)
            if run_id == self._writer.run_id and not await self.waited(members, now, until):
                late = self._loop.time() - began > MISSING_SECONDS
                if not runs or (silent and late):  # nobody has been here meanwhile: it does not live either
                    return None
                if late:
                    raise LayerUnavailable(
                        f"the mailbox {mailbox} is missing, though its process lives: it got nothing"
                    )
                await asyncio.sleep(MISSING_CHECK_SECONDS)
            answer = await send()
        return answer
