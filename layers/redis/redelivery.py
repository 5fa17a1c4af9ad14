"""Messages for mailboxes, kept for a moment by whoever sent them: if Redis loses its data, they are sent again.

Redis holds such a message for milliseconds, until its reader has it: what it loses in them would be lost without a
word. Each message carries the name of its source and a number, so that a reader takes it once.
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
from asgibus.layers.redis.codec import Entries
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.pipeline import PAYLOAD_VERSION, Writer

logger = logging.getLogger("asgibus.layers")

KEPT_ENTRIES = 1000  # of one source; a reader knows as many of it, and so takes none of them twice
KEPT_BYTES = 256 * 1024  # of one source: more falls out of the processor's caches, which costs more than the keeping
READ_SECONDS = (
    5.0  # a message that was sent so long before the last one of its source has been read, or its reader hangs
)
PATIENCE_SECONDS = 5.0  # for the mailboxes to be back: a link comes back within 2 s, and a mailbox within a second
LOOK_AGAIN_SECONDS = 0.25  # until it is looked again whether a mailbox is back
# Readers remember the numbers of a source for so long. No message is sent again later: one that is kept is sent again
# for `expiry` or RESEND_SECONDS, and one that is being written when Redis goes away for as long as its sender waits (a
# worker's for 60 s).
REPEAT_SECONDS = 120.0
RESEND_SECONDS = 100.0
SOURCES = 1024  # whose numbers a reader knows; the one not heard of for longest is forgotten


class _Kept(NamedTuple):
    sent: float
    mailbox: str
    entry: bytes


class Sent:
    """What one event loop sends to mailboxes, at most once each. All methods are called from that loop."""

    def __init__(self, writer: Writer, keys: Keys, entries: Entries, counts: Counter[str], expiry: float) -> None:
        """`expiry`: the seconds for which a message may be delivered."""
        self._loop = asyncio.get_running_loop()
        self._expiry = min(expiry, RESEND_SECONDS)
        self._keys = keys
        self._entries = entries
        self._writer = writer
        self._counts = counts
        self._source = secrets.token_hex(8)
        self._number = 0
        self._kept: deque[_Kept] = deque()
        self._bytes = 0
        self._lost: dict[str, deque[_Kept]] = {}  # to be sent again, by mailbox
        self._order = asyncio.Lock()  # one after another sends something again
        self._repeating: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Send nothing again any more."""
        if self._repeating is not None:
            self._repeating.cancel()
            await asyncio.wait([self._repeating])

    async def send(self, mailbox: str, frame: Frame, until: float) -> bool:
        """Write the frame as one entry, behind what is to be sent there again; False if there is no such mailbox.

        Raises LayerUnavailable, at the time `until` of the event loop's clock at the latest.
        """
        entry = self._entry(mailbox, frame)
        if mailbox in self._lost and not await self._repeat(mailbox, until):
            return False
        return await self._add(_Kept(self._loop.time(), mailbox, entry), until)

    def lost(self) -> None:
        """Send again what may not have been read: Redis has lost its data, or was replaced.

        The time that Redis was away does not matter, since nobody could read then: a message is sent again for as long
        as it may be delivered. One that is older, and was not long before the last one, is counted as lost.
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
        if self._lost and (self._repeating is None or self._repeating.done()):
            self._repeating = asyncio.create_task(self._repeat_all(), name="asgibus repeat")

    async def _repeat_all(self) -> None:
        until = self._loop.time() + PATIENCE_SECONDS
        while self._lost:
            for mailbox in list(self._lost):
                try:
                    await self._repeat(mailbox, until)
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

    async def _repeat(self, mailbox: str, until: float) -> bool:
        """Send there again what may be lost, in order. False if the mailbox is not back."""
        async with self._order:
            while messages := self._lost.get(mailbox):
                if not await self._add(messages[0], until):
                    return False
                self._counts["message repeated"] += 1
                messages.popleft()
            self._lost.pop(mailbox, None)
        return True

    def _entry(self, mailbox: str, frame: Frame) -> bytes:
        self._number += 1
        numbered = MESSAGE_ID, self._source, self._number
        return self._entries.pack(self._keys.mailbox(mailbox), (PAYLOAD_VERSION, "", (numbered, frame)))

    async def _add(self, kept: _Kept, until: float) -> bool:
        key = self._keys.mailbox(kept.mailbox)
        added = await self._writer.call("XADD", key, "NOMKSTREAM", "*", "b", kept.entry, until=until)
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
    """The numbers that came from one source, the last ones, in the order in which they came.

    `highest` of them; `heard`: when the last one came.
    """

    __slots__ = ("heard", "highest", "numbers")

    def __init__(self) -> None:
        self.numbers = array("Q")
        self.highest = 0
        self.heard = 0.0

    def is_new(self, number: int) -> bool:
        """Note a number; return whether it is not among the last ones."""
        if number > self.highest:
            self.highest = number
        elif number in self.numbers:  # nearly never looked for: numbers rise but for what is sent again
            return False
        self.numbers.append(number)
        if len(self.numbers) > 2 * KEPT_ENTRIES:
            del self.numbers[:KEPT_ENTRIES]
        return True


class Taken:
    """Which numbered messages the reader of a mailbox has had.

    Times are those of Redis, which it gives to entries, in seconds: they say what has been read, also when this
    process was paused meanwhile.
    """

    def __init__(self) -> None:
        self._sources: OrderedDict[str, _Source] = OrderedDict()  # those not heard of for longest first

    def __len__(self) -> int:
        """Return of how many sources numbers are known."""
        return len(self._sources)

    def once(self, frames: Sequence[Frame], at: float) -> tuple[Sequence[Frame], bool]:
        """Return the frames of an entry without its number, and whether it was there before.

        `at`: when the entry was written. Raises ValueError for a number that is none.
        """
        if not frames or frames[0][0] != MESSAGE_ID:
            return frames, False
        _, name, number = frames[0]
        if not isinstance(number, int) or not 0 < number < 2**63:
            raise ValueError(f"not a number of a message: {str(number)[:100]}")
        source = self._sources.get(name)
        if source is None:
            source = self._sources[name] = _Source()
            if len(self._sources) > SOURCES:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(name)
        source.heard = at
        new = source.is_new(number)
        self.read_until(at)
        return frames[1:], not new

    def read_until(self, at: float) -> None:
        """Forget the sources that can send nothing again, now that all has been read that was written before then."""
        sources = self._sources
        while sources and next(iter(sources.values())).heard < at - REPEAT_SECONDS:
            sources.popitem(last=False)


REGROUP_SECONDS = 3.0  # for all processes to join again: a link comes back within 2 s, then the lease is renewed
EPOCH_CHECK_SECONDS = 0.1  # until the store is checked again for a heartbeat
NAME = re.compile(rb"epoch:(?P<begun>[0-9]{1,15})(?::(?P<run_id>[0-9a-f]*)(?P<again>:again)?)?\Z")


class Begun(NamedTuple):
    """The parts of an epoch's name."""

    at: int
    """When it began, by Redis's clock in ms."""
    run_id: str
    """Run id of the Redis server on which it began; empty if that is not known."""
    again: bool
    """Whether data of an earlier epoch was there, so that members may be missing for a while."""


