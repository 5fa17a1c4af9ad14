"""The stores of a layer, and the clients of the stores, of which each event loop has its own.

A layer has one store or several, which share its channels, mailboxes and groups by name. Rendezvous hashing decides
which store has a name: every process comes to the same result without asking, and a store that is added or removed
moves only the names that it gets or had. Keys that belong together (a channel and the keys beside it, a mailbox and its
lease) are on one store. The bus of the servers is at `home`.
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
from asgibus.layers.redis.client import MasterWatch, Outage
from asgibus.layers.redis.codec import EntryCodec
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.heartbeat import BEAT_SECONDS, SILENT_SECONDS
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.mailbox import MailboxSender
from asgibus.layers.redis.ordinary.reader import ChannelReader
from asgibus.layers.redis.pipeline import Pipeline, Refused, call_until
from asgibus.layers.redis.redelivery import Backlog, Epoch, Outbox, epoch_range, find_epoch
from asgibus.layers.redis.releases import check_releases
from asgibus.layers.settings import LayerSettings

logger = logging.getLogger("asgibus.layers")

KEEPS_ALL = "noeviction"  # the policy of a Redis that refuses writes when it is out of memory
HOME = "home"  # the name whose store is the home of the bus
RETRY_SECONDS = 0.25  # between two attempts to connect
NAMES = 4096  # names whose stores are cached: to compute one costs a microsecond for each store
COUNTED_MS = 86_400_000  # for how long the counts of a channel are kept that is not used
CHECK_SECONDS = 0.5  # for a command after a wait: a wait that leaves less time is not begun
MISSING_SECONDS = BEAT_SECONDS + 0.5  # for a living process to create its mailbox again, at its next heartbeat
MISSING_CHECK_SECONDS = 0.1  # until a missing mailbox is looked for again

T = TypeVar("T")


class StoreClient:
    """The connections and tasks of one event loop for one store."""

    def __init__(
        self,
        address: Address,
        keys: Keys,
        entries: EntryCodec,
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
        """Deaths that the buses here have counted, and when each was reported last, in ms by Redis's clock."""
        self.pipeline = Pipeline(address, keys, entries, self.outage)
        self.pipeline.on_up.add(self._on_up)
        self._run_id = ""
        self._expiry = round(settings.expiry * 1000)
        self.backlog = Backlog(settings.backlog)
        self.outbox = Outbox(self.pipeline, keys, entries, counts, settings.expiry)
        self.epoch = Epoch(self.outbox.on_data_lost, epoch)
        self.regroup = Regroup(self.pipeline, keys, self.epoch)
        self.reader = ChannelReader(
            address, keys, entries, self.pipeline, counts, expiry=settings.expiry, group_expiry=settings.group_expiry
        )
        self._watch = MasterWatch(address, self.outage.moved) if address.sentinels else None
        self.mailboxes = MailboxSender(self.pipeline, keys, self.post)
        self._linked = False  # connected once: from then on the pipeline connects again by itself
        self._open = False
        self.closed = False
        self._opening: dict[str, asyncio.Task[None]] = {}  # by name; "" is the connection for writing
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
        if not self._linked:
            await self.pipeline.open()
            self._linked = True
        await check_releases(self, call_until())
        await self._warn_of_eviction()
        if self._watch is not None:
            self._watch.start()
        # Note the epoch now, so that a later call can tell that the store has lost data since.
        self.pipeline.write(("ZRANGE", *epoch_range(self.keys)), self._first_epoch)
        self._open = True

    def _first_epoch(self, reply: object) -> None:
        if isinstance(reply, list):
            self.epoch.note(find_epoch(reply))

    async def _warn_of_eviction(self) -> None:
        """Warn once about a Redis that evicts keys when it is out of memory. Raises LayerUnavailable."""
        try:
            reply = await self.pipeline.call("INFO", "memory", until=call_until())
        except Refused:  # to a user who may not ask
            return
        memory = dict(line.split(":", 1) for line in reply.decode(errors="replace").split() if ":" in line)
        policy = memory.get("maxmemory_policy", KEEPS_ALL)
        evicts = policy != KEEPS_ALL and memory.get("maxmemory", "0") != "0"
        if evicts and self.entries.mark_logged(f"evicts {self.address}"):
            logger.warning(
                "Redis at %s has the maxmemory-policy %s: when it is full, it drops messages, groups and connections "
                "that wait, silently. Set maxmemory-policy %s",
                self.address,
                policy,
                KEEPS_ALL,
            )

    def _on_up(self) -> None:
        last, self._run_id = self._run_id, self.pipeline.run_id
        if last and last != self._run_id:
            self.outbox.on_data_lost()

    async def close(self) -> None:
        """Close the connections, after everything that was written before, and stop opening others."""
        self.closed = True
        if connecting := self._opening.get(""):
            connecting.cancel()  # it may take seconds, and nothing was written yet
        if self._opening:
            await asyncio.wait(self._opening.values())
        await self.outbox.close()
        if self.on_close is not None:
            await self.on_close()
        await self.reader.close()
        if self._watch is not None:
            await self._watch.close()
        if self._open:
            await self.pipeline.drain()
        if self._linked:  # also if the first commands were cancelled above
            await self.pipeline.close()

    async def send(self, channel: str, message: bytes, delay: float, until: float) -> bool:
        """Add a packed message to an ordinary channel. Return False if it is full. Raises LayerUnavailable."""
        keys, call = self.keys, self.pipeline.call
        names = keys.messages(channel), keys.delayed(channel), keys.counts(channel)
        entry = self.entries.seal(names[0], message)
        limits = self._expiry, COUNTED_MS, self.settings.capacity_of(channel)
        later = (round(delay * 1000), secrets.token_hex(8)) if delay else ()
        if not delay and await call(
            "EVAL", scripts.CHANNEL_SEND, 3, *names, entry, *limits, until=until, repeatable=False, at_once=True
        ):
            return True
        script = scripts.CHANNEL_SEND_CHECKED
        return bool(await call("EVAL", script, 3, *names, entry, *limits, *later, until=until, repeatable=False))

    async def post(self, mailbox: str, frame: Frame, until: float) -> bool:
        """Write a frame to a mailbox. Return False if the process of the mailbox is gone.

        Raises:
            LayerUnavailable: Redis cannot be reached in time, or the process lives and its mailbox is missing.
        """
        # All attempts have one number. The first may have been read before Redis lost the mailbox, and its reply.
        entry = self.outbox.pack(mailbox, frame)

        async def send() -> bool | None:
            return await self.outbox.send(mailbox, entry, until) or None

        return bool(await self.regroup.send_to_mailbox(mailbox, send, until))


