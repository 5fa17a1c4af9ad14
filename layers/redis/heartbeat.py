"""The lease of a process in Redis: the heartbeat that renews it, and everything that is learned from it.

Each heartbeat says who else is alive, whether this process's lease had ended, whether Redis has lost data, and when to
come again. One task repairs whatever has to be repaired, one thing after another. A thread extends the lease meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from asgibus.layers.contract import Frame, Handler
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.frames import DEAD
from asgibus.layers.leases import Beat, Leases
from asgibus.layers.names import has_channels, require_channel
from asgibus.layers.redis import scripts
from asgibus.layers.redis.channels import AckingConsumer
from asgibus.layers.redis.client import Outage, background, connect
from asgibus.layers.redis.codec import Entries
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.connection import RedisConnection, RedisError
from asgibus.layers.redis.epoch import Epoch
from asgibus.layers.redis.groups import Memberships
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.mailbox import MailboxReader
from asgibus.layers.redis.pipeline import PAYLOAD_VERSION, Refused, Writer
from asgibus.layers.redis.work_queue import Consumer, Producer

logger = logging.getLogger("asgibus.layers")

LIFE_SECONDS = 5.0  # of a lease that is not renewed
BEAT_SECONDS = 1.0  # how often it is renewed, and how late at most something is noticed that nobody tells us
LATE_SECONDS = 1.0  # a beat that took longer had to wait for Redis, before Redis said what time it is
SOONEST_SECONDS = 0.01  # between two beats that wait for the end of a lease
SILENT_SECONDS = 3.0  # without a beat of anybody: that was the store's fault, or everybody's, and nobody is dead
GRACE_SECONDS = 10.0  # for everybody to renew after that: a link comes back within 2 s, and then beats at once
LISTED_SECONDS = 60.0  # how long an ended lease stays visible, so that everybody learns of it
MAILBOX_SECONDS = 60  # how long a mailbox stays that nobody renews; others remove it sooner
RETURN_SECONDS = 25.0  # how long broadcasts wait for one whose lease has ended: it may hang or be cut off, and return
RETURN_BYTES = 32 * 1024 * 1024  # that may wait for such a one: more would be taken from all others
PATIENCE_SECONDS = 2.5  # for putting things right: then the lease is renewed before it is tried again


class Presence:
    """The lease of one mailbox. `now` is Redis's time at the last beat, in ms."""

    def __init__(
        self,
        mailbox: str,
        keys: Keys,
        entries: Entries,
        outage: Outage,
        writer: Writer,
        reader: MailboxReader,
        memberships: Memberships,
        claimant: Consumer,
        deliveries: AckingConsumer,
        producer: Producer,
        epoch: Epoch,
        deaths: dict[str, int],
        handler: Handler,
        keeper: LeaseKeeper | None,
        *,
        bounded: bool,
    ) -> None:
        """`keeper` keeps the lease while the event loop is busy; `bounded`: the channels have a capacity."""
        self.now = 0
        self.live: frozenset[str] = frozenset()
        """The mailboxes whose leases ran at the last beat."""
        self._ahead = 0.0  # of the event loop's clock
        self._bounded = bounded
        self._keeper = keeper
        self._loop = asyncio.get_running_loop()
        self._mailbox = mailbox
        self._keys = keys
        self._entries = entries
        self._key = keys.processes
        self._counts = outage.counts
        self._writer = writer
        self._reader = reader
        self._memberships = memberships
        self._claimant = claimant
        self._deliveries = deliveries
        self._producer = producer
        self._epoch = epoch
        self._deaths = deaths  # of this process's buses: which were counted, and when there was last news of them
        self._handler = handler
        self._leases = Leases(mailbox)
        self._run_id = ""
        self._due = asyncio.Event()
        self._pause = BEAT_SECONDS
        self._doubt = ""  # why something may have been lost, until all is in place again
        self._dead: set[str] = set()  # to be buried
        self._told: set[str] = set()  # those of them that will not come back, as somebody knows
        self._orphans = True  # claims of dead processes may wait for a claimant
        self._failing = False
        self._wrong_type = False  # one of our keys may hold something else
        self._renewed = 0.0
        self._listed = b""  # the epoch of the store in which we have the lease
        self._beating: asyncio.Task[None] | None = None

    async def open(self, until: float) -> None:
        """Make the mailbox and take the lease. Raises LayerUnavailable, at the time `until` at the latest."""
        self._run_id = self._writer.run_id
        await self._make_mailbox(until)
        beat, _, _ = await self._renew(until)
        await self._judge(beat)

    def start(self) -> None:
        """Keep the lease until `close`."""
        self._writer.on_up.add(self._due.set)
        self._beating = background(self._keep(), f"{self._mailbox} beat")

    async def close(self) -> None:
        """End the beat; the lease stays until `leave` or its end."""
        self._writer.on_up.discard(self._due.set)
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])
        if self._keeper is not None:
            await self._keeper.close()

    def leave(self) -> None:
        """Give the lease and the mailbox back; written behind all that was posted, not waited for."""
        self._writer.write(("UNLINK", *self._mailbox_keys(self._mailbox)), _ignore)
        self._writer.write(("HDEL", self._keys.apps, self._mailbox), _ignore)
        self._writer.write(("EVAL", scripts.END_LEASE, 1, self._key, self._mailbox), self._left)

    def _left(self, reply: object) -> None:
        if reply == 1:
            self._epoch.forget()

    def time(self) -> float:
        """Now, in seconds by Redis's clock; ahead of it by no more than the last beat took, nor than LATE_SECONDS."""
        return time.monotonic() + self._ahead  # the clock of the event loop, which other threads may read

    def heard(self, sender: str) -> None:
        """Something came from there: if its process dies, we want to know."""
        self._leases.watch(sender)

    def missed(self, mailbox: str) -> None:
        """Something did not get there: its process is dead, or in doubt as we may be."""
        self._leases.watch(mailbox)
        if mailbox == self._mailbox:
            self._due.set()

    def found_wrong_type(self) -> None:
        """A key of ours holds something else than it should: it is looked for, and made anew."""
        self._wrong_type = True
        self._due.set()

    def told(self, frames: Sequence[Frame]) -> Sequence[Frame]:
        """Look for deaths that others declare, in frames of the layer itself. Returns the frames for the handler."""
        for frame in frames:
            if frame[0] != DEAD or not frame[2]:
                continue
            if frame[1] == self._mailbox:
                self._doubt = "it was declared dead"
                self._due.set()
                return [each for each in frames if each != frame]
            if self._leases.told(frame[1]):
                self._dead.add(frame[1])
                self._told.add(frame[1])
                self._orphans = True
                self._due.set()
                if self._counted(frame[1]):
                    logger.warning("%s was declared dead", frame[1])
        return frames

    async def _keep(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause):
                    await self._due.wait()
            self._due.clear()
            self._pause = BEAT_SECONDS
            try:
                await self._beat()
                self._failing = False
            except LayerUnavailable as error:
                self._orphans = True  # looking for them may have been cut short
                self._wrong_type = isinstance(error, Refused) and error.wrong_type
                if not self._failing:
                    logger.warning("%s cannot be kept up: %s; trying again", self._mailbox, error)
                self._failing = True
            except Exception:  # without a beat we would be dead to all others
                self._orphans = True
                logger.exception("%s: a beat failed", self._mailbox)

    async def _beat(self) -> None:
        if self._wrong_type:
            self._wrong_type = False
            await self._drop_other_types()
        # Consumers and takers are listed first: one that comes later has its lease before, and is not taken for dead.
        looking = self._orphans and (self._claimant.active or self._deliveries.active)
        if looking:
            self._orphans = False  # a death that is told from now on sets it again
        consumers = await self._claimant.consumers() if looking else {}
        taken = await self._deliveries.taken() if looking else {}
        listed = self._listed
        beat, lapsed, vanished = await self._renew(None)
        run_id = self._writer.run_id
        if self._keeper is not None:
            self._keeper.beat(run_id)
        if run_id != self._run_id or (self._listed != listed and not vanished):
            self._doubt = "Redis is another one"
        elif vanished:
            self._doubt = "its mailbox had vanished"
        elif lapsed:
            self._doubt = self._doubt or "its lease had ended"
        if self._doubt:
            await self._restore(vanished, run_id)
        await self._judge(beat)
        if looking:
            self._orphans = self._orphans or beat.grace
            await self._claimant.take_over(
                {
                    key: [
                        name
                        for name in names
                        if _owner(name) in beat.ended or not (beat.grace or _owner(name) in beat.live)
                    ]
                    for key, names in consumers.items()
                },
                self._handler.orphaned,
            )
            if not self._deliveries.bury(beat, taken):
                self._orphans = True
        await self._memberships.renew(everything=False, until=self._loop.time() + PATIENCE_SECONDS)

    def _mailboxes(self, found: Sequence[bytes]) -> frozenset[str]:
        return frozenset(self._entries.names(self._key, found, _require_mailbox))

    async def _drop_other_types(self) -> None:
        """Remove those of our keys that hold something else: what is ours is missing there, and is made anew."""
        kinds = {self._keys.mailbox(self._mailbox): "stream", self._keys.unread(self._mailbox): "hash"}
        kinds |= dict.fromkeys(self._claimant.keys, "stream")
        for key, kind in kinds.items():
            if await self._writer.call("EVAL", scripts.DROP_OTHER_TYPE, 1, key, kind):
                self._entries.odd("wrong type", key, f"it was no {kind}, and was removed")
        await self._memberships.drop_other_types()

    async def _renew(self, until: float | None) -> tuple[Beat, bool, bool]:
        """What Redis says of all; whether the own lease had ended; whether the own mailbox has vanished."""
        arguments: tuple[str | int, ...] = (self._mailbox, *lease_times())
        asked = self._loop.time()
        reply, *there = await asyncio.gather(
            self._writer.call("EVAL", scripts.RENEW_LEASE, 1, self._key, *arguments, until=until),
            *(
                self._writer.call("EXPIRE", key, MAILBOX_SECONDS, until=until)
                for key in self._mailbox_keys(self._mailbox)
            ),
        )
        lapsed, grace, self.now, next_end, live, ended, gone, epoch = reply
        self._ahead = self.now / 1000 - max(asked, self._loop.time() - LATE_SECONDS)
        self._epoch.seen(epoch)
        if not all(there) and epoch == self._listed:
            self._unheard(self._loop.time() - self._renewed)
        self._listed = epoch
        self._renewed = self._loop.time()
        beat = Beat(self._mailboxes(live), self._mailboxes(ended), bool(grace), self._mailboxes(gone))
        self.live = beat.live
        forgotten = self.now - LISTED_SECONDS * 1000
        for mailbox in [each for each, at in self._deaths.items() if each in beat.live or at < forgotten]:
            del self._deaths[mailbox]
        if next_end >= 0:
            self._pause = min(BEAT_SECONDS, max(SOONEST_SECONDS, (next_end + 2) / 1000))
        return beat, bool(lapsed), not all(there)

    async def _judge(self, beat: Beat) -> None:
        """Report the dead behind all that they had posted here, and clean up after them."""
        dead = self._leases.beat(beat)
        if dead:
            self._dead.update(dead)
            self._orphans = True
            self._due.set()
            for mailbox in dead:
                if mailbox not in beat.ended or self._beating is None:  # it took its leave, or died before we began
                    logger.debug("%s is gone", mailbox)
                elif self._counted(mailbox):
                    logger.warning("%s has died: its lease has ended", mailbox)
            key = self._keys.mailbox(self._mailbox)
            entry = self._entries.pack(key, (PAYLOAD_VERSION, "", [(DEAD, mailbox, False) for mailbox in dead]))
            self._writer.write(("XADD", key, "NOMKSTREAM", "*", "b", entry), self._posted)
        self._dead -= beat.live
        self._told &= self._dead
        may_return = beat.ended - beat.gone - self._told
        for mailbox in list(self._dead):
            if mailbox in may_return and await self._hears_groups(mailbox) and not await self._is_too_large(mailbox):
                continue
            await self._writer.call("UNLINK", *self._mailbox_keys(mailbox, of_others=True))
            self._writer.write(("HDEL", self._keys.apps, mailbox), _ignore)
            await self._memberships.bury(mailbox, self.now)
            self._dead.discard(mailbox)

    async def _hears_groups(self, mailbox: str) -> bool:
        """Whether broadcasts go to a process: they wait for it. What is meant for its sessions is nobody's any more."""
        if await self._writer.call("EXISTS", self._keys.unread(mailbox)):
            return True
        return await self._memberships.has(mailbox)

    async def _is_too_large(self, mailbox: str) -> bool:
        """Return whether too much waits for a process whose lease has ended: then it is given up at once."""
        try:
            size = await self._writer.call("MEMORY", "USAGE", self._keys.mailbox(mailbox))
        except Refused:  # to a user who may not ask
            return False
        if (size or 0) <= RETURN_BYTES:
            return False
        self._counts["mailbox dropped"] += 1
        logger.warning("%s hangs, and %d bytes wait for it in Redis: they are dropped", mailbox, size)
        return True

    def _counted(self, mailbox: str) -> bool:
        """Count a death once, however often it is reported. Return False if it was counted before, or is not counted.

        An app that uses the layer without the servers comes and goes as it likes, and nobody looks to it for deaths.
        """
        if self._bounded or has_channels(mailbox):
            return False
        new = mailbox not in self._deaths
        self._deaths[mailbox] = self.now
        self._counts["death"] += new
        return new

    def _unheard(self, seconds: float) -> None:
        """The lease had ended for so long that the others broadcast without this process."""
        if len(self._memberships):
            self._counts["group unheard"] += len(self._memberships)
            logger.warning(
                "%s was taken for dead: broadcasts of the last %.0f s to its %d groups may be missing here",
                self._mailbox,
                seconds,
                len(self._memberships),
            )

    def _posted(self, reply: object) -> None:
        if not isinstance(reply, bytes):
            self._due.set()  # the mailbox has vanished: what was reported is reported again once it is there

    async def _restore(self, vanished: bool, run_id: str) -> None:
        """Put everything in its place again, and say that something may have been lost."""
        until = self._loop.time() + PATIENCE_SECONDS
        self._leases.forget()
        self._producer.data_may_be_lost()
        self._reader.leave(run_id)
        self._claimant.leave(run_id)
        if vanished:
            await self._reader.restart(lambda client: self._writer.call("CLIENT", "UNBLOCK", client, until=until))
            await self._make_mailbox(until)
        elif run_id != self._run_id:
            await self._reader.moved(run_id, until)
        await self._memberships.renew(everything=True, until=until)
        self._run_id = run_id
        self._counts["interruption"] += 1
        logger.warning("%s was interrupted: %s; it is in place again", self._mailbox, self._doubt)
        self._doubt = ""
        self._handler.interrupted()

    async def _make_mailbox(self, until: float) -> None:
        """Make the stream, so that others may write to it; an entry without frames is the shortest way."""
        key = self._keys.mailbox(self._mailbox)
        if self._bounded:
            await self._writer.call("HSET", self._keys.unread(self._mailbox), "!", 1, until=until)
        entry = self._entries.pack(key, (PAYLOAD_VERSION, self._mailbox, ()))
        await self._writer.call("XADD", key, "*", "b", entry, until=until)
        for each in self._mailbox_keys(self._mailbox):
            await self._writer.call("EXPIRE", each, MAILBOX_SECONDS, until=until)

    def _mailbox_keys(self, mailbox: str, *, of_others: bool = False) -> list[str]:
        """The keys of a mailbox; with `of_others` those that it may have."""
        bounded = of_others or self._bounded
        return [self._keys.mailbox(mailbox), *([self._keys.unread(mailbox)] if bounded else [])]