def find_epoch(members: Iterable[bytes]) -> bytes:
    """Return the name of the epoch from members of the set of processes; empty if there is none."""
    return next((member for member in members if NAME.match(member)), b"")


def _read(epoch: bytes) -> Begun | None:
    found = NAME.match(epoch)
    if found is None:
        return None
    return Begun(int(found["begun"]), (found["run_id"] or b"").decode(), bool(found["again"]))


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

    def seen(self, epoch: bytes) -> None:
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
    """The messages that one event loop is sending to one store.

    Usually each is gone within a millisecond. While the store is away they wait, and beyond the bound the senders of
    further ones wait in their turn, with nothing written. There are also no more of them than a reader remembers, since
    all that was in flight when the connection broke is written again.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: in bytes. A single message may exceed it."""
        self._limit = limit
        self._least = -(-limit // KEPT_ENTRIES)
        self._size = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    async def enter(self, size: int, until: float) -> int:
        """Wait until there is room for a message, and take it.

        Args:
            size: Bytes of the message.
            until: When to give up, by the event loop's clock.

        Returns:
            What to `leave` when the message is sent, or given up.

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
        self._let_in()

    async def _wait(self, size: int, until: float) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append((future, size))
        timer = loop.call_at(until, _give_up, future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it was let in, and its caller cancelled, in the same moment
                self.leave(size)
            raise
        finally:
            timer.cancel()

    def _let_in(self) -> None:
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