class Regroup:
    """Wait until processes are back in their places after Redis has lost its data, or a mailbox alone."""

    def __init__(self, pipeline: Pipeline, keys: Keys, epoch: Epoch) -> None:
        self._loop = asyncio.get_running_loop()
        self._pipeline = pipeline
        self._keys = keys
        self._epoch = epoch

    async def wait(self, members: Sequence[bytes], now: int, until: float) -> bool:
        """Wait until all processes have had time to join their groups in this epoch, or for a part of that time.

        Args:
            members: Members of the set of processes; one of them is the epoch.
            now: The time by Redis's clock, in ms.
            until: When to give up, by the event loop's clock.

        Returns:
            Whether it waited: then read the epoch again.

        Raises:
            LayerUnavailable: They will not have joined in time.
        """
        name, run_id = find_epoch(members), self._pipeline.run_id
        wait = self._epoch.use(name, run_id, now)
        if not wait:
            return False
        if self._loop.time() + wait + CHECK_SECONDS > until:
            if not self._epoch.is_gone(now):
                raise LayerUnavailable("Redis has lost its data, and its members are not back: nothing was sent")
            self._epoch.forget(name, run_id)  # no process is on the bus any more, so none misses anything
            return False
        await asyncio.sleep(wait)
        return True

    async def recreate_group(self, key: str, until: float) -> None:
        """Let the members of a group join again, as its key has another type. Raises LayerUnavailable.

        Without an epoch, the next heartbeat begins one, and all processes on the bus join their groups again.
        """
        call = self._pipeline.call
        if await call("EVAL", scripts.DROP_OTHER_TYPE, 1, key, "zset", until=until):
            await call("ZREMRANGEBYSCORE", self._keys.processes, "+inf", "+inf", until=until)

    async def send_to_mailbox(self, mailbox: str, send: Callable[[], Awaitable[T | None]], until: float) -> T | None:
        """Send to a mailbox. If the mailbox is missing, wait for as long as its process may create it again.

        A living process lacks its mailbox when Redis has lost data, its clock has jumped, or it has evicted keys.

        Args:
            mailbox: The mailbox.
            send: Sends, and returns None if the mailbox does not exist.
            until: When to give up, by the event loop's clock.

        Returns:
            The result of `send`; None if the process of the mailbox is gone.

        Raises:
            LayerUnavailable: The process is alive, and its mailbox is not back in time.
        """
        answer: T | None = None
        wrong_type = False
        try:
            answer = await send()
        except Refused as error:
            if not error.wrong_type:
                raise
            wrong_type = True
        if wrong_type:
            # The process creates missing keys again at its next heartbeat, but may not notice keys of another type.
            for key, kind in ((self._keys.mailbox(mailbox), "stream"), (self._keys.full(mailbox), "set")):
                await self._pipeline.call("EVAL", scripts.DROP_OTHER_TYPE, 1, key, kind, until=until)
        began = self._loop.time()
        while answer is None:
            run_id = self._pipeline.run_id
            arguments = self._keys.processes, mailbox, round(SILENT_SECONDS * 1000)
            now, runs, silent, members = await self._pipeline.call(
                "EVAL", scripts.LEASE_RUNS, 1, *arguments, until=until
            )
            if run_id == self._pipeline.run_id and not await self.wait(members, now, until):
                late = self._loop.time() - began > MISSING_SECONDS
                if not runs or (silent and late):  # there was no heartbeat of any process meanwhile
                    return None
                if late:
                    raise LayerUnavailable(
                        f"the mailbox {mailbox} is missing, though its process lives: it got nothing"
                    )
                await asyncio.sleep(MISSING_CHECK_SECONDS)
            answer = await send()
        return answer


