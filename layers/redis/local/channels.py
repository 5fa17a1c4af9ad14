"""The process-local channels of a layer object, and the background loop in which their mailbox is read.

A process has one mailbox for all of its channels, whatever their prefixes and the event loops in which they were made.
So a name may be made in one event loop and received from in another, as synchronous code does that calls each by
`async_to_sync`, and a further prefix costs nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Any, Protocol, TypeVar

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.names import channels_mailbox, require_channel
from asgibus.layers.over_capacity import OverCapacity
from asgibus.layers.redis.bus import RedisBus
from asgibus.layers.redis.local.borrower import Borrowers
from asgibus.layers.redis.local.inbox import Inbox
from asgibus.layers.redis.presence.reader import PresenceReader
from asgibus.layers.redis.store import Shard, Shards, StoreClient

T = TypeVar("T")
Close = Callable[[], Coroutine[Any, Any, None]]

# For so long after its first call, an event loop may be one of `async_to_sync`, which ends at once. Later it gets
# connections of its own, which is quicker than a call into another thread.
YOUNG_SECONDS = 1.0
STOP_SECONDS = 5.0  # for the thread to end
LEAVE_SECONDS = 1.0  # for the lease to be given back when the interpreter ends without a `close`


class BackgroundLoop:
    """An event loop in a thread, for callers whose loop may be about to end.

    `async_to_sync` makes a loop for each call. Connections that belonged to such a loop would be opened and closed with
    it. The thread starts at the first use in each process, and ends by `close` or with the interpreter.
    """

    def __init__(self, end: Close) -> None:
        """Prepare to start the thread.

        Args:
            end: Awaited in the loop before it ends. It must not refer to this object.
        """
        self._end = end
        self._lock = threading.Lock()
        self._thread: _Thread | None = None
        self._calls: Counter[asyncio.AbstractEventLoop] = Counter()
        self._held: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self._first: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, float] = weakref.WeakKeyDictionary()

    def should_run_here(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether the calls of an event loop are made here, because its first call was a moment ago."""
        if self._thread is not None and loop is self._thread.loop:
            return False
        now = time.monotonic()
        return now - self._first.setdefault(loop, now) < YOUNG_SECONDS

    def hold(self) -> None:
        """Keep the thread until the running event loop has ended, or calls `close`."""
        loop = asyncio.get_running_loop()
        if loop not in self._held and not (self._thread is not None and loop is self._thread.loop):
            with self._lock:
                self._held.add(loop)

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await `work()` in the background loop. Cancelling the call cancels the work."""
        caller = asyncio.get_running_loop()
        with self._lock:
            if self._thread is None:
                self._start()
            assert self._thread is not None
            here = caller is self._thread.loop
            if not here:
                self._calls[caller] += 1
                future = asyncio.run_coroutine_threadsafe(work(), self._thread.loop)
        if here:
            return await work()
        try:
            return await asyncio.wrap_future(future)
        finally:
            with self._lock:
                self._calls[caller] -= 1
                if not self._calls[caller]:
                    del self._calls[caller]

    def _start(self) -> None:
        self._calls.clear()
        self._held.clear()
        self._thread = _Thread(self._end)
        self._finalizer = weakref.finalize(self, self._thread.end_and_wait)
        self._thread.start()

    def forget(self) -> None:
        """Forget the thread, after a fork: it runs in the parent process only. Another thread may have the lock."""
        self._lock = threading.Lock()
        if self._thread is not None:
            self._finalizer.detach()
            self._thread = None

    async def close(self) -> None:
        """End the thread, unless other event loops use it, and wait for that. It can be used again afterwards.

        If this call is cancelled, the thread ends all the same.
        """
        caller = asyncio.get_running_loop()
        with self._lock:
            self._held.discard(caller)
            thread = self._thread
            if thread is None or thread.loop is caller:
                return
            others = {*self._calls, *self._held} - {caller}
            if any(not loop.is_closed() for loop in others):
                return
            self._thread = None
            self._calls.clear()
            self._finalizer.detach()
        thread.stop()
        await asyncio.wrap_future(thread.ended)


class _Thread(threading.Thread):
    """The thread of a `BackgroundLoop`."""

    def __init__(self, end: Close) -> None:
        super().__init__(name="asgibus layer", daemon=True)
        # Other threads read the clock of this loop, and that of uvloop stands still while the loop waits.
        self.loop: asyncio.AbstractEventLoop = asyncio.SelectorEventLoop()
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()  # a waiter that gives up cannot cancel it
        self._end = end
        self._seconds: float | None = None

    def run(self) -> None:
        """Run the loop until `stop`, then await `end`, and cancel the tasks that are left."""
        loop = self.loop
        loop.run_forever()
        try:
            loop.run_until_complete(self._close())
            for task in (tasks := asyncio.all_tasks(loop)):
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks))
            loop.run_until_complete(asyncio.sleep(0))  # one turn, in which sockets are closed
            loop.close()
        finally:
            self.ended.set_result(None)

    async def _close(self) -> None:
        closing = asyncio.create_task(self._end())
        await asyncio.wait([closing], timeout=self._seconds)

    def stop(self, seconds: float | None = None) -> None:
        """Ask the thread to end. `seconds` limits how long `end` may take."""
        self._seconds = seconds
        self.loop.call_soon_threadsafe(self.loop.stop)

    def end_and_wait(self) -> None:
        """End the thread because its layer is gone, or the interpreter ends."""
        if self.is_alive():
            self.stop(LEAVE_SECONDS)
            if self is not threading.current_thread():  # any thread may collect garbage
                self.join(STOP_SECONDS)


class LocalStreams(Protocol):
    """The streams of a layer, as its process-local channels see them."""

    def data_may_be_lost(self) -> None:
        """Handle that the store may have lost its data."""

    async def end_streams_of(self, mailbox: str) -> None:
        """End the streams that a dead process was writing. Raises LayerUnavailable."""


class LocalChannels:
    """The process-local channels of one layer object. All methods may be called in several event loops at once."""

    def __init__(
        self, shards: Shards, background_loop: BackgroundLoop, over_capacity: OverCapacity, presence: PresenceReader
    ) -> None:
        """Prepare to open the mailbox, which the first use does.

        Args:
            shards: The stores of the layer.
            background_loop: Where the mailbox is read.
            over_capacity: Counts and logs the messages that full channels miss.
            presence: Reads who is in a group.
        """
        self._shards = shards
        self._presence = presence
        self._background_loop = background_loop
        self._over_capacity = over_capacity
        self._lock = threading.Lock()
        self._process = ""
        self._mailbox = ""
        self._numbers = count(1)
        self._inbox: Inbox | None = None
        self._bus: RedisBus | None = None
        self._client: StoreClient | None = None  # of the bus
        self._borrowers = Borrowers()
        self.streams: LocalStreams
        """The streams of the layer, to be set before the first use."""
        _all.add(self)

    @property
    def process(self) -> str:
        """The id of this process, which is before the `!` in the names of its channels. A fork has another one."""
        with self._lock:
            if not self._process:
                self._name(random.choice(self._shards))
            return self._process

    def get_inbox(self) -> Inbox | None:
        """Return the messages of the channels, or None if the mailbox has to be opened.

        The background loop is kept then for the running event loop, too.
        """
        inbox = self._inbox
        if inbox is None or inbox.closed:
            return None
        if self._borrowers.note(asyncio.get_running_loop()):
            self._background_loop.hold()
        return inbox

    def has(self, mailbox: str) -> bool:
        """Return whether this is the mailbox of these channels."""
        return mailbox == self._mailbox

    async def open(self) -> Inbox:
        """Open the mailbox, if it is not open, and return its messages. Raises LayerUnavailable."""
        await self._background_loop.run(self._open)
        inbox = self.get_inbox()
        if inbox is None:
            raise LayerUnavailable("the layer was closed")
        return inbox

    async def new(self, prefix: str) -> str:
        """Return a new, unique channel name. Raises TypeError for a prefix that is not valid, LayerUnavailable."""
        require_channel(prefix)
        if self.get_inbox() is None:
            await self.open()
        return require_channel(f"{prefix}.{self._process}!{next(self._numbers)}")

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel to a group, and add it again if the store loses that. Raises LayerUnavailable."""

        async def add() -> None:
            await (await self._open()).add_channel(group, channel)

        await self._background_loop.run(add)

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove a channel from a group. Raises LayerUnavailable."""

        async def discard() -> None:
            await (await self._open()).discard_channel(group, channel)

        await self._background_loop.run(discard)

    async def clear(self) -> None:
        """Drop every message of the channels, and forget their memberships; those in the store stay."""

        async def clear() -> None:
            bus = await self._open()
            if self._inbox is not None:
                self._inbox.clear()
            bus.clear()

        if self.get_inbox() is not None:
            await self._background_loop.run(clear)

    async def _open(self) -> RedisBus:
        if not self._process:
            shard = await self._shards.any_available()
            with self._lock:
                if not self._process:
                    self._name(shard)
        client = await self._shards.shard_for(self._mailbox).client()
        if self._client is not client:
            await client.once("channels", partial(self._open_bus, client))
        if self._bus is None or client.closed:
            raise LayerUnavailable("the layer was closed")
        return self._bus

    async def _open_bus(self, client: StoreClient) -> None:
        inbox = Inbox(client.settings.expiry, self._over_capacity)
        find_borrower = partial(self._borrowers.find, self._shards.shard_for(self._mailbox), self._mailbox)
        inbox.on_interrupted = self.streams.data_may_be_lost
        end_streams_of = self.streams.end_streams_of
        presence = self._presence
        bus = RedisBus(client, self._shards, self._mailbox, inbox, presence, inbox, find_borrower, end_streams_of)
        inbox.on_bus(bus)

        async def close() -> None:
            inbox.close()
            await bus.close()

        try:
            await bus.open()
        except BaseException:
            await close()
            raise
        client.on_close = close
        self._client, self._bus, self._inbox = client, bus, inbox

    def _name(self, shard: Shard) -> None:
        self._process = self._shards.new_process(shard)
        self._mailbox = channels_mailbox(self._process)

    def forget(self) -> None:
        """Forget the mailbox and the background loop, and renew locks, after a fork."""
        self._background_loop.forget()
        for shard in self._shards:
            shard.forget()
        self._lock = threading.Lock()
        self._process = self._mailbox = ""
        self._borrowers = Borrowers()
        self._inbox = self._bus = self._client = None


_all: weakref.WeakSet[LocalChannels] = weakref.WeakSet()


def _forget() -> None:
    for channels in list(_all):
        channels.forget()


os.register_at_fork(after_in_child=_forget)
