"""The lease of a process in Redis: the heartbeat that renews it, and everything that is learned from it.

Each heartbeat says which processes are alive, whether this process's own lease had ended, whether Redis has lost data,
and when to come again. One task repairs whatever has to be repaired, one thing after another. A thread extends the
lease meanwhile. `deaths` has the way to notice a death before its lease ends.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from asgibus.layers.contract import Frame
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.frames import DEAD
from asgibus.layers.leases import Beat, PeerTable
from asgibus.layers.names import has_channels, require_channel
from asgibus.layers.redis import scripts
from asgibus.layers.redis.client import RedisConnection, RedisError, background, connect, ignore_reply
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.deaths import ConnectionWatch, connection_names
from asgibus.layers.redis.groups import GroupStore, Memberships
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.mailbox import MailboxReader
from asgibus.layers.redis.pipeline import PAYLOAD_VERSION, Refused

logger = logging.getLogger("asgibus.layers")

LIFE_SECONDS = 5.0  # of a lease that is not renewed
BEAT_SECONDS = 1.0  # how often the lease is renewed, and how late something is noticed at most that nobody reports
DEATH_GRACE = 0.6  # of a lease, in which the clients of a process that was declared dead may come to another one
LATE_SECONDS = 1.0  # a heartbeat that took longer had to wait for Redis before Redis read its clock
SOONEST_SECONDS = 0.01  # between two heartbeats that wait for the end of a lease
SILENT_SECONDS = 3.0  # without a heartbeat of any process: Redis or all processes were stopped, and none is dead
GRACE_SECONDS = 10.0  # for all processes to renew after that: a link comes back within 2 s, and then renews at once
LISTED_SECONDS = 60.0  # how long an ended lease stays listed, so that all processes learn of it
MAILBOX_SECONDS = 60  # how long a mailbox stays that nobody renews; other processes remove it sooner
RETURN_SECONDS = 25.0  # how long broadcasts are kept for a process whose lease has ended: it may hang, and return
RETURN_BYTES = 32 * 1024 * 1024  # of broadcasts that are kept for such a process
PATIENCE_SECONDS = 2.5  # for a repair: then the lease is renewed before the next attempt

EXTEND_SECONDS = 0.6  # after the last renewal, the thread extends the lease: others get a sign of life in between
PULSE_SECONDS = 0.5  # how often the event loop shows that it is running
HANG_SECONDS = 10.0  # for which the event loop may be blocked before the thread lets the lease end
STALE_SECONDS = 30.0  # since the last heartbeat: a process that does not get one through has lost contact with Redis
REPLY_SECONDS = 1.0  # for Redis to answer the thread
STOP_SECONDS = 2.0  # for the thread to end
SUSPECTS = 2  # reply of `extend_lease.lua`
RECONNECT_SECONDS = 0.05  # until the thread replaces a connection that was lost: others look whether there is one


class HeartbeatStore(GroupStore, Protocol):
    """A store, as a heartbeat uses it."""

    deaths: dict[str, int]


class OrphanClaimer(Protocol):
    """Takes over what dead processes had claimed or taken."""

    @property
    def active(self) -> bool:
        """Whether this process claims at all."""

    async def list_claims(self) -> Any:
        """List claims, before a heartbeat: a process that claims later has its lease before. Raises LayerUnavailable.

        Returns:
            The claims, for `claim_orphans`.
        """

    async def claim_orphans(self, claims: Any, beat: Beat) -> bool:
        """Take over the claims of processes that are dead. Raises LayerUnavailable.

        Returns:
            Whether that was possible everywhere.
        """


class Host(Protocol):
    """The bus whose lease a heartbeat renews."""

    def key_types(self) -> Mapping[str, str]:
        """Return the types of the keys that belong to the bus, by key."""

    def data_may_be_lost(self, run_id: str) -> None:
        """Prepare for the repair after an interruption, and drop connections to other servers than this one."""

    def interrupted(self) -> None:
        """Handle that everything is in its place again, and that frames may be lost."""

    def died(self, mailbox: str) -> None:
        """Handle the death of a process, as soon as it is known."""


class Heartbeat:
    """Renew the lease of one mailbox, keep the mailbox, and repair both after an interruption."""

    def __init__(
        self,
        store: HeartbeatStore,
        mailbox: str,
        reader: MailboxReader,
        memberships: Memberships,
        claimers: Sequence[OrphanClaimer],
        host: Host,
    ) -> None:
        """Prepare to renew; nothing is written before `open`.

        Args:
            store: The home of the bus.
            mailbox: The mailbox of this process.
            reader: Reads that mailbox.
            memberships: The groups of that mailbox.
            claimers: Take over claims of dead processes.
            host: The bus.
        """
        self.now = 0
        """Redis's time at the last heartbeat, in ms."""
        self._store = store
        self._mailbox = mailbox
        self._reader = reader
        self._memberships = memberships
        self._claimers = claimers
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._pipeline = store.pipeline
        self._counts = store.outage.counts
        self._due = asyncio.Event()
        local = has_channels(mailbox)
        self._reaper = Reaper(store, mailbox, memberships, self._due.set, host.died, counted=not local)
        self.peers = self._reaper.peers
        """The states of the other processes."""
        self._watch = ConnectionWatch(store)
        # The event loop of process-local channels belongs to the layer, so that no app blocks it.
        self._thread = None if local else LeaseThread(store.address, store.keys, mailbox, self._watch, self._due.set)
        self._task: asyncio.Task[None] | None = None
        self._pause = BEAT_SECONDS
        self._clock_offset = 0.0  # of Redis's clock to that of the event loop
        self._run_id = ""
        self._epoch = b""  # of the store in which the lease is
        self._renewed_at = 0.0
        self._interruption = ""  # why data may be lost, until everything is repaired
        self._lost_data = False  # whether Redis has lost data since everything was in its place
        self._orphans = True  # whether claims of dead processes may wait for a claimer
        self._failing = False
        self._wrong_type = False  # whether a key of the bus may have another type

    async def open(self, until: float) -> None:
        """Create the mailbox and take the lease. Raises LayerUnavailable, at the time `until` at the latest."""
        self._run_id = self._pipeline.run_id
        await self._create_mailbox(until)
        beat, _, _, _ = await self._renew(until)
        await self._reaper.reap(beat, self.now, log=False)

    def export(self) -> dict[str, Any]:
        """Return what the process has learned from its heartbeats, as `restore` takes it."""
        return {
            "run_id": self._run_id,
            "epoch": self._epoch,
            "peers": self.peers.export(),
            "deaths": self._store.deaths,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Keep the lease and the mailbox of another process, instead of `open`: the first heartbeat comes at once.

        Args:
            state: The result of `export` there.
        """
        self._run_id = state["run_id"]
        self._epoch = state["epoch"]
        self._renewed_at = self._loop.time()
        self.peers.restore(state["peers"])
        self._store.deaths.update(state["deaths"])
        self._due.set()

    def give_away(self) -> None:
        """Note that another process goes on under this mailbox, so that the end of this one is no death."""
        self._watch.withholds = True

    def start(self) -> None:
        """Renew the lease in the background until `close`."""
        self._pipeline.on_up.add(self._due.set)
        self._task = background(self._run(), f"{self._mailbox} heartbeat")

    async def close(self) -> None:
        """Stop renewing; the lease stays until `leave`, or until it ends."""
        self._pipeline.on_up.discard(self._due.set)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._thread is not None:
            await self._thread.close()

    def leave(self) -> None:
        """Give the lease and the mailbox back, after everything that was posted before. Do not wait for it."""
        keys = self._store.keys
        self._pipeline.write(("UNLINK", keys.mailbox(self._mailbox), keys.full(self._mailbox)), ignore_reply)
        for key in (keys.apps, keys.connections):
            self._pipeline.write(("HDEL", key, self._mailbox), ignore_reply)
        self._pipeline.write(("EVAL", scripts.END_LEASE, 1, keys.processes, self._mailbox), self._on_left)

    def _on_left(self, reply: object) -> None:
        if reply == 1:
            self._store.epoch.forget()

    def time(self) -> float:
        """Return Redis's time in seconds; ahead by at most the time that the last heartbeat took, or LATE_SECONDS.

        The method may be called from any thread.
        """
        return time.monotonic() + self._clock_offset

    def mailbox_missing(self, mailbox: str) -> None:
        """Note that a mailbox does not exist: its process is dead, or it will create the mailbox again."""
        self.peers.watch(mailbox)
        if mailbox == self._mailbox:
            self._due.set()

    def found_wrong_type(self) -> None:
        """Look for keys of the bus that have another type, and create them again."""
        self._wrong_type = True
        self._due.set()

    def on_frames(self, frames: Sequence[Frame]) -> Sequence[Frame]:
        """Handle deaths that other processes have declared. Return the frames that the handler gets."""
        for frame in frames:
            if frame[0] != DEAD:
                continue
            if frame[1] == self._mailbox:
                self._interruption = "it was declared dead"
                self._due.set()
                return [each for each in frames if each != frame]
            if self._reaper.declare_dead(frame[1], self.now, reaped=frame[2]):
                self._orphans = True
                self._due.set()
        return frames

    async def _run(self) -> None:
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
                self._orphans = True  # the search may have been cut short
                self._wrong_type = isinstance(error, Refused) and error.wrong_type
                if not self._failing:
                    logger.warning("%s cannot be kept up: %s; trying again", self._mailbox, error)
                self._failing = True
            except Exception:  # without a heartbeat, all other processes would take this one for dead
                self._orphans = True
                logger.exception("%s: a heartbeat failed", self._mailbox)

    async def _beat(self) -> None:
        if self._wrong_type:
            self._wrong_type = False
            await self._drop_other_types()
        claims: list[tuple[OrphanClaimer, Any]] = []
        if self._orphans:
            active = [claimer for claimer in self._claimers if claimer.active]
            self._orphans = not active  # a death that is declared from now on sets it again
            claims = [(claimer, await claimer.list_claims()) for claimer in active]
        epoch = self._epoch
        beat, lapsed, vanished, suspects = await self._renew(None)
        run_id = self._pipeline.run_id
        self._lost_data = self._lost_data or run_id != self._run_id or self._epoch != epoch
        if self._thread is not None:
            self._thread.on_beat(run_id, self._pipeline.direct_id)
        if run_id != self._run_id or (self._epoch != epoch and not vanished):
            self._interruption = "Redis is another one"
        elif vanished:
            self._interruption = "its mailbox had vanished"
        elif lapsed:
            self._interruption = self._interruption or "its lease had ended"
        if self._interruption:
            await self._repair(vanished, run_id)
        if await self._reaper.reap(beat, self.now):
            self._orphans = True
            self._due.set()
        if claims:
            self._orphans = self._orphans or beat.grace
        for claimer, listed in claims:
            if not await claimer.claim_orphans(listed, beat):
                self._orphans = True
        await self._memberships.renew(everything=False, until=self._loop.time() + PATIENCE_SECONDS)
        if suspects:
            await self._watch.look_for(suspects, run_id)
        await self._watch.decide(beat.live)
        if (wait := self._watch.wait) is not None:
            self._pause = min(self._pause, wait)

    async def _renew(self, until: float | None) -> tuple[Beat, bool, bool, Sequence[bytes]]:
        """Renew the lease.

        Returns:
            The state of all processes, whether the lease had ended, whether the mailbox is missing, and the suspects
            for `ConnectionWatch.look_for`.
        """
        store = self._store
        keys = store.keys
        watched: tuple[str | int, ...] = "", 0, 0
        if self._thread is not None:
            watched = self._watch.names(self._thread.direct_id), *self._watch.times
        arguments = self._mailbox, *lease_times(), *watched
        asked = self._loop.time()
        self._reaper.expect_beat()
        reply, exists = await asyncio.gather(
            self._pipeline.call(
                "EVAL", scripts.RENEW_LEASE, 2, keys.processes, keys.connections, *arguments, until=until
            ),
            self._pipeline.call("EXPIRE", keys.mailbox(self._mailbox), MAILBOX_SECONDS, until=until),
        )
        lapsed, grace, self.now, next_end, live, ended, gone, epoch, suspects = reply
        self._clock_offset = self.now / 1000 - max(asked, self._loop.time() - LATE_SECONDS)
        store.epoch.note(epoch)
        vanished = not exists
        if vanished and epoch == self._epoch:
            self._warn_missed_broadcasts(self._loop.time() - self._renewed_at)
        self._epoch = epoch
        self._renewed_at = self._loop.time()
        beat = Beat(self._mailboxes(live), self._mailboxes(ended), bool(grace), self._mailboxes(gone))
        if next_end >= 0:
            self._pause = min(BEAT_SECONDS, max(SOONEST_SECONDS, (next_end + 2) / 1000))
        return beat, bool(lapsed), vanished, suspects

    def _mailboxes(self, found: Sequence[bytes]) -> frozenset[str]:
        return frozenset(self._store.entries.valid_names(self._store.keys.processes, found, _require_mailbox))

    def _warn_missed_broadcasts(self, seconds: float) -> None:
        """Warn that the lease had ended for so long that other processes have removed this one from its groups."""
        if len(self._memberships):
            self._counts["group unheard"] += len(self._memberships)
            logger.warning(
                "%s was taken for dead: broadcasts of the last %.0f s to its %d groups may be missing here",
                self._mailbox,
                seconds,
                len(self._memberships),
            )

    async def _repair(self, vanished: bool, run_id: str) -> None:
        """Put the mailbox, its reader and the memberships in their places again. Raises LayerUnavailable."""
        until = self._loop.time() + PATIENCE_SECONDS
        self.peers.reset()
        self._host.data_may_be_lost(run_id)
        if vanished:
            await self._reader.restart(lambda client: self._pipeline.call("CLIENT", "UNBLOCK", client, until=until))
            await self._create_mailbox(until)
        elif run_id != self._run_id:
            await self._reader.wait_until_reading(run_id, until)
        await self._memberships.renew(everything=True, until=until, lapsed=not self._lost_data)
        self._run_id = run_id
        self._lost_data = False
        self._counts["interruption"] += 1
        logger.warning("%s was interrupted: %s; it is in place again", self._mailbox, self._interruption)
        self._interruption = ""
        self._host.interrupted()

    async def _create_mailbox(self, until: float) -> None:
        """Create the stream, so that other processes can write to it, by adding an entry without frames."""
        key = self._store.keys.mailbox(self._mailbox)
        entry = self._store.entries.pack(key, (PAYLOAD_VERSION, self._mailbox, ()))
        await self._pipeline.call("XADD", key, "*", "b", entry, until=until)
        await self._pipeline.call("EXPIRE", key, MAILBOX_SECONDS, until=until)

    async def _drop_other_types(self) -> None:
        """Remove keys of the bus that have another type; they are missing then, and created again."""
        for key, kind in self._host.key_types().items():
            if await self._pipeline.call("EVAL", scripts.DROP_OTHER_TYPE, 1, key, kind):
                self._store.entries.log_unexpected("wrong type", key, f"it was no {kind}, and was removed")
        await self._memberships.drop_other_types()


class Reaper:
    """Notice processes that have died, announce them in this process's mailbox, and clean up after them."""

    def __init__(
        self,
        store: HeartbeatStore,
        mailbox: str,
        memberships: Memberships,
        on_lost: Callable[[], None],
        on_died: Callable[[str], None],
        *,
        counted: bool,
    ) -> None:
        """Prepare for the first heartbeat.

        Args:
            store: The home of the bus.
            mailbox: The mailbox of this process.
            memberships: Removes dead processes from their groups.
            on_lost: Called when an announcement did not arrive, since this process's mailbox does not exist.
            on_died: Called with the mailbox of each process that has died.
            counted: Whether deaths are counted and logged. An app that uses the layer without the servers does not
                count them: it comes and goes as it likes, and nobody asks it about deaths.
        """
        self._store = store
        self._mailbox = mailbox
        self._memberships = memberships
        self._on_lost = on_lost
        self._on_died = on_died
        self._counted = counted
        self.peers = PeerTable(mailbox)
        self._dead: set[str] = set()  # to be cleaned up after
        self._declared: set[str] = set()  # of them, those that are known not to return
        self._declared_since: set[str] = set()  # the heartbeat was sent: its reply may list their leases
        self._leaving: dict[str, int] = {}  # dead processes, and when their users leave, in ms by Redis's clock

    def declare_dead(self, mailbox: str, now: int, *, reaped: bool) -> bool:
        """Note that a process was declared dead.

        Args:
            mailbox: The mailbox of the dead process.
            now: The time, in ms by Redis's clock.
            reaped: Whether its supervisor has reaped it, so that it will not return.

        Returns:
            Whether that is news.
        """
        self._declared_since.add(mailbox)
        if not self.peers.declare_dead(mailbox):
            return False
        self._dead.add(mailbox)
        self._on_died(mailbox)
        self._leaving.setdefault(mailbox, now + round(DEATH_GRACE * LIFE_SECONDS * 1000))
        if reaped:
            self._declared.add(mailbox)
        if self._count_once(mailbox, now):
            reason = "its supervisor has reaped it" if reaped else "its connections to Redis are closed"
            logger.warning("%s was declared dead: %s", mailbox, reason)
        return True

    def expect_beat(self) -> None:
        """Note that a heartbeat is being sent, whose reply has all deaths so far."""
        self._declared_since.clear()

    async def reap(self, beat: Beat, now: int, *, log: bool = True) -> bool:
        """Announce the processes that died before this heartbeat, and clean up after dead ones.

        Args:
            beat: The store's reply to the heartbeat.
            now: The time of the heartbeat, in ms by Redis's clock.
            log: Whether deaths are logged and counted; not if they happened before this process started.

        Returns:
            Whether processes have died.

        Raises:
            LayerUnavailable: The rest is done after the next heartbeat.
        """
        beat = beat.after(self._declared_since)
        deaths = self._store.deaths
        for mailbox in [each for each, at in deaths.items() if each in beat.live or at < now - LISTED_SECONDS * 1000]:
            del deaths[mailbox]
        died = self.peers.apply(beat)
        if died:
            self._dead.update(died)
            for mailbox in died:
                self._on_died(mailbox)
                self._leaving.setdefault(mailbox, now)  # its clients had the time of its lease to come back
                if mailbox not in beat.ended or not log:  # it gave its lease back, or died before this process started
                    logger.debug("%s is gone", mailbox)
                elif self._count_once(mailbox, now):
                    logger.warning("%s has died: its lease has ended", mailbox)
            # Frames that the dead processes had posted here are read before the announcement.
            key = self._store.keys.mailbox(self._mailbox)
            entry = self._store.entries.pack(key, (PAYLOAD_VERSION, "", [(DEAD, mailbox, False) for mailbox in died]))
            self._store.pipeline.write(("XADD", key, "NOMKSTREAM", "*", "b", entry), self._on_announced)
        self._dead -= beat.live
        self._declared &= self._dead
        may_return = beat.ended - beat.gone - self._declared
        for mailbox in list(self._dead):
            if mailbox not in may_return or not await self._keeps_broadcasts(mailbox):
                await self._clean_up(mailbox, now)
        for mailbox, at in list(self._leaving.items()):
            if mailbox in beat.live:
                del self._leaving[mailbox]
            elif at <= now:
                del self._leaving[mailbox]
                self._memberships.presence.remove_dead_soon(mailbox, now)
        return bool(died)

    def _on_announced(self, reply: object) -> None:
        if not isinstance(reply, bytes):
            self._on_lost()  # the deaths are announced again once the mailbox exists

    async def _keeps_broadcasts(self, mailbox: str) -> bool:
        """Return whether broadcasts are kept for a process whose lease has ended.

        Frames for its sessions are not, as other processes have taken those over.
        """
        call, keys = self._store.pipeline.call, self._store.keys
        if not has_channels(mailbox) and not await self._memberships.has(mailbox):
            return False
        try:
            size = await call("MEMORY", "USAGE", keys.mailbox(mailbox))
        except Refused:  # to a user who may not ask
            return True
        if (size or 0) <= RETURN_BYTES:
            return True
        self._store.outage.counts["mailbox dropped"] += 1
        logger.warning("%s hangs, and %d bytes wait for it in Redis: they are dropped", mailbox, size)
        return False

    async def _clean_up(self, mailbox: str, now: int) -> None:
        keys, pipeline = self._store.keys, self._store.pipeline
        await pipeline.call("UNLINK", keys.mailbox(mailbox), keys.full(mailbox))
        for key in (keys.apps, keys.connections, keys.releases):
            pipeline.write(("HDEL", key, mailbox), ignore_reply)
        await self._memberships.remove_dead(mailbox, now)
        self._dead.discard(mailbox)

    def _count_once(self, mailbox: str, now: int) -> bool:
        """Count a death, however often it is reported. Return whether it is counted now."""
        if not self._counted or has_channels(mailbox):
            return False
        new = mailbox not in self._store.deaths
        self._store.deaths[mailbox] = now
        self._store.outage.counts["death"] += new
        return new


class LeaseThread:
    """Extend a lease from a thread with a connection of its own, as long as the event loop of the process runs.

    A heartbeat waits behind everything that the process writes, and does not happen while the event loop is blocked. A
    burst of one client, or a machine without spare CPU, would end the leases of processes that are alive. The thread
    stops when the event loop has been blocked for so long that other processes should take over.

    All methods are called from the event loop of the process.
    """

    def __init__(
        self, address: Address, keys: Keys, mailbox: str, watch: ConnectionWatch, on_suspects: Callable[[], object]
    ) -> None:
        """Prepare to extend a lease.

        Args:
            address: The address of the store.
            keys: The names of keys there.
            mailbox: The mailbox of the process.
            watch: Knows after what time a process is a suspect.
            on_suspects: Called in the event loop of the process when a heartbeat would return suspects.
        """
        self.direct_id = 0
        """The id of the thread's connection in Redis; 0 without one, and if a proxy may be between."""
        self._address = address
        self._command = "EVAL", scripts.EXTEND_LEASE, 2, keys.processes, keys.connections, mailbox
        self._name = f"{mailbox}lease"
        self._watch = watch
        self._on_suspects = on_suspects
        self._loop = asyncio.get_running_loop()
        self._thread: threading.Thread | None = None
        self._wake: asyncio.Event | None = None  # of the thread's event loop
        self._thread_loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        # Written by the event loop, read by the thread.
        self._ran_at = 0.0
        self._beat_at = 0.0
        self._run_id = ""
        self._writer_id = 0

    def on_beat(self, run_id: str, writer_id: int) -> None:
        """Note a heartbeat. The first call starts the thread.

        Args:
            run_id: The run id of the Redis server that it reached.
            writer_id: The id of its connection there; 0 if a proxy may be between.
        """
        self._beat_at = time.monotonic()
        self._run_id = run_id
        self._writer_id = writer_id
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
        if self._thread_loop is not None and self._wake is not None:
            with suppress(RuntimeError):  # the thread has ended
                self._thread_loop.call_soon_threadsafe(self._wake.set)
        await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    def _pulse(self) -> None:
        self._ran_at = time.monotonic()
        self._timer = self._loop.call_later(PULSE_SECONDS, self._pulse)

    def _is_running(self) -> bool:
        now = time.monotonic()
        return now - self._ran_at < HANG_SECONDS and now - self._beat_at < STALE_SECONDS and not self._closed

    def _run(self) -> None:
        try:
            asyncio.run(self._extend_until_closed())
        except Exception:  # without the thread, the heartbeat alone renews the lease
            logger.exception("%s cannot be kept by a thread", self._name)

    async def _extend_until_closed(self) -> None:
        connection: RedisConnection | None = None
        self._wake, self._thread_loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            while not self._closed:
                if self._is_running():
                    connection = await self._extend(connection)
                await self._wait(connection)
        finally:
            if connection is not None:
                connection.abort("closed here")
                await asyncio.sleep(0)  # in which its socket is closed

    async def _wait(self, connection: RedisConnection | None) -> None:
        """Wait until the lease is to be extended again, or the connection is lost."""
        assert self._wake is not None
        extended_at = time.monotonic()
        while not self._closed:
            if _is_lost(connection):
                await asyncio.sleep(RECONNECT_SECONDS)
                return
            pause = max(self._beat_at, extended_at) + EXTEND_SECONDS - time.monotonic()
            if pause <= 0:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            self._wake.clear()

    async def _extend(self, connection: RedisConnection | None) -> RedisConnection | None:
        """Extend the lease. Return the connection for the next time, or None if it failed."""
        if connection is not None and connection.run_id != self._run_id:
            connection.abort("another Redis has taken its place")
        try:
            if connection is None or _is_lost(connection):
                connection = await connect(self._address, self._name)
                connection.lost.add_done_callback(self._on_lost)
                self.direct_id = connection.client_id if connection.direct else 0
            ids = self.direct_id, self._writer_id
            names = "" if self._watch.withholds else connection_names(self._run_id, *ids)
            async with asyncio.timeout(REPLY_SECONDS):
                reply = await connection.call(*self._command, round(LIFE_SECONDS * 1000), names, *self._watch.times)
        except (LayerUnavailable, RedisError, TimeoutError) as error:
            logger.debug("%s: %s", self._name, error)
            if connection is not None:
                connection.abort("no answer in time")
            return None
        if reply == SUSPECTS:
            with suppress(RuntimeError):  # the event loop was closed
                self._loop.call_soon_threadsafe(self._on_suspects)
        return connection

    def _on_lost(self, lost: asyncio.Future[str]) -> None:
        if self._wake is not None:
            self._wake.set()


def _is_lost(connection: RedisConnection | None) -> bool:
    return connection is not None and connection.lost.done()


def lease_times() -> tuple[int, ...]:
    """Return the times that `renew_lease.lua` takes after the mailbox, in ms."""
    times = LIFE_SECONDS, SILENT_SECONDS, GRACE_SECONDS, LISTED_SECONDS, RETURN_SECONDS
    return tuple(round(each * 1000) for each in times)


def _require_mailbox(name: object) -> None:
    if not require_channel(name).endswith("!"):
        raise TypeError(f"{name!r} is not a mailbox")
