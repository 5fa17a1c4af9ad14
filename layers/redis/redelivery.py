"""Redelivery of messages when Redis loses its data, and the epoch by which that is noticed.

Redis holds a message to a mailbox for milliseconds, until its reader has it. If Redis loses its data in that time, the
message would be lost without notice. So its sender keeps it for a while, and sends it again if Redis has lost its data.
Each message has the name of its source and a number, by which a reader drops copies.

The *epoch* is a name in the store, beside the leases. The first heartbeat in an empty store begins an epoch. So does
the first heartbeat on another Redis server (with another run id) that took over the data: a replica after a failover,
or a server that was started from a snapshot, has the data of an earlier moment. When an epoch begins, the processes on
the bus have not joined their groups again yet, so a broadcast waits until they have had time to do so.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from asgibus.layers.contract import Frame
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.frames import MESSAGE_ID
from asgibus.layers.redis.codec import EntryCodec
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.pipeline import PAYLOAD_VERSION, Pipeline

logger = logging.getLogger("asgibus.layers")

KEPT_ENTRIES = 1000  # messages kept per source; a reader remembers as many numbers, and so accepts none twice
KEPT_BYTES = 256 * 1024  # of messages kept per source: more would not fit into the processor's caches
READ_SECONDS = 5.0  # a message that is older than the last one of its source by this much was read, or its reader hangs
PATIENCE_SECONDS = 5.0  # for the mailboxes to be back: a link comes back within 2 s, and a mailbox within a second
LOOK_AGAIN_SECONDS = 0.25  # until the next attempt for a mailbox that is missing
RESEND_SECONDS = 100.0  # after which a kept message is not sent again; sooner if its `expiry` is shorter
# For how long a reader remembers the numbers of a source. No message is sent again later: a kept one is not, by
# RESEND_SECONDS, and one that is being written when Redis goes away is not once its sender gives up (60 s in a worker).
REPEAT_SECONDS = 120.0
SOURCES = 1024  # whose numbers a reader remembers; the least recent one is forgotten

REGROUP_SECONDS = 3.0  # for all processes to join again: a link comes back within 2 s, then the lease is renewed
EPOCH_CHECK_SECONDS = 0.1  # until the store is checked again for a heartbeat
EPOCH = re.compile(rb"epoch:(?P<begun>[0-9]{1,15})(?::(?P<run_id>[0-9a-f]*)(?P<again>:again)?)?\Z")


class _Kept(NamedTuple):
    sent: float
    mailbox: str
    entry: bytes


class Outbox:
    """Send messages to mailboxes, and keep them to send them again. All methods are called from one event loop."""

    def __init__(
        self, pipeline: Pipeline, keys: Keys, entries: EntryCodec, counts: Counter[str], expiry: float
    ) -> None:
        """Take from `expiry` for how many seconds a message may be delivered."""
        self._loop = asyncio.get_running_loop()
        self._expiry = min(expiry, RESEND_SECONDS)
        self._keys = keys
        self._entries = entries
        self._pipeline = pipeline
        self._counts = counts
        self._source = secrets.token_hex(8)
        self._number = 0
        self._kept: deque[_Kept] = deque()
        self._bytes = 0
        self._lost: dict[str, deque[_Kept]] = {}  # messages to send again, by mailbox
        self._order = asyncio.Lock()  # held while messages are sent again
        self._resending: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop sending messages again."""
        if self._resending is not None:
            self._resending.cancel()
            await asyncio.wait([self._resending])

    def pack(self, mailbox: str, frame: Frame) -> bytes:
        """Return a message to a mailbox as an entry with a number of its own: it may be sent several times."""
        self._number += 1
        numbered = MESSAGE_ID, self._source, self._number
        return self._entries.pack(self._keys.mailbox(mailbox), (PAYLOAD_VERSION, "", (numbered, frame)))

    async def send(self, mailbox: str, entry: bytes, until: float) -> bool:
        """Write an entry, after all messages that are to be sent to this mailbox again.

        Args:
            mailbox: The mailbox.
            entry: The entry, of `pack`.
            until: When to give up, by the event loop's clock.

        Returns:
            Whether the mailbox exists.

        Raises:
            LayerUnavailable: Redis cannot be reached in time.
        """
        if mailbox in self._lost and not await self._resend(mailbox, until):
            return False
        return await self._add(_Kept(self._loop.time(), mailbox, entry), until)

    def on_data_lost(self) -> None:
        """Send messages again that may not have been read, since Redis has lost its data or was replaced.

        The time for which Redis was away does not matter, since no process could read then: a message is sent again for
        as long as it may be delivered. An older one is counted as lost, unless it was read before Redis went away.
        """
        expired = self._loop.time() - self._expiry
        read = self._kept[-1].sent - READ_SECONDS if self._kept else 0.0
        too_old: Counter[str] = Counter()
        for kept in self._kept:
            if kept.sent >= expired:
                self._lost.setdefault(kept.mailbox, deque()).append(kept)
            elif kept.sent >= read:
                too_old[kept.mailbox] += 1
        self._kept.clear()
        self._bytes = 0
        for mailbox, count in too_old.items():
            self._count_lost(
                mailbox, count, f"Redis was away for longer than {self._expiry:g} s, and has lost its data"
            )
        if self._lost and (self._resending is None or self._resending.done()):
            self._resending = asyncio.create_task(self._resend_all(), name="asgibus repeat")

    async def _resend_all(self) -> None:
        until = self._loop.time() + PATIENCE_SECONDS
        while self._lost:
            for mailbox in list(self._lost):
                try:
                    await self._resend(mailbox, until)
                except LayerUnavailable as error:
                    logger.debug("%s cannot be sent its messages again yet: %s", mailbox, error)
            if self._loop.time() >= until:
                break
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
        for mailbox in list(self._lost):
            count = len(self._lost.pop(mailbox))
            self._count_lost(mailbox, count, "Redis has lost its data, and that process is not back")

    def _count_lost(self, mailbox: str, count: int, reason: str) -> None:
        self._counts["message lost"] += count
        logger.warning("%d messages to %s may be lost: %s", count, mailbox, reason)

    async def _resend(self, mailbox: str, until: float) -> bool:
        """Send the messages of a mailbox again, in order. Return False if the mailbox is not back."""
        async with self._order:
            while messages := self._lost.get(mailbox):
                if not await self._add(messages[0], until):
                    return False
                self._counts["message repeated"] += 1
                messages.popleft()
            self._lost.pop(mailbox, None)
        return True

    async def _add(self, kept: _Kept, until: float) -> bool:
        key = self._keys.mailbox(kept.mailbox)
        added = await self._pipeline.call("XADD", key, "NOMKSTREAM", "*", "b", kept.entry, until=until, at_once=True)
        if added is None:
            return False
        self._keep(kept)
        return True

    def _keep(self, kept: _Kept) -> None:
        self._kept.append(kept)
        self._bytes += len(kept.entry)
        while self._bytes > KEPT_BYTES or len(self._kept) > KEPT_ENTRIES:
            self._bytes -= len(self._kept.popleft().entry)