class Shard:
    """One store of a layer, with the client of each event loop."""

    def __init__(
        self, address: Address, prefix: str, entries: EntryCodec, settings: LayerSettings, counts: Counter[str]
    ) -> None:
        self.address = address
        self._hash_key = blake2b(address.identity.encode(), digest_size=32).digest()
        self.keys = Keys(prefix + f"{{{address.tag}}}" if address.tag else prefix)
        self._entries = entries
        self._settings = settings
        self._counts = counts
        self._lock = threading.Lock()
        self._clients: dict[asyncio.AbstractEventLoop, StoreClient] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._reached = False

    async def client(self, until: float | None = None) -> StoreClient:
        """Return the client of the running event loop, which is connected at the first call.

        Args:
            until: When to stop trying to connect, by the event loop's clock, if this layer has been connected before:
                then its address is right, and the store is away. Otherwise there is one attempt.

        Raises:
            LayerUnavailable: The store cannot be reached.
        """
        running = asyncio.get_running_loop()
        client = self._clients.get(running)
        if client is None:
            with self._lock:
                for loop in [loop for loop in self._clients if loop.is_closed()]:
                    del self._clients[loop]  # it ended without `close`, and its tasks and sockets with it
                epochs = (each.epoch for each in self._clients.values())
                epoch = max(epochs, key=lambda each: each.used, default=None)
                client = self._clients[running] = StoreClient(
                    self.address, self.keys, self._entries, self._settings, self._counts, epoch
                )
        while True:
            try:
                await client.open()
            except LayerUnavailable:
                late = until is None or running.time() + RETRY_SECONDS > until
                if late or not self._reached or self._clients.get(running) is not client:
                    raise
            else:
                self._reached = True
                return client
            await asyncio.sleep(RETRY_SECONDS)

    def weight(self, name: bytes) -> bytes:
        """Return the weight of this store for a name. The store with the highest weight has the name."""
        return blake2b(name, key=self._hash_key, digest_size=8).digest()

    def serves(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether that event loop has a client here."""
        return loop in self._clients

    def has_mailbox(self) -> bool:
        """Return whether the running event loop reads the mailbox of process-local channels from this store."""
        client = self._clients.get(asyncio.get_running_loop())
        return client is not None and client.on_close is not None

    def forget(self) -> None:
        """Renew the lock after a fork: another thread of the parent process may have had it."""
        self._lock = threading.Lock()

    async def close(self) -> None:
        """Close the client of the running event loop. If the call is cancelled, closing goes on by itself."""
        with self._lock:
            client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            closing = asyncio.create_task(client.close(), name="asgibus close")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            await asyncio.shield(closing)


class Shards(Sequence[Shard]):
    """All stores of a layer."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = list(shards)
        self.shard_for: Callable[[str], Shard] = (
            lru_cache(NAMES)(self._rendezvous) if len(self._shards) > 1 else self._only
        )
        """Return the store of a channel, a mailbox or a group, by its name."""

    def __len__(self) -> int:
        return len(self._shards)

    def __iter__(self) -> Iterator[Shard]:
        return iter(self._shards)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # as a list does
        return self._shards[index]

    async def client_of(self, name: str, until: float | None = None) -> StoreClient:
        """Return the client of the store of a channel, a mailbox or a group: see `Shard.client`."""
        return await self.shard_for(name).client(until)

    def clients(self) -> Iterator[Coroutine[Any, Any, StoreClient]]:
        """Yield calls that return the clients of all stores: see `Shard.client`."""
        return (shard.client() for shard in self._shards)

    @property
    def home(self) -> Shard:
        """The store with the leases, mailboxes and work queues of the servers."""
        return self.shard_for(HOME)

    async def any_available(self) -> Shard:
        """Return a random store that the running event loop can reach. Raises LayerUnavailable if there is none."""
        shards = random.sample(self._shards, len(self._shards))
        for shard in shards[:-1]:
            with suppress(LayerUnavailable):
                if (await shard.client()).outage.available:
                    return shard
        await shards[-1].client()
        return shards[-1]

    def new_mailbox(self, role: str, shard: Shard) -> str:
        """Return a new mailbox name that belongs to this store."""
        while self.shard_for(mailbox := new_mailbox(role)) is not shard:
            pass
        return mailbox

    def new_process(self, shard: Shard) -> str:
        """Return a new id for a process with process-local channels, whose mailbox belongs to this store."""
        while self.shard_for(channels_mailbox(process := new_process())) is not shard:
            pass
        return process

    async def close(self) -> None:
        """Close all clients of the running event loop."""
        # The mailbox first: it leaves groups, and gives leases back, through the connections to the other stores.
        for shard in sorted(self._shards, key=Shard.has_mailbox, reverse=True):
            await shard.close()

    def _only(self, name: str) -> Shard:
        return self._shards[0]

    def _rendezvous(self, name: str) -> Shard:
        encoded = name.encode()
        return max(self._shards, key=lambda shard: shard.weight(encoded))
