"""The bus of one process in Redis: its mailbox, lease, groups, offers and claims."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from asgibus.layers.codec import unpack, unpack_message
from asgibus.layers.contract import (
    Announced,
    Bus,
    Delivery,
    Draft,
    Frame,
    Handler,
    Statistics,
)
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.frames import DEAD, GROUP_MESSAGE, LOCAL_MESSAGES, MEMBERSHIP, MESSAGE
from asgibus.layers.names import claimant_channel, require_any_group, require_channel, require_group, split_local
from asgibus.layers.offers import AffinityKey, Claim, Offer
from asgibus.layers.redis import scripts
from asgibus.layers.redis.assignments import Assignments
from asgibus.layers.redis.client import RedisError, ignore_reply
from asgibus.layers.redis.groups import Memberships
from asgibus.layers.redis.heartbeat import SILENT_SECONDS, Heartbeat, lease_times
from asgibus.layers.redis.mailbox import FindBorrower, MailboxReader
from asgibus.layers.redis.ordinary.acking_consumer import AckingConsumer
from asgibus.layers.redis.pipeline import call_until
from asgibus.layers.redis.presence.own import RedisPresence
from asgibus.layers.redis.presence.reader import PresenceReader
from asgibus.layers.redis.redelivery import Deduplicator
from asgibus.layers.redis.releases import Release
from asgibus.layers.redis.store import Shards, StoreClient
from asgibus.layers.redis.work_queue import Consumer, Producer
from asgibus.layers.settings import require_delay

logger = logging.getLogger("asgibus.layers")

FULL_SECONDS = 120  # for how long full channels are published: they are published again every minute
APPS_SECONDS = 86_400  # for how long announcements are kept that no process cleans up
SETTLE_SECONDS = 2.0  # for the groups of users to be told of joins and leaves, before a move
STATISTICS_SECONDS = 1.0  # for statistics, whose reader waits
RETRY_SECONDS = 0.5  # until another attempt to end the streams of a dead process


OFFERS_BY_KEY = ""  # announced as the pool, which no worker has: this process offers by key


class LocalReceiver(Protocol):
    """Receives messages to process-local channels: see `inbox.Inbox`."""

    def deliver(self, parts: Sequence[str], message: bytes, sent: float, delay: float, capacity: int) -> None: ...

    def join(self, part: str) -> None: ...


class _Delayed(NamedTuple):
    """A delayed message for reply channels."""

    parts: Sequence[str]
    message: bytes
    capacity: int
    due: float
    """When it is delivered, by the event loop's clock."""