class _Source:
    """The latest numbers of one source, in the order in which they came."""

    __slots__ = ("highest", "last_at", "numbers")

    def __init__(self) -> None:
        self.numbers = array("Q")
        self.highest = 0
        self.last_at = 0.0  # when the last one came

    def is_new(self, number: int) -> bool:
        """Note a number. Return whether it is not among the latest ones."""
        if number > self.highest:
            self.highest = number
        elif number in self.numbers:  # rarely searched: numbers rise, except when messages are sent again
            return False
        self.numbers.append(number)
        if len(self.numbers) > 2 * KEPT_ENTRIES:
            del self.numbers[:KEPT_ENTRIES]
        return True


class Deduplicator:
    """Drop copies of messages that the reader of a mailbox has had.

    Times are those that Redis gives to entries, in seconds: they tell what has been read, also if this process was
    paused meanwhile.
    """

    def __init__(self) -> None:
        self._sources: OrderedDict[str, _Source] = OrderedDict()  # the least recent first

    def __len__(self) -> int:
        """Return the number of sources that are remembered."""
        return len(self._sources)

    def export(self) -> list[tuple[str, float, int, bytes]]:
        """Return the sources and their numbers, as `restore` takes them."""
        return [
            (name, source.last_at, source.highest, source.numbers.tobytes()) for name, source in self._sources.items()
        ]

    def restore(self, sources: Iterable[tuple[str, float, int, bytes]]) -> None:
        """Remember what the reader of the mailbox in another process has had: the result of `export` there."""
        for name, last_at, highest, numbers in sources:
            source = self._sources[name] = _Source()
            source.last_at, source.highest = last_at, highest
            source.numbers.frombytes(numbers)

    def check(self, frames: Sequence[Frame], at: float) -> tuple[Sequence[Frame], bool]:
        """Check the number of an entry.

        Args:
            frames: The frames of the entry.
            at: When the entry was written.

        Returns:
            The frames without the number, and whether the entry is a copy.

        Raises:
            ValueError: The number is not valid.
        """
        if not frames or frames[0][0] != MESSAGE_ID:
            return frames, False
        name, number = frames[0][1:3]  # later releases may add items
        if not isinstance(number, int) or not 0 < number < 2**63:
            raise ValueError(f"not a number of a message: {str(number)[:100]}")
        source = self._sources.get(name)
        if source is None:
            source = self._sources[name] = _Source()
            if len(self._sources) > SOURCES:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(name)
        source.last_at = at
        new = source.is_new(number)
        self.forget_before(at)
        return frames[1:], not new

    def forget_before(self, at: float) -> None:
        """Forget sources that can send nothing again, as everything written before that time has been read."""
        sources = self._sources
        while sources and next(iter(sources.values())).last_at < at - REPEAT_SECONDS:
            sources.popitem(last=False)


class _EpochName(NamedTuple):
    """The parts of an epoch's name."""

    at: int
    """When it began, by Redis's clock in ms."""
    run_id: str
    """Run id of the Redis server on which it began; empty if that is not known."""
    again: bool
    """Whether data of an earlier epoch was there, so that members may be missing for a while."""