def lease_times() -> tuple[int, ...]:
    """What RENEW gets behind the mailbox: how long a lease is, and so on, in ms."""
    times = LIFE_SECONDS, SILENT_SECONDS, GRACE_SECONDS, LISTED_SECONDS, RETURN_SECONDS
    return tuple(round(each * 1000) for each in times)


def _require_mailbox(name: object) -> None:
    """Raise TypeError for what is no mailbox."""
    if not require_channel(name).endswith("!"):
        raise TypeError(f"{name!r} is no mailbox")


def _owner(consumer: str) -> str:
    """The mailbox of the process that claims under this name."""
    return consumer.partition("!")[0] + "!"


def _ignore(reply: object) -> None:
    """A store that is gone, and with it what was to be removed."""


KEEP_SECONDS = 1.0  # how often the lease is lengthened
PULSE_SECONDS = 0.5  # how often the event loop says that it moves
HANG_SECONDS = 10.0  # that the event loop may stand still: then the lease ends, within the life of one
STALE_SECONDS = 30.0  # since the last beat: a process that does not get one through has lost touch with Redis
REPLY_SECONDS = 1.0  # for Redis to answer
STOP_SECONDS = 2.0  # for the thread to end


class LeaseKeeper:
    """Keeps the lease of one mailbox. All methods are called from the event loop of its process."""

    def __init__(self, address: Address, key: str, mailbox: str, life: int) -> None:
        """`key`: the set of processes. `life`: how long a lease is, in ms."""
        self._address = address
        self._command = "EVAL", scripts.EXTEND_LEASE, 1, key, mailbox, life
        self._name = f"{mailbox}lease"
        self._loop = asyncio.get_running_loop()
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None  # of the thread's event loop
        self._thread_loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        # Written by the event loop, read by the thread.
        self._moved_at = 0.0
        self._beat_at = 0.0
        self._run_id = ""

    def beat(self, run_id: str) -> None:
        """A beat got through to the Redis with this run id; the first one starts the thread."""
        self._beat_at = time.monotonic()
        self._run_id = run_id
        if self._thread is None:
            self._pulse()
            self._thread = threading.Thread(target=self._run, name="asgibus lease", daemon=True)
            self._thread.start()

    async def close(self) -> None:
        """End the thread, so that the lease can be given back."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is None:
            return
        if self._thread_loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # it has ended
                self._thread_loop.call_soon_threadsafe(self._stop.set)
        await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    def _pulse(self) -> None:
        self._moved_at = time.monotonic()
        self._timer = self._loop.call_later(PULSE_SECONDS, self._pulse)

    def _is_alive(self) -> bool:
        now = time.monotonic()
        return now - self._moved_at < HANG_SECONDS and now - self._beat_at < STALE_SECONDS and not self._closed

    def _run(self) -> None:
        """The life of the thread."""
        try:
            asyncio.run(self._keep())
        except Exception:  # without it the beat alone keeps the lease
            logger.exception("%s cannot be kept by a thread", self._name)

    async def _keep(self) -> None:
        connection: RedisConnection | None = None
        self._stop, self._thread_loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            while not self._closed:
                if self._is_alive():
                    connection = await self._lengthen(connection)
                with suppress(TimeoutError):
                    async with asyncio.timeout(KEEP_SECONDS):
                        await self._stop.wait()
        finally:
            if connection is not None:
                connection.abort("closed here")
                await asyncio.sleep(0)  # in which its socket is closed

    async def _lengthen(self, connection: RedisConnection | None) -> RedisConnection | None:
        """Lengthen the lease; return the connection for the next time."""
        if connection is not None and connection.run_id != self._run_id:
            connection.abort("another Redis has taken its place")
        try:
            if connection is None or connection.lost.done():
                connection = await connect(self._address, self._name)
            async with asyncio.timeout(REPLY_SECONDS):
                await connection.call(*self._command)
        except (LayerUnavailable, RedisError, TimeoutError) as error:
            logger.debug("%s: %s", self._name, error)
            if connection is not None:
                connection.abort("no answer in time")
            return None
        return connection