class RedisBus(Bus):
    """The bus of one mailbox: see `Bus`. Call `open` before use and `close` at the end."""

    def __init__(
        self,
        client: StoreClient,
        shards: Shards,
        mailbox: str,
        handler: Handler,
        reader: PresenceReader,
        local_receiver: LocalReceiver | None = None,
        find_borrower: FindBorrower | None = None,
        end_streams_of: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """Prepare the bus.

        Args:
            client: The client of the store that has the mailbox.
            shards: All stores, for groups and ordinary channels.
            mailbox: The mailbox.
            handler: Handles the frames in the mailbox.
            reader: Reads who is in a group.
            local_receiver: Receives messages to channels of this mailbox, if they are process-local channels. Without
                one, they are reply channels, and their messages go to the handler.
            find_borrower: Returns who is to read the mailbox on: see `MailboxReader`.
            end_streams_of: Ends the streams that the dead process of a mailbox was writing. Raises LayerUnavailable.
        """
        self.mailbox = mailbox
        self._local_receiver = local_receiver
        self._loop = asyncio.get_running_loop()
        self._handler = handler
        self._keys = client.keys
        self._entries = entries = client.entries
        self._outage = outage = client.outage
        self._pipeline = client.pipeline
        settings = client.settings
        self._started = 0  # in ms by Redis's clock
        self._deduplicator = Deduplicator()
        self._wait = settings.wait
        self._is_mine = True  # whether mailbox and lease are given back at the end
        self._frozen: list[tuple[Sequence[str], bytes, float, int]] = []  # delayed messages whose timers are stopped

        self._timers: dict[asyncio.TimerHandle, _Delayed] = {}  # of delayed messages for reply channels
        self._delayed: Counter[str] = Counter()  # how many of them each channel has
        self._membership_tasks: set[asyncio.Task[None]] = set()
        self._end_streams_of = end_streams_of
        self._ending_streams: dict[str, asyncio.Task[None]] = {}  # by the mailbox of the dead process
        self._assignments = Assignments(client, mailbox, round(SILENT_SECONDS * 1000), self._found_wrong_type)
        self._pool = ""  # of this process, if it claims by key
        self._consumer = Consumer(client, mailbox, handler, self._found_wrong_type)
        self._acking_consumer = AckingConsumer(shards.client_of, entries, mailbox, outage.counts, settings.expiry)
        self._presence = RedisPresence(client, mailbox, reader, outage.counts, settings.group_expiry, settings.wait)
        self._memberships = Memberships(
            client,
            shards.client_of,
            shards.clients,
            mailbox,
            settings.group_expiry,
            lease_times(),
            self._presence,
        )
        self._reader = MailboxReader(
            client,
            mailbox,
            self._batch,
            self._found_wrong_type,
            lambda asked: self._deduplicator.forget_before(asked - time.monotonic() + self.time()),
            find_borrower,
        )
        self._release = Release(client, mailbox)
        self._producer = Producer(client, mailbox, self._assignments, self._time_ms)
        self._heartbeat = Heartbeat(
            client,
            mailbox,
            self._reader,
            self._memberships,
            (self._consumer, self._acking_consumer),
            self,
        )
        self._alive = self._heartbeat.peers.alive  # looked into for every batch
        self.time = self._heartbeat.time
        """Returns the time in seconds by Redis's clock, or slightly ahead of it."""

    @property
    def available(self) -> bool:
        return self._outage.available

    @property
    def refusal(self) -> str | None:
        return self._pipeline.refusal

    async def open(self) -> None:
        """Create the mailbox, take the lease, and begin to read. Raises LayerUnavailable."""
        await self._heartbeat.open(call_until())
        self._release.publish()
        self._started = self._heartbeat.now
        await self._reader.open()
        self._heartbeat.start()

    async def open_frozen(self, identity: Mapping[str, Any]) -> None:
        """Prepare to go on under the identity of another process, from `thaw` on. Raises LayerUnavailable.

        Args:
            identity: The result of `freeze` there.
        """
        self._is_mine = False
        until = call_until()
        if not await self._pipeline.call("EXISTS", self._keys.mailbox(self.mailbox), until=until):
            raise LayerUnavailable(
                f"{self.mailbox} is not there: do the new and the old process have the same --layer and --prefix?"
            )
        await self._memberships.restore(identity["groups"])
        if "presence" in identity:  # not from a process of an earlier release
            self._presence.restore(identity["presence"])
        self._deduplicator.restore(identity["sources"])
        self._frozen = [(parts, message, left, capacity) for parts, message, left, capacity in identity["delayed"]]
        await self._reader.open_at(identity["cursor"])
        self._heartbeat.restore(identity["lease"])

    async def close(self) -> None:
        """Remove the mailbox, the lease and the memberships, and requeue what was claimed and not handled."""
        await self._heartbeat.close()
        self._presence.close()
        await self._reader.close()
        for timer in self._timers:
            timer.cancel()
        for task in (*self._membership_tasks, *self._ending_streams.values()):
            task.cancel()
        self._producer.close()
        await self._pipeline.drain()
        await self._consumer.close()
        await self._acking_consumer.close()
        if not self._is_mine:
            return
        await self._presence.leave()
        self._memberships.close()
        self._release.withdraw()
        self._heartbeat.leave()
        await self._pipeline.drain()

    # The move to another process.

    async def freeze(self) -> dict[str, Any] | None:
        await self._reader.stop()
        await self._presence.settle_within(SETTLE_SECONDS)
        now = self._loop.time()
        for timer, delayed in self._timers.items():
            timer.cancel()
            self._frozen.append((delayed.parts, delayed.message, delayed.due - now, delayed.capacity))
        self._timers.clear()
        self._delayed.clear()
        await self._pipeline.posted(call_until())
        return {
            "mailbox": self.mailbox,
            "cursor": self._reader.cursor,
            "groups": self._memberships.export(),
            "presence": self._presence.export(),
            "sources": self._deduplicator.export(),
            "delayed": self._frozen,
            "lease": self._heartbeat.export(),
        }

    def thaw(self) -> None:
        frozen, self._frozen = self._frozen, []
        for parts, message, left, capacity in frozen:
            self._delay(parts, message, max(0.0, left), capacity)
        self._reader.start()
        if not self._is_mine:
            self._is_mine = True
            self._release.publish()
            self._heartbeat.start()

    def give_away(self) -> None:
        self._is_mine = False
        self._heartbeat.give_away()

    def export_offer(self, offer: Offer) -> dict[str, Any] | None:
        return self._producer.export(offer)

    def restore_offer(self, values: Mapping[str, Any]) -> Offer:
        return self._producer.restore(values)

    def _batch(self, sender: str, frames: Sequence[Frame], sent: float) -> None:
        if sender:
            if sender not in self._alive:
                self._heartbeat.peers.watch(sender)  # its death matters from now on
        else:
            frames, again = self._deduplicator.check(frames, sent)
            if again:
                return
            kind = frames[0][0] if frames else None
            if kind == LOCAL_MESSAGES:
                parts, message, delay, capacity = frames[0][1:5]  # later releases may add items
                self._deliver(parts, message, delay, capacity, sent)
                return
            if kind == MEMBERSHIP:
                self._note_membership(*frames[0][1:4])
                return
            for frame in frames:
                _check(frame)
            frames = self._heartbeat.on_frames(frames)
        if frames:
            self._handler.batch(sender, frames)

    def _deliver(self, parts: Sequence[str], message: bytes, delay: float, capacity: int, sent: float) -> None:
        """Deliver a message to channels of this mailbox. Raises ValueError or TypeError if it is not valid."""
        _check_local(parts, message, delay, capacity)
        if self._local_receiver is not None:
            self._local_receiver.deliver(parts, message, sent, delay, capacity)
        elif delay:
            unpack_message(message)
            now = self.time()
            self._delay(parts, message, min(sent, now) + delay - now, capacity)
        else:
            self._handler.batch("", [(MESSAGE, part, unpack(message)) for part in parts])

    def _delay(self, parts: Sequence[str], message: bytes, seconds: float, capacity: int) -> None:
        """Deliver a message to reply channels after that time. It is dropped for those at their capacity."""
        kept = [part for part in parts if self._delayed[part] < capacity]
        if len(kept) < len(parts):
            self._outage.counts["channel full"] += len(parts) - len(kept)
        self._delayed.update(kept)

        def deliver() -> None:
            del self._timers[timer]
            self._delayed -= Counter(kept)  # which removes channels without any
            self._handler.batch("", [(MESSAGE, part, unpack(message)) for part in kept])

        timer = self._loop.call_later(seconds, deliver)
        self._timers[timer] = _Delayed(kept, message, capacity, self._loop.time() + seconds)

    async def add_channel(self, group: str, channel: str) -> None:
        """Add a channel of this mailbox to a group, also again if the store loses that. Raises LayerUnavailable."""
        if self._local_receiver is not None:
            self._local_receiver.join(channel.partition("!")[2])
        await self._memberships.add_channel(group, channel, self._loop.time() + self._wait)

    async def discard_channel(self, group: str, channel: str) -> None:
        """Remove a channel of this mailbox from a group. Raises LayerUnavailable."""
        await self._memberships.discard_channel(group, channel, self._loop.time() + self._wait)

    def abandoned(self, parts: Collection[str]) -> None:
        """Forget the memberships of these channels, which are not read any more."""
        self._memberships.forget_channels(parts)

    def _note_membership(self, group: str, channel: str, joins: bool) -> None:
        """Note the membership of a channel of this mailbox that another process has changed.

        Raises:
            TypeError: A name is not valid.
            ValueError: The channel belongs to another mailbox.
        """
        local = split_local(require_channel(channel))
        if local is None or local[0] != self.mailbox:
            raise ValueError(f"a membership of {channel!r} was sent to {self.mailbox}")
        require_group(group)
        work = self.add_channel(group, channel) if joins else self.discard_channel(group, channel)
        task = self._loop.create_task(work, name=f"{self.mailbox} member")
        self._membership_tasks.add(task)
        task.add_done_callback(self._on_membership_noted)

    def _on_membership_noted(self, task: asyncio.Task[None]) -> None:
        self._membership_tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("%s: a membership that another process changed was not noted: %s", self.mailbox, error)

    def clear(self) -> None:
        """Forget the memberships of all channels of this mailbox."""
        self._memberships.forget_channels()

    def publish_full(self, full: Collection[str], others: Collection[str]) -> None:
        """Let senders know that these process-local channels are full, and that the others have room again."""
        key = self._keys.full(self.mailbox)
        if others:
            self._pipeline.write(("SREM", key, *others), self._published)
        if full:
            self._pipeline.write(("SADD", key, *full), self._published)
            self._pipeline.write(("EXPIRE", key, FULL_SECONDS), ignore_reply)

    def _published(self, reply: object) -> None:
        if isinstance(reply, RedisError) and str(reply).startswith("WRONGTYPE"):
            self._found_wrong_type()

    @property
    def packed(self) -> int:
        return self._pipeline.packed

    def post(self, mailbox: str, frame: Frame | Draft, size: int = 0) -> None:
        self._pipeline.post(self, mailbox, frame, size)

    def write_soon(self) -> None:
        self._pipeline.schedule()

    def _found_wrong_type(self) -> None:
        """Look for keys of this bus that have another type."""
        self._heartbeat.found_wrong_type()

    def key_types(self) -> dict[str, str]:
        """Return the types of the keys of this bus: see `heartbeat.Host`."""
        own = {self._keys.mailbox(self.mailbox): "stream", self._keys.full(self.mailbox): "set"}
        own |= dict.fromkeys((self._keys.apps, self._keys.connections, self._keys.releases), "hash")
        return own | dict.fromkeys(self._consumer.keys, "stream") | self._assignments.key_types

    def data_may_be_lost(self, run_id: str) -> None:
        """Prepare for the repair after an interruption: see `heartbeat.Host`."""
        self._producer.data_may_be_lost()
        self._reader.drop_unless(run_id)
        self._consumer.drop_unless(run_id)

    def interrupted(self) -> None:
        """Publish again what Redis may have lost, and pass the interruption on: see `heartbeat.Host`."""
        self._release.publish()
        if self._consumer.claims_by_key:
            self._assignments.join(self._pool)
        self._handler.interrupted()

    def died(self, mailbox: str) -> None:
        """End the streams of a dead process: see `heartbeat.Host`."""
        if self._end_streams_of is not None and mailbox not in self._ending_streams:
            work = self._end_streams(mailbox, self._end_streams_of)
            task = self._ending_streams[mailbox] = self._loop.create_task(work, name=f"{self.mailbox} streams")
            task.add_done_callback(lambda _: self._ending_streams.pop(mailbox, None))

    async def _end_streams(self, mailbox: str, end_streams_of: Callable[[str], Awaitable[None]]) -> None:
        while True:
            try:
                return await end_streams_of(mailbox)
            except LayerUnavailable as error:
                logger.debug("the streams of %s cannot be ended yet: %s", mailbox, error)
            await asyncio.sleep(RETRY_SECONDS)

    def _time_ms(self) -> int:
        """Return Redis's time at the last heartbeat, in ms."""
        return self._heartbeat.now

    def undelivered(self, mailbox: str) -> None:
        """Find out at the next heartbeat why a mailbox is missing, and tell the handler."""
        self._heartbeat.mailbox_missing(mailbox)
        self._handler.undelivered(mailbox)

    async def posted(self) -> None:
        await self._pipeline.posted(call_until())

    def offer(self, channel: str, entry: Any, *, once: bool = False) -> Offer:
        return self._producer.offer(channel, entry, once)

    def withdraw(self, offer: Offer) -> bool:
        return self._producer.withdraw(offer)

    def offer_again(self, offer: Offer, on_lost: Callable[[], None]) -> None:
        self._producer.offer_again(offer, on_lost)

    def offer_by_key(
        self,
        key: AffinityKey,
        lifetime: float,
        entry: Any,
        on_assigned: Callable[[Offer], None],
        *,
        once: bool = False,
        known: bool = False,
    ) -> Offer:
        return self._producer.offer_by_key(key, lifetime, entry, on_assigned, once, known)

    def take_back(self, offer: Offer, on_result: Callable[[bool], None]) -> None:
        self._producer.take_back(offer, on_result)

    def assign(self, key: AffinityKey, lifetime: float, mailbox: str) -> None:
        self._assignments.assign(key, lifetime, mailbox)

    def renew_keys(self, keys: Sequence[AffinityKey], lifetime: float) -> None:
        self._assignments.renew(keys, lifetime, self._heartbeat.time())

    @property
    def own_channel(self) -> str:
        return claimant_channel(self.mailbox) if self._consumer.claims_by_key else ""

    async def shared_statistics(self, channel: str) -> Statistics:
        until = self._loop.time() + STATISTICS_SECONDS
        key = self._keys.shared(channel)
        offered, pending, age = await self._pipeline.call("EVAL", scripts.SHARED_STATISTICS, 1, key, until=until)
        return Statistics(
            messages_count=offered, messages_pending=pending, messages_max_age=age / 1000, channel_full_count=0
        )

    async def claim(self, channels: Sequence[str], limit: int, *, wait: float | None = None) -> list[Claim]:
        return await self._consumer.claim(channels, limit, wait)

    def stop_claiming(self) -> None:
        by_key = self._consumer.claims_by_key
        self._consumer.stop()
        self._acking_consumer.stop()
        if by_key:
            self._assignments.leave(self._pool, self._on_declined)

    def _on_declined(self, reply: Any) -> None:
        if isinstance(reply, list):
            for entry in self._consumer.unpack_declined(reply):
                self._handler.declined(entry)

    def done(self, claim: Claim) -> None:
        self._consumer.ack(claim)

    async def announce(self, pool: str, app: str, sessions: int | None) -> list[Announced]:
        key = self._keys.apps
        self._write_announcement((pool, app, sessions, True, self._started))  # the release before reads True
        # The heartbeat learns of new processes a second later.
        now = round(self._heartbeat.time() * 1000)
        leases: list[Any] = []
        self._pipeline.write(("ZRANGE", self._keys.processes, f"({now}", "+inf", "BYSCORE"), leases.append)
        announced = await self._pipeline.call("HGETALL", key, until=call_until())
        live = leases[0] if leases and isinstance(leases[0], list) else ()
        others = []
        has_keys = False
        for field, value in zip(announced[::2], announced[1::2], strict=True):
            try:
                mailbox, (its_pool, its_app, number, pools, *more) = field.decode(), self._entries.unpack(key, value)
            except (ValueError, TypeError) as error:
                self._entries.log_unexpected("odd app", key, str(error))
                continue
            if mailbox == self.mailbox or field not in live:
                continue
            if its_pool == OFFERS_BY_KEY:
                has_keys = has_keys or (isinstance(pools, tuple) and pool in pools)
            elif its_pool == pool:
                its_sessions = number if isinstance(number, int) and number >= 0 else None
                started = more[0] if more and isinstance(more[0], int) else -math.inf
                others.append(Announced(mailbox, str(its_app), its_sessions, (started - self._started) / 1000))
        if has_keys and not self._consumer.stopped:
            self._pool = pool
            self._consumer.claim_by_key(self._assignments.place(pool))
            self._assignments.join(pool)
        return others

    def announce_keys(self, pools: Sequence[str]) -> None:
        self._write_announcement((OFFERS_BY_KEY, "", None, tuple(pools)))

    def _write_announcement(self, own: tuple[Any, ...]) -> None:
        """Register what this process does."""
        key = self._keys.apps
        self._pipeline.write(("HSET", key, self.mailbox, self._entries.pack(key, own)), self._on_announced)
        self._pipeline.write(("EXPIRE", key, APPS_SECONDS), ignore_reply)

    def _on_announced(self, reply: object) -> None:
        if isinstance(reply, RedisError) and str(reply).startswith("WRONGTYPE"):
            self._found_wrong_type()

    def requeue(self, claim: Claim) -> None:
        self._consumer.requeue(claim)

    def release(self, claim: Claim, why: str) -> None:
        self._consumer.release(claim, why)

    @property
    def unreadable(self) -> str | None:
        return self._consumer.unreadable.why or self._acking_consumer.unreadable.why

    async def take(self, channel: str, limit: int, *, once: bool = False) -> list[Delivery]:
        return await self._acking_consumer.take(require_channel(channel), limit, once=once)

    def acknowledge(self, delivery: Delivery) -> None:
        self._acking_consumer.acknowledge(delivery)

    def give_back(self, delivery: Delivery, *, delay: float = 0.0) -> None:
        self._acking_consumer.give_back(delivery, require_delay(delay))

    def _until(self) -> float:
        """Return when a call stops waiting for a Redis that is away, by the event loop's clock."""
        return self._loop.time() + self._wait

    async def join_group(self, group: str) -> None:
        await self._memberships.join(require_any_group(group), self._until())

    async def leave_group(self, group: str) -> None:
        await self._memberships.leave(require_any_group(group), self._until())

    @property
    def presence(self) -> RedisPresence:
        return self._presence

    async def drain(self) -> None:
        await self._pipeline.drain()


def _check(frame: Frame) -> None:
    """Raise ValueError for a frame that is not a valid frame of the layer."""
    kind = frame[0]
    if kind in (MESSAGE, GROUP_MESSAGE):
        valid = len(frame) >= 3 and isinstance(frame[1], str) and isinstance(frame[2], dict)
    else:
        valid = kind == DEAD and len(frame) >= 3 and isinstance(frame[1], str) and isinstance(frame[2], bool)
    if not valid:
        raise ValueError(f"not a frame of the layer: {str(frame)[:100]}")


def _check_local(parts: object, message: object, delay: object, capacity: object) -> None:
    """Raise ValueError for an invalid message for process-local channels."""
    valid_capacity = isinstance(capacity, int) and capacity > 0
    if not isinstance(parts, tuple | list) or not isinstance(message, bytes) or not valid_capacity:
        raise ValueError(f"not a message for process-local channels: {str(parts)[:100]}")
    require_delay(delay)