def find_epoch(members: Iterable[bytes]) -> bytes:
    """Return the name of the epoch from members of the set of processes; empty if there is none."""
    return next((member for member in members if EPOCH.match(member)), b"")


def _read(epoch: bytes) -> _EpochName | None:
    found = EPOCH.match(epoch)
    if found is None:
        return None
    return _EpochName(int(found["begun"]), (found["run_id"] or b"").decode(), bool(found["again"]))


def epoch_range(keys: Keys) -> tuple[str, ...]:
    """Return the arguments of ZRANGE that find the epoch."""
    return keys.processes, "+inf", "+inf", "BYSCORE"


class Epoch:
    """The last epoch that one event loop has used; empty if no process had begun one."""

    def __init__(self, on_lost: Callable[[], None], earlier: Epoch | None) -> None:
        """Begin with the epoch of another event loop that has used the store, if there is one.

        Args:
            on_lost: Called once for each epoch that ended with the data of the store.
            earlier: The epoch of the other event loop.
        """
        self._on_lost = on_lost
        self.used: bytes = earlier.used if earlier is not None else b""
        self._seen = self.used
        # The epoch and the run id in which there is nothing to wait for.
        self._settled: tuple[bytes, str] | None = earlier._settled if earlier is not None else None
        self._absent_since: int | None = None  # when no process had begun an epoch here, by Redis's clock

    def note(self, epoch: bytes) -> None:
        """Note the epoch that a heartbeat has found. Nothing can have been lost before the first one."""
        self._notice(epoch)
        if not self.used and (begun := _read(epoch)) is not None and not begun.again:
            self.used = epoch

    def forget(self, epoch: bytes = b"", run_id: str = "") -> None:
        """Take the next epoch for the first one: the last process has left, or none has come back."""
        self.used = self._seen = b""
        self._settled = (epoch, run_id)
        self._absent_since = None

    def is_gone(self, now: int) -> bool:
        """Return whether no process has begun an epoch, though all had time. `now` is in ms by Redis's clock."""
        return self._absent_since is not None and now - self._absent_since >= REGROUP_SECONDS * 1000

    def _notice(self, epoch: bytes) -> None:
        if epoch and epoch != self._seen:
            lost, self._seen = self._seen, epoch
            if lost:
                self._on_lost()

    def use(self, epoch: bytes, run_id: str, now: int) -> float:
        """Return the seconds to wait until all processes have had time to join again; if 0, the epoch is used.

        Args:
            epoch: The epoch in the store; empty if there is none.
            run_id: The run id of the Redis server; empty if it is not known.
            now: The time by Redis's clock, in ms.
        """
        if self._settled == (epoch, run_id):
            return 0.0
        self._notice(epoch)
        begun = _read(epoch)
        if begun is None:
            if self.used:
                return self._wait_for_heartbeat(now)
        elif begun.run_id and run_id and begun.run_id != run_id:  # the data of another server
            return self._wait_for_heartbeat(now)
        elif begun.again or (self.used and epoch != self.used):
            age = (now - begun.at) / 1000
            if 0 <= age < REGROUP_SECONDS:  # below 0 the clock was put back
                self._absent_since = None
                return REGROUP_SECONDS - age
        self.used = epoch
        self._settled = (epoch, run_id)
        self._absent_since = None
        return 0.0

    def _wait_for_heartbeat(self, now: int) -> float:
        if self._absent_since is None or self._absent_since > now:
            self._absent_since = now
        return EPOCH_CHECK_SECONDS


class Backlog:
    """A bound for the messages that one event loop is sending to one store.

    Usually each message is sent within a millisecond. While the store is away, messages wait, and beyond the bound
    their senders wait before anything is written. The number of messages is bounded, too, to as many as a reader
    remembers, since messages in flight are written again when the connection breaks.
    """

    def __init__(self, limit: int) -> None:
        """Take the bound in bytes, which a single message may exceed."""
        self._limit = limit
        self._least = -(-limit // KEPT_ENTRIES)
        self._size = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    async def enter(self, size: int, until: float) -> int:
        """Wait until there is room for a message.

        Args:
            size: The size of the message, in bytes.
            until: When to give up, by the event loop's clock.

        Returns:
            The size to pass to `leave` when the message is sent, or given up.

        Raises:
            LayerUnavailable: There was no room in time.
        """
        size = max(size, self._least)
        if self._waiting or (self._size and self._size + size > self._limit):
            await self._wait(size, until)
        else:
            self._size += size
        return size

    def leave(self, size: int) -> None:
        """Give the room of a message back."""
        self._size -= size
        self._admit()

    async def _wait(self, size: int, until: float) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append((future, size))
        timer = loop.call_at(until, _give_up, future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it was admitted and its caller cancelled at the same moment
                self.leave(size)
            raise
        finally:
            timer.cancel()

    def _admit(self) -> None:
        while self._waiting:
            future, size = self._waiting[0]
            if not future.done():
                if self._size and self._size + size > self._limit:
                    return
                self._size += size
                future.set_result(None)
            self._waiting.popleft()


def _give_up(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(LayerUnavailable("too much waits for Redis already: nothing was written"))
